//! The rsync framing of the data lane: answers a stock client's requests in order.

mod frame_builder;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use stillmirror_protocol::list::ListRef;
use stillmirror_protocol::rsync::digest::{Algorithm, Hasher, Indexed, Sum};
use stillmirror_protocol::rsync::fault::Fault;
use stillmirror_protocol::rsync::flist::Numbers;
use stillmirror_protocol::rsync::phases::Phases;
use stillmirror_protocol::rsync::replies::{Replies, Statistics};
use stillmirror_protocol::rsync::requests::Request;
use stillmirror_protocol::rsync::version::Closing;
use tokio::sync::mpsc;

use super::input::ClientInput;
use super::window::Position;
use super::{Session, Settled};
use crate::dialect::Dialect;
use crate::ended::Ended;
use crate::pinned::Pinned;
use crate::stream::{Frames, Framing, ItemContent, Order, PartResult};
use frame_builder::FrameBuilder;

/// The capacity of the request queue, in addition to what the client may ask for while the list is sent.
pub(super) const QUEUE: u32 = 1024;
/// The maximum number of items in one order.
const ORDER: usize = 128;

/// When the lane stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopCondition {
    /// After this many inputs of the client, or when none is queued.
    Answers(usize),
    /// When the client is past this position in the list.
    ClientPast(Position),
    /// When the session ends.
    SessionEnd,
}

/// How much of the list is sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listed {
    /// The number of lists begun.
    pub(super) lists: u32,
    pub(super) entries: u32,
    /// The total size of the files and of the symlink targets in it, in bytes.
    pub(super) total: u64,
    /// Whether the list is complete.
    pub(super) is_last: bool,
}

/// A sequence of answers.
pub(super) struct AnswerOrder {
    pinned: Arc<Pinned>,
    items: Vec<Answer>,
}

/// One answer.
enum Answer {
    /// The echo of a request that wants no content.
    Echo(Request),
    /// A file, or the end of one.
    File(FileAnswer),
    /// The index of a file that the client cannot append to, because it is shorter than what the client has.
    Shorter(i32),
    /// This many ends of sub-lists or phases.
    Done(u32),
    DoneAndStatistics,
    Deleted([i32; 5]),
}

/// A file that is sent.
struct FileAnswer {
    request: Request,
    row: u32,
    /// The first byte that is read. It is before `from` if the digest also covers bytes that are not sent.
    read_from: u64,
    /// The first byte that is sent.
    from: u64,
    size: u64,
    /// The digest, if the index has it.
    digest: Option<Sum>,
    /// Whether the client asks for the file again.
    is_redo: bool,
}

impl Order for AnswerOrder {
    fn pinned(&self) -> &Arc<Pinned> {
        &self.pinned
    }

    fn len(&self) -> u32 {
        self.items.len() as u32
    }

    fn content(&self, item: u32) -> ItemContent {
        match &self.items[item as usize] {
            Answer::File(file) => {
                let (row, offset, is_redo) = (file.row, file.read_from, file.is_redo);
                ItemContent::Bytes { row, offset, len: file.size - offset, is_redo }
            }
            _ => ItemContent::NoFile,
        }
    }
}

/// Returns which digests a list has.
pub(super) fn indexed(list: ListRef<'_>) -> Indexed {
    Indexed { xxh128: list.has_xxh128(), md5: list.has_md5() }
}

/// The rsync framing.
pub(super) struct Answers {
    session: Arc<Session>,
    settled: Arc<Settled>,
    requests: mpsc::Receiver<ClientInput>,
    /// Protocol bytes that are sent before the next piece.
    pub(super) replies: Replies,
    pub(super) stop: StopCondition,
    numbers: Numbers,
    phases: Phases,
    lists: u32,
    entries: u32,
    /// The total size of the files that are listed, in bytes.
    total: u64,
    /// The client's position in the list.
    client: Position,
    /// The end of the indices whose content was asked for. Clients ask in list order, so a lower index is a redo.
    requested_end: i32,
    /// Whether the lane has waited for the client with nothing else to do.
    was_idle: bool,
    /// An error that ends the session once everything before it is answered.
    failed: Option<Ended>,
    ended: bool,
    /// Computes the digest of the file that is being sent.
    hasher: Option<Hasher>,
    /// Errors with files, as bits of [`stillmirror_protocol::rsync::exit::io_error`].
    io_error: i32,
    /// Requests of the client so far.
    answered: u64,
    /// Bytes sent, including the list.
    pub(super) sent: u64,
}

/// The state of the framing after a piece.
pub(super) struct NextState {
    replies: Replies,
    hasher: Option<Hasher>,
    io_error: i32,
    files: u64,
}

