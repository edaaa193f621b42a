//! Answers to requests, in order: the rsync framing of the data lane.

mod saying;

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

use super::input;
use super::window::At;
use super::{Session, Settled};
use crate::ended::Ended;
use crate::pinned::Pinned;
use crate::stream::{Asked, Frames, Framing, Got, Order};
use saying::Saying;

/// Requests that wait to be answered, beside those that may have to be remembered while the list goes out.
pub(super) const QUEUE: u32 = 1024;
/// Items of one order.
const ORDER: usize = 128;

/// How long the lane goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// For so many answers, of what the client has asked for by then.
    Answers(usize),
    /// Until the client is past this place in the list.
    Past(At),
    /// Until the session ends.
    End,
}

/// How much of the list has gone out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listed {
    /// Lists begun.
    pub(super) lists: u32,
    pub(super) entries: u32,
    /// Bytes of the files and of the targets of symlinks in it.
    pub(super) total: u64,
    /// Nothing more is listed.
    pub(super) is_last: bool,
}

/// A run of answers.
pub(super) struct Answering {
    pinned: Arc<Pinned>,
    items: Vec<Answer>,
}

/// One answer.
enum Answer {
    /// A request that wants no content.
    Echo(Request),
    /// A file, or the end of one.
    File(Content),
    /// An entry that cannot be appended to: it is shorter than what the client has.
    Shorter(i32),
    /// So many of them.
    Done(u32),
    DoneAndStatistics,
    Deleted([i32; 5]),
}

/// A file that is sent.
struct Content {
    request: Request,
    row: u32,
    /// Where reading begins: before `from` when what is not sent is part of the digest.
    read_from: u64,
    /// The first byte that is sent.
    from: u64,
    size: u64,
    /// The digest, where the index knows it.
    digest: Option<Sum>,
    /// It was sent before.
    is_redo: bool,
}

impl Order for Answering {
    fn pinned(&self) -> &Arc<Pinned> {
        &self.pinned
    }

    fn len(&self) -> u32 {
        self.items.len() as u32
    }

    fn asked(&self, item: u32) -> Asked {
        match &self.items[item as usize] {
            Answer::File(file) => {
                let (row, offset, is_redo) = (file.row, file.read_from, file.is_redo);
                Asked::Bytes { row, offset, len: file.size - offset, is_redo }
            }
            _ => Asked::Words,
        }
    }
}

/// The digests of a list.
pub(super) fn indexed(list: ListRef<'_>) -> Indexed {
    Indexed { xxh128: list.has_xxh128(), md5: list.has_md5() }
}

/// The rsync framing.
pub(super) struct Answers {
    session: Arc<Session>,
    settled: Arc<Settled>,
    requests: mpsc::Receiver<input::Asked>,
    /// What goes out next, before anything of a piece.
    pub(super) replies: Replies,
    pub(super) until: Until,
    numbers: Numbers,
    phases: Phases,
    lists: u32,
    entries: u32,
    /// Bytes of the files that are listed.
    total: u64,
    /// Where the client is in the list.
    at: At,
    /// Behind the last index whose content was asked for: clients ask in the list's order, and go back for a redo.
    asked_to: i32,
    /// There was nothing to do but to wait for the client.
    has_waited: bool,
    /// An error that waits until what came before it is answered.
    failed: Option<Ended>,
    ended: bool,
    /// The digest of the file that is being sent.
    hasher: Option<Hasher>,
    /// Bits of what went wrong with files.
    io_error: i32,
    /// Bytes sent, the list included.
    pub(super) sent: u64,
}

/// What the framing remembers of a piece.
pub(super) struct After {
    replies: Replies,
    hasher: Option<Hasher>,
    io_error: i32,
    files: u64,
}

impl Answers {
    /// Before the list.
    pub(super) fn new(
        session: Arc<Session>,
        settled: Arc<Settled>,
        requests: mpsc::Receiver<input::Asked>,
        replies: Replies,
    ) -> Self {
        let phases = Phases::new(settled.setup.version);
        Self {
            session,
            settled,
            requests,
            replies,
            until: Until::End,
            numbers: Numbers::Table(Vec::new()),
            phases,
            lists: 0,
            entries: 0,
            total: 0,
            at: At::default(),
            asked_to: 0,
            has_waited: false,
            failed: None,
            ended: false,
            hasher: None,
            io_error: 0,
            sent: 0,
        }
    }

    /// How the list is numbered, if that is known before it goes out.
    pub(super) fn number(&mut self, numbers: Option<Numbers>) {
        self.numbers = numbers.unwrap_or(Numbers::Table(Vec::new()));
    }

    /// Indices whose rows are remembered.
    pub(super) fn numbered(&self) -> usize {
        if let Numbers::Table(table) = &self.numbers { table.len() } else { 0 }
    }

    /// A piece of the list is about to go out: its rows by index, and what is listed with it.
    pub(super) fn listed(&mut self, rows: &mut Vec<u32>, Listed { lists, entries, total, is_last }: Listed) {
        (self.entries, self.total) = (entries, total);
        let most = self.list().len() as usize + self.list().dirs().len();
        if let Numbers::Table(table) = &mut self.numbers {
            // At once: what is not written to yet takes no memory, and growing takes twice as much for a while.
            table.reserve_exact(most.saturating_sub(table.len()));
            table.append(rows);
        }
        self.phases.lists_begun(u64::from(lists - self.lists));
        self.lists = lists;
        self.session.lane.open_lists.store(lists.saturating_sub(self.at.lists), Ordering::Relaxed);
        if is_last {
            self.phases.lists_ended();
            if let Numbers::Table(table) = &mut self.numbers {
                table.shrink_to_fit();
            }
        }
    }

