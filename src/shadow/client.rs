//! Runs the stock rsync client.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::door;
use super::error::ShadowError;
use super::side::{Side, Which};

/// How often a client that finds the maximum number of clients tries again.
const TRIES: u32 = 8;
/// The wait before the first of these tries. Each further one waits twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(60);
/// How often a running client is looked at.
const GLANCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// The maximum length of a line, in bytes: a path and a target of 4 KiB each, all of whose bytes are escaped.
const MAX_LINE: usize = 64 << 10;
/// The maximum size of the messages of a client, in bytes.
const MAX_MESSAGES: u64 = 1 << 20;

/// How clients are run.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) program: PathBuf,
    /// With the password for logins.
    pub(super) password_file: Option<PathBuf>,
    /// How long a client may print nothing.
    pub(super) patience: Duration,
    pub(super) stop: Arc<AtomicBool>,
}

/// How a client ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) code: i32,
    /// Its messages, sorted, without what differs between two runs.
    pub(super) messages: Vec<String>,
    /// Whether it had more messages than are kept.
    pub(super) is_cut: bool,
}

impl Ended {
    /// Returns whether the transfer took place, perhaps without some files.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.code, 0 | 23 | 24)
    }

    /// Returns whether the client failed on this host: space, memory, a program or an option that it does not have.
    pub(super) fn is_local(&self) -> bool {
        matches!(self.code, 1 | 11 | 13 | 14 | 20 | 22) && !self.messages.iter().any(|message| is_of_daemon(message))
    }

    /// Returns whether there are too many clients.
    pub(super) fn is_full(&self) -> bool {
        self.messages.iter().any(|message| door::is_full(message))
    }

    /// Returns whether the connection was closed before the client could read why: a stock daemon does not wait for that.
    fn is_cut_off(&self) -> bool {
        matches!(self.code, 10 | 12) && self.messages.is_empty()
    }

    /// Returns the option that the daemon refuses, without its short form: `--compress (-z)`.
    pub(super) fn refused(&self) -> Option<&str> {
        let options = self.messages.iter().filter_map(|message| Some(message.split_once("configured to refuse ")?.1));
        options.filter_map(|option| option.split_whitespace().next()).next()
    }

    /// Returns whether a daemon said why it does not serve the client.
    pub(super) fn is_refused(&self) -> bool {
        !self.is_whole() && self.messages.iter().any(|message| is_of_daemon(message))
    }

    /// Returns the exit code, and the first message if it failed.
    pub(super) fn text(&self) -> String {
        match self.messages.iter().find(|message| is_of_daemon(message)).or(self.messages.first()) {
            Some(message) if self.code != 0 => format!("{}: {message}", self.code),
            _ => self.code.to_string(),
        }
    }
}

fn is_of_daemon(message: &str) -> bool {
    message.starts_with("@ERROR")
        || message.starts_with("ERROR: ")
        || message.contains("configured to refuse")
        || message.contains("with a read-only module")
        || message.contains("[sender]")
}

impl Client {
    /// Returns the version of the client, such as `3.2.7`.
    pub(super) fn version(&self) -> Result<String, ShadowError> {
        let mut command = Command::new(&self.program);
        clean(&mut command);
        let output = command.arg("--version").output().map_err(|source| self.cannot_run(source))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut words = text.split_whitespace().skip_while(|word| *word != "version").skip(1);
        words.next().map(str::to_owned).ok_or_else(|| self.cannot_run(io::Error::other("it is not rsync")))
    }

    fn cannot_run(&self, source: io::Error) -> ShadowError {
        ShadowError::NoClient { program: self.program.clone(), source }
    }

