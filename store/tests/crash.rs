//! A writer that is killed at any kill point leaves the old generation or the new one complete, and the next
//! run publishes and cleans up as usual.

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use common::{content, publish, record, store};
use stillmirror_store::{KILL_POINTS, Retention, Store};

/// The environment variable with the store's path. It is set for the writer, which is this test in a child
/// process that gets killed.
const STORE: &str = "STILLMIRROR_TEST_STORE";

#[test]
fn a_kill_at_any_point_leaves_the_old_generation_or_the_new_one() {
    if let Some(dir) = std::env::var_os(STORE) {
        return write(&Store::open(dir.as_ref()).unwrap());
    }
    for point in KILL_POINTS {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), 2);
        let old = content(&store.current().unwrap().unwrap());
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_kill_at_any_point_leaves_the_old_generation_or_the_new_one"])
            .env(STORE, store.dir())
            .env("STILLMIRROR_KILL_AT", point)
            .output()
            .unwrap()
            .status;
        assert_eq!(status.signal(), Some(9), "{point} was not reached");
        let now = store.current().unwrap().unwrap();
        let replaced = KILL_POINTS.iter().position(|name| name == point)
            >= KILL_POINTS.iter().position(|name| *name == "after-current-rename");
        assert_eq!(now.number(), if replaced { 3 } else { 2 }, "{point}");
        if !replaced {
            assert_eq!(content(&now), old, "{point}");
        }
        assert_eq!(now.sums(0), Some(&record(now.number())[..]), "{point}");
        // The lock was released with the process, and what it left behind is removed.
        let next = publish(&store).unwrap_or_else(|error| panic!("after {point}: {error}"));
        let lock = store.lock().unwrap();
        store.retain(&lock, Retention { count: 1, age: None }).unwrap();
        assert_eq!(names(&store, "generations"), [next.to_string()], "{point}");
        assert_eq!(names(&store, "sums"), [format!("{next}.pack")], "{point}");
        assert_eq!(store.current().unwrap().unwrap().sums(0), Some(&record(next)[..]), "{point}");
    }
}

/// Publishes a generation and removes old ones, which passes every kill point.
fn write(store: &Store) {
    publish(store).unwrap();
    let lock = store.lock().unwrap();
    store.retain(&lock, Retention { count: 1, age: None }).unwrap();
}

fn names(store: &Store, dir: &str) -> Vec<String> {
    let entries = fs::read_dir(store.dir().join(dir)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
