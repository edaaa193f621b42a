//! Guards of a pull, the operator's commands around it, and pulls that wait for each other.

use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use crate::pull::{signal, wait_for_generation};
use crate::support::*;

fn pull(world: &World, server: &Server, arguments: &[&str]) -> Output {
    world.pull_command(server).args(arguments).output().unwrap()
}

/// A published tree of so many files, and a pull of it.
fn mirrored(count: usize) -> (World, Server) {
    let world = World::new();
    (0..count).for_each(|number| write(&world.src().join(format!("pool/{number}")), b"x"));
    world.index();
    let server = world.serve();
    world.pull(&server);
    (world, server)
}

fn publish_without(world: &World, server: &Server, numbers: std::ops::Range<usize>) {
    numbers.for_each(|number| std::fs::remove_file(world.src().join(format!("pool/{number}"))).unwrap());
    let generation = world.index()["generation"].as_u64().unwrap();
    wait_for_generation(server, generation);
}

#[test]
fn a_halved_repository_deletes_nothing_although_no_limit_was_given() {
    let (world, server) = mirrored(300);
    publish_without(&world, &server, 0..150);
    let words = ["150 names of 301 would be deleted", "--max-delete allows 40%", "nothing was deleted"];
    assert_fails(&pull(&world, &server, &["--delete"]), 25, &words);
    assert_eq!(files(&world.dest()).len(), 300);
    json(&pull(&world, &server, &["--delete", "--max-delete", "50%"]));
    assert_same_tree(&world.src(), &world.dest());
}

#[test]
fn a_repository_that_became_empty_deletes_nothing_however_small_it_was() {
    let (world, server) = mirrored(3);
    std::fs::remove_dir_all(world.src().join("pool")).unwrap();
    json(&world.index_command().arg("--allow-empty").output().unwrap());
    wait_for_generation(&server, 2);
    for check in ["stat", "none"] {
        let output = pull(&world, &server, &["--delete", "--check", check]);
        assert_fails(&output, 25, &["4 names of 4 would be deleted", "--max-delete"]);
        assert_eq!(files(&world.dest()).len(), 3);
    }
    json(&pull(&world, &server, &["--delete", "--max-delete", "100%"]));
    assert_same_tree(&world.src(), &world.dest());
}

#[test]
fn a_limit_may_be_a_count_or_a_percentage_and_nothing_else() {
    let (world, server) = mirrored(10);
    publish_without(&world, &server, 0..2);
    assert_fails(&pull(&world, &server, &["--delete", "--max-delete", "10%"]), 25, &["2 names of 11", "allows 10%"]);
    for wrong in ["", "%", "101%", "-1%", "ten", "NaN%", "1.5"] {
        let output = pull(&world, &server, &["--delete", &format!("--max-delete={wrong}")]);
        assert_fails(&output, 1, &["--max-delete"]);
    }
    json(&pull(&world, &server, &["--delete", "--max-delete", "18.2%"]));
    assert_same_tree(&world.src(), &world.dest());
}

#[test]
fn a_head_that_goes_back_is_refused_and_one_that_counts_anew_is_not() {
    let (world, server) = mirrored(3);
    let backup = world.path("backup");
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        assert!(std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    };
    copy(&world.path("store"), &backup);
    write(&world.src().join("new"), b"new");
    world.index();
    wait_for_generation(&server, 2);
    world.pull(&server);
    drop(server);
    // Somebody restored the store from a backup.
    std::fs::remove_dir_all(world.path("store")).unwrap();
    copy(&backup, &world.path("store"));
    let server = world.serve();
    for check in ["none", "stat"] {
        let words = ["went back to generation 1", "generation 2 here", "--allow-older"];
        assert_fails(&pull(&world, &server, &["--delete", "--check", check]), 12, &words);
        assert!(world.dest().join("new").exists());
    }
    json(&pull(&world, &server, &["--delete", "--allow-older"]));
    assert!(!world.dest().join("new").exists());
    drop(server);
    std::fs::remove_dir_all(world.path("store")).unwrap();
    write(&world.src().join("newer"), b"newer");
    assert_eq!(world.index()["generation"], 1);
    let server = world.serve();
    json(&pull(&world, &server, &["--delete"]));
    assert_same_tree(&world.src(), &world.dest());
}

