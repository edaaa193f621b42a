use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use stillmirror_protocol::wire::Request;
use stillmirror_receiver::{Check, Options, PullError, Report};
use stillmirror_store::Store;

use crate::sender::{Behaviour, Sender};
use crate::tree::{Tree, assert_same, noise};
use crate::{Place, run};

fn cut(bytes: usize) -> Behaviour {
    Behaviour { cut: Some(bytes), ..Behaviour::default() }
}

/// Pulls until a pull ends by itself. The connection of each breaks after `step` bytes. Returns the last report, and the
/// number of bytes that the sender sent to all of them.
fn pull_in_steps(sender: &Sender, options: &Options, step: usize) -> (Report, u64) {
    let mut sent = 0;
    for _ in 0..1000 {
        sender.behave(cut(step));
        match run(options.clone()) {
            Ok(report) => return (report.clone(), sent + report.bytes_received),
            Err(error) => assert!(matches!(error, PullError::Socket { .. }), "{error}"),
        }
        sent += step as u64;
    }
    panic!("no pull ends");
}

/// A tree of small and large files.
fn sample(version: u8) -> Tree {
    let small =
        (0..300u64).fold(Tree::default(), |tree, number| tree.file(&format!("s/{number}"), noise(5_000, number)));
    (0..6u64).fold(small, |tree, number| {
        let mut content = noise(1_000_000 + 7 * number as usize, 1000 + number);
        for place in 0..20 {
            content[40_000 * place] ^= version;
        }
        tree.file(&format!("large/{number}"), content)
    })
}

#[test]
fn however_often_the_connection_breaks_nothing_that_arrived_is_sent_again() {
    let clean = {
        let (sender, place) = (Sender::of(&sample(0)), Place::new());
        run(place.mirror(&sender)).unwrap().bytes_received
    };
    let (sender, place) = (Sender::of(&sample(0)), Place::new());
    let (_, sent) = pull_in_steps(&sender, &place.mirror(&sender), 150_000);
    assert_same(&place.dest(), &sample(0));
    assert!(sent <= clean + clean / 50, "{sent} bytes instead of {clean}");
}

#[test]
fn however_often_the_connection_breaks_no_list_and_no_block_checksums_are_sent_again() {
    let updated = |place: &Place, sender: &Sender| {
        run(place.mirror(sender)).unwrap();
        sender.publish(&sample(1));
    };
    let clean = {
        let (sender, place) = (Sender::of(&sample(0)), Place::new());
        updated(&place, &sender);
        run(place.mirror(&sender)).unwrap().bytes_received
    };
    let (sender, place) = (Sender::of(&sample(0)), Place::new());
    updated(&place, &sender);
    let (_, sent) = pull_in_steps(&sender, &place.mirror(&sender), 40_000);
    assert_same(&place.dest(), &sample(1));
    // Each attempt costs a hello and a head.
    assert!(sent <= clean + clean / 50 + 1000, "{sent} bytes instead of {clean}");
}

#[test]
fn a_list_that_arrived_is_not_requested_again_and_another_one_is() {
    let (sender, place) = (Sender::of(&sample(0)), Place::new());
    sender.behave(cut(1_000_000));
    run(place.mirror(&sender)).unwrap_err();
    sender.requests();
    run(place.mirror(&sender)).unwrap_err();
    let lists = |sender: &Sender| sender.requests().iter().filter(|one| matches!(one, Request::List { .. })).count();
    assert_eq!(lists(&sender), 0);
    let next = sample(0).file("new", "new");
    sender.publish(&next);
    sender.behave(Behaviour::default());
    run(place.mirror(&sender)).unwrap();
    assert_eq!(lists(&sender), 1);
    assert_same(&place.dest(), &next);
}

fn stage(place: &Place) -> PathBuf {
    place.file(".stillmirror-stage")
}

/// Returns the only part in the staging directory.
fn part(place: &Place) -> PathBuf {
    let names = fs::read_dir(stage(place)).unwrap().map(|entry| entry.unwrap().path());
    let mut parts = names.filter(|path| path.extension().is_some_and(|suffix| suffix == "part"));
    let part = parts.next().unwrap();
    assert_eq!(parts.next(), None);
    part
}

