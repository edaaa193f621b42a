//! What a foreign origin must not get on this host unless the operator asks for it.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use stillmirror_receiver::{Check, Options};
use stillmirror_store::Store;

use crate::sender::Sender;
use crate::tree::{Tree, assert_same};
use crate::{Place, run};

#[test]
fn setuid_and_setgid_bits_of_files_are_kept_only_on_request() {
    let tree = Tree::default()
        .file("su", "program")
        .mode("su", 0o4755)
        .linked("sg", "group", 1)
        .mode("sg", 0o2755)
        .linked("sg-too", "group", 1)
        .mode("sg-too", 0o2755)
        .dir("shared")
        .mode("shared", 0o2775)
        .file("plain", "p");
    let (sender, place) = (Sender::of(&tree), Place::new());
    let mode = |name: &str| fs::metadata(place.file(name)).unwrap().mode() & 0o7777;
    let modes = || ["su", "sg", "sg-too", "shared", "plain"].map(mode);
    for (number, check) in [Check::Stat, Check::Hash, Check::None].into_iter().enumerate() {
        let report = run(Options { check, setid: false, ..place.mirror(&sender) }).unwrap();
        assert_eq!((report.setid_cleared, report.unchanged), (3, number > 0));
        assert_eq!(modes(), [0o755, 0o755, 0o755, 0o2775, 0o644]);
        // The generation says what is there, so that a daemon on this host serves it.
        let held = Store::open(&place.store()).unwrap().current().unwrap().unwrap();
        let row = |name: &str| held.list().find(name.as_bytes()).unwrap();
        assert_eq!(["su", "sg", "sg-too"].map(|name| row(name).permissions()), [0o755; 3]);
        assert_eq!(row("sg").link_leader(), row("sg-too").link_leader());
        assert_eq!(held.local().identity(row("su").number()).inode, fs::metadata(place.file("su")).unwrap().ino());
        assert!(held.origin().is_some());
    }
    let report = run(place.mirror(&sender)).unwrap();
    assert_eq!((report.setid_cleared, report.files_updated), (0, 0));
    assert_same(&place.dest(), &tree);
    assert!(Store::open(&place.store()).unwrap().current().unwrap().unwrap().origin().is_none());
    // The operator changed their mind.
    for check in [Check::Stat, Check::Hash] {
        run(Options { setid: true, ..place.mirror(&sender) }).unwrap();
        assert_eq!(mode("su"), 0o4755);
        run(Options { check, setid: false, ..place.mirror(&sender) }).unwrap();
        assert_eq!(modes(), [0o755, 0o755, 0o755, 0o2775, 0o644], "{check:?}");
    }
}

#[test]
fn device_files_are_made_only_on_request() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let tree = Tree::default().device("null", 1, 3).fifo("fifo").file("a", "a");
    let (sender, place) = (Sender::of(&tree), Place::new());
    for _ in 0..2 {
        let report = run(Options { devices: false, ..place.mirror(&sender) }).unwrap();
        assert_eq!((report.devices_skipped, report.failed.len()), (1, 0));
        assert!(!place.file("null").exists());
        assert!(fs::symlink_metadata(place.file("fifo")).unwrap().file_type().is_fifo());
    }
    let report = run(place.mirror(&sender)).unwrap();
    if report.failed.is_empty() {
        // Some containers allow no device files.
        let metadata = fs::symlink_metadata(place.file("null")).unwrap();
        assert!(metadata.file_type().is_char_device());
        assert_eq!(metadata.rdev(), rustix::fs::makedev(1, 3));
    }
}
