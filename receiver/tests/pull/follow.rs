use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use stillmirror_protocol::wire::{ErrorCode, ItemFailure, Reply, Request};
use stillmirror_receiver::{Follower, Last, Notice, Options, Pauses, Phase, Progress, PullError, Report, Silent, pull};
use tokio_util::sync::CancellationToken;

use crate::sender::{Behaviour, Sender};
use crate::tree::{Tree, assert_same, noise};
use crate::{Place, run};

const PAUSES: Pauses = Pauses {
    reconnect: Duration::from_millis(20),
    max_reconnect: Duration::from_millis(100),
    ask: Duration::from_millis(50),
    retry: Duration::from_millis(20),
    max_retry: Duration::from_millis(100),
    max_incomplete: Duration::from_millis(100),
    due: Duration::from_millis(20),
};
/// For tests in which nothing may happen without news.
const HOURS: Duration = Duration::from_secs(3600);
const PATIENT: Pauses =
    Pauses { ask: HOURS, retry: HOURS, max_retry: HOURS, max_incomplete: HOURS, due: HOURS, ..PAUSES };

fn tree(version: u8) -> Tree {
    Tree::default().file("version", [version]).file("pool/a", noise(50_000, u64::from(version)))
}

/// A receiver that follows until it is dropped.
struct Following {
    pulls: mpsc::Receiver<Result<Report, PullError>>,
    notices: mpsc::Receiver<String>,
    cancel: CancellationToken,
    thread: Option<JoinHandle<PullError>>,
}

struct Notices(mpsc::Sender<String>);

impl Progress for Notices {
    fn phase(&self, _: Phase, _: u64, _: u64) {}
    fn advance(&self, _: u64, _: u64) {}
    fn notice(&self, notice: &Notice<'_>) {
        let _ = self.0.send(format!("{notice:?}"));
    }
}

impl Following {
    fn begin(options: Options, pauses: Pauses) -> Self {
        let cancel = CancellationToken::new();
        let ((to_pulls, pulls), (to_notices, notices)) = (mpsc::channel(), mpsc::channel());
        let progress: Arc<dyn Progress> = Arc::new(Notices(to_notices));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut follower = Follower::new(&options, pauses, cancel.clone());
        let until = cancel.clone();
        let thread = thread::spawn(move || {
            loop {
                let result = runtime.block_on(pull(options.clone(), Arc::new(Silent), until.clone()));
                let last = match &result {
                    Ok(report) => Last::Pulled(report),
                    Err(PullError::DeleteLimit { report, .. }) => Last::Pulled(report),
                    Err(error) => Last::Failed(error),
                };
                if let Err(error) = follower.decide(last) {
                    return error;
                }
                let _ = to_pulls.send(result);
                if let Err(error) = runtime.block_on(follower.next_pull(&progress)) {
                    return error;
                }
            }
        });
        Self { pulls, notices, cancel, thread: Some(thread) }
    }

    fn next(&self) -> Result<Report, PullError> {
        self.pulls.recv_timeout(Duration::from_secs(60)).expect("a pull ends")
    }

    /// Returns the next pull that is whole.
    fn whole(&self) -> Report {
        loop {
            if let Ok(report) = self.next()
                && report.failed.is_empty()
            {
                return report;
            }
        }
    }

    /// Waits for a notice that contains `word`.
    fn noticed(&self, word: &str) {
        while !self.notices.recv_timeout(Duration::from_secs(60)).expect("a notice").contains(word) {}
    }

    /// Disconnects the follower until it notices: it may not be connected yet.
    fn notices_disconnections_by(&self, sender: &Sender) {
        loop {
            sender.disconnect_followers();
            while let Ok(notice) = self.notices.recv_timeout(Duration::from_millis(100)) {
                if notice.contains("CannotFollow") {
                    return;
                }
            }
        }
    }

    fn has_pulled(&self) -> bool {
        self.pulls.try_recv().is_ok()
    }

