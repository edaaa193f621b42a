use std::time::{Duration, Instant};

use stillmirror_protocol::wire::{ItemFailure, Request};
use stillmirror_receiver::{Failure, Options, PullError, Report};

use crate::sender::{Behaviour, Sender};
use crate::tree::{Tree, assert_same, noise};
use crate::{Place, run};

fn tree(version: u8) -> Tree {
    let files = 0..20u64;
    files.fold(Tree::default().file("version", [version]), |tree, number| {
        tree.file(&format!("pool/{number}"), noise(60_000, number + 1000 * u64::from(version)))
    })
}

/// Returns senders that all have the same generations.
fn senders(versions: impl IntoIterator<Item = u8> + Clone, count: usize) -> Vec<Sender> {
    let sender = |_| {
        let mut versions = versions.clone().into_iter();
        let sender = Sender::of(&tree(versions.next().unwrap()));
        versions.for_each(|version| sender.publish(&tree(version)));
        sender
    };
    (0..count).map(sender).collect()
}

fn from(place: &Place, senders: &[Sender]) -> Options {
    let alternatives = senders[1..].iter().map(|sender| sender.address.clone().into()).collect();
    Options { alternatives, timeout: Duration::from_millis(500), ..place.mirror(&senders[0]) }
}

/// Returns the bytes that a sender sent, and why it was left.
fn served(report: &Report, sender: &Sender) -> (u64, Option<String>) {
    let served = report.senders.iter().find(|served| served.address == sender.address).unwrap();
    (served.received, served.failure.clone())
}

fn without_answers_to_data() -> Behaviour {
    let tamper = |_, request: &Request, frames: Vec<Vec<u8>>| match request {
        Request::Data { .. } => Vec::new(),
        _ => frames,
    };
    Behaviour { tamper: Some(std::sync::Arc::new(tamper)), ..Behaviour::default() }
}

#[test]
fn of_several_senders_the_one_with_the_newest_generation_is_asked() {
    let place = Place::new();
    let mut all = senders([1], 2);
    all.extend(senders([1, 2], 2));
    let report = run(from(&place, &all)).unwrap();
    assert_same(&place.dest(), &tree(2));
    assert_eq!(report.generation, 2);
    let generations: Vec<_> = report.senders.iter().map(|served| served.generation).collect();
    assert_eq!(generations, [Some(1), Some(1), Some(2), Some(2)]);
    let received: Vec<_> = report.senders.iter().map(|served| served.received).collect();
    assert!(received[2] > 1_000_000 && received.iter().sum::<u64>() < received[2] + 3_000, "{received:?}");
    assert_eq!(report.bytes_received, received.iter().sum::<u64>());
    assert!(run(from(&place, &all)).unwrap().unchanged);
}

#[test]
fn senders_that_die_stall_or_send_wrong_bytes_are_left_and_what_came_is_kept() {
    let place = Place::new();
    let all = senders([1], 4);
    all[0].behave(Behaviour { cut: Some(400_000), ..Behaviour::default() });
    all[1].behave(without_answers_to_data());
    for number in 0..20 {
        all[2].rot(&format!("pool/{number}"));
    }
    let report = run(from(&place, &all)).unwrap();
    assert_same(&place.dest(), &tree(1));
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    for bad in &all[..3] {
        assert!(served(&report, bad).1.is_some(), "{:?}", report.senders);
    }
    assert_eq!(served(&report, &all[3]).1, None);
    // What the dying sender sent is not fetched again, although it dies more than once.
    assert!(served(&report, &all[0]).0 > 300_000 && served(&report, &all[3]).0 < 1_000_000, "{:?}", report.senders);
}

#[test]
fn files_that_one_sender_lacks_come_from_another() {
    let place = Place::new();
    let all = senders([1], 2);
    let missing =
        [("pool/3", ItemFailure::Vanished), ("pool/4", ItemFailure::Stale), ("pool/5", ItemFailure::Unreadable)];
    all[0].fail(&missing);
    let report = run(from(&place, &all)).unwrap();
    assert!(report.failed.is_empty());
    assert_same(&place.dest(), &tree(1));
    assert!(served(&report, &all[1]).0 < 4 * 60_000, "{:?}", report.senders);
    // If nobody has them, they are reported once, and the pull ends.
    let place = Place::new();
    let all = senders([1], 3);
    all.iter().for_each(|sender| sender.fail(&missing));
    let report = run(from(&place, &all)).unwrap();
    assert_eq!(report.failed.len(), 3);
}

