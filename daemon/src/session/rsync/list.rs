//! The file list, streamed.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use stillmirror_protocol::rsync::flist::{ListWriter, Written};
use stillmirror_protocol::rsync::rules::Rules;

use super::answers::{Answers, QUEUE, Until};
use super::select::Selected;
use super::{Session, Settled};
use crate::session::Ended;
use crate::stream::Lane;

/// Bytes of the list that are made at a time.
const CHUNK: usize = 128 << 10;
/// Bytes of the first piece: it is to go out at once.
const FIRST_CHUNK: usize = 8 << 10;
/// Entries of unfinished sub-lists beyond which no more are sent: what a client asks for in them may all
/// have to be remembered, so that it never waits for this side to read while this side waits for it.
pub(super) const WINDOW: u32 = 32 << 10;

/// A piece of the list, and all that is needed for the next one.
struct Step {
    writer: ListWriter,
    rows: Vec<u32>,
    bytes: Vec<u8>,
    written: Written,
}

/// How much of what was sent the client has done with.
#[derive(Default)]
struct Progress {
    /// After some of the pieces: lists begun, and entries.
    sent: VecDeque<(u32, u32)>,
    finished: u32,
}

impl Session {
    /// Sends the list; answers meanwhile what the client asks for in the part that it has.
    pub(super) async fn send_list(
        &self,
        mut lane: Lane<Answers>,
        settled: &Arc<Settled>,
        selected: Selected,
    ) -> Result<Lane<Answers>, Ended> {
        let Selected { selection, rules, class } = selected;
        let io_error = selection.io_error();
        if io_error != 0 && !class.carries_errors() {
            lane.framing.replies.io_error(io_error);
        }
        let writer = {
            let (settled, rules) = (Arc::clone(settled), Arc::clone(&rules));
            let list = move || ListWriter::new(settled.pinned.edition.generation.list(), class, selection, &*rules);
            self.blocking(list).await?
        };
        lane.framing.number(writer.computed());
        let mut step =
            Step { writer, rows: Vec::new(), bytes: Vec::new(), written: Written { done: false, boundary: None } };
        let mut progress = Progress::default();
        let mut limit = FIRST_CHUNK;
        while !step.written.done {
            step = self.make(settled, &rules, step, limit).await?;
            if rules.exhausted() {
                return Err(Ended::RulesTooCostly);
            }
            limit = CHUNK;
            lane.framing.listed(&mut step.rows, step.writer.lists(), step.written.done);
            progress.sent.push_back((step.writer.lists(), step.writer.entries()));
            let bytes = std::mem::take(&mut step.bytes);
            let boundary = step.written.boundary.filter(|_| class.incremental).unwrap_or(0);
            lane = self.send_piece(lane, &bytes[..boundary]).await?;
            if boundary > 0 && !step.written.done {
                lane = answer_meanwhile(lane, &mut progress, step.writer.entries()).await?;
            }
            lane = self.send_piece(lane, &bytes[boundary..]).await?;
            step.bytes = bytes;
        }
        self.tally().listed = u64::from(step.writer.entries());
        Ok(lane)
    }

    async fn make(&self, settled: &Arc<Settled>, rules: &Arc<Rules>, step: Step, limit: usize) -> Result<Step, Ended> {
        let (settled, rules) = (Arc::clone(settled), Arc::clone(rules));
        self.blocking(move || {
            let Step { mut writer, mut rows, mut bytes, .. } = step;
            bytes.clear();
            let list = settled.pinned.edition.generation.list();
            let written = writer.write(list, &*rules, &mut bytes, &mut rows, limit);
            Step { writer, rows, bytes, written }
        })
        .await
    }

    /// Sends bytes of the list as one frame.
    async fn send_piece(&self, mut lane: Lane<Answers>, bytes: &[u8]) -> Result<Lane<Answers>, Ended> {
        if !bytes.is_empty() {
            lane.framing.replies.list_head(bytes.len());
        }
        let head = lane.framing.replies.take();
        lane.framing.sent += (head.len() + bytes.len()) as u64;
        if !head.is_empty() {
            self.writer.lock().await.send(&mut [IoSlice::new(&head), IoSlice::new(bytes)]).await?;
        }
        Ok(lane)
    }
}

/// Answers what has been asked for, if it is much, and for as long as too much of the list is not done with.
async fn answer_meanwhile(
    mut lane: Lane<Answers>,
    progress: &mut Progress,
    entries: u32,
) -> Result<Lane<Answers>, Ended> {
    loop {
        let finished = progress.finished_by(lane.framing.lists_done());
        let until = if entries.saturating_sub(finished) > WINDOW {
            Until::Some
        } else if lane.framing.waiting() > QUEUE as usize / 2 {
            Until::Empty
        } else {
            return Ok(lane);
        };
        lane.framing.until = until;
        lane = lane.run().await?;
        lane.framing.until = Until::End;
        if lane.framing.has_ended() {
            return Err(stillmirror_protocol::rsync::fault::Fault::Phases.into());
        }
    }
}

impl Progress {
    /// Entries of the lists that the client is through with.
    fn finished_by(&mut self, lists: u32) -> u32 {
        while let Some(&(sent, entries)) = self.sent.front()
            && sent <= lists
        {
            self.finished = entries;
            self.sent.pop_front();
        }
        self.finished
    }
}
