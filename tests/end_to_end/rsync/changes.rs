//! The tree changes, with and without a new generation, while stock clients pull.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::peers::{Pair, index, pull};
use crate::support::*;

/// Waits until our daemon has taken up a generation with this name in it.
pub(super) fn wait_for(pair: &Pair, name: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while pull(&pair.ours.address, &["--list-only", &format!("{{M}}/{name}")], &pair.world.path("nowhere")).code
        != Some(0)
    {
        assert!(Instant::now() < deadline, "{name} does not come");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_file_that_is_not_the_indexed_one_is_as_vanished_and_the_rest_comes() {
    let pair = Pair::new();
    std::fs::write(pair.world.src().join("README"), b"rewritten since").unwrap();
    std::fs::remove_file(pair.world.src().join("sizes/1")).unwrap();
    for (protocol, code) in [(27, 23), (28, 23), (29, 23), (30, 24), (31, 24), (32, 24)] {
        let dest = pair.world.path(&format!("stale-{protocol}"));
        let pulled =
            pull(&pair.ours.address, &["-aH", "--delete", &format!("--protocol={protocol}"), "{M}/", "{D}/"], &dest);
        assert_eq!(pulled.code, Some(code), "at {protocol}: {}", pulled.errors);
        let logged = pair.ours.logged("rsync session");
        assert!(logged.contains(&format!("exit={code}")), "at {protocol}: {logged}");
        for gone in ["README", "sizes/1"] {
            assert!(!pulled.tree.contains_key(std::path::Path::new(gone)), "{gone} came at {protocol}");
            assert!(pulled.errors.contains(gone), "{gone} is not named at {protocol}: {}", pulled.errors);
        }
        assert_eq!(pulled.tree[std::path::Path::new("sizes/300001")].content.len(), 300_001);
    }
    index(&pair.world);
    let dest = pair.world.path("stale-32");
    let deadline = Instant::now() + Duration::from_secs(20);
    while pull(&pair.ours.address, &["-aH", "--delete", "{M}/", "{D}/"], &dest).code != Some(0) {
        assert!(Instant::now() < deadline, "the next generation does not come");
    }
    assert_eq!(files(&pair.world.src()), files(&dest));
}

#[test]
fn pulls_during_publishing_end_well_and_the_next_one_converges() {
    let world = World::with_tree();
    index(&world);
    let server = world.serve();
    let over = AtomicBool::new(false);
    let ways: [&[&str]; 3] = [
        &["-aH", "--delete"],
        &["-rltp", "--delete-after", "--no-inc-recursive"],
        &["-ac", "--delete", "--protocol=29"],
    ];
    std::thread::scope(|scope| {
        let clients: Vec<_> = ways
            .iter()
            .enumerate()
            .map(|(number, options)| {
                let (dest, address, over) = (world.path(&format!("dest-{number}")), &server.address, &over);
                scope.spawn(move || {
                    let mut codes = Vec::new();
                    while !over.load(Ordering::Relaxed) {
                        codes.push(pull(address, &[*options, &["{M}/", "{D}/"]].concat(), &dest).code);
                    }
                    codes
                })
            })
            .collect();
        for round in 0..12_usize {
            write(&world.src().join("README"), &noise(1000 + round, 1));
            write(&world.src().join(format!("pool/new/{round}")), &noise(20_000, 3));
            let _ = std::fs::remove_file(world.src().join(format!("pool/new/{}", round.wrapping_sub(3))));
            std::thread::sleep(Duration::from_millis(20));
            index(&world);
        }
        over.store(true, Ordering::Relaxed);
        for client in clients {
            for code in client.join().unwrap() {
                assert!(matches!(code, Some(0 | 23 | 24)), "exit {code:?}");
            }
        }
    });
    write(&world.src().join("the-last"), b"");
    index(&world);
    for (number, options) in ways.iter().enumerate() {
        let dest = world.path(&format!("dest-{number}"));
        let deadline = Instant::now() + Duration::from_secs(20);
        while !dest.join("the-last").exists() {
            assert!(Instant::now() < deadline, "the last generation does not come");
            pull(&server.address, &[*options, &["{M}/", "{D}/"]].concat(), &dest);
        }
        let pulled = pull(&server.address, &[*options, &["{M}/", "{D}/"]].concat(), &dest);
        assert_eq!(pulled.code, Some(0), "{}", pulled.errors);
        assert_eq!(files(&world.src()), files(&dest));
    }
}

#[test]
fn what_rotted_in_the_store_comes_from_the_tree_when_a_client_asks_again() {
    let world = World::with_tree();
    let names = ["first", "deep/er/second", "z/third"];
    for (seed, name) in (50..).zip(names) {
        write(&world.src().join(name), &noise(5_000, seed));
    }
    index(&world);
    for pack in std::fs::read_dir(world.path("store/sums")).unwrap() {
        let pack = pack.unwrap().path();
        let mut bytes = std::fs::read(&pack).unwrap();
        for seed in 50..53 {
            let sound = noise(5_000, seed);
            let at = bytes.windows(sound.len()).position(|window| window == sound).unwrap();
            bytes[at + 4_000] ^= 1;
        }
        std::fs::write(&pack, bytes).unwrap();
    }
    let server = world.serve();
    for protocol in ["--protocol=30", "--protocol=31", "--protocol=32"] {
        for options in [&["-av"][..], &["-avH", "--no-inc-recursive"], &["-avz"], &["-av", "--append-verify"]] {
            let dest = world.path("redone");
            let pulled = pull(&server.address, &[&[protocol], options, &["{M}/", "{D}/"]].concat(), &dest);
            assert_eq!(pulled.code, Some(0), "{protocol} {options:?}: {}", pulled.errors);
            for name in names {
                assert!(pulled.errors.contains(&format!("{name} failed verification")), "{}", pulled.errors);
            }
            assert_eq!(files(&world.src()), files(&dest));
            std::fs::remove_dir_all(&dest).unwrap();
        }
    }
    let pulled = pull(&server.address, &["-a", "{M}/first", "{D}"], &world.path("alone"));
    assert_eq!(pulled.code, Some(0), "{}", pulled.errors);
    assert_eq!(std::fs::read(world.path("alone")).unwrap(), noise(5_000, 50));
}
