//! A small tree with everything unusual, and what a publisher changes in it.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};

use super::peers::am_root;
use crate::support::*;

/// A time in the past, which cannot be confused with one that a client's clock set.
pub(super) const SOME_TIME: i64 = 1_500_000_000;

/// Creates the tree. Without root, it has no other owners and no devices.
pub(super) fn make(root: &Path) {
    for (path, len) in [
        ("README", 100),
        ("sizes/0", 0),
        ("sizes/1", 1),
        ("sizes/32767", 32_767),
        ("sizes/32769", 32_769),
        ("sizes/300001", 300_001),
    ] {
        file(root, path, len);
    }
    write(&root.join("text"), &b"a line of text that compresses\n".repeat(3000));
    for name in ODD {
        write(&root.join("odd").join(OsStr::from_bytes(name)), name);
        write(&root.join("odd folders").join(OsStr::from_bytes(name)).join("inner"), name);
    }
    let deep =
        (0..12).fold(root.join("deep"), |path, level| path.join(char::from(b'a' + level).to_string().repeat(100)));
    write(&deep.join("bottom"), b"reached");
    for name in ["a/b", "a/b-", "a.d/x", "a-d/x", "a-b", "a.txt", "a0", "a0d/x", "Z", ".z", "a/.x", "a/c/d"] {
        file(root, &format!("order/{name}"), 5);
    }
    for name in [
        "stable/Release",
        "stable/InRelease",
        "stable/main/binary-amd64/Packages.gz",
        "stable/main/by-hash/SHA256/0123",
        "stable/main/i18n/Translation-en",
    ] {
        file(root, &format!("dists/{name}"), 500);
    }
    for name in [
        "pool/a/alpha_1.0_amd64.deb",
        "pool/a/alpha_1.0.dsc",
        "pool/b/beta_2.0_i386.deb",
        "project/trace/master",
        "ls-lR.gz",
        ".~tmp~/left",
        "x.o",
        "CVS/Entries",
    ] {
        file(root, name, 3000);
    }
    for name in
        ["grows", "shrinks", "same-size", "same-all", "touched", "chmodded", "to-folder", "goes/deep/file", "pkg_1.0"]
    {
        file(root, &format!("changing/{name}"), 50_000);
    }
    for name in ["empty/nested", "dists/.empty"] {
        std::fs::create_dir_all(root.join(name)).unwrap();
    }
    link_groups(root);
    special(root);
    modes_and_owners(root);
    times(root);
}

const ODD: [&[u8]; 12] = [
    b"sp ace",
    b"new\nline",
    b"-dash",
    b".hidden",
    b"...",
    b"high\x80\xff",
    b"caf\xc3\xa9",
    b"back\\slash",
    b"star*",
    b"[class]",
    b"#hash",
    &[b'n'; 255],
];

fn file(root: &Path, name: &str, len: usize) {
    write(&root.join(name), &noise(len, name.len() as u64 * 7919 + len as u64));
}

fn link_groups(root: &Path) {
    file(root, "links/leader", 40_000);
    std::fs::create_dir_all(root.join("links/z")).unwrap();
    std::fs::create_dir_all(root.join("aa")).unwrap();
    for name in ["links/second", "links/z/third", "aa/fourth", "zz-fifth"] {
        std::fs::hard_link(root.join("links/leader"), root.join(name)).unwrap();
    }
    for pair in 0..5 {
        file(root, &format!("links/pair{pair}"), 100 + pair);
        std::fs::hard_link(root.join(format!("links/pair{pair}")), root.join(format!("aa/pair{pair}"))).unwrap();
    }
    std::fs::create_dir(root.join("symlinks")).unwrap();
    for (name, target) in [
        ("ok", "../README"),
        ("dangling", "nowhere"),
        ("absolute", "/etc/hostname"),
        ("up", "../../../etc"),
        ("folder", "../sizes"),
    ] {
        symlink(target, root.join("symlinks").join(name)).unwrap();
    }
    symlink(OsStr::from_bytes(b"high\xff \n"), root.join("symlinks/odd")).unwrap();
    for name in ["aa/symlink", "links/symlink", "symlinks/z/same"] {
        std::fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        std::fs::hard_link(root.join("symlinks/ok"), root.join(name)).unwrap();
    }
}