/// Starts a pull.
fn start_pull(world: &World, server: &Server, arguments: &[&str]) -> Child {
    let mut command = world.pull_command(server);
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_second_pull_ends_at_once_or_waits_as_it_is_asked_to() {
    let world = World::new();
    write(&world.src().join("file"), &noise(3_000_000, 5));
    world.index();
    let server = world.serve();
    let first = start_pull(&world, &server, &["--bwlimit", "1M"]);
    while !world.dest().join(".stillmirror-stage").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_fails(&pull(&world, &server, &[]), 11, &["is being written by another process"]);
    let other_store = world.path("other-store");
    let mut command = stillmirror(&["pull", &server.url("repo")]);
    let output = command.arg(world.dest()).arg("--store").arg(&other_store).output().unwrap();
    assert_fails(&output, 1, &["another pull into", "--wait"]);
    assert_fails(&pull(&world, &server, &["--wait=100ms"]), 11, &["is being written by another process"]);
    let report = json(&pull(&world, &server, &["--wait", "--check", "none"]));
    assert_eq!((&report["unchanged"], &report["round_trips"]), (&true.into(), &1.into()), "{report}");
    json(&first.wait_with_output().unwrap());
    assert_same_tree(&world.src(), &world.dest());
}

#[test]
fn sigterm_ends_a_pull_that_waits() {
    let world = World::new();
    write(&world.src().join("file"), &noise(20_000_000, 5));
    world.index();
    let server = world.serve();
    let mut first = start_pull(&world, &server, &["--bwlimit", "100k"]);
    while !world.dest().join(".stillmirror-stage").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut second = start_pull(&world, &server, &["--wait"]);
    std::thread::sleep(Duration::from_millis(500));
    signal("TERM", second.id());
    assert_eq!(second.wait().unwrap().code(), Some(20));
    signal("TERM", first.id());
    assert_eq!(first.wait().unwrap().code(), Some(20));
}

#[test]
fn commands_run_before_and_after_a_pull_and_the_latter_gets_the_report() {
    let (world, server) = mirrored(3);
    publish_without(&world, &server, 0..1);
    let (seen, input) = (world.path("seen"), world.path("input"));
    let before = format!("echo before $STILLMIRROR_REPOSITORY > {}", seen.display());
    let after = format!(
        "echo after $STILLMIRROR_STATUS $STILLMIRROR_GENERATION $STILLMIRROR_UNCHANGED $STILLMIRROR_DEST >> {}; \
         cat > {}; echo printed",
        seen.display(),
        input.display()
    );
    let hooks = ["--before", &before, "--after", &after];
    let report = json(&pull(&world, &server, &[&["--delete"], &hooks[..]].concat()));
    let dest = world.dest();
    let expected = format!("before repo\nafter 0 2 0 {}\n", dest.display());
    assert_eq!(std::fs::read_to_string(&seen).unwrap(), expected);
    let mut given: serde_json::Value = serde_json::from_slice(&std::fs::read(&input).unwrap()).unwrap();
    let members = given.as_object_mut().unwrap();
    assert_eq!((members.remove("status"), members.remove("error")), (Some(0.into()), Some(serde_json::Value::Null)));
    assert_eq!(given, report);
    json(&pull(&world, &server, &[&["--delete"], &hooks[..]].concat()));
    assert!(std::fs::read_to_string(&seen).unwrap().contains("after 0 2 1 "));
    // A dry run runs no commands.
    std::fs::remove_file(&seen).unwrap();
    json(&pull(&world, &server, &[&["--dry-run"], &hooks[..]].concat()));
    assert!(!seen.exists());
}

#[test]
fn a_failed_before_keeps_the_pull_from_beginning_and_after_hears_of_every_failure() {
    let (world, server) = mirrored(3);
    publish_without(&world, &server, 0..1);
    let input = world.path("input");
    let after = format!("cat > {}", input.display());
    let given = || -> serde_json::Value { serde_json::from_slice(&std::fs::read(&input).unwrap()).unwrap() };
    let output = pull(&world, &server, &["--delete", "--before", "exit 3", "--after", &after]);
    assert_fails(&output, 40, &["--before failed, so nothing was pulled: `exit 3`: exit code 3"]);
    assert_eq!(given()["status"], 40);
    assert_eq!(files(&world.dest()).len(), 3);
    let output = pull(&world, &server, &["--delete", "--max-delete", "0", "--after", &after]);
    assert_exit(&output, 25);
    assert_eq!((&given()["status"], &given()["deletes_held"]), (&25.into(), &1.into()));
    assert!(given()["error"].as_str().unwrap().contains("1 names of 4"));
    // Its own failure undoes nothing, and does not hide that of the pull.
    let output = pull(&world, &server, &["--delete", "--max-delete", "0", "--after", "kill -9 $$"]);
    assert_fails(&output, 25, &["--after failed: `kill -9 $$`: ended by signal 9", "--max-delete"]);
    let output = pull(&world, &server, &["--delete", "--after", "false"]);
    assert_fails(&output, 41, &["--after failed: `false`: exit code 1"]);
    assert_same_tree(&world.src(), &world.dest());
    drop(server);
    let mut command = stillmirror(&["pull", "stillmirror://127.0.0.1:1/repo"]);
    let output = command.arg(world.dest()).args(["--after", &after]).output().unwrap();
    assert_exit(&output, 10);
    assert_eq!(given()["status"], 10);
}

#[test]
fn a_command_that_reads_nothing_does_not_hold_up_a_pull() {
    let world = World::new();
    // The report of a dry run or of failures may be larger than a pipe; so is this one.
    for number in 0..3000 {
        write(&world.src().join(format!("a file with quite a long name that fails {number}")), b"1");
    }
    world.index();
    let server = world.serve();
    for number in 0..3000 {
        write(&world.src().join(format!("a file with quite a long name that fails {number}")), b"22");
    }
    let output = pull(&world, &server, &["--patience", "0", "--after", "exec true"]);
    assert_exit(&output, 24);
    assert!(output.stdout.len() > 100_000);
}

#[test]
fn sigterm_reaches_a_command_and_what_it_started() {
    let (world, server) = mirrored(1);
    for (option, exit) in [("--before", 20), ("--after", 41)] {
        let (begun, told) = (world.path("begun"), world.path("told"));
        let command =
            format!("trap 'touch {}; exit 1' TERM; touch {}; sleep 1000 & wait", told.display(), begun.display());
        let mut child = start_pull(&world, &server, &[option, &command]);
        while !begun.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        signal("TERM", child.id());
        assert_eq!(child.wait().unwrap().code(), Some(exit), "{option}");
        assert!(told.exists(), "{option}");
        std::fs::remove_file(&begun).unwrap();
        std::fs::remove_file(&told).unwrap();
    }
}

#[test]
fn a_command_that_ignores_sigterm_is_killed() {
    let (world, server) = mirrored(1);
    let begun = world.path("begun");
    let command = format!("trap '' TERM; touch {}; while :; do sleep 1; done", begun.display());
    let mut child = start_pull(&world, &server, &["--before", &command]);
    while !begun.exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let asked = Instant::now();
    signal("TERM", child.id());
    assert_eq!(child.wait().unwrap().code(), Some(20));
    assert!(asked.elapsed() > Duration::from_secs(5), "it had time to end by itself");
}

#[test]
fn names_come_from_a_file_or_from_standard_input() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    let list = world.path("names");
    write(&list, b"# comment\npool/b\n/dists/stable/Release\ngone\n");
    let output = pull(&world, &server, &["--delete", "--files-from", list.to_str().unwrap()]);
    assert_fails(&output, 23, &["gone: is not in the repository"]);
    let names: Vec<_> = files(&world.dest()).into_keys().collect();
    assert_eq!(names, ["dists/stable/Release", "pool/b/beta.tar"].map(std::path::PathBuf::from));
    let mut command = world.pull_command(&server);
    command.args(["--files-from", "-", "--from0", "--delete"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"odd/new\nline\0").unwrap();
    json(&child.wait_with_output().unwrap());
    assert!(world.dest().join("odd/new\nline").exists() && world.dest().join("pool/b/beta.tar").exists());
    write(&list, b"a\n../etc/passwd\n");
    let output = pull(&world, &server, &["--files-from", list.to_str().unwrap()]);
    assert_fails(&output, 1, &["--files-from", "name 2", "'..'"]);
    assert_fails(&pull(&world, &server, &["--files-from", "/no/such/file"]), 11, &["cannot read /no/such/file"]);
}

#[test]
fn what_does_not_fit_is_said_with_its_file_system() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    let dest = world.dest();
    for min_free in ["100%", "1000000TiB"] {
        let output = pull(&world, &server, &["--min-free", min_free]);
        assert_fails(
            &output,
            11,
            &["the file system of", " MB free, of which --min-free keeps ", "nothing was changed"],
        );
        assert!(files(&dest).is_empty());
    }
    for wrong in ["101%", "much", ""] {
        assert_fails(&pull(&world, &server, &[&format!("--min-free={wrong}")]), 1, &["--min-free"]);
    }
    for right in ["1%", "1M", "0", "off"] {
        json(&pull(&world, &server, &["--min-free", right]));
    }
    assert_same_tree(&world.src(), &dest);
}

