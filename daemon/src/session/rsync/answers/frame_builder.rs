//! Builds the frames for a piece.

use std::ops::Range;

use stillmirror_protocol::path;
use stillmirror_protocol::rsync::digest::Hasher;
use stillmirror_protocol::rsync::exit::io_error;
use stillmirror_protocol::rsync::mux::Severity;
use stillmirror_protocol::wire::ItemFailure;

use super::{Answer, Answers, FileAnswer, NextState};
use crate::pinned::Pinned;
use crate::stream::{Frames, PartResult};

/// Builds the frames for a piece, and the framing's state after it.
pub(super) struct FrameBuilder<'a> {
    answers: &'a Answers,
    frames: Frames,
    next_state: NextState,
    memory: &'a [u8],
}

impl<'a> FrameBuilder<'a> {
    /// Creates a builder without frames, for a piece whose bytes lie in `memory`.
    pub(super) fn new(answers: &'a Answers, next_state: NextState, memory: &'a [u8]) -> Self {
        Self { answers, frames: Frames::default(), next_state, memory }
    }

    /// Returns the frames, and the state after the piece.
    pub(super) fn finish(mut self) -> (Frames, NextState) {
        self.flush();
        (self.frames, self.next_state)
    }

    /// Appends the answer for a part.
    pub(super) fn push(&mut self, answer: &Answer, part: &PartResult) {
        let replies = &mut self.next_state.replies;
        match answer {
            Answer::Echo(request) => replies.echo(request),
            Answer::Done(ends) => (0..*ends).for_each(|_| replies.done()),
            Answer::Deleted(counts) => replies.deleted(counts),
            Answer::DoneAndStatistics => {
                if self.next_state.io_error != 0 {
                    replies.io_error(self.next_state.io_error);
                }
                replies.done();
                replies.statistics(&self.answers.statistics());
            }
            Answer::Shorter(ndx) => replies.no_send(*ndx),
            Answer::File(file) => match &part.bytes {
                Ok(range) => self.push_bytes(file, part.before, range.clone()),
                Err(reason) => self.push_failure(file, part, *reason),
            },
        }
    }

    /// Appends bytes of a file, preceded by its header if they are the first, and followed by its digest if they are the
    /// last.
    fn push_bytes(&mut self, file: &FileAnswer, before: u64, range: Range<usize>) {
        let (algorithm, seed) = (self.answers.algorithm(), self.answers.settled.setup.seed);
        if before == 0 {
            self.next_state.replies.file(&file.request);
            self.next_state.hasher = self.answers.hashes(file).then(|| Hasher::new(algorithm, seed));
        }
        if let Some(hasher) = &mut self.next_state.hasher {
            hasher.update(&self.memory[range.clone()]);
        }
        let (begin, end) = (file.read_from + before, file.read_from + before + range.len() as u64);
        let unsent = file.from.saturating_sub(begin).min(range.len() as u64) as usize;
        let mut rest = range.start + unsent..range.end;
        while !rest.is_empty() {
            let len = rest.len().min(self.next_state.replies.slice());
            self.next_state.replies.literal(len);
            self.flush();
            self.frames.push_file(rest.start..rest.start + len);
            rest.start += len;
        }
        if end == file.size {
            let computed = self.next_state.hasher.take().map(Hasher::finish);
            if file.digest.is_some() && computed.is_some() && computed != file.digest {
                let Pinned { repository, edition } = &*self.answers.settled.pinned;
                edition.damage_log.record_file(&repository.name, &edition.generation, file.row);
            }
            let sum = file.digest.or(computed);
            self.next_state.replies.end(sum.as_deref().unwrap_or_default());
            self.next_state.files += 1;
        }
    }

    /// Appends the failure of a file. A file that was begun is ended with a digest that it cannot have. The client then
    /// asks for the file again, and is told the reason.
    fn push_failure(&mut self, file: &FileAnswer, part: &PartResult, reason: ItemFailure) {
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
        self.next_state.replies.message(severity, &text);
        self.next_state.io_error |= bits;
        if part.before == 0 {
            self.next_state.replies.no_send(file.request.ndx);
        } else {
            self.next_state.hasher = None;
            let right =
                file.digest.as_deref().map_or_else(|| vec![0; self.answers.algorithm().bytes()], <[u8]>::to_vec);
            let wrong: Vec<u8> = right.iter().map(|byte| !byte).collect();
            self.next_state.replies.end(&wrong);
        }
        self.frames.push_failure(part.item, reason);
    }

    /// Moves the bytes that the replies have written to the frames.
    fn flush(&mut self) {
        let out = self.next_state.replies.buffer();
        if !out.is_empty() {
            self.frames.push_protocol(out);
            out.clear();
        }
    }
}
