//! A store rots, before the daemon starts and under it.
//!
//! A short form of `benches/system/rsync_rot.py`.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::peers::{index, pull};
use crate::pull::signal;
use crate::support::*;

/// Flips of one run.
const FLIPS: u64 = 36;

/// Changes one byte, in place: who has the file mapped sees it.
fn flip(path: &Path, at: u64, bits: u8) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ bits], at).unwrap();
}

/// The files of a store that are read for a client, but for `repository`, with which no daemon starts.
fn parts(store: &Path) -> Vec<PathBuf> {
    let mut parts: Vec<_> = files(store).into_keys().filter(|path| !path.ends_with("repository")).collect();
    parts.retain(|path| !path.ends_with("lock") && !path.starts_with("generations/1"));
    parts
}

/// What is read from the tree, left out or made again where it is damaged, so that no client notices.
fn is_mended(part: &Path) -> bool {
    part.starts_with("sums") || part.ends_with("list.zst") || part.ends_with("delta")
}

#[test]
fn no_client_takes_what_rotted_for_what_was_indexed() {
    let world = World::with_tree();
    (0..60).for_each(|n| write(&world.src().join(format!("many/f{n}")), &noise(n * 150, n as u64)));
    index(&world);
    write(&world.src().join("README"), b"of the second generation");
    index(&world);
    let store = world.path("store");
    let parts = parts(&store);
    assert!(parts.iter().any(|part| is_mended(part)), "{parts:?}");
    let source = files(&world.src());
    let mut random = noise(FLIPS as usize * 4, 11).into_iter().map(u64::from);
    for n in 0..FLIPS {
        // The contents of a store are most of it, and what it is for.
        let part = match n % 3 {
            0 => parts.iter().find(|part| part.ends_with("1.pack")).unwrap(),
            _ => &parts[random.next().unwrap() as usize % parts.len()],
        };
        let path = store.join(part);
        let good = std::fs::read(&path).unwrap();
        let at = (((random.next().unwrap() << 8) | random.next().unwrap()) * good.len() as u64) >> 16;
        let bits = 1 << (n % 8);
        // The list and the local facts are checked when they are opened.
        let runs = n % 2 == 1 && !part.ends_with("list") && !part.ends_with("local");
        if !runs {
            flip(&path, at, bits);
        }
        let mut server = world.serve();
        if runs {
            assert_eq!(pull(&server.address, &["-a", "{M}/", "{D}/"], &world.path("before")).code, Some(0));
            flip(&path, at, bits);
        }
        let what = format!("byte {at} of {}, flip {n}, under the daemon: {runs}", part.display());
        let protocol = format!("--protocol={}", 27 + n % 6);
        let options = [&["-a"][..], &["-ac"], &["-az"]][n as usize / 6 % 3];
        let dest = world.path(&format!("dest-{}", n % 4));
        let pulled = pull(&server.address, &[options, &[&protocol, "--delete", "{M}/", "{D}/"]].concat(), &dest);
        let native = world.pull_command(&server).arg("--delete").output().unwrap();
        assert!(pulled.code != Some(0) || files(&dest) == source, "{what}: a stock client");
        assert!(native.status.code() != Some(0) || files(&world.dest()) == source, "{what}: a pull");
        if is_mended(part) || runs {
            assert_eq!((pulled.code, native.status.code()), (Some(0), Some(0)), "{what}: {}", pulled.errors);
        }
        std::fs::write(&path, good).unwrap();
        if n % 2 == 0 {
            // Half of the clients have nothing yet.
            for own in [&dest, &world.dest(), &world.path("dest-store")] {
                let _ = std::fs::remove_dir_all(own);
            }
        }
        signal("TERM", server.pid());
        assert_eq!(server.wait(), Some(0), "{what}");
        assert!(!server.logged_so_far().contains("panicked"), "{what}");
        assert!(!String::from_utf8_lossy(&native.stderr).contains("panicked"), "{what}");
    }
}