/// Creates fifos and, as root, devices.
fn special(root: &Path) {
    let dir = root.join("special");
    std::fs::create_dir(&dir).unwrap();
    let node = |name: &str, kind, (major, minor)| {
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(CWD, dir.join(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
    };
    node("fifo", FileType::Fifo, (0, 0));
    node("fifo2", FileType::Fifo, (0, 0));
    for name in ["special/fifo3", "zz-fifo"] {
        std::fs::hard_link(dir.join("fifo"), root.join(name)).unwrap();
    }
    if am_root() {
        node("null", FileType::CharacterDevice, (1, 3));
        node("zero", FileType::CharacterDevice, (1, 5));
        node("block", FileType::BlockDevice, (7, 300));
        node("wide", FileType::BlockDevice, (4095, 524_287));
        std::fs::hard_link(dir.join("null"), root.join("zz-null")).unwrap();
    }
}

fn modes_and_owners(root: &Path) {
    for mode in [0o4755, 0o2711, 0o1644, 0o600, 0o777] {
        let (file, folder) = (root.join(format!("modes/f{mode:o}")), root.join(format!("modes/d{mode:o}")));
        write(&file, b"mode");
        std::fs::create_dir(&folder).unwrap();
        for path in [file, folder] {
            std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
    }
    for (uid, gid) in [(1, 1), (0, 3), (12345, 23456), (2_000_000_000, 7)] {
        let path = root.join(format!("owners/{uid}-{gid}"));
        write(&path, b"owner");
        if am_root() {
            lchown(path, Some(uid), Some(gid)).unwrap();
        }
    }
}

/// Every name gets a time of its own, some of them odd; directories last.
fn times(root: &Path) {
    let odd = [
        (0, 0),
        (0, 1),
        (-60, 500_000_000),
        (-1, 0),
        (2_147_483_648, 5),
        (4_294_967_297, 0),
        (1_700_000_000, 999_999_999),
    ];
    for (sec, nsec) in odd {
        write(&root.join(format!("times/{sec}.{nsec}")), b"time");
    }
    settle(root);
    for (sec, nsec) in odd {
        touch(&root.join(format!("times/{sec}.{nsec}")), sec, nsec);
    }
}

/// Gives all entries different times in the past, the same in every run.
fn settle(root: &Path) {
    let (mut all, mut next) = (vec![root.to_owned()], 0);
    while let Some(path) = all.get(next).cloned() {
        if path.symlink_metadata().unwrap().is_dir() {
            let mut below: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            below.sort();
            all.extend(below);
        }
        next += 1;
    }
    for (number, path) in all.iter().enumerate().rev() {
        let number = i64::try_from(number).unwrap();
        touch(path, SOME_TIME + number, number * 1_000_003 % 1_000_000_000);
    }
}

pub(super) fn touch(path: &Path, sec: i64, nsec: i64) {
    let time = Timespec { tv_sec: sec, tv_nsec: nsec };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Changes the tree as publishers do between two pulls, and in rarer ways.
pub(super) fn change(root: &Path) {
    let at = |name: &str| root.join(name);
    let edit = |name: &str, len: usize| {
        file(root, name, len);
        touch(&at(name), SOME_TIME + 500_000, 5);
    };
    let grown = [std::fs::read(at("changing/grows")).unwrap(), noise(30_000, 5)].concat();
    write(&at("changing/grows"), &grown);
    touch(&at("changing/grows"), SOME_TIME + 500_000, 7);
    edit("changing/shrinks", 20_001);
    edit("sizes/300001", 300_002);
    write(&at("changing/same-size"), &noise(50_000, 99));
    touch(&at("changing/same-size"), SOME_TIME + 500_000, 9);
    let before = std::fs::metadata(at("changing/same-all")).unwrap().modified().unwrap();
    write(&at("changing/same-all"), &noise(50_000, 98));
    std::fs::File::open(at("changing/same-all")).unwrap().set_modified(before).unwrap();
    touch(&at("changing/touched"), SOME_TIME + 500_001, 1);
    std::fs::set_permissions(at("changing/chmodded"), Permissions::from_mode(0o600)).unwrap();
    std::fs::remove_file(at("changing/to-folder")).unwrap();
    edit("changing/to-folder/now a folder", 10);
    std::fs::remove_dir_all(at("changing/goes")).unwrap();
    std::fs::rename(at("changing/pkg_1.0"), at("changing/pkg_1.1")).unwrap();
    std::fs::remove_file(at("links/leader")).unwrap();
    edit("links/leader", 100);
    std::fs::hard_link(at("README"), at("links/now-linked")).unwrap();
    std::fs::remove_file(at("symlinks/ok")).unwrap();
    symlink("elsewhere", at("symlinks/ok")).unwrap();
    touch(&at("symlinks/ok"), SOME_TIME + 500_000, 11);
    edit("brand/new/file", 70_000);
    edit("odd/another\nnew", 10);
    std::fs::remove_dir_all(at("empty")).unwrap();
    for dir in ["", "changing", "changing/to-folder", "links", "symlinks", "brand", "brand/new", "odd", "sizes"] {
        touch(&at(dir), SOME_TIME + 600_000, 13);
    }
}

/// Changes a mirror as years do: some files are truncated or touched, others do not belong to it.
pub(super) fn damage(root: &Path) {
    let at = |name: &str| root.join(name);
    std::fs::File::options().write(true).open(at("sizes/32769")).unwrap().set_len(10_000).unwrap();
    touch(&at("sizes/32769"), 1_400_000_000, 0);
    touch(&at("README"), 1_600_000_000, 0);
    std::fs::set_permissions(at("text"), Permissions::from_mode(0o600)).unwrap();
    for name in ["extra/one", "extra/two/three", "links/extra", "odd/ex\ntra", "aa/extra.gz", ".~tmp~/stale"] {
        file(root, name, 100);
    }
    let content = std::fs::read(at("aa/pair1")).unwrap();
    std::fs::remove_file(at("aa/pair1")).unwrap();
    write(&at("aa/pair1"), &content);
    touch(&at("aa/pair1"), 1_400_000_000, 0);
    std::fs::remove_file(at("symlinks/up")).unwrap();
    symlink("wrong", at("symlinks/up")).unwrap();
}

/// Makes everything older than any run by more than a second, because old protocols round times to seconds.
pub(super) fn age(root: &Path) {
    let find = std::process::Command::new("find")
        .arg(root)
        .args(["-exec", "touch", "-h", "-d", "2020-02-02", "{}", "+"])
        .status();
    assert!(find.expect("find runs").success());
}