impl Answers {
    /// Creates the framing of a session that has not sent its list yet.
    pub(super) fn new(
        session: Arc<Session>,
        settled: Arc<Settled>,
        requests: mpsc::Receiver<ClientInput>,
        replies: Replies,
    ) -> Self {
        let phases = Phases::new(settled.setup.version);
        Self {
            session,
            settled,
            requests,
            replies,
            stop: StopCondition::SessionEnd,
            numbers: Numbers::Table(Vec::new()),
            phases,
            lists: 0,
            entries: 0,
            total: 0,
            client: Position::default(),
            requested_end: 0,
            was_idle: false,
            failed: None,
            ended: false,
            hasher: None,
            io_error: 0,
            answered: 0,
            sent: 0,
        }
    }

    /// Sets how the list is numbered. `None` if that is known only once the list is written.
    pub(super) fn set_numbers(&mut self, numbers: Option<Numbers>) {
        self.numbers = numbers.unwrap_or(Numbers::Table(Vec::new()));
    }

    /// Returns the number of indices whose rows are stored in a table.
    pub(super) fn table_len(&self) -> usize {
        if let Numbers::Table(table) = &self.numbers { table.len() } else { 0 }
    }

    /// Notes that a piece of the list is about to be sent. `rows` has its rows by index; they are moved to the table, if
    /// there is one. The second argument describes the list up to the end of the piece.
    pub(super) fn listed(&mut self, rows: &mut Vec<u32>, Listed { lists, entries, total, is_last }: Listed) {
        (self.entries, self.total) = (entries, total);
        let max_len = self.list().len() as usize + self.list().dirs().len();
        if let Numbers::Table(table) = &mut self.numbers {
            // Reserve all of it at once: unwritten memory costs nothing, but growing the table would take twice its
            // size for a while.
            table.reserve_exact(max_len.saturating_sub(table.len()));
            table.append(rows);
        }
        self.phases.lists_begun(u64::from(lists - self.lists));
        self.lists = lists;
        self.session.lane.open_lists.store(lists.saturating_sub(self.client.lists), Ordering::Relaxed);
        if is_last {
            self.phases.lists_ended();
            if let Numbers::Table(table) = &mut self.numbers {
                table.shrink_to_fit();
            }
        }
    }

    /// Returns the client's position in the list.
    pub(super) fn client_position(&self) -> Position {
        self.client
    }

    /// Returns whether the lane has waited for the client, with nothing else to do, since the last call.
    pub(super) fn take_was_idle(&mut self) -> bool {
        std::mem::take(&mut self.was_idle)
    }

    /// Returns the number of queued requests.
    pub(super) fn queued(&self) -> usize {
        self.requests.len()
    }