    /// Where the client is in the list.
    pub(super) fn at(&self) -> At {
        self.at
    }

    /// Whether there was, since this was asked last, nothing to do but to wait for the client.
    pub(super) fn has_waited(&mut self) -> bool {
        std::mem::take(&mut self.has_waited)
    }

    /// Requests at hand.
    pub(super) fn waiting(&self) -> usize {
        self.requests.len()
    }

    /// Whether no entry of the list went out.
    pub(super) fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Whether the session is over.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    fn list(&self) -> ListRef<'_> {
        self.settled.pinned.edition.generation.list()
    }

    /// The next thing that the client asks for; `None` when there is none (at hand).
    async fn next(&mut self, wait: bool) -> Option<input::Asked> {
        match &mut self.until {
            Until::Answers(0) => return None,
            Until::Answers(left) => {
                *left -= 1;
                return self.requests.try_recv().ok();
            }
            Until::Past(place) if place.is_behind(self.at) => return None,
            Until::Past(_) | Until::End if !wait => return self.requests.try_recv().ok(),
            Until::Past(_) | Until::End => {}
        }
        if let Ok(asked) = self.requests.try_recv() {
            return Some(asked);
        }
        self.has_waited = true;
        let waits = &self.session.lane.waits;
        waits.store(true, Ordering::Relaxed);
        let asked = self.requests.recv().await;
        waits.store(false, Ordering::Relaxed);
        asked
    }

    fn answer(&mut self, asked: input::Asked, items: &mut Vec<Answer>) -> Result<(), Ended> {
        match asked {
            input::Asked::Request(request, _) if request.is_keep_alive(self.entries) => {}
            input::Asked::Request(request, _) => items.push(self.answer_request(request)?),
            input::Asked::Deleted(counts) => items.push(Answer::Deleted(counts)),
            input::Asked::Done(ends) => {
                for _ in 0..ends {
                    self.answer_end(items)?;
                }
                self.session.lane.open_lists.store(self.lists.saturating_sub(self.at.lists), Ordering::Relaxed);
            }
            input::Asked::Exit(code) => {
                self.replies.exit_seen();
                return Err(Ended::ClientExit(code));
            }
            input::Asked::Failed(ended) => return Err(ended),
        }
        Ok(())
    }

    fn answer_end(&mut self, items: &mut Vec<Answer>) -> Result<(), Ended> {
        if self.ended {
            return Ok(());
        }
        self.at.lists += 1;
        match (self.phases.done()?, items.last_mut()) {
            (Closing::Done, Some(Answer::Done(ends))) => *ends += 1,
            (Closing::Done, _) => items.push(Answer::Done(1)),
            (Closing::DoneAndStatistics, _) => items.push(Answer::DoneAndStatistics),
            (Closing::End, _) => self.ended = true,
        }
        Ok(())
    }

    fn answer_request(&mut self, request: Request) -> Result<Answer, Ended> {
        let ndx = request.ndx;
        self.at.index = self.at.index.max(u32::try_from(ndx).unwrap_or(0));
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
        let is_redo = ndx < self.asked_to;
        let read_from = if covers_all && (digest.is_none() || is_redo) { 0 } else { from };
        self.asked_to = self.asked_to.max(ndx.saturating_add(1));
        Ok(Answer::File(Content { request, row, read_from, from, size, digest, is_redo }))
    }

    /// Whether the digest of a file is computed as it goes out: where the index has none, and where a client found what
    /// came before wrong.
    fn hashes(&self, file: &Content) -> bool {
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
    type Order = Answering;
    type After = After;

    async fn next_order(&mut self, wait: bool) -> Result<Option<Answering>, Ended> {
        let mut items = Vec::new();
        let mut wait = wait;
        while !self.ended && items.len() < ORDER {
            if wait && let Some(ended) = self.failed.take() {
                self.session.flush(&mut self.replies).await?;
                return Err(ended);
            }
            if self.failed.is_some() {
                // What came before it goes out first.
                break;
            }
            let Some(asked) = self.next(wait).await else { break };
            if let Err(ended) = self.answer(asked, &mut items) {
                self.failed = Some(ended);
                if !items.is_empty() {
                    break;
                }
            }
            wait &= items.is_empty();
        }
        let pinned = Arc::clone(&self.settled.pinned);
        Ok((!items.is_empty()).then_some(Answering { pinned, items }))
    }

    fn frames(&self, order: &Answering, parts: &[Got], memory: &[u8], _is_last: bool) -> (Frames, After) {
        let (replies, hasher) = (self.replies.clone(), self.hasher.clone());
        let after = After { replies, hasher, io_error: self.io_error, files: 0 };
        let mut saying = Saying::new(self, after, memory);
        for part in parts {
            saying.say(&order.items[part.item as usize], part);
        }
        saying.finish()
    }

    /// A digest that the index lacks is computed; and who wants none would not notice what changes under way.
    fn looks_at_bytes(&self, order: &Answering, item: u32) -> bool {
        let is_known = |answer: &Answer| matches!(answer, Answer::File(file) if !self.hashes(file));
        self.algorithm() == Algorithm::None || !order.items.get(item as usize).is_some_and(is_known)
    }

    fn settle(&mut self, order: &Answering, frames: &Frames, after: After, _is_last: bool) {
        self.sent += frames.len() as u64;
        let path = |item: u32| match &order.items[item as usize] {
            Answer::File(file) => self.list().path(file.row),
            _ => Vec::new(),
        };
        let mut tally = self.session.tally();
        tally.counts.add(frames, after.files, path);
        tally.io_error |= after.io_error;
        drop(tally);
        (self.replies, self.hasher, self.io_error) = (after.replies, after.hasher, after.io_error);
    }
}
