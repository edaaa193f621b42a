//! Sends the file list: from the cache, or as it is written for this client.

use std::io::IoSlice;
use std::sync::Arc;

use stillmirror_protocol::rsync::fault::Fault;
use stillmirror_protocol::rsync::flist::{Class, ListWriter, Numbers, Written};
use stillmirror_protocol::rsync::replies::Replies;
use stillmirror_protocol::rsync::rules::Rules;
use stillmirror_protocol::rsync::selection::Hides as _;
use stillmirror_store::list_cache::{CachedList, Mark};

use super::answers::{Answers, Listed, StopCondition};
use super::select::{Selected, are_no_op};
use super::window::{Position, Window};
use super::{Session, Settled};
use crate::choosing::Effort;
use crate::ended::Ended;
use crate::lists::Query;
use crate::stream::Lane;

/// The size (bytes) of an ordinary piece of the list.
const CHUNK: usize = 128 << 10;
/// The size (bytes) of the first piece. It is small, so that it can be sent at once.
const FIRST_CHUNK: usize = 8 << 10;
/// The size (bytes) of a piece for a client with many open requests. Small pieces between the data delay nothing.
const BUSY_CHUNK: usize = 16 << 10;
/// The approximate size (bytes) of an entry.
const ENTRY_BYTES: usize = 32;
/// The maximum number of queued searches for no-op rules. Each holds its rules, and any of them can take seconds.
const MAX_SEARCHES: usize = 16;
/// Answers that are sent between two pieces of the list, if the client has asked for as many.
const ANSWERS_PER_TURN: usize = 128;

/// A piece of the list, and the state for writing the next one.
struct ListPiece {
    writer: ListWriter,
    rows: Vec<u32>,
    bytes: Vec<u8>,
    written: Written,
}

/// A selected list, with what the cache has of it.
struct FoundList {
    /// The cache's query for the list. `None` if the list is not worth a file.
    query: Option<Query>,
    cached: Option<Arc<CachedList>>,
    numbers: Option<Numbers>,
    selected: Selected,
}

impl Session {
    /// Sends the list. Between its pieces, answers the client's requests for the part that it has.
    pub(super) async fn send_list(
        &self,
        mut lane: Lane<Answers>,
        settled: &Arc<Settled>,
        selected: Selected,
    ) -> Result<Lane<Answers>, Ended> {
        let io_error = selected.selection.io_error();
        self.record().io_error |= io_error;
        if io_error != 0 && !selected.class.carries_errors() {
            lane.framing.replies.io_error(io_error);
        }
        let found = self.find_list(settled, selected).await?;
        self.record().cached = found.cached.is_some();
        lane.framing.set_numbers(found.numbers);
        match found.cached {
            Some(cached) => {
                drop(found.selected.selection);
                self.list_memory.lock().await.keep(0);
                self.send_cached(lane, settled, &cached, found.selected.class.incremental).await
            }
            None => self.send_written(lane, settled, found.selected, found.query).await,
        }
    }

    /// Looks for the encoded list in the cache, and for its numbers.
    async fn find_list(&self, settled: &Arc<Settled>, selected: Selected) -> Result<FoundList, Ended> {
        let (shared, pinned) = (Arc::clone(&self.shared), Arc::clone(&settled.pinned));
        self.blocking(&settled.pinned.edition.gates.pages, move || {
            let Selected { class, selection, rules } = &selected;
            let query = Query::new(&pinned, *class, selection, rules);
            let cached = query.as_ref().and_then(|query| shared.lists.find(&pinned, query));
            // Without rules, the numbers are computed. That holds for a cached list too: it was made with the same rules.
            let is_computed = class.incremental && rules.nothing();
            let numbers = match &cached {
                _ if is_computed => Some(pinned.edition.numbers(selection)),
                Some(cached) => Some(Numbers::Shared(Arc::<CachedList>::clone(cached))),
                None => None,
            };
            FoundList { query, cached, numbers, selected }
        })
        .await
    }