    /// Runs a client with these words. Passes each line of its output to `on_line`. Tries again if there are too many
    /// clients, or if the client could not read why it was disconnected.
    pub(super) fn run(
        &self,
        which: Which,
        words: &[OsString],
        password: Option<&str>,
        on_line: &mut dyn FnMut(&[u8]) -> Result<(), ShadowError>,
    ) -> Result<Ended, ShadowError> {
        let mut wait = FIRST_WAIT;
        let mut is_empty = true;
        let mut try_once = || {
            let ended = self.run_once(which, words, password, &mut |line| {
                is_empty = false;
                on_line(line)
            })?;
            let again = ended.is_full() || ended.is_cut_off() && is_empty;
            Ok((ended, again))
        };
        for _ in 1..TRIES {
            let (ended, again) = try_once()?;
            if !again {
                return Ok(ended);
            }
            self.wait(wait)?;
            wait *= 2;
        }
        Ok(try_once()?.0)
    }

    /// Waits, unless the comparison is to end.
    pub(super) fn wait(&self, time: Duration) -> Result<(), ShadowError> {
        let end = Instant::now() + time;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(ShadowError::Interrupted);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }

    fn run_once(
        &self,
        which: Which,
        words: &[OsString],
        password: Option<&str>,
        on_line: &mut dyn FnMut(&[u8]) -> Result<(), ShadowError>,
    ) -> Result<Ended, ShadowError> {
        let mut command = Command::new(&self.program);
        clean(&mut command);
        match (password, &self.password_file) {
            (Some(password), _) => {
                command.env("RSYNC_PASSWORD", password);
            }
            (None, Some(file)) => {
                command.arg("--password-file").arg(file);
            }
            // Without a terminal, a client that needs a password has none, and says so.
            (None, None) => {}
        }
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = Running(command.spawn().map_err(|source| self.cannot_run(source))?);
        let pipes = running.0.stdout.take().zip(running.0.stderr.take());
        let (stdout, stderr) = pipes.ok_or_else(|| self.cannot_run(io::Error::other("it has no output")))?;
        let messages = std::thread::spawn(move || messages_of(stderr));
        self.read_lines(which, stdout, on_line)?;
        let code = self.wait_for(which, &mut running.0)?;
        let (messages, is_cut) = messages.join().unwrap_or_default();
        Ok(Ended { code, messages, is_cut })
    }

    /// Reads the output to its end.
    fn read_lines(
        &self,
        which: Which,
        mut stdout: ChildStdout,
        on_line: &mut dyn FnMut(&[u8]) -> Result<(), ShadowError>,
    ) -> Result<(), ShadowError> {
        let mut last = Instant::now();
        let (mut buffer, mut pending) = (vec![0; 64 << 10], Vec::new());
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(ShadowError::Interrupted);
            }
            let ready = poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&GLANCE));
            if !matches!(ready, Ok(1..)) {
                if last.elapsed() > self.patience {
                    return Err(ShadowError::Silent { which, limit: self.patience });
                }
                continue;
            }
            let count = stdout.read(&mut buffer).map_err(|source| self.cannot_run(source))?;
            last = Instant::now();
            if count == 0 {
                return if pending.is_empty() { Ok(()) } else { on_line(&pending) };
            }
            let mut rest = &buffer[..count];
            while let Some(end) = memchr::memchr(b'\n', rest) {
                let (line, after) = (&rest[..end], &rest[end + 1..]);
                if pending.is_empty() {
                    on_line(line)?;
                } else {
                    pending.extend_from_slice(line);
                    on_line(&pending)?;
                    pending.clear();
                }
                rest = after;
            }
            if pending.len() < MAX_LINE {
                pending.extend_from_slice(rest);
            }
        }
    }

    fn wait_for(&self, which: Which, child: &mut Child) -> Result<i32, ShadowError> {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(status) = child.try_wait().map_err(|source| self.cannot_run(source))? {
                return Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()));
            }
            if begun.elapsed() > self.patience {
                return Err(ShadowError::Silent { which, limit: self.patience });
            }
            self.wait(pause)?;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }
}

/// Keeps the client independent of the caller's settings.
fn clean(command: &mut Command) {
    let ours = std::env::vars_os().map(|(name, _)| name).filter(|name| name.as_encoded_bytes().starts_with(b"RSYNC_"));
    ours.for_each(|name| {
        command.env_remove(name);
    });
    command.env("LC_ALL", "C").env("TZ", "UTC");
}

