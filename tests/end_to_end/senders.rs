//! Pulls from several real daemons, behind connections that fail.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use serde_json::Value;

use crate::support::*;

/// What happens to each connection after this many bytes from the daemon.
#[derive(Clone, Copy)]
enum Fault {
    Cut(usize),
    Stall(usize),
    /// Every so many bytes, one bit is flipped.
    Flip(usize),
}

/// Forwards connections to a daemon with a fault. Returns its address.
fn proxy(server: &Server, fault: Fault) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, upstream) = (listener.local_addr().unwrap().to_string(), server.address.clone());
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let daemon = TcpStream::connect(&upstream).unwrap();
            let (from_client, to_daemon) = (client.try_clone().unwrap(), daemon.try_clone().unwrap());
            thread::spawn(move || copy(from_client, to_daemon));
            thread::spawn(move || answer(daemon, client, fault));
        }
    });
    address
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

fn answer(mut from: TcpStream, mut to: TcpStream, fault: Fault) {
    let (mut done, mut buffer) = (0, vec![0; 16 << 10]);
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let bytes = &mut buffer[..read];
        match fault {
            Fault::Cut(after) if done + read > after => break,
            Fault::Stall(after) if done + read > after => {
                // Until the client gives up.
                let _ = to.read(&mut [0]);
                break;
            }
            Fault::Flip(every) => {
                let at = (done / every + 1) * every - done;
                bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= 4);
            }
            _ => {}
        }
        done += read;
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

fn served<'a>(report: &'a Value, address: &str) -> &'a Value {
    report["senders"].as_array().unwrap().iter().find(|sender| sender["address"] == address).unwrap()
}

/// Pulls from three daemons with faults, and from one of an older generation. Returns the report, the addresses of the three,
/// and the number of bytes that the fourth sent.
#[track_caller]
fn pull_past(faults: [Fault; 3]) -> (Value, Vec<String>, u64) {
    let world = World::new();
    for number in 0..40 {
        write(&world.src().join(format!("pool/{number:02}")), &noise(300_000, number));
    }
    world.index();
    // A mirror that has not pulled the next generation yet.
    let origin = world.serve();
    let mut command = stillmirror(&["pull", "--json", &origin.url("repo")]);
    json(&command.arg(world.path("older")).arg("--store").arg(world.path("older-store")).output().unwrap());
    write(&world.src().join("dists/stable/InRelease"), b"2");
    write(&world.src().join("pool/00"), &noise(300_000, 100));
    world.index();

    let daemons = [world.serve(), world.serve(), world.serve()];
    let bad: Vec<String> = daemons.iter().zip(faults).map(|(daemon, fault)| proxy(daemon, fault)).collect();
    let older = Server::start(&world.path("older"), &world.path("older-store"));
    let mut command = stillmirror(&["pull", "--json", "--timeout", "1s"]);
    command.args(bad.iter().map(|address| format!("stillmirror://{address}/repo"))).arg(older.url("repo"));
    let output = command.arg(world.dest()).arg("--store").arg(world.path("dest-store")).output().unwrap();
    let report = json(&output);
    assert_same_tree(&world.src(), &world.dest());
    assert_eq!((&report["generation"], &report["failed"]), (&Value::from(2), &serde_json::json!([])), "{report}");
    let bytes = served(&report, &older.address)["bytes_received"].as_u64().unwrap();
    assert!(served(&report, &older.address)["failure"].is_null(), "{report}");
    (report, bad, bytes)
}

#[test]
fn of_three_daemons_one_dies_one_stalls_and_one_flips_some_bits_and_the_pull_completes() {
    let (report, bad, _) = pull_past([Fault::Cut(1_000_000), Fault::Stall(800_000), Fault::Flip(150_000)]);
    for address in &bad[..2] {
        assert!(served(&report, address)["failure"].is_string(), "{report}");
    }
}

#[test]
fn what_three_failing_daemons_do_not_deliver_comes_from_one_of_an_older_generation() {
    let (report, bad, older) = pull_past([Fault::Cut(600_000), Fault::Stall(500_000), Fault::Cut(400_000)]);
    for address in &bad {
        assert!(served(&report, address)["failure"].is_string(), "{report}");
    }
    // After three failures, a daemon is not asked again. So they sent at most 4.5 of the 12 MB.
    assert!((7_000_000..11_900_000).contains(&older), "{report}");
}