    /// Starts the work that spares the next client with these options what this client had to wait for: the search
    /// whether its rules are no-ops, and the encoding of the list.
    ///
    /// This reads the whole index, so it must not delay the first bytes for this client. Rules can be expensive, so only
    /// one search runs at a time. If too many searches are queued already, the next client with these rules tries again.
    fn prepare_next(&self, settled: &Arc<Settled>, rules: &Arc<Rules>, query: Query) {
        if rules.nothing() {
            return self.shared.lists.want(&settled.pinned, query);
        }
        let Some(mut turn) = self.shared.searches.claim(self.network(), 1, MAX_SEARCHES) else { return };
        let closed = self.closed.clone();
        let (shared, settled, rules) = (Arc::clone(&self.shared), Arc::clone(settled), Arc::clone(rules));
        tokio::spawn(async move {
            let search = {
                let (settled, searched) = (Arc::clone(&settled), Arc::clone(&rules));
                let before = rules.counted();
                // A search that costs no more than honest rules do goes on for the next client's benefit.
                let goes_on = move || rules.counted() == before || !closed.is_cancelled();
                move || {
                    let list = settled.pinned.edition.generation.list();
                    are_no_op(&settled, &searched, list, goes_on)
                }
            };
            let Some(turn) = turn.granted().await else { return };
            let are_no_op = tokio::task::spawn_blocking(search).await.ok().flatten();
            drop(turn);
            let query = if are_no_op == Some(true) { query.without_rules(&settled.pinned) } else { Some(query) };
            if let Some(query) = query {
                shared.lists.want(&settled.pinned, query);
            }
        });
    }

    async fn send_cached(
        &self,
        mut lane: Lane<Answers>,
        settled: &Settled,
        cached: &Arc<CachedList>,
        incremental: bool,
    ) -> Result<Lane<Answers>, Ended> {
        let (mut window, mut sent, mut room) = (Window::default(), 0, FIRST_CHUNK);
        let mut marks = cached.marks().peekable();
        while let Some(mut mark) = marks.next() {
            // The piece is as large as there is room for, but extends at least to the next mark.
            while let Some(next) = marks.next_if(|next| next.offset as usize <= sent + room) {
                mark = next;
            }
            let Mark { offset, lists, entries } = mark;
            let end = offset as usize;
            let is_last = end == cached.stream().len();
            lane.framing.listed(&mut Vec::new(), Listed { lists, entries, total: cached.total(), is_last });
            window.send(Position::after(lists, entries));
            while sent < end {
                let piece = sent..end.min(sent + CHUNK);
                let (checked, range) = (Arc::clone(cached), piece.clone());
                if !self.blocking(&settled.pinned.edition.gates.pages, move || checked.is_right(range)).await? {
                    return Err(Ended::DamagedList);
                }
                lane = self.send_piece(lane, &cached.stream()[piece.clone()]).await?;
                sent = piece.end;
            }
            if incremental && sent < cached.stream().len() {
                (lane, room) = answer_between_pieces(lane, &mut window).await?;
            }
        }
        self.record().listed = u64::from(cached.entries());
        Ok(lane)
    }

