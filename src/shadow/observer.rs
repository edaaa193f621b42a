//! Looks at both daemons in the same way, at the same time.

use std::cmp::Ordering;
use std::io::ErrorKind;
use std::path::PathBuf;

use indicatif::ProgressBar;

use super::client::{Client, Ended, words_for};
use super::difference::{Aspect, Difference, MAX_KEPT, Seen};
use super::door;
use super::error::ShadowError;
use super::record::{Record, text};
use super::side::{Side, Which};
use super::sorted::{Sorted, Sorter};
use super::view::View;
use crate::output::count;

/// The two daemons, and the client that looks at them.
pub(super) struct Observer {
    pub(super) client: Client,
    pub(super) old: Side,
    pub(super) new: Side,
    /// For temporary files.
    pub(super) scratch: PathBuf,
    pub(super) bar: ProgressBar,
}

/// The result of a look at a view.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) seen: Seen,
    /// The number of entries that the old daemon lists.
    pub(super) entries: u64,
    /// Why nothing could be compared.
    pub(super) impossible: Option<String>,
    /// Whether both clients got the list.
    pub(super) is_whole: bool,
}

impl Observer {
    /// Does the same with both daemons, at the same time.
    pub(super) fn both<T: Send>(
        &self,
        look: impl Fn(&Side) -> Result<T, ShadowError> + Sync,
    ) -> Result<(T, T), ShadowError> {
        std::thread::scope(|scope| {
            let old = scope.spawn(|| look(&self.old));
            let new = look(&self.new);
            // The thread panics only if this program is wrong.
            let old = old.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok((old?, new?))
        })
    }

    /// Returns an empty directory that no client writes to.
    pub(super) fn empty(&self) -> PathBuf {
        self.scratch.join("empty")
    }

