//! `index`, as publishers use it.

use std::io::Write;
use std::process::Stdio;

use crate::support::*;

#[test]
fn an_unchanged_tree_is_not_read_and_makes_no_new_generation() {
    let world = World::with_tree();
    let first = world.index();
    assert_eq!(first["generation"], 1);
    assert!(first["hashed_bytes"].as_u64() > Some(1_500_000), "{first}");
    let second = world.index();
    assert_eq!(second["generation"], 1, "{second}");
    assert_eq!(second["hashed_bytes"], 0, "{second}");
}

#[test]
fn only_changed_files_are_read_again() {
    let world = World::with_tree();
    world.index();
    write(&world.src().join("README"), b"12345");
    std::fs::remove_file(world.src().join("empty")).unwrap();
    write(&world.src().join("new"), b"1234567");
    let report = world.index();
    assert_eq!(report["generation"], 2);
    assert_eq!((&report["added"], &report["removed"]), (&1.into(), &1.into()), "{report}");
    assert_eq!(report["hashed_bytes"], 12, "{report}");
}

#[test]
fn changed_from_results_in_the_same_list_as_a_full_walk() {
    let world = World::with_tree();
    world.index();
    let src = world.src();
    write(&src.join("pool/new/one.deb"), b"one");
    write(&src.join("README"), b"other");
    std::fs::remove_file(src.join("pool/a/alpha_1.0.deb")).unwrap();
    std::fs::remove_dir_all(src.join("odd")).unwrap();
    let mut child = world
        .index_command()
        .args(["--changed-from", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"pool/new\nREADME\npool/a/alpha_1.0.deb\nodd\n").unwrap();
    let report = json(&child.wait_with_output().unwrap());
    assert_eq!(report["generation"], 2, "{report}");
    // A full walk finds no further changes.
    let walked = world.index();
    assert_eq!(walked["generation"], 2, "{walked}");
}

#[test]
fn a_root_that_became_empty_is_assumed_not_to_be_mounted() {
    let world = World::with_tree();
    world.index();
    std::fs::rename(world.src(), world.path("elsewhere")).unwrap();
    std::fs::create_dir(world.src()).unwrap();
    let output = world.index_command().output().unwrap();
    assert_fails(&output, 11, &["is empty", "generation 1", "is it mounted?"]);
    let report = json(&world.index_command().arg("--allow-empty").output().unwrap());
    assert_eq!((&report["generation"], &report["files"]), (&2.into(), &0.into()), "{report}");
}

#[test]
fn excluded_names_are_not_listed() {
    let world = World::with_tree();
    json(&world.index_command().args(["--exclude", "/pool/"]).output().unwrap());
    let store = world.path("store");
    let output = stillmirror(&["list", "--recursive", "--store"]).arg(store).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("README") && !text.contains("beta.tar"), "{text}");
}

#[test]
fn a_second_run_at_the_same_time_is_refused() {
    let world = World::with_tree();
    world.index();
    let lock = std::fs::File::open(world.path("store/lock")).unwrap();
    lock.lock().unwrap();
    let output = world.index_command().output().unwrap();
    assert_fails(&output, 11, &["store", "another process"]);
    drop(lock);
    world.index();
}

#[test]
fn old_generations_are_removed_beyond_the_limit() {
    let world = World::with_tree();
    for round in 0..5 {
        write(&world.src().join("README"), format!("round {round}").as_bytes());
        json(&world.index_command().args(["--keep-generations", "2"]).output().unwrap());
    }
    let kept = std::fs::read_dir(world.path("store/generations")).unwrap().count();
    assert_eq!(kept, 2, "the current one and its predecessor");
}

#[test]
fn the_config_file_says_what_to_index() {
    let world = World::with_tree();
    write(
        &world.path("mirror.toml"),
        b"[[repository]]\nname = 'repo'\nroot = 'src'\nstore = 'store'\n[repository.index]\nexclude = ['*.deb']\n",
    );
    let output = stillmirror(&["index", "--json", "--config"]).arg(world.path("mirror.toml")).output().unwrap();
    assert_eq!(json(&output)["generation"], 1);
    let output = stillmirror(&["index", "nonsense", "--config"]).arg(world.path("mirror.toml")).output().unwrap();
    assert_fails(&output, 1, &["nonsense"]);
}