    async fn send_written(
        &self,
        mut lane: Lane<Answers>,
        settled: &Arc<Settled>,
        selected: Selected,
        mut query: Option<Query>,
    ) -> Result<Lane<Answers>, Ended> {
        let Selected { selection, rules, class } = selected;
        let effort = if rules.are_own() { Effort::Own } else { Effort::Plain };
        let writer = {
            let edition = &settled.pinned.edition;
            let (settled, rules) = (Arc::clone(settled), Arc::clone(&rules));
            self.choosing(edition, effort, move || ListWriter::new(settled.list_at_first(), class, selection, &*rules))
                .await?
        };
        let written = Written { done: false, boundary: None };
        let mut step = ListPiece { writer, rows: Vec::new(), bytes: Vec::new(), written };
        let mut window = Window::default();
        let mut limit = FIRST_CHUNK;
        while !step.written.done {
            step = self.write(settled, &rules, step, limit).await?;
            self.report_lost(&mut lane.framing.replies, settled, class, &mut step.writer);
            if step.writer.is_damaged() {
                return Err(Ended::RottenIndex);
            }
            if step.writer.is_too_long(settled.pinned.edition.generation.list()) {
                return Err(Ended::ListTooLong);
            }
            self.charge(&rules)?;
            let memory = step.writer.memory() + size_of::<u32>() * (lane.framing.table_len() + step.rows.len());
            self.list_memory.lock().await.cover(memory).await?;
            let mut room = CHUNK;
            let (lists, entries, total) = (step.writer.lists(), step.writer.entries(), step.writer.total());
            lane.framing.listed(&mut step.rows, Listed { lists, entries, total, is_last: step.written.done });
            let bytes = std::mem::take(&mut step.bytes);
            let boundary = step.written.boundary.filter(|_| class.incremental && !step.written.done).unwrap_or(0);
            if boundary > 0 {
                lane = self.send_piece(lane, &bytes[..boundary]).await?;
                let (lists, entries) = step.writer.finished();
                window.send(Position::after(lists, entries));
                (lane, room) = answer_between_pieces(lane, &mut window).await?;
            }
            lane = self.send_piece(lane, &bytes[boundary..]).await?;
            step.bytes = bytes;
            limit = room;
            if let Some(query) = query.take() {
                self.prepare_next(settled, &rules, query);
            }
        }
        self.record().listed = u64::from(step.writer.entries());
        Ok(lane)
    }

    /// Tells the client about symlinks that are to be followed, but lead nowhere.
    fn report_lost(&self, replies: &mut Replies, settled: &Settled, class: Class, writer: &mut ListWriter) {
        let lost = writer.take_lost();
        for missing in &lost {
            let severity = missing.severity(settled.options.version);
            missing
                .messages(&settled.pinned.repository.name)
                .into_iter()
                .for_each(|text| replies.message(severity, text));
        }
        if !lost.is_empty() {
            self.record().io_error |= writer.io_error();
            if !class.carries_errors() {
                replies.io_error(writer.io_error());
            }
        }
    }

    /// Writes the next piece.
    async fn write(
        &self,
        settled: &Arc<Settled>,
        rules: &Arc<Rules>,
        step: ListPiece,
        limit: usize,
    ) -> Result<ListPiece, Ended> {
        let edition = &settled.pinned.edition;
        let (settled, rules) = (Arc::clone(settled), Arc::clone(rules));
        let effort = if rules.are_own() { Effort::Own } else { Effort::Plain };
        self.choosing(edition, effort, move || {
            let ListPiece { mut writer, mut rows, mut bytes, .. } = step;
            bytes.clear();
            let list = match writer.bytes() {
                0 => settled.list_at_first(),
                _ => settled.pinned.edition.generation.list(),
            };
            let written = writer.write(list, &*rules, &mut bytes, &mut rows, limit);
            ListPiece { writer, rows, bytes, written }
        })
        .await
    }

    /// Sends pending replies, and then bytes of the list as one frame.
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

/// Answers requests until the window has room for more of the list, and at least once if many are queued. Returns the
/// size (bytes) of the next piece.
async fn answer_between_pieces(mut lane: Lane<Answers>, window: &mut Window) -> Result<(Lane<Answers>, usize), Ended> {
    let mut has_answered = false;
    loop {
        let was_idle = lane.framing.take_was_idle();
        let room = window.room(lane.framing.client_position(), was_idle);
        let is_busy = lane.framing.queued() >= ANSWERS_PER_TURN;
        lane.framing.stop = match room {
            0 => StopCondition::ClientPast(window.resume_position()),
            _ if is_busy && !has_answered => StopCondition::Answers(ANSWERS_PER_TURN),
            _ => {
                let max = if is_busy { BUSY_CHUNK } else { CHUNK };
                return Ok((lane, (room as usize * ENTRY_BYTES).clamp(FIRST_CHUNK, max)));
            }
        };
        has_answered = true;
        lane = lane.run().await?;
        lane.framing.stop = StopCondition::SessionEnd;
        if lane.framing.has_ended() {
            return Err(Fault::Phases.into());
        }
    }
}