#[test]
fn a_trace_is_on_disk_and_neither_served_nor_deleted() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    let arguments = ["--delete", "--trace", "leaf.example.org", "--check"];
    for check in ["stat", "none", "stat"] {
        json(&pull(&world, &server, &[&arguments[..], &[check]].concat()));
    }
    let report = json(&pull(&world, &server, &[&arguments[..], &["none"]].concat()));
    assert_eq!((&report["unchanged"], &report["round_trips"]), (&true.into(), &1.into()), "{report}");
    let trace = std::fs::read(world.dest().join("project/trace/leaf.example.org.json")).unwrap();
    let trace: serde_json::Value = serde_json::from_slice(&trace).unwrap();
    assert_eq!((&trace["repository"], &trace["generation"]), (&"repo".into(), &1.into()));
    assert!(world.dest().join("project/trace/leaf.example.org").exists());
    // A stock client of this tier gets what the origin has.
    let downstream = Server::start(&world.dest(), &world.path("dest-store"));
    let third = world.path("third");
    let mut command = std::process::Command::new("rsync");
    let status = command.arg("-aH").arg(format!("rsync://{}/repo/", downstream.address)).arg(&third).status();
    assert!(status.unwrap().success());
    assert_same_tree(&world.src(), &third);
    for wrong in ["../x", "a/b", "", ".hidden", "a b"] {
        let output = pull(&world, &server, &["--delete", &format!("--trace={wrong}")]);
        assert_fails(&output, 1, &["--trace"]);
    }
}