#[test]
fn after_a_power_failure_only_the_lost_blocks_of_a_part_are_fetched() {
    let tree = Tree::default().file("a", noise(8_000_000, 1));
    let (sender, place) = (Sender::of(&tree), Place::new());
    sender.behave(cut(6_000_000));
    run(place.mirror(&sender)).unwrap_err();
    let part = fs::File::options().write(true).open(part(&place)).unwrap();
    part.write_all_at(&[0; 50_000], 3_000_000).unwrap();
    sender.behave(Behaviour::default());
    let report = run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &tree);
    assert!(report.bytes_literal < 2_000_000 + 60_000, "{report:?}");
    assert!(report.bytes_checksums < 20_000, "{report:?}");
}

#[test]
fn after_a_power_failure_only_the_lost_blocks_of_a_complete_content_are_fetched() {
    let tree = Tree::default().file("a", noise(2_000_000, 1)).file("b", noise(4_000_000, 2));
    let (sender, place) = (Sender::of(&tree), Place::new());
    sender.behave(cut(4_000_000));
    run(place.mirror(&sender)).unwrap_err();
    let complete = stage(&place).join(stillmirror_protocol::list::digest(&noise(2_000_000, 1)).to_string());
    let complete = fs::File::options().write(true).open(complete).unwrap();
    complete.write_all_at(&[0; 50_000], 0).unwrap();
    sender.behave(Behaviour::default());
    let report = run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &tree);
    assert!(report.bytes_literal < 2_000_000 + 60_000 + 5_000, "{report:?}");
}

#[test]
fn any_state_of_what_is_kept_besides_contents_costs_at_most_its_bytes() {
    for name in ["answer", "sums"] {
        for content in [&b""[..], b"junk", &noise(500, 1), &[0; 2000]] {
            let (sender, place) = (Sender::of(&sample(0)), Place::new());
            run(place.mirror(&sender)).unwrap();
            sender.publish(&sample(1));
            sender.behave(cut(20_000));
            run(place.mirror(&sender)).unwrap_err();
            let kept = if name == "sums" { stage(&place).join(name) } else { place.store().join(name) };
            assert!(kept.exists());
            fs::write(kept, content).unwrap();
            sender.behave(Behaviour::default());
            run(place.mirror(&sender)).unwrap();
            assert_same(&place.dest(), &sample(1));
        }
    }
}

#[test]
fn zeros_at_the_end_of_a_part_are_not_fetched_again() {
    let tree = Tree::default().file("a", [noise(100_000, 1), vec![0; 5_000_000], noise(100_000, 2)].concat());
    let (sender, place) = (Sender::of(&tree), Place::new());
    sender.behave(cut(4_000_000));
    run(place.mirror(&sender)).unwrap_err();
    sender.behave(Behaviour::default());
    let report = run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &tree);
    assert!(report.bytes_literal <= 5_200_000 - 4_000_000 + 5_000, "{report:?}");
}

#[test]
fn the_store_keeps_small_contents_that_arrived_in_pieces() {
    let (sender, place) = (Sender::of(&sample(0)), Place::new());
    pull_in_steps(&sender, &place.mirror(&sender), 150_000);
    let generation = Store::open(&place.store()).unwrap().current().unwrap().unwrap();
    let list = generation.list();
    for number in 0..300 {
        let row = list.find(format!("s/{number}").as_bytes()).unwrap();
        let record = generation.record(row.file_number().unwrap()).unwrap().unwrap();
        assert_eq!(record.content, noise(5_000, number));
    }
}

#[test]
fn a_pull_that_failed_before_it_staged_anything_leaves_the_tree_trusted() {
    let (sender, place) = (Sender::of(&sample(0)), Place::new());
    run(place.mirror(&sender)).unwrap();
    // Nobody looks at this, as long as the tree is trusted.
    fs::write(place.file("s/1"), "changed").unwrap();
    sender.publish(&sample(0).file("new", "new"));
    sender.tamper(|number, request, frames| match request {
        Request::List { .. } => vec![frames[0].clone(), stillmirror_protocol::wire::Reply::End.frame(number)],
        _ => frames,
    });
    run(place.mirror(&sender)).unwrap_err();
    sender.behave(Behaviour::default());
    let report = run(Options { check: Check::None, ..place.mirror(&sender) }).unwrap();
    assert_eq!(report.files_updated, 1);
}