/// Flips a bit of a file, and changes the store's local facts so that the file seems unchanged since it was indexed.
fn corrupt(world: &World, path: &str) {
    use std::os::unix::fs::MetadataExt;
    use stillmirror_protocol::entry::Time;
    use stillmirror_protocol::local::{Identity, LocalTable};
    let file = world.src().join(path);
    let modified = std::fs::metadata(&file).unwrap().modified().unwrap();
    let mut content = std::fs::read(&file).unwrap();
    content[0] ^= 1;
    std::fs::write(&file, content).unwrap();
    std::fs::File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
    let stat = std::fs::metadata(&file).unwrap();
    let ctime = Time { sec: stat.ctime(), nsec: stat.ctime_nsec() as u32 };
    let current = stillmirror_store::Store::open(&world.path("store")).unwrap().current().unwrap().unwrap();
    let (list, local) = (current.list(), current.local());
    let mut table = LocalTable::default();
    for row in 0..list.len() {
        let was = local.last_seen(row);
        let identity = if was.inode == stat.ino() { Identity { ctime, ..was } } else { was };
        let record = list.row(row).file_number().map(|file| local.record(file).unwrap_or_default());
        table.push(identity, local.links(row), record);
    }
    std::fs::write(current.dir().join("local"), table.encode(current.head().list_digest)).unwrap();
}

#[test]
fn bit_rot_is_found_by_scrubbing_and_by_naming_the_file() {
    for arguments in [&["--scrub", "100%"][..], &["--changed-from", "changed"]] {
        let world = World::with_tree();
        world.index();
        corrupt(&world, "README");
        assert_eq!(world.index()["hashed_bytes"], 0);
        write(&world.path("changed"), b"README\n");
        let mut command = world.index_command();
        let output = command.current_dir(world.path("")).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(23), "{output:?}");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains("the content of README is not the indexed one"), "{errors}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&report["rotten"], &report["changed"]), (&serde_json::json!(["README"]), &0.into()), "{report}");
        let pulled = world.pull_command(&world.serve()).output().unwrap();
        assert!(pulled.status.code().is_some_and(|code| code != 0), "{pulled:?}");
        assert!(!world.dest().join("README").exists() && world.dest().join("pool").exists());
        // The file stays rotten until a new mtime says that its content is intended.
        assert_eq!(world.index_command().output().unwrap().status.code(), Some(23));
        std::fs::File::options()
            .write(true)
            .open(world.src().join("README"))
            .unwrap()
            .set_modified(std::time::SystemTime::now())
            .unwrap();
        assert_eq!(world.index()["changed"], 1);
    }
}

#[test]
fn the_ctime_rule_is_set_in_the_config_file_or_by_an_option() {
    let world = World::with_tree();
    world.index();
    let link = |name: &str| std::fs::hard_link(world.src().join("README"), world.path(name)).unwrap();
    let index = |ctime: &str| {
        let text = format!("[[repository]]\nname = 'repo'\nroot = 'src'\nstore = 'store'\n{ctime}\n");
        write(&world.path("mirror.toml"), text.as_bytes());
        let mut command = stillmirror(&["index", "--json", "--config"]);
        command.arg(world.path("mirror.toml"));
        command
    };
    link("one");
    assert_eq!(json(&index("").output().unwrap())["hashed_files"], 0);
    link("two");
    assert_eq!(json(&index("ctime = 'strict'").output().unwrap())["hashed_files"], 1);
    link("three");
    assert_eq!(json(&index("ctime = 'ignored'").args(["--ctime", "strict"]).output().unwrap())["hashed_files"], 1);
    link("four");
    std::fs::remove_file(world.path("four")).unwrap();
    assert_eq!(json(&index("ctime = 'ignored'").output().unwrap())["hashed_files"], 0);
}

#[test]
fn the_reason_from_the_system_is_reported_once() {
    let world = World::with_tree();
    for command in ["index", "serve"] {
        let mut command = stillmirror(&[command, "--root"]);
        command.arg(world.src()).arg("--store").arg(world.src().join("README/store"));
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains("README/store") && errors.matches("(os error 20)").count() == 1, "{errors}");
    }
}

#[test]
fn a_second_index_ends_at_once_or_waits_as_it_is_asked_to() {
    let world = World::with_tree();
    world.index();
    write(&world.src().join("new"), b"new");
    let store = stillmirror_store::Store::open(&world.path("store")).unwrap();
    let lock = store.lock().unwrap();
    assert_fails(&world.index_command().output().unwrap(), 11, &["is being written by another process"]);
    let output = world.index_command().arg("--wait=300ms").output().unwrap();
    assert_fails(&output, 11, &["is being written by another process"]);
    let mut waiting = world.index_command().arg("--wait").stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(waiting.try_wait().unwrap(), None, "it waits");
    drop(lock);
    assert_eq!(json(&waiting.wait_with_output().unwrap())["generation"], 2);
}