#[test]
fn a_sender_of_a_wrong_list_is_left() {
    let place = Place::new();
    let all = senders([1], 2);
    all[0].tamper(|_, request, frames| match request {
        Request::List { .. } => frames.into_iter().take(1).collect(),
        _ => frames,
    });
    let report = run(from(&place, &all)).unwrap();
    assert_same(&place.dest(), &tree(1));
    assert!(served(&report, &all[0]).1.is_some());
}

#[test]
fn senders_that_are_away_or_silent_from_the_beginning_delay_a_pull_by_seconds() {
    let place = Place::new();
    let mut all = senders([1], 3);
    "127.0.0.1:1".clone_into(&mut all[0].address);
    all[1].behave(Behaviour { mute: true, ..Behaviour::default() });
    let started = Instant::now();
    let options = Options { timeout: Duration::from_secs(300), ..from(&place, &all) };
    let report = run(options).unwrap();
    assert!(started.elapsed() < Duration::from_secs(20));
    assert_same(&place.dest(), &tree(1));
    assert!(served(&report, &all[0]).1.unwrap().contains("cannot connect"));
    assert!(served(&report, &all[1]).1.unwrap().contains("no head within"));
}

#[test]
fn if_no_sender_is_left_the_pull_fails_and_the_next_one_continues() {
    let place = Place::new();
    let all = senders([1], 2);
    all.iter().for_each(|sender| sender.behave(Behaviour { cut: Some(100_000), ..Behaviour::default() }));
    assert!(matches!(run(from(&place, &all)), Err(PullError::Socket { .. } | PullError::Usage(_))));
    all[1].behave(Behaviour::default());
    let report = run(from(&place, &all)).unwrap();
    assert_same(&place.dest(), &tree(1));
    assert!(served(&report, &all[1]).0 < 1_200_000, "{:?}", report.senders);
}

#[test]
fn a_pull_goes_on_with_a_sender_that_publishes_something_newer_meanwhile() {
    let place = Place::new();
    let all = senders([1], 2);
    all[0].fail(&[("pool/3", ItemFailure::Vanished)]);
    all[1].fail(&[("pool/3", ItemFailure::Vanished)]);
    let options = Options { patience: Duration::from_secs(60), ..from(&place, &all) };
    let report = std::thread::scope(|scope| {
        let pull = scope.spawn(|| run(options).unwrap());
        std::thread::sleep(Duration::from_millis(600));
        all[1].publish(&tree(2));
        pull.join().unwrap()
    });
    assert_eq!(report.generation, 2);
    assert_same(&place.dest(), &tree(2));
}

/// The tree of version 2, whose packages are those of version 1, except one.
fn next_tree() -> Tree {
    tree(1).file("version", "2").file("pool/0", noise(60_000, 7777))
}

#[test]
fn what_failing_senders_do_not_deliver_comes_from_one_of_an_older_generation() {
    let place = Place::new();
    let all = senders([1], 4);
    all[..3].iter().for_each(|sender| sender.publish(&next_tree()));
    all[0].behave(Behaviour { cut: Some(200_000), ..Behaviour::default() });
    all[1].behave(without_answers_to_data());
    for number in 10..20 {
        all[2].rot(&format!("pool/{number}"));
    }
    let report = run(from(&place, &all)).unwrap();
    assert_eq!(report.failed, []);
    assert_same(&place.dest(), &next_tree());
    assert_eq!((report.generation, served(&report, &all[3]).1), (2, None), "{:?}", report.senders);
    for bad in &all[..3] {
        assert!(served(&report, bad).1.is_some(), "{:?}", report.senders);
    }
    let older = served(&report, &all[3]).0;
    assert!(older > 50_000 && older < 800_000, "{:?}", report.senders);
}

#[test]
fn what_no_sender_has_is_reported_although_one_of_an_older_generation_has_the_rest() {
    let place = Place::new();
    let all = senders([1], 2);
    all[0].publish_failing(
        &next_tree(),
        &[("pool/0", ItemFailure::Stale), ("pool/1", ItemFailure::Vanished), ("pool/2", ItemFailure::Unreadable)],
    );
    all[1].fail(&[("pool/2", ItemFailure::Stale)]);
    let report = run(from(&place, &all)).unwrap();
    let mut failed: Vec<_> = report.failed.into_iter().map(|failed| (failed.path, failed.why)).collect();
    failed.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(failed, [(b"pool/0".to_vec(), Failure::Stale), (b"pool/2".to_vec(), Failure::Unreadable)]);
    assert_same(&place.dest(), &next_tree().without("pool/0").without("pool/2"));
    // A dead sender of the new generation does not keep the pull from that of the older one.
    let place = Place::new();
    all[0].behave(Behaviour { cut: Some(20_000), ..Behaviour::default() });
    let report = run(from(&place, &all)).unwrap();
    assert_eq!(report.generation, 1);
}
