//! Stores that are damaged, before the daemon starts and while it runs. A short form of `benches/system/rsync_rot.py`.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::peers::{index, pull};
use crate::pull::signal;
use crate::support::*;

/// The number of bits that are flipped, one after the other.
const FLIPS: u64 = 36;

/// Changes one byte in place, so that processes that have mapped the file see it.
fn flip(path: &Path, at: u64, bits: u8) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ bits], at).unwrap();
}

/// Returns the files of a store that are read for clients, except `repository`: no daemon starts if that is damaged.
fn parts(store: &Path) -> Vec<PathBuf> {
    let mut parts: Vec<_> = files(store).into_keys().filter(|path| !path.ends_with("repository")).collect();
    parts.retain(|path| !path.ends_with("lock") && !path.starts_with("generations/1"));
    parts
}

/// Returns whether damage to a file goes unnoticed by clients: its data is read from the tree, left out or recomputed.
fn is_recovered(part: &Path) -> bool {
    part.starts_with("sums") || part.ends_with("list.zst") || part.ends_with("delta")
}

#[test]
fn no_client_gets_damaged_data_with_exit_code_0() {
    let world = World::with_tree();
    (0..60).for_each(|n| write(&world.src().join(format!("many/f{n}")), &noise(n * 150, n as u64)));
    index(&world);
    write(&world.src().join("README"), b"of the second generation");
    index(&world);
    let store = world.path("store");
    let parts = parts(&store);
    assert!(parts.iter().any(|part| is_recovered(part)), "{parts:?}");
    let source = files(&world.src());
    let mut random = noise(FLIPS as usize * 4, 11).into_iter().map(u64::from);
    for n in 0..FLIPS {
        // Every third flip hits the pack, which is the largest part of a store.
        let part = match n % 3 {
            0 => parts.iter().find(|part| part.ends_with("1.pack")).unwrap(),
            _ => &parts[random.next().unwrap() as usize % parts.len()],
        };
        let path = store.join(part);
        let good = std::fs::read(&path).unwrap();
        let at = (((random.next().unwrap() << 8) | random.next().unwrap()) * good.len() as u64) >> 16;
        let bits = 1 << (n % 8);
        // The list and the local facts are only checked when they are opened.
        let while_running = n % 2 == 1 && !part.ends_with("list") && !part.ends_with("local");
        if !while_running {
            flip(&path, at, bits);
        }
        let mut server = world.serve();
        if while_running {
            assert_eq!(pull(&server.address, &["-a", "{M}/", "{D}/"], &world.path("before")).code, Some(0));
            flip(&path, at, bits);
        }
        let what = format!("byte {at} of {}, flip {n}, while the daemon runs: {while_running}", part.display());
        let protocol = format!("--protocol={}", 27 + n % 6);
        let options = [&["-a"][..], &["-ac"], &["-az"]][n as usize / 6 % 3];
        let dest = world.path(&format!("dest-{}", n % 4));
        let pulled = pull(&server.address, &[options, &[&protocol, "--delete", "{M}/", "{D}/"]].concat(), &dest);
        let native = world.pull_command(&server).arg("--delete").output().unwrap();
        assert!(pulled.code != Some(0) || files(&dest) == source, "{what}: a stock client");
        assert!(native.status.code() != Some(0) || files(&world.dest()) == source, "{what}: a pull");
        if is_recovered(part) || while_running {
            assert_eq!((pulled.code, native.status.code()), (Some(0), Some(0)), "{what}: {}", pulled.errors);
        }
        std::fs::write(&path, good).unwrap();
        if n % 2 == 0 {
            // Half of the clients start from nothing.
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
