//! Traces: files below the tree that say when this mirror was last complete, for people and for monitoring.
//!
//! `project/trace/HOST` has the form that Debian's mirrors use, and `project/trace/HOST.json` says the same and more to
//! programs. Both are this mirror's own: the origin's list does not have them, so the served generation does not have them
//! either, and a pull does not delete them. They are written last, and the times of the directories above them are set
//! back, so that they are still those of the list.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};

use jiff::Timestamp;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use stillmirror_protocol::path;

use crate::error::{At as _, PullError};
use crate::local::{self, Tree};
use crate::report::Options;
use crate::selection::Selection;
use crate::source::Pinned;
use crate::trace_host::{DIR, TraceHost};

/// Fails if the list has a trace file, or something else than a directory where a trace's directory must be.
pub(crate) fn refuse_taken(host: &TraceHost, selection: &Selection<'_>) -> Result<(), PullError> {
    let taken = |path: &[u8]| {
        let path = path::Escaped(path).to_string();
        PullError::usage(format!("the repository has {path} itself: give --trace another name, or leave it out"))
    };
    for path in host.paths() {
        if selection.find(&path).is_some() {
            return Err(taken(&path));
        }
    }
    let blocked = DIRS.iter().find(|dir| selection.find(dir).is_some_and(|row| !row.is_dir()));
    blocked.map_or(Ok(()), |dir| Err(taken(dir)))
}

/// Returns whether nobody else's file is in the place of the trace.
pub(crate) fn is_free(host: &TraceHost, tree: &Tree) -> bool {
    let Some(path) = host.paths().into_iter().next() else { return false };
    match local::optional(tree.file(&path)) {
        Ok(None) => true,
        Ok(Some(file)) => {
            let mut text = String::new();
            file.take(MAX_BYTES).read_to_string(&mut text).is_ok() && text.contains(CREATOR)
        }
        Err(_) => false,
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
            "host": self.host.to_string(),
            "repository": head.repository,
            "upstream": self.options.address.host_port,
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
        Some(found.trim().to_owned()).filter(|name| !name.is_empty()).unwrap_or_else(|| self.host.to_string())
    }

    /// Returns the sender's name without its port.
    fn upstream(&self) -> &str {
        let address = &self.options.address.host_port;
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
const CREATOR: &str = "Creator: stillmirror";
/// Maximum length of a trace that is read, in bytes.
const MAX_BYTES: u64 = 4096;
