//! Generations whose contents are kept: every pull ends with the generation that it began with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::*;

/// The files of a generation.
type Files = BTreeMap<PathBuf, Vec<u8>>;

const FILES: u64 = 40;

/// Creates a world with files that take some seconds to pull from [`serve_slowly`].
fn world() -> World {
    let world = World::new();
    for n in 0..FILES {
        write(&file(&world, n), &noise(100_000, n));
        write(&world.src().join(format!("small/{n}")), &noise(1_000, n + 500));
    }
    world
}

/// Serves the tree at 1 MB/s. The limit is the sender's, because a receiver's only holds back what does not fit into the
/// kernel's buffers.
fn serve_slowly(world: &World) -> Server {
    let config = world.path("mirror.toml");
    let text = "[daemon]\nlisten = '127.0.0.1:0'\nserve_private = true\n\
                [[repository]]\nname = 'repo'\nroot = 'src'\nstore = 'store'\nbandwidth = '1MB'\n";
    write(&config, text.as_bytes());
    let mut command = stillmirror(&["serve", "--config"]);
    command.arg(config);
    Server::spawn(command)
}

fn file(world: &World, n: u64) -> PathBuf {
    world.src().join(format!("pool/{}/{n}", n % 4))
}

fn index(world: &World) -> (u64, Files) {
    let report = json(&index_command(world).output().expect("index runs"));
    assert_eq!((report["unpooled"].as_u64(), report["refused"].as_array().map(Vec::len)), (Some(0), Some(0)));
    (report["generation"].as_u64().expect("a number"), files(&world.src()))
}

fn index_command(world: &World) -> Command {
    let mut command = world.index_command();
    command.args(["--pin", "--keep-generations", "1000"]);
    command
}

/// Replaces, removes, moves and adds files, and indexes the tree.
fn publish(world: &World, round: u64, change: impl Fn(&Path, &[u8])) -> (u64, Files) {
    for n in (round % 3..FILES).step_by(3) {
        let path = file(world, n);
        if path.exists() {
            change(&path, &noise(90_000 + round as usize, n + 1000 * round));
        }
    }
    let _ = std::fs::remove_file(file(world, round % FILES));
    let _ = std::fs::rename(file(world, (round + 7) % FILES), file(world, FILES + round));
    let _ = std::fs::remove_file(world.src().join(format!("small/{}", round % FILES)));
    index(world)
}

fn replace(path: &Path, content: &[u8]) {
    let new = path.with_extension("new");
    write(&new, content);
    std::fs::rename(new, path).expect("rename");
}

/// Writes to the file in place, and leaves some of it as it was.
fn overwrite(path: &Path, content: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("a file");
    file.write_all_at(&content[..content.len() / 2], 10_000).expect("written");
}

/// Publishes again and again while a client pulls, and returns the client's output and all generations.
fn publish_during(
    world: &World,
    mut client: Command,
    change: impl Fn(&Path, &[u8]),
) -> (std::process::Output, BTreeMap<u64, Files>) {
    let mut generations = BTreeMap::from([index(world)]);
    let mut child = client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the client starts");
    // It has begun once anything has come.
    let has_begun = || !files(&world.dest()).is_empty();
    while !has_begun() && child.try_wait().expect("wait").is_none() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    for round in 1.. {
        generations.extend([publish(world, round, &change)]);
        if child.try_wait().expect("wait").is_some() {
            break;
        }
    }
    let output = child.wait_with_output().expect("the client ends");
    assert!(generations.len() > 1);
    (output, generations)
}

fn pull(change: impl Fn(&Path, &[u8])) {
    let world = world();
    index(&world);
    let server = serve_slowly(&world);
    let mut client = world.pull_command(&server);
    client.arg("--delete");
    let (output, generations) = publish_during(&world, client, change);
    let report = json(&output);
    let got = report["generation"].as_u64().expect("a number");
    assert!(files(&world.dest()) == generations[&got], "generation {got}: {report}");
    assert_eq!(Some(&got), generations.keys().next(), "it ends with the generation that it began with");
}

#[test]
fn a_pull_ends_with_its_generation_while_files_are_replaced_and_removed() {
    pull(replace);
}

#[test]
fn a_pull_ends_with_its_generation_while_files_are_written_to_in_place() {
    if has_reflinks() {
        pull(overwrite);
    }
}

#[test]
fn a_stock_client_ends_with_its_generation_while_files_are_replaced_and_removed() {
    let in_place = has_reflinks().then_some(overwrite as fn(&Path, &[u8]));
    for change in [Some(replace as fn(&Path, &[u8])), in_place].into_iter().flatten() {
        let world = world();
        index(&world);
        let server = serve_slowly(&world);
        let mut client = Command::new("rsync");
        client.arg("-a").arg(format!("rsync://{}/repo/", server.address)).arg(world.dest());
        let (output, generations) = publish_during(&world, client, change);
        assert_exit(&output, 0);
        let first = generations.values().next().expect("a generation");
        assert!(files(&world.dest()) == *first);
    }
}

/// Returns whether the file system of temporary directories shares blocks between files.
fn has_reflinks() -> bool {
    let world = World::new();
    write(&world.path("a"), b"a");
    let copied = Command::new("cp").arg("--reflink=always").args([world.path("a"), world.path("b")]).output();
    copied.is_ok_and(|copied| copied.status.success())
}

#[test]
fn a_run_that_is_killed_at_any_point_leaves_no_content_too_few_and_the_next_one_none_too_many() {
    for point in stillmirror_store::POOL_KILL_POINTS.iter().chain(&["after-current-rename", "after-retention-rename"]) {
        let world = World::new();
        let index = || {
            let mut command = world.index_command();
            command.args(["--pin", "--keep-generations", "2", "--keep-contents", "0"]);
            command
        };
        for round in 0..3 {
            replace(&world.src().join("a"), format!("a {round}").as_bytes());
            replace(&world.src().join("b"), format!("b {round}").as_bytes());
            json(&index().output().unwrap());
        }
        replace(&world.src().join("a"), b"a 3");
        let killed = index().env("STILLMIRROR_KILL_AT", point).output().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&killed.status), Some(9), "{point} was not reached");
        assert_has_contents(&world, point);
        json(&index().output().unwrap());
        assert_has_contents(&world, point);
        let kept = files(&world.path("store/pool/private")).len() + files(&world.path("store/pool/public")).len();
        assert_eq!((kept, world.path("store/pool/dirty").exists()), (3, false), "{point}: a 2, a 3 and b 2");
    }
}

/// Asserts that the pool has the contents of the current generation and of the one before.
#[track_caller]
fn assert_has_contents(world: &World, point: &str) {
    let pool = stillmirror_store::ContentPool::open(&world.path("store/pool")).expect("a pool");
    let store = stillmirror_store::Store::open(&world.path("store")).expect("a store");
    let numbers = store.generations().expect("generations");
    for number in numbers.iter().rev().take(2) {
        let generation = store.generation(*number).expect("a generation");
        let (list, local) = (generation.list(), generation.local());
        for row in (0..list.len()).filter(|&row| list.row(row).is_file()) {
            let name = stillmirror_store::PoolName::of_row(list, local, row).expect("it is kept");
            let content = pool.content(&name, rustix::fs::OFlags::RDONLY).map(std::fs::File::from);
            let content = std::io::read_to_string(content.unwrap_or_else(|error| panic!("{point}, {number}: {error}")));
            assert_eq!(content.expect("readable").len() as u64, list.row(row).size(), "{point}");
        }
    }
}
