//! Traces: files below the tree that say when this mirror was last complete, for people and for monitoring.
//!
//! `project/trace/HOST` has the form that Debian's mirrors use, and `project/trace/HOST.json` says the same and more to
//! programs. Both are this mirror's own: the origin's list does not have them, so the served generation does not have them
//! either, and a pull does not delete them. They are written last, and the times of the directories above them are set
//! back, so that they are still those of the list.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::str::FromStr;

use jiff::Timestamp;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use stillmirror_protocol::path;
use thiserror::Error;

use crate::error::{At as _, PullError};
use crate::local::{self, Tree};
use crate::report::Options;
use crate::selection::Selection;
use crate::source::Pinned;

/// The name of this mirror in its traces: a host name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceHost(String);

/// The text is not a host name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a host name: letters, digits, '-' and single dots between them, at most 253 characters")]
pub struct TraceHostError;

impl FromStr for TraceHost {
    type Err = TraceHostError;

    fn from_str(text: &str) -> Result<Self, TraceHostError> {
        let is_label = |label: &str| {
            let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            !label.is_empty() && label.len() <= 63 && label.bytes().all(is_part) && !label.starts_with('-')
        };
        let is_host = text.len() <= 253 - ".json".len() && text.split('.').all(is_label);
        is_host.then(|| Self(text.to_owned())).ok_or(TraceHostError)
    }
}

impl fmt::Display for TraceHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TraceHost {
    fn names(&self) -> [String; 2] {
        [self.0.clone(), format!("{}.json", self.0)]
    }

    /// Returns the paths of the trace files.
    pub(crate) fn paths(&self) -> Vec<Vec<u8>> {
        self.names().iter().map(|name| path::join(DIR, name.as_bytes())).collect()
    }

    /// Fails if the list has a trace file, or something else than a directory where a trace's directory must be.
    pub(crate) fn refuse_taken(&self, selection: &Selection<'_>) -> Result<(), PullError> {
        let taken = |path: &[u8]| {
            let path = path::Escaped(path).to_string();
            PullError::usage(format!("the repository has {path} itself: give --trace another name, or leave it out"))
        };
        for path in self.paths() {
            if selection.find(&path).is_some() {
                return Err(taken(&path));
            }
        }
        let blocked = DIRS.iter().find(|dir| selection.find(dir).is_some_and(|row| !row.is_dir()));
        blocked.map_or(Ok(()), |dir| Err(taken(dir)))
    }

    /// Returns whether nobody else's file is in the place of the trace.
    pub(crate) fn is_free(&self, tree: &Tree) -> bool {
        let Some(path) = self.paths().into_iter().next() else { return false };
        match local::optional(tree.file(&path)) {
            Ok(None) => true,
            Ok(Some(file)) => {
                let mut text = String::new();
                file.take(MAX_BYTES).read_to_string(&mut text).is_ok() && text.contains(CREATOR)
            }
            Err(_) => false,
        }
    }
}

/// What a trace says.
pub(crate) struct Trace<'a> {
    pub(crate) host: &'a TraceHost,
    pub(crate) options: &'a Options,
    pub(crate) pinned: &'a Pinned,
    /// When the pull began.
    pub(crate) started: Timestamp,
    /// When it ended.
    pub(crate) ended: Timestamp,
}

