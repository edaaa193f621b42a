//! Trees that change, with and without a new generation, while stock clients pull.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::peers::{Pair, index, pull};
use crate::support::*;

/// Waits until our daemon serves a generation that contains `name`.
pub(super) fn wait_for(pair: &Pair, name: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while pull(&pair.ours.address, &["--list-only", &format!("{{M}}/{name}")], &pair.world.path("nowhere")).code
        != Some(0)
    {
        assert!(Instant::now() < deadline, "{name} is never served");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_changed_file_is_reported_as_vanished_and_the_others_are_sent() {
    let pair = Pair::new();
    std::fs::write(pair.world.src().join("README"), b"rewritten since").unwrap();
    std::fs::remove_file(pair.world.src().join("sizes/1")).unwrap();
    for (protocol, code) in [(27, 23), (28, 23), (29, 23), (30, 24), (31, 24), (32, 24)] {
        let dest = pair.world.path(&format!("stale-{protocol}"));
        let pulled =
            pull(&pair.ours.address, &["-aH", "--delete", &format!("--protocol={protocol}"), "{M}/", "{D}/"], &dest);
        assert_eq!(pulled.code, Some(code), "at {protocol}: {}", pulled.errors);
        let logged = pair.ours.logged("dialect=rsync");
        assert!(logged.contains(&format!("exit={code}")), "at {protocol}: {logged}");
        for gone in ["README", "sizes/1"] {
            assert!(!pulled.tree.contains_key(std::path::Path::new(gone)), "{gone} was sent at {protocol}");
            assert!(pulled.errors.contains(gone), "{gone} is not named at {protocol}: {}", pulled.errors);
        }
        assert_eq!(pulled.tree[std::path::Path::new("sizes/300001")].content.len(), 300_001);
    }
    index(&pair.world);
    let dest = pair.world.path("stale-32");
    let deadline = Instant::now() + Duration::from_secs(20);
    while pull(&pair.ours.address, &["-aH", "--delete", "{M}/", "{D}/"], &dest).code != Some(0) {
        assert!(Instant::now() < deadline, "the next generation is never served");
    }
    assert_eq!(files(&pair.world.src()), files(&dest));
}

#[test]
fn pulls_during_publishing_end_cleanly_and_the_next_one_converges() {
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
            assert!(Instant::now() < deadline, "the last generation is never served");
            pull(&server.address, &[*options, &["{M}/", "{D}/"]].concat(), &dest);
        }
        let pulled = pull(&server.address, &[*options, &["{M}/", "{D}/"]].concat(), &dest);
        assert_eq!(pulled.code, Some(0), "{}", pulled.errors);
        assert_eq!(files(&world.src()), files(&dest));
    }
}

/// Flips one bit of each of these contents in the store's packs.
fn corrupt(world: &World, contents: &[Vec<u8>]) {
    for pack in std::fs::read_dir(world.path("store/sums")).unwrap() {
        let pack = pack.unwrap().path();
        let mut bytes = std::fs::read(&pack).unwrap();
        for content in contents {
            if let Some(at) = bytes.windows(content.len()).position(|window| window == content) {
                bytes[at + content.len() / 2] ^= 1;
            }
        }
        // Write in place, so that a daemon that has mapped the pack sees the change.
        std::fs::write(&pack, bytes).unwrap();
    }
}

#[test]
fn damaged_store_data_is_sent_from_the_tree_until_the_index_rewrites_it() {
    let world = World::with_tree();
    let contents: Vec<_> = (50..53).map(|seed| noise(5_000, seed)).collect();
    for (name, content) in ["first", "deep/er/second", "z/third"].iter().zip(&contents) {
        write(&world.src().join(name), content);
    }
    index(&world);
    let server = world.serve();
    assert_eq!(pull(&server.address, &["-a", "{M}/", "{D}/"], &world.path("before")).code, Some(0));
    corrupt(&world, &contents);
    for protocol in 27..=32 {
        let protocol = format!("--protocol={protocol}");
        for options in
            [&["-av"][..], &["-avH", "--no-inc-recursive"], &["-avz"], &["-av", "--append-verify"], &["-avc"]]
        {
            let dest = world.path("rotten");
            let pulled = pull(&server.address, &[&[&protocol[..]], options, &["{M}/", "{D}/"]].concat(), &dest);
            assert_eq!(pulled.code, Some(0), "{protocol} {options:?}: {}", pulled.errors);
            assert!(!pulled.errors.contains("failed verification"), "{protocol} {options:?}: {}", pulled.errors);
            assert_eq!(files(&world.src()), files(&dest), "{protocol} {options:?}");
            std::fs::remove_dir_all(&dest).unwrap();
        }
    }
    world.pull(&server);
    assert_same_tree(&world.src(), &world.dest());
    let line = server.logged("damaged in the store");
    assert!(line.contains("index --verify-store") && line.contains("second"), "{line}");
    drop(server);

    // Without the option, an index run sees no change and does not touch the store.
    assert_eq!(world.index()["published"], false);
    let repaired = json(&world.index_command().arg("--verify-store").output().unwrap());
    assert_eq!((&repaired["damaged"], &repaired["published"]), (&3.into(), &true.into()), "{repaired}");
    let again = json(&world.index_command().arg("--verify-store").output().unwrap());
    assert_eq!((&again["damaged"], &again["published"]), (&0.into(), &false.into()), "{again}");
    let verified = stillmirror(&["verify"]).arg(world.src()).arg("--store").arg(world.path("store")).output().unwrap();
    assert_exit(&verified, 0);
}

#[test]
fn a_damaged_pulled_store_is_served_from_the_tree_and_restored_by_a_pull() {
    let world = World::with_tree();
    let contents = [noise(5_000, 50)];
    write(&world.src().join("first"), &contents[0]);
    world.index();
    let origin = world.serve();
    world.pull(&origin);
    let store = world.path("dest-store");
    for pack in std::fs::read_dir(store.join("sums")).unwrap() {
        let pack = pack.unwrap().path();
        let mut bytes = std::fs::read(&pack).unwrap();
        bytes.iter_mut().skip(64).for_each(|byte| *byte ^= 1);
        std::fs::write(&pack, bytes).unwrap();
    }
    let verify = || stillmirror(&["verify"]).arg(world.dest()).arg("--store").arg(&store).output().unwrap();
    let found = verify();
    assert_exit(&found, 23);
    assert!(String::from_utf8_lossy(&found.stderr).contains("remove it and pull"), "{found:?}");
    let served = |what: &str| {
        let mirror = crate::support::Server::start(&world.dest(), &store);
        let dest = world.path(what);
        let pulled = pull(&mirror.address, &["-a", "--protocol=29", "{M}/", "{D}/"], &dest);
        assert_eq!(pulled.code, Some(0), "{}", pulled.errors);
        assert_eq!(files(&world.src()), files(&dest), "{what}");
    };
    served("rotten");
    std::fs::remove_dir_all(&store).unwrap();
    world.pull(&origin);
    assert_exit(&verify(), 0);
    served("again");
}
