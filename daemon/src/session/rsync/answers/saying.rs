//! What goes out for a piece.

use std::ops::Range;

use stillmirror_protocol::path;
use stillmirror_protocol::rsync::digest::Hasher;
use stillmirror_protocol::rsync::exit::io_error;
use stillmirror_protocol::rsync::mux::Severity;
use stillmirror_protocol::wire::ItemFailure;

use super::{After, Answer, Answers, Content};
use crate::pinned::Pinned;
use crate::stream::{Frames, Got};

/// What goes out for a piece, as it is put together.
pub(super) struct Saying<'a> {
    answers: &'a Answers,
    frames: Frames,
    after: After,
    memory: &'a [u8],
}

impl<'a> Saying<'a> {
    /// Nothing yet, of a piece in `memory`.
    pub(super) fn new(answers: &'a Answers, after: After, memory: &'a [u8]) -> Self {
        Self { answers, frames: Frames::default(), after, memory }
    }

    /// All of it, and what is to be remembered.
    pub(super) fn finish(mut self) -> (Frames, After) {
        self.flush();
        (self.frames, self.after)
    }

    /// Puts a part's answer together.
    pub(super) fn say(&mut self, answer: &Answer, part: &Got) {
        let replies = &mut self.after.replies;
        match answer {
            Answer::Echo(request) => replies.echo(request),
            Answer::Done(ends) => (0..*ends).for_each(|_| replies.done()),
            Answer::Deleted(counts) => replies.deleted(counts),
            Answer::DoneAndStatistics => {
                if self.after.io_error != 0 {
                    replies.io_error(self.after.io_error);
                }
                replies.done();
                replies.statistics(&self.answers.statistics());
            }
            Answer::Shorter(ndx) => replies.no_send(*ndx),
            Answer::File(file) => match &part.bytes {
                Ok(range) => self.bytes(file, part.before, range.clone()),
                Err(reason) => self.failure(file, part, *reason),
            },
        }
    }

    /// Bytes of a file, with its head before the first and its end behind the last of them.
    fn bytes(&mut self, file: &Content, before: u64, range: Range<usize>) {
        let (algorithm, seed) = (self.answers.algorithm(), self.answers.settled.setup.seed);
        if before == 0 {
            self.after.replies.file(&file.request);
            self.after.hasher = self.answers.hashes(file).then(|| Hasher::new(algorithm, seed));
        }
        if let Some(hasher) = &mut self.after.hasher {
            hasher.update(&self.memory[range.clone()]);
        }
        let (begin, end) = (file.read_from + before, file.read_from + before + range.len() as u64);
        let unsent = file.from.saturating_sub(begin).min(range.len() as u64) as usize;
        let mut rest = range.start + unsent..range.end;
        while !rest.is_empty() {
            let len = rest.len().min(self.after.replies.slice());
            self.after.replies.literal(len);
            self.flush();
            self.frames.bytes(rest.start..rest.start + len);
            rest.start += len;
        }
        if end == file.size {
            let found = self.after.hasher.take().map(Hasher::finish);
            if file.digest.is_some() && found.is_some() && found != file.digest {
                let Pinned { repository, edition } = &*self.answers.settled.pinned;
                edition.damages.met_file(&repository.name, &edition.generation, file.row);
            }
            let sum = file.digest.or(found);
            self.after.replies.end(sum.as_deref().unwrap_or_default());
            self.after.files += 1;
        }
    }

    /// A file of which nothing (more) comes. One that was begun is ended with a digest that it cannot have, so
    /// that the client asks again, and then hears the truth.
    fn failure(&mut self, file: &Content, part: &Got, reason: ItemFailure) {
        let settled = &self.answers.settled;
        let module = &settled.pinned.repository.name;
        let name = path::Escaped(&self.answers.list().path(file.row)).to_string();
        let (text, bits, severity) = match reason {
            ItemFailure::Vanished | ItemFailure::Stale => {
                (format!("file has vanished: \"/{name}\" (in {module})"), io_error::VANISHED, Severity::Warning)
            }
            ItemFailure::Unreadable => {
                let why = if self.answers.list().is_public(file.row) { "" } else { ": Permission denied (13)" };
                let text = format!("rsync: [sender] send_files failed to open \"/{name}\" (in {module}){why}");
                (text, io_error::GENERAL, Severity::Transfer)
            }
        };
        let is_graded = settled.setup.version.facts().graded_messages;
        let (severity, bits) = if is_graded { (severity, bits) } else { (Severity::Transfer, io_error::GENERAL) };
        self.after.replies.message(severity, &text);
        self.after.io_error |= bits;
        if part.before == 0 {
            self.after.replies.no_send(file.request.ndx);
        } else {
            self.after.hasher = None;
            let right =
                file.digest.as_deref().map_or_else(|| vec![0; self.answers.algorithm().bytes()], <[u8]>::to_vec);
            let wrong: Vec<u8> = right.iter().map(|byte| !byte).collect();
            self.after.replies.end(&wrong);
        }
        self.frames.fail(part.item, reason);
    }

    /// Moves what the replies have written to the frames.
    fn flush(&mut self) {
        let out = self.after.replies.buffer();
        if !out.is_empty() {
            self.frames.words(out);
            out.clear();
        }
    }
}