    /// Returns whether the list is empty so far.
    pub(super) fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Returns whether the session is over.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    fn list(&self) -> ListRef<'_> {
        self.settled.pinned.edition.generation.list()
    }

    /// Returns the next input of the client. `None` if the lane is to stop, or if nothing is queued and `wait` is false.
    async fn next(&mut self, wait: bool) -> Option<ClientInput> {
        match &mut self.stop {
            StopCondition::Answers(0) => return None,
            StopCondition::Answers(left) => {
                *left -= 1;
                return self.requests.try_recv().ok();
            }
            StopCondition::ClientPast(place) if place.is_passed_by(self.client) => return None,
            StopCondition::ClientPast(_) | StopCondition::SessionEnd if !wait => return self.requests.try_recv().ok(),
            StopCondition::ClientPast(_) | StopCondition::SessionEnd => {}
        }
        if let Ok(input) = self.requests.try_recv() {
            return Some(input);
        }
        self.was_idle = true;
        let is_idle = &self.session.lane.is_idle;
        is_idle.store(true, Ordering::Relaxed);
        let input = self.requests.recv().await;
        is_idle.store(false, Ordering::Relaxed);
        input
    }

    fn answer(&mut self, input: ClientInput, items: &mut Vec<Answer>) -> Result<(), Ended> {
        match input {
            ClientInput::Request(request, _) if request.is_keep_alive(self.entries) => {}
            ClientInput::Request(request, _) => items.push(self.answer_request(request)?),
            ClientInput::Deleted(counts) => items.push(Answer::Deleted(counts)),
            ClientInput::Done(ends) => {
                for _ in 0..ends {
                    self.answer_end(items)?;
                }
                self.session.lane.open_lists.store(self.lists.saturating_sub(self.client.lists), Ordering::Relaxed);
            }
            ClientInput::Exit(code) => {
                self.replies.exit_seen();
                return Err(Ended::ClientExit(code));
            }
            ClientInput::Failed(ended) => return Err(ended),
        }
        Ok(())
    }

    fn answer_end(&mut self, items: &mut Vec<Answer>) -> Result<(), Ended> {
        if self.ended {
            return Ok(());
        }
        self.client.lists += 1;
        match (self.phases.done()?, items.last_mut()) {
            (Closing::Done, Some(Answer::Done(ends))) => *ends += 1,
            (Closing::Done, _) => items.push(Answer::Done(1)),
            (Closing::DoneAndStatistics, _) => items.push(Answer::DoneAndStatistics),
            (Closing::End, _) => self.ended = true,
        }
        Ok(())
    }

    fn answer_request(&mut self, request: Request) -> Result<Answer, Ended> {
        self.answered += 1;
        let ndx = request.ndx;
        self.client.index = self.client.index.max(u32::try_from(ndx).unwrap_or(0));
        let row = u32::try_from(ndx).ok().and_then(|ndx| self.numbers.row(self.list(), ndx));
        let row = row.filter(|&row| row < self.list().len()).ok_or(Fault::Index(ndx))?;
        if !request.wants_data() {
            return Ok(Answer::Echo(request));
        }
        let entry = self.list().row(row);
        let digests = entry.digests().ok_or(Fault::Index(ndx))?;
        let (from, size) = (request.from, entry.size());
        if from > size {
            return Ok(Answer::Shorter(ndx));
        }
        let covers_all = from == 0 || !self.settled.options.digest_of_the_rest();
        let digest = self
            .algorithm()
            .indexed(&digests, indexed(self.list()))
            .filter(|_| covers_all || self.algorithm() == Algorithm::None);
        let is_redo = ndx < self.requested_end;
        let read_from = if covers_all && (digest.is_none() || is_redo) { 0 } else { from };
        self.requested_end = self.requested_end.max(ndx.saturating_add(1));
        Ok(Answer::File(FileAnswer { request, row, read_from, from, size, digest, is_redo }))
    }

    /// Returns whether to compute the digest of a file as it is sent: the index has none, or the client found that what
    /// it got before does not match.
    fn hashes(&self, file: &FileAnswer) -> bool {
        file.digest.is_none() || file.is_redo && self.algorithm() != Algorithm::None
    }

    fn algorithm(&self) -> Algorithm {
        self.settled.setup.transfer
    }

    fn statistics(&self) -> Statistics {
        let read = self.session.received.load(Ordering::Relaxed);
        Statistics { read, written: self.sent, total: self.total, ..Statistics::default() }
    }
}

impl Framing for Answers {
    type Order = AnswerOrder;
    type NextState = NextState;

    const DIALECT: Dialect = Dialect::Rsync;

    async fn next_order(&mut self, wait: bool) -> Result<Option<AnswerOrder>, Ended> {
        let mut items = Vec::new();
        let mut wait = wait;
        while !self.ended && items.len() < ORDER {
            if wait && let Some(ended) = self.failed.take() {
                self.session.flush(&mut self.replies).await?;
                return Err(ended);
            }
            if self.failed.is_some() {
                // The orders before the error are sent first.
                break;
            }
            let Some(input) = self.next(wait).await else { break };
            if let Err(ended) = self.answer(input, &mut items) {
                self.failed = Some(ended);
                if !items.is_empty() {
                    break;
                }
            }
            wait &= items.is_empty();
        }
        let pinned = Arc::clone(&self.settled.pinned);
        Ok((!items.is_empty()).then_some(AnswerOrder { pinned, items }))
    }

    fn frames(&self, order: &AnswerOrder, parts: &[PartResult], memory: &[u8], _is_last: bool) -> (Frames, NextState) {
        let (replies, hasher) = (self.replies.clone(), self.hasher.clone());
        let next_state = NextState { replies, hasher, io_error: self.io_error, files: 0 };
        let mut builder = FrameBuilder::new(self, next_state, memory);
        for part in parts {
            builder.push(&order.items[part.item as usize], part);
        }
        builder.finish()
    }

    /// The bytes are needed to compute a digest that the index lacks. They are also needed if the client wants no digest:
    /// in a pipe they could still change, and the client would not notice.
    fn needs_bytes(&self, order: &AnswerOrder, item: u32) -> bool {
        let is_known = |answer: &Answer| matches!(answer, Answer::File(file) if !self.hashes(file));
        self.algorithm() == Algorithm::None || !order.items.get(item as usize).is_some_and(is_known)
    }

    fn commit(&mut self, order: &AnswerOrder, frames: &Frames, next_state: NextState, _is_last: bool) {
        self.sent += frames.len() as u64;
        let path = |item: u32| match &order.items[item as usize] {
            Answer::File(file) => self.list().path(file.row),
            _ => Vec::new(),
        };
        let mut record = self.session.record();
        record.add(frames, next_state.files, path);
        record.io_error |= next_state.io_error;
        record.requests = self.answered;
        drop(record);
        (self.replies, self.hasher, self.io_error) = (next_state.replies, next_state.hasher, next_state.io_error);
    }
}
