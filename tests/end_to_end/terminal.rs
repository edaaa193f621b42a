//! What commands print on a terminal, and without one.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::support::*;

const COLUMNS: u16 = 60;

#[test]
fn without_a_terminal_the_summary_is_printed_only_if_asked_for() {
    let world = World::with_tree();
    let index = |more: &[&str]| text(index_command(&world).args(more));
    assert_eq!(index(&[]), "");
    assert_eq!(index(&["--quiet"]), "");
    assert!(index(&["--verbose"]).starts_with("src: generation 1 unchanged: "));
    let server = Server::start_as("src", &world.src(), &world.path("store"));
    let pull = |more: &[&str]| text(pull_command(&world, &server).args(more));
    assert!(pull(&["--dry-run"]).contains("fetch          README"));
    assert_eq!(pull(&["--dry-run", "--quiet"]), "");
    assert_eq!(pull(&[]), "");
    assert_eq!(pull(&["--quiet"]), "");
    assert_eq!(pull(&["--verbose"]), "generation 1: nothing is new\n");
}

#[test]
fn a_terminal_shows_the_summary_and_progress_that_fits_into_it() {
    let world = World::new();
    for number in 0..20 {
        write(&world.src().join(format!("file-{number}")), &noise(100_000, number));
    }
    let shown = on_terminal(&mut index_command(&world));
    assert!(shown.contains("src: generation 1 published: 20 files in 1 directory, 2.0 MB"), "{shown}");
    let server = Server::start_as("src", &world.src(), &world.path("store"));
    let shown = on_terminal(pull_command(&world, &server).args(["--bwlimit", "2MB"]));
    assert!(shown.contains("generation 1: 20 files updated"), "{shown}");
    assert!(shown.contains("/20 files") && shown.contains(" of 2.00 MB, "), "{shown}");
    let progress: Vec<_> = redraws(&shown).into_iter().filter(|redraw| redraw[0].starts_with("fetching ")).collect();
    assert!(progress.len() > 2, "{shown}");
    for redraw in progress {
        let is_whole = redraw.len() == 2 && redraw[0].ends_with('%') && redraw[1].trim_end().ends_with(" left");
        assert!(is_whole, "wrapped: {redraw:?}");
    }
    let shown = on_terminal(pull_command(&world, &server).arg("--quiet"));
    assert_eq!(shown, "");
}

#[test]
fn exit_codes_are_on_one_help_page_and_every_command_has_examples() {
    let help = |arguments: &[&str]| text(&mut stillmirror(arguments));
    assert!(help(&["--help"]).contains("\n  25  more deletions than --max-delete allows"));
    for command in ["index", "serve", "pull", "list", "verify", "demo"] {
        let text = help(&[command, "--help"]);
        assert!(text.contains(&format!("Examples:\n  stillmirror {command}")) && !text.contains("  25  "), "{text}");
    }
}

fn index_command(world: &World) -> Command {
    let mut command = stillmirror(&["index", "--root"]);
    command.arg(world.src()).arg("--store").arg(world.path("store"));
    command
}

fn pull_command(world: &World, server: &Server) -> Command {
    let mut command = stillmirror(&["pull", &server.url("src")]);
    command.arg(world.dest()).arg("--store").arg(world.path("dest-store"));
    command
}

/// Runs a command that must succeed and report no errors. Returns what it prints.
#[track_caller]
fn text(command: &mut Command) -> String {
    let output = command.output().expect("the command runs");
    assert_exit(&output, 0);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command on a terminal of [`COLUMNS`] columns; it must succeed. Returns everything that the terminal receives.
#[track_caller]
fn on_terminal(command: &mut Command) -> String {
    let (terminal, program) = pseudo_terminal();
    let mut child = {
        let out = program.try_clone().expect("a descriptor");
        command.env("TERM", "xterm").stdout(out).stderr(program).spawn().expect("the command runs")
    };
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut shown = Vec::new();
    // The read fails once no process has the terminal open.
    let _ = File::from(terminal).read_to_end(&mut shown);
    let shown = String::from_utf8_lossy(&shown).into_owned();
    assert_eq!(child.wait().expect("it ends").code(), Some(0), "{shown}");
    shown
}

/// Opens a pseudo-terminal. Returns its controlling side and the program's side.
fn pseudo_terminal() -> (OwnedFd, OwnedFd) {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
    grantpt(&terminal).expect("access to the terminal");
    unlockpt(&terminal).expect("an unlocked terminal");
    let size = Winsize { ws_row: 24, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&terminal, size).expect("a terminal size");
    let name = ptsname(&terminal, Vec::new()).expect("the terminal's name");
    let program = rustix::fs::open(Path::new(&*name.to_string_lossy()), OFlags::RDWR | OFlags::NOCTTY, Mode::empty());
    (terminal, program.expect("the terminal opens"))
}

/// Returns the lines of each redraw of the progress bar, which fills every line up to the last column.
fn redraws(shown: &str) -> Vec<Vec<String>> {
    let without_controls = |redraw: &str| {
        let mut parts = redraw.split("\u{1b}[");
        let first = parts.next().unwrap_or_default().to_owned();
        let text = |part: &str| part.split_once(|end: char| end.is_ascii_alphabetic()).map(|(_, text)| text.to_owned());
        parts.filter_map(text).fold(first, |all, text| all + &text)
    };
    let redraws = shown.split(['\n', '\r']).map(without_controls).filter(|redraw| !redraw.is_empty());
    let columns = |redraw: String| {
        let chars: Vec<_> = redraw.chars().collect();
        chars.chunks(usize::from(COLUMNS)).map(String::from_iter).collect()
    };
    redraws.map(columns).collect()
}