    /// Compares a view of a module. Passes what both daemons list to `shared`.
    pub(super) fn look(
        &self,
        module: &str,
        view: &View,
        shared: &mut dyn FnMut(Record<'_>),
    ) -> Result<Look, ShadowError> {
        let (old, new) = self.both(|side| self.list(side, module, view))?;
        self.check_alive(&old.ended, &new.ended, module)?;
        let mut look = Look { entries: old.count, ..Look::default() };
        look.impossible = impossible(&old.ended, &new.ended)?;
        if look.impossible.is_some() {
            return Ok(look);
        }
        compare_ends(&view.subject, &old.ended, &new.ended, &mut look.seen);
        look.is_whole = old.ended.is_whole() && new.ended.is_whole();
        if look.is_whole {
            compare_lines(&view.subject, &old.notes, &new.notes, &mut look.seen);
            self.merge(old.sorted, new.sorted, view, &mut look.seen, shared)?;
        }
        Ok(look)
    }

    /// Lists a view of a module as one daemon shows it.
    fn list(&self, side: &Side, module: &str, view: &View) -> Result<Listed, ShadowError> {
        let mut options = view.options.clone();
        options.extend(view.format.words().iter().map(|&word| word.to_owned()));
        let empty = self.empty();
        let dest = view.dest.as_deref().unwrap_or(&empty);
        let dest = if view.is_listing() { None } else { Some(dest) };
        if dest.is_some() {
            options.push("--dry-run".to_owned());
        }
        let words = words_for(side, &options, module, &view.path, dest);
        let mut sorter = Sorter::new(&self.scratch);
        let (mut notes, mut record) = (Vec::new(), Vec::new());
        let ended = self.client.run(side.which, &words, None, &mut |line| {
            if view.format.read(line, &mut record) {
                sorter.push(&record).map_err(|error| self.failed(error))?;
                if side.which == Which::Old && sorter.count().is_multiple_of(1000) {
                    self.bar.set_message(format!("{module}, {}: {}", view.name, count(sorter.count(), "entry")));
                }
            } else if notes.len() < MAX_KEPT && !is_summary(line) {
                notes.push(text(line));
            }
            Ok(())
        })?;
        notes.sort();
        let count = sorter.count();
        Ok(Listed { ended, sorted: sorter.finish().map_err(|error| self.failed(error))?, notes, count })
    }

    /// Compares the entries of both lists.
    fn merge(
        &self,
        mut old: Sorted,
        mut new: Sorted,
        view: &View,
        seen: &mut Seen,
        shared: &mut dyn FnMut(Record<'_>),
    ) -> Result<(), ShadowError> {
        let failed = |error| self.failed(error);
        let (mut left, mut right) = (old.next().map_err(failed)?, new.next().map_err(failed)?);
        loop {
            let order = match (&left, &right) {
                (None, None) => return Ok(()),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => Record(a).path().cmp(Record(b).path()),
            };
            match (&left, &right) {
                (Some(a), Some(b)) if order == Ordering::Equal => {
                    if a == b {
                        shared(Record(a));
                    } else {
                        Record(a).differences(Record(b), view.format, |difference| seen.add(difference));
                    }
                }
                (Some(a), _) if order == Ordering::Less => {
                    let a = Record(a);
                    seen.add(Difference::new(text(a.path()), Aspect::Entry, a.summary(), ""));
                }
                (_, Some(b)) => {
                    let b = Record(b);
                    seen.add(Difference::new(text(b.path()), Aspect::Entry, "", b.summary()));
                }
                _ => {}
            }
            if order != Ordering::Greater {
                left = old.next().map_err(failed)?;
            }
            if order != Ordering::Less {
                right = new.next().map_err(failed)?;
            }
        }
    }

    /// Finds out whether a daemon is down if its client lost the connection.
    pub(super) fn check_alive(&self, old: &Ended, new: &Ended, module: &str) -> Result<(), ShadowError> {
        for (side, ended) in [(&self.old, old), (&self.new, new)] {
            if matches!(ended.code, 10 | 12 | 30 | 35) {
                self.knock(side, module)?;
            }
        }
        Ok(())
    }

    pub(super) fn knock(&self, side: &Side, module: &str) -> Result<door::Door, ShadowError> {
        let (which, address, limit) = (side.which, side.url.to_string(), self.client.patience);
        door::knock(&side.url, module, limit).map_err(|source| match source.kind() {
            // What a socket's read timeout is reported as.
            ErrorKind::WouldBlock => ShadowError::Silent { which, limit },
            _ => ShadowError::Down { which, address, source },
        })
    }

    fn failed(&self, source: std::io::Error) -> ShadowError {
        ShadowError::Scratch { path: self.scratch.clone(), source }
    }
}

/// What one daemon shows.
struct Listed {
    ended: Ended,
    sorted: Sorted,
    /// Lines that describe no entry.
    notes: Vec<String>,
    count: u64,
}

/// Returns why two clients that ended like this can show nothing about the daemons.
pub(super) fn impossible(old: &Ended, new: &Ended) -> Result<Option<String>, ShadowError> {
    for (which, ended) in [(Which::Old, old), (Which::New, new)] {
        if ended.is_full() {
            return Ok(Some(format!("the {which} daemon has its maximum number of clients")));
        }
    }
    if !(old.is_local() && new.is_local() && old.code == new.code) {
        return Ok(None);
    }
    let message = old.messages.first().cloned().unwrap_or_default();
    match old.code {
        1 => Ok(Some(format!("the client refuses it: {message}"))),
        code => Err(ShadowError::Client { code, message }),
    }
}

/// Compares how two clients ended, and their messages.
pub(super) fn compare_ends(subject: &str, old: &Ended, new: &Ended, seen: &mut Seen) {
    if old.is_refused() && new.is_refused() && old.refused().or(new.refused()).is_some() {
        seen.compare(subject, Aspect::Refusal, &old.text(), &new.text());
    } else if old.code != new.code {
        seen.add(Difference::new(subject, Aspect::Exit, old.text(), new.text()));
    } else if !old.is_whole() {
        seen.compare(subject, Aspect::Wording, &old.text(), &new.text());
    } else if !old.is_cut && !new.is_cut {
        compare_lines(subject, &old.messages, &new.messages, seen);
    }
}

/// Adds the lines that only one of two sorted lists has.
fn compare_lines(subject: &str, old: &[String], new: &[String], seen: &mut Seen) {
    for line in old.iter().filter(|line| new.binary_search(line).is_err()) {
        seen.add(Difference::new(subject, Aspect::Message, line, ""));
    }
    for line in new.iter().filter(|line| old.binary_search(line).is_err()) {
        seen.add(Difference::new(subject, Aspect::Message, "", line));
    }
}

/// Returns whether a line of a client's output depends on the run: totals, speeds and the like.
fn is_summary(line: &[u8]) -> bool {
    const STARTS: [&str; 12] = [
        "receiving ",
        "sent ",
        "total size is ",
        "created directory ",
        "Number of ",
        "Total ",
        "Literal data",
        "Matched data",
        "File list ",
        "delta-transmission ",
        "opening tcp connection",
        "done",
    ];
    line.is_empty() || STARTS.iter().any(|start| line.starts_with(start.as_bytes()))
}
