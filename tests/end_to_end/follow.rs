//! Followers: pulls that stay connected, through several tiers.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::*;

/// A pull that follows. Dropping it ends it.
pub(crate) struct Follower {
    child: Child,
    reports: std::sync::mpsc::Receiver<Value>,
    dest: PathBuf,
    store: PathBuf,
}

impl Follower {
    pub(crate) fn begin(world: &World, name: &str, from: &Server, more: &[&str]) -> Self {
        let (dest, store) = (world.path(name), world.path(&format!("{name}-store")));
        let mut command = stillmirror(&["pull", "--json", "--delete", "--follow", &from.url("repo")]);
        command.arg(&dest).arg("--store").arg(&store).args(more).stdout(Stdio::piped());
        let mut child = command.spawn().expect("pull starts");
        let output = std::io::BufReader::new(child.stdout.take().expect("stdout is piped"));
        let (to_reports, reports) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let lines = std::io::BufRead::lines(output).map_while(Result::ok);
            lines.for_each(|line| to_reports.send(serde_json::from_str(&line).expect("JSON")).unwrap_or_default());
        });
        Self { child, reports, dest, store }
    }

    /// Waits for a report of this generation.
    #[track_caller]
    pub(crate) fn reaches(&self, generation: u64) {
        while self.reports.recv_timeout(Duration::from_secs(60)).expect("a report")["generation"] != generation {}
    }

    fn serve(&self) -> Server {
        Server::start(&self.dest, &self.store)
    }

    pub(crate) fn end(&mut self) -> Option<i32> {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a process");
        kill_process(pid, Signal::TERM).expect("a signal");
        wait_for(&mut self.child)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn publish(world: &World, number: u64) {
    write(&world.src().join("README"), format!("number {number}").as_bytes());
    write(&world.src().join(format!("pool/new-{number}")), &noise(100_000, number));
    let _ = std::fs::remove_file(world.src().join(format!("pool/new-{}", number - 1)));
    world.index();
}

#[test]
fn a_publish_goes_through_all_tiers_of_followers() {
    let world = World::with_tree();
    world.index();
    let origin = world.serve();
    // One tier switches whole trees, and its daemon may look before it has switched.
    let middle = Follower::begin(&world, "middle", &origin, &["--switch"]);
    middle.reaches(1);
    let serving = middle.serve();
    let leaves =
        [Follower::begin(&world, "one", &serving, &["--check", "none"]), Follower::begin(&world, "two", &serving, &[])];
    leaves.iter().for_each(|leaf| leaf.reaches(1));
    for number in 2..6 {
        publish(&world, number);
        for leaf in &leaves {
            leaf.reaches(number);
            assert_same_tree(&world.src(), &leaf.dest);
            let head = |store: PathBuf| std::fs::read(store.join("current/head")).expect("a head");
            assert_eq!(head(leaf.store.clone()), head(world.path("store")));
        }
    }
    assert!(!serving.logged_so_far().contains("ERROR"));
}

#[test]
fn a_follower_ends_cleanly_and_goes_on_when_its_sender_was_restarted() {
    let world = World::with_tree();
    world.index();
    let origin = world.serve();
    let ran = world.path("ran");
    let after = format!("echo $STILLMIRROR_STATUS >> {}", ran.display());
    let mut follower = Follower::begin(&world, "dest", &origin, &["--after", &after]);
    follower.reaches(1);
    let address = origin.address.clone();
    drop(origin);
    publish(&world, 2);
    let mut again = stillmirror(&["serve", "--listen", &address, "--name", "repo", "--serve-private"]);
    again.arg("--root").arg(world.src()).arg("--store").arg(world.path("store"));
    let _origin = Server::spawn(again);
    follower.reaches(2);
    assert_same_tree(&world.src(), &follower.dest);
    let ran = || std::fs::read_to_string(&ran).unwrap_or_default();
    let deadline = Instant::now() + Duration::from_secs(20);
    while ran() != "0\n0\n" {
        assert!(Instant::now() < deadline, "{}", ran());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(follower.end(), Some(0), "between two pulls, nothing is interrupted");
}

#[test]
fn what_cannot_work_ends_a_follower() {
    let world = World::with_tree();
    world.index();
    let origin = world.serve();
    let follow = |more: &[&str]| -> std::process::Output {
        let mut command: Command = world.pull_command(&origin);
        command.arg("--follow").args(more).output().expect("pull runs")
    };
    assert_fails(&follow(&["--dry-run"]), 1, &["--dry-run"]);
    let store = world.path("dest-store");
    std::fs::create_dir_all(&store).expect("a directory");
    write(&store.join("something"), b"else");
    assert_fails(&follow(&[]), 1, &["dest-store"]);
}