/// Returns the words of a command line that looks at a path of a module.
pub(super) fn words_for(
    side: &Side,
    options: &[String],
    module: &str,
    path: &str,
    dest: Option<&Path>,
) -> Vec<OsString> {
    let mut words: Vec<OsString> = options.iter().map(OsString::from).collect();
    words.extend(["--no-motd", "--contimeout=60"].map(OsString::from));
    words.push(side.url.path(module, path).into());
    words.extend(dest.map(|dest| dest.join("").into_os_string()));
    words
}

/// Returns the messages without what differs between two runs, sorted, and whether some are missing.
fn messages_of(stderr: impl Read) -> (Vec<String>, bool) {
    let mut bytes = Vec::new();
    let mut limited = stderr.take(MAX_MESSAGES);
    // A client that is gone has no more messages.
    let _ = limited.read_to_end(&mut bytes);
    let mut rest = limited.into_inner();
    let is_cut = io::copy(&mut rest, &mut io::sink()).is_ok_and(|count| count > 0);
    let mut messages: Vec<_> = String::from_utf8_lossy(&bytes).lines().filter_map(message).collect();
    messages.sort();
    messages.dedup();
    (messages, is_cut)
}

/// Returns what a message says. `None` if it only repeats how the client ended.
fn message(line: &str) -> Option<String> {
    /// What the client says of its own end, and of a connection that was closed after an error.
    const ENDS: [&str; 6] = [
        "rsync error: ",
        "rsync warning: ",
        "connection unexpectedly closed",
        "read error: Connection reset",
        "write error: Broken pipe",
        "write error: Connection reset",
    ];
    let line = line.trim_end();
    let said = line.strip_prefix("rsync: ").unwrap_or(line);
    let said = ["[Receiver] ", "[receiver] ", "[generator] "]
        .iter()
        .fold(said, |said, who| said.strip_prefix(who).unwrap_or(said));
    if line.is_empty() || ENDS.iter().any(|end| line.starts_with(end) || said.starts_with(end)) {
        return None;
    }
    // A stock daemon with `use chroot` names files from the module's root.
    let said = if said.ends_with(')') || said.contains(" (in ") { said.replace("\"/", "\"") } else { said.to_owned() };
    Some(door::without_client(&said))
}

/// A client. Dropping it ends it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(Some(_))) {
            return;
        }
        // At SIGTERM a client ends its other processes, too.
        let ask = |pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = rustix::process::Pid::from_raw(self.0.id().cast_signed()).map(ask);
        for _ in 0..20 {
            if matches!(self.0.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_compared_without_what_depends_on_the_run() {
        for (line, said) in [
            ("rsync error: some files could not be transferred (code 23) at main.c(1)", None),
            ("rsync: connection unexpectedly closed (9 bytes received so far) [Receiver]", None),
            ("rsync: [Receiver] read error: Connection reset by peer (104)", None),
            ("", None),
            (
                "rsync: [sender] link_stat \"/x\" (in m) failed: No such file or directory (2)",
                Some("[sender] link_stat \"x\" (in m) failed: No such file or directory (2)"),
            ),
            ("@ERROR: access denied to m from h (192.0.2.1)", Some("@ERROR: access denied to m")),
            ("@ERROR: Unknown module 'x'", Some("@ERROR: Unknown module 'x'")),
        ] {
            assert_eq!(message(line).as_deref(), said, "{line}");
        }
        let (messages, is_cut) = messages_of("b\na\nb\n".as_bytes());
        assert_eq!((messages, is_cut), (vec!["a".to_owned(), "b".to_owned()], false));
    }

    #[test]
    fn a_refusal_names_the_option() {
        let ended = |code, message: &str| Ended { code, messages: vec![message.to_owned()], is_cut: false };
        let refused = ended(4, "The server is configured to refuse --compress (-z)");
        assert_eq!(refused.refused(), Some("--compress"));
        assert_eq!(refused.text(), "4: The server is configured to refuse --compress (-z)");
        assert!(refused.is_refused() && !ended(1, "--fancy: unknown option").is_refused());
        assert!(!refused.is_whole() && !refused.is_local());
        assert!(ended(1, "--fancy: unknown option").is_local());
    }
}