    fn stop(&mut self) -> PullError {
        self.cancel.cancel();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn is_follow(request: &Request) -> bool {
    matches!(request, Request::Follow { .. })
}

#[test]
fn each_publish_is_pulled_when_the_sender_tells_of_it_and_nothing_is_locked_meanwhile() {
    let (sender, place) = (Sender::of(&tree(1)), Place::new());
    let mut following = Following::begin(place.mirror(&sender), PATIENT);
    following.next().unwrap();
    for version in 2..5 {
        sender.wait_for(is_follow);
        assert!(run(place.mirror(&sender)).unwrap().unchanged, "another pull may run");
        sender.requests();
        sender.publish(&tree(version));
        let report = following.next().unwrap();
        assert_eq!((report.generation, report.unchanged), (u64::from(version), false));
        assert_same(&place.dest(), &tree(version));
    }
    sender.wait_for(is_follow);
    sender.amend(|last| last.signature = Some(b"signed again".to_vec()));
    assert!(following.next().is_ok(), "a new signature is news");
    assert!(matches!(following.stop(), PullError::Interrupted));
}

#[test]
fn a_publish_between_a_pull_and_the_next_question_is_not_missed() {
    let (sender, place) = (Sender::of(&tree(1)), Place::new());
    let publisher = sender.clone();
    let published = std::sync::atomic::AtomicBool::new(false);
    // The first pull has its head already when the second generation becomes current.
    sender.tamper(move |_, request, frames| {
        if matches!(request, Request::Data { .. }) && !published.swap(true, std::sync::atomic::Ordering::Relaxed) {
            publisher.publish(&tree(2));
        }
        frames
    });
    let following = Following::begin(place.mirror(&sender), PATIENT);
    assert_eq!(following.next().unwrap().generation, 1);
    assert_eq!(following.next().unwrap().generation, 2);
    assert_same(&place.dest(), &tree(2));
}

#[test]
fn a_follower_that_loses_its_connection_makes_another_and_misses_nothing() {
    let (sender, place) = (Sender::of(&tree(1)), Place::new());
    let following = Following::begin(place.mirror(&sender), PATIENT);
    following.next().unwrap();
    for version in 2..4 {
        following.notices_disconnections_by(&sender);
        sender.publish(&tree(version));
        assert_eq!(following.next().unwrap().generation, u64::from(version));
        following.noticed("FollowsAgain");
    }
}

#[test]
fn a_sender_that_does_not_tell_is_asked_from_time_to_time() {
    let refuses = |_, request: &Request, frames: Vec<Vec<u8>>| match request {
        Request::Follow { .. } => {
            vec![Reply::Error { code: ErrorCode::Refused, message: "too many followers".to_owned() }.frame(0)]
        }
        _ => frames,
    };
    for behaviour in [
        Behaviour { is_old: true, ..Behaviour::default() },
        Behaviour { tells_nobody: true, ..Behaviour::default() },
        Behaviour { tamper: Some(Arc::new(refuses)), ..Behaviour::default() },
    ] {
        let (sender, place) = (Sender::of(&tree(1)), Place::new());
        sender.behave(behaviour.clone());
        let following = Following::begin(place.mirror(&sender), PAUSES);
        assert_eq!(following.next().unwrap().generation, 1);
        following.noticed("Asks");
        sender.requests();
        sender.wait_for(|request| matches!(request, Request::Head { .. }));
        assert!(!following.has_pulled(), "the same head is no news");
        if behaviour.tamper.is_some() {
            // A sender that refuses is tried again. This one tells by now.
            sender.behave(Behaviour::default());
            following.noticed("FollowsAgain");
        }
        sender.publish(&tree(2));
        assert_eq!(following.next().unwrap().generation, 2);
    }
}

#[test]
fn a_pull_that_fails_is_repeated_until_it_is_whole() {
    let (sender, place) = (Sender::of(&tree(1)), Place::new());
    sender.fail(&[("pool/a", ItemFailure::Vanished)]);
    let following = Following::begin(place.mirror(&sender), PAUSES);
    for _ in 0..3 {
        assert!(!following.next().unwrap().failed.is_empty());
    }
    sender.fail(&[]);
    following.whole();
    assert_same(&place.dest(), &tree(1));

    // The sender is gone, and comes back with news.
    sender.requests();
    sender.wait_for(is_follow);
    sender.behave(Behaviour { cut: Some(1), ..Behaviour::default() });
    sender.disconnect_followers();
    following.noticed("CannotFollow");
    sender.publish(&tree(2));
    sender.behave(Behaviour::default());
    assert_eq!(following.whole().generation, 2);
}

#[test]
fn news_is_pulled_at_once_although_the_last_pull_is_to_be_repeated_much_later() {
    let (sender, place) = (Sender::of(&tree(1)), Place::new());
    sender.fail(&[("pool/a", ItemFailure::Unreadable)]);
    let pauses = Pauses { retry: Duration::from_secs(2), ..PATIENT };
    let following = Following::begin(place.mirror(&sender), pauses);
    assert!(!following.next().unwrap().failed.is_empty());
    sender.wait_for(is_follow);
    sender.publish(&tree(2));
    assert_eq!(following.whole().generation, 2);
}

#[test]
fn a_pull_that_can_never_succeed_ends_the_following() {
    let (sender, place) = (Sender::of(&tree(1)), Place::new());
    let dest = place.store();
    run(place.mirror(&sender)).unwrap();
    let mut following = Following::begin(Options { dest, ..place.mirror(&sender) }, PATIENT);
    assert!(matches!(following.thread.take().unwrap().join().unwrap(), PullError::Usage(_)));
}

#[test]
fn deletions_that_wait_are_made_although_there_is_no_news() {
    let (sender, place) = (Sender::of(&tree(1).file("gone", "soon")), Place::new());
    run(place.mirror(&sender)).unwrap();
    sender.publish(&tree(1));
    let grace = Duration::from_millis(300);
    let options = Options { delete_grace: Some(grace), ..place.mirror(&sender) };
    let following = Following::begin(options, PAUSES);
    assert_eq!(following.next().unwrap().deletes_waiting, 1);
    let report = following.next().unwrap();
    assert_eq!((report.files_deleted, report.next_due), (1, None));
    assert_same(&place.dest(), &tree(1));
}

#[test]
fn snapshots_expire_although_there_is_no_news() {
    let (sender, place) = (Sender::of(&tree(1)), Place::new());
    let options = Options { keep_snapshots: Some(Duration::from_secs(1)), ..place.mirror(&sender) };
    let following = Following::begin(options, PAUSES);
    following.next().unwrap();
    let snapshots = || std::fs::read_dir(place.dir.path().join("dest.snapshots")).unwrap().count();
    let deadline = Instant::now() + Duration::from_secs(60);
    while snapshots() > 1 {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(20));
    }
}

fn several(place: &Place, senders: &[Sender]) -> Options {
    let alternatives = senders[1..].iter().map(|sender| sender.address.clone().into()).collect();
    Options { alternatives, timeout: Duration::from_secs(5), ..place.mirror(&senders[0]) }
}

#[test]
fn of_several_senders_whoever_has_the_next_generation_first_is_heard() {
    let place = Place::new();
    let all = [Sender::of(&tree(1)), Sender::of(&tree(1)), Sender::of(&tree(1))];
    let following = Following::begin(several(&place, &all), PATIENT);
    assert_eq!(following.next().unwrap().generation, 1);
    all[1].wait_for(is_follow);
    all[1].publish(&tree(2));
    assert_eq!(following.next().unwrap().generation, 2);
    // The others are behind for a while, and come after. That is no reason to pull.
    all[0].requests();
    all[0].wait_for(is_follow);
    all[0].publish(&tree(2));
    all[2].publish(&tree(2));
    all[2].requests();
    all[2].wait_for(is_follow);
    assert!(!following.has_pulled());
    // One dies, another tells.
    all[1].requests();
    all[1].wait_for(is_follow);
    all[1].behave(Behaviour { cut: Some(1), ..Behaviour::default() });
    all[1].disconnect_followers();
    following.noticed("CannotFollow");
    all[0].publish(&tree(3));
    assert_eq!(following.whole().generation, 3);
    assert_same(&place.dest(), &tree(3));
}