impl Trace<'_> {
    /// Writes the files, each by a rename.
    pub(crate) fn write(&self, tree: &Tree) -> Result<(), PullError> {
        for dir in DIRS {
            make_dir(tree, dir)?;
        }
        let dir = tree.dir(DIR).at("open", tree.shown(DIR))?;
        unnoticed(dir.as_fd(), || {
            for (name, text) in self.host.names().iter().zip([self.to_text(), self.to_json()]) {
                replace(dir.as_fd(), name, text.as_bytes(), self.options.sync)?;
            }
            Ok(())
        })
        .at("write the trace in", tree.shown(DIR))
    }

    /// Returns the trace as Debian's mirrors write it. Lines about what only an archive's own tools know are left out.
    fn to_text(&self) -> String {
        let time = |at: Timestamp| at.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string();
        let mut text = format!("{}\n", self.ended.strftime("%a %b %e %H:%M:%S UTC %Y"));
        text += &format!("Date: {}\nDate-Started: {}\n", time(self.ended), time(self.started));
        text += &format!("{CREATOR} {}\nRunning on host: {}\n", env!("CARGO_PKG_VERSION"), self.running_on());
        text + &format!("Upstream-mirror: {}\n", self.upstream())
    }

    fn to_json(&self) -> String {
        let head = &self.pinned.head;
        let created = Timestamp::new(head.created.sec, head.created.nsec.cast_signed()).ok();
        let value = serde_json::json!({
            "host": self.host.0,
            "repository": head.repository,
            "upstream": self.options.address,
            "generation": head.generation,
            "list": head.list_digest.to_string(),
            "created": created.map(|created| created.to_string()),
            "started": self.started.to_string(),
            "checked": self.ended.to_string(),
            "creator": format!("stillmirror {}", env!("CARGO_PKG_VERSION")),
        });
        format!("{value}\n")
    }

    fn running_on(&self) -> String {
        let found = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Some(found.trim().to_owned()).filter(|name| !name.is_empty()).unwrap_or_else(|| self.host.0.clone())
    }

    /// Returns the sender's name without its port.
    fn upstream(&self) -> &str {
        let address = &self.options.address;
        address.rsplit_once(':').map_or(&address[..], |(host, _)| host)
    }
}

fn make_dir(tree: &Tree, dir: &[u8]) -> Result<(), PullError> {
    let (above, name) = path::split(dir);
    let parent = tree.dir(above).at("open", tree.shown(above))?;
    if local::optional(local::stat(parent.as_fd(), name)).at("stat", tree.shown(dir))?.is_some() {
        return Ok(());
    }
    let make = || match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    };
    unnoticed(parent.as_fd(), make).at("create", tree.shown(dir))
}

/// Changes names in a directory, and sets its mode and time back.
fn unnoticed(dir: BorrowedFd<'_>, change: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let before = local::stat(dir, b".")?;
    let was_closed = local::make_writable(dir);
    let changed = change();
    if was_closed {
        local::set_mode(dir, before.mode)?;
    }
    rustix::fs::utimensat(dir, ".", &local::times(before.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
    changed
}

/// Writes a file that everybody may read, under a temporary name first.
fn replace(dir: BorrowedFd<'_>, name: &str, bytes: &[u8], sync: bool) -> io::Result<()> {
    let temporary = format!(".{name}.new");
    // What a killed pull left, or what somebody put there.
    local::unlink(dir, temporary.as_bytes())?;
    let mut file: File = local::open_file(dir, temporary.as_bytes(), OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
    let written = file.write_all(bytes).and_then(|()| {
        rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644))?;
        if sync { file.sync_all() } else { Ok(()) }
    });
    let renamed = written.and_then(|()| local::rename(dir, temporary.as_bytes(), dir, name.as_bytes()));
    if renamed.is_err() {
        let _ = local::unlink(dir, temporary.as_bytes());
    }
    renamed
}

const DIRS: [&[u8]; 2] = [b"project", DIR];
const DIR: &[u8] = b"project/trace";
const CREATOR: &str = "Creator: stillmirror";
/// Maximum length of a trace that is read, in bytes.
const MAX_BYTES: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_names_name_a_trace() {
        for good in ["mirror.example.org", "localhost", "a-1.b", "192.0.2.1"] {
            assert_eq!(good.parse(), Ok(TraceHost(good.to_owned())));
        }
        let long = "a".repeat(64);
        for bad in ["", ".", "..", "../x", "a/b", "/etc", "a..b", "a.", ".a", "-a", "a b", "a\n", "_x", "ä", &long] {
            assert_eq!(bad.parse::<TraceHost>(), Err(TraceHostError), "{bad}");
        }
    }
}
