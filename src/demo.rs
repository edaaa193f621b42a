//! `stillmirror demo`: runs the commands that an operator would type on a small tree, and explains their results.

mod tree;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::exit::{Exit, UsageError};
use crate::output::{bytes, count, line};

const EXAMPLES: &str = "\
Examples:
  stillmirror demo
  stillmirror demo /usr/share/doc

`stillmirror --help` lists the exit codes.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The directory to copy and use; it is not changed [default: a few megabytes of this host's files]
    #[arg(value_parser = crate::path_args::local())]
    dir: Option<PathBuf>,
}

pub(crate) fn run(arguments: Arguments) -> Result<Exit> {
    let scratch = tempfile::Builder::new()
        .prefix("stillmirror-demo-")
        .tempdir()
        .context("cannot create a temporary directory")?;
    let demo = Demo { scratch: scratch.path().to_owned(), program: std::env::current_exe()? };
    let stop = crate::signals::stop_flag()?;
    let check_stop = || if stop.load(std::sync::atomic::Ordering::Relaxed) { bail!("interrupted") } else { Ok(()) };
    match &arguments.dir {
        Some(dir) if !dir.is_dir() => return Err(UsageError(format!("{} is not a directory", dir.display())).into()),
        Some(dir) => tree::copy(dir, &demo.path("origin"))?,
        None => tree::make(&demo.path("origin"))?,
    }

    line!("1. The publisher indexes the tree, once per update.");
    let index = demo.index()?;
    line!("   {}, {}, read in {:.2} s.\n", files(&index), bytes(number(&index, "bytes")), seconds(&index));
    check_stop()?;

    line!("2. A daemon serves that index. It does not walk, sort, search or hash for any client.");
    let server = demo.serve()?;

    line!("\n3. A downstream mirror pulls for the first time.");
    let first = demo.pull(&server)?;
    line!("   {} received.\n", bytes(number(&first, "bytes_received")));
    check_stop()?;

    line!("4. A new release: a file changes inside, one is renamed, one is removed, one is added.");
    let changes = tree::release(&demo.path("origin"))?;
    changes.iter().for_each(|change| line!("   {change}"));
    let again = demo.index()?;
    line!("   {} were re-read.\n", bytes(number(&again, "hashed_bytes")));
    check_stop()?;

    line!("5. The downstream pulls only what changed.");
    demo.wait_for(&server, number(&again, "generation"))?;
    let second = demo.pull(&server)?;
    let (received, size) = (number(&second, "bytes_received"), number(&again, "bytes"));
    line!(
        "   {} received for a tree of {}: {} of data and {} of block checksums; {} were there already.\n",
        bytes(received),
        bytes(size),
        bytes(number(&second, "bytes_literal")),
        bytes(number(&second, "bytes_checksums")),
        bytes(number(&second, "bytes_matched")),
    );
    ensure!(received < size, "the second pull received {received} bytes for a tree of {size}");

    line!("6. If nothing is new:");
    let third = demo.pull(&server)?;
    line!("   {}, {}.\n", count(number(&third, "round_trips"), "round trip"), bytes(number(&third, "bytes_received")));

    line!("7. Every file is checked against the publisher's digests.");
    demo.run(&["verify", "@mirror", "--store", "@mirror-store"])?;
    line!("   All files are correct. The demo removes its files.");
    drop(server);
    scratch.close().context("cannot remove the demo's files")?;
    Ok(Exit::Done)
}

struct Demo {
    scratch: PathBuf,
    program: PathBuf,
}

impl Demo {
    fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    fn index(&self) -> Result<Value> {
        self.json(&["index", "--root", "@origin", "--store", "@store", "--name", "demo", "--json"])
    }

    fn pull(&self, server: &Server) -> Result<Value> {
        self.json(&["pull", &server.url("demo"), "@mirror", "--store", "@mirror-store", "--delete", "--json"])
    }

    fn serve(&self) -> Result<Server> {
        // A strict umask may have made the tree private.
        let words = ["serve", "--root", "@origin", "--store", "@store", "--listen", "127.0.0.1:0", "--serve-private"];
        let mut command = self.command(&words);
        let child = command.stderr(Stdio::piped()).spawn().context("cannot start the daemon")?;
        let mut server = Server { child, address: String::new() };
        let stderr = server.child.stderr.take().context("the daemon has no log")?;
        let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
        let address = lines.find_map(|line| Some(line.split_once("listening on ")?.1.trim().to_owned()));
        server.address = address.context("the daemon ended before it listened")?;
        std::thread::spawn(move || lines.for_each(drop));
        Ok(server)
    }

    /// Waits until the daemon, which checks its store once a second, serves a generation.
    fn wait_for(&self, server: &Server, generation: u64) -> Result<()> {
        for _ in 0..200 {
            let output = Command::new(&self.program).args(["list", "--json", &server.url("")]).output()?;
            let listed: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if listed["repositories"][0]["generation"] == generation {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        bail!("the daemon does not serve generation {generation}")
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        serde_json::from_slice(&self.run(arguments)?).context("the command's report is not JSON")
    }

    fn run(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        let output = self.command(arguments).output().context("cannot run this program")?;
        let message = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} failed ({}): {message}", arguments[0], output.status);
        Ok(output.stdout)
    }

    /// Creates a command, and prints it as it would be typed. In the arguments, `@name` stands for a path of the demo.
    fn command(&self, arguments: &[&str]) -> Command {
        let shown: Vec<_> = arguments.iter().map(|argument| argument.trim_start_matches('@')).collect();
        line!("   $ stillmirror {}", shown.join(" "));
        let mut command = Command::new(&self.program);
        for argument in arguments {
            match argument.strip_prefix('@') {
                Some(name) => command.arg(self.path(name)),
                None => command.arg(argument),
            };
        }
        command
    }
}

/// The daemon. Dropping it ends it.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn url(&self, name: &str) -> String {
        format!("stillmirror://{}/{name}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn number(report: &Value, key: &str) -> u64 {
    report[key].as_u64().unwrap_or_default()
}

fn seconds(report: &Value) -> f64 {
    report["seconds"].as_f64().unwrap_or_default()
}

fn files(report: &Value) -> String {
    format!("{} in {}", count(number(report, "files"), "file"), count(number(report, "directories"), "directory"))
}

/// Calls `each` for everything below a directory, sorted by name.
fn visit(dir: &Path, each: &mut impl FnMut(&Path, &std::fs::Metadata) -> Result<()>) -> Result<()> {
    let mut names: Vec<_> = std::fs::read_dir(dir)?.collect::<Result<_, _>>()?;
    names.sort_by_key(std::fs::DirEntry::file_name);
    for entry in names {
        let path = entry.path();
        let metadata = path.symlink_metadata()?;
        each(&path, &metadata)?;
        if metadata.is_dir() {
            visit(&path, each)?;
        }
    }
    Ok(())
}
