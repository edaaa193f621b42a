//! The file list on its way: out of the cache, or as it is written.

use std::io::IoSlice;
use std::sync::Arc;

use stillmirror_protocol::rsync::fault::Fault;
use stillmirror_protocol::rsync::flist::{Class, ListWriter, Numbers, Written};
use stillmirror_protocol::rsync::replies::Replies;
use stillmirror_protocol::rsync::rules::Rules;
use stillmirror_protocol::rsync::selection::Hides as _;
use stillmirror_store::list_cache::{CachedList, Mark};

use super::answers::{Answers, Listed, Until};
use super::select::{Selected, are_void};
use super::window::{At, Window};
use super::{Session, Settled};
use crate::choosing::Effort;
use crate::ended::Ended;
use crate::lists::Query;
use crate::stream::Lane;

/// Bytes of the list that are made at a time.
const CHUNK: usize = 128 << 10;
/// Bytes of the first piece: it is to go out at once.
const FIRST_CHUNK: usize = 8 << 10;
/// Bytes of a piece for a client that has asked for much: a list that comes with the data, bit by bit, holds nothing up.
const BUSY_CHUNK: usize = 16 << 10;
/// About the bytes of an entry.
const ENTRY: usize = 32;
/// Searches in clients' rules that may wait for their turn: each holds its rules, and any of them can take seconds.
const SEARCHES: usize = 16;
/// Answers between two pieces of the list, when the client has asked for as many.
const TURN: usize = 128;

/// A piece of the list, and all that is needed for the next one.
struct ListPiece {
    writer: ListWriter,
    rows: Vec<u32>,
    bytes: Vec<u8>,
    written: Written,
}

/// What there is of a list already.
struct Found {
    /// How it is asked for; none for one that is not worth a file.
    query: Option<Query>,
    cached: Option<Arc<CachedList>>,
    numbers: Option<Numbers>,
    selected: Selected,
}

impl Session {
    /// Sends the list; answers meanwhile what the client asks for in the part that it has.
    pub(super) async fn send_list(
        &self,
        mut lane: Lane<Answers>,
        settled: &Arc<Settled>,
        selected: Selected,
    ) -> Result<Lane<Answers>, Ended> {
        let io_error = selected.selection.io_error();
        self.tally().io_error |= io_error;
        if io_error != 0 && !selected.class.carries_errors() {
            lane.framing.replies.io_error(io_error);
        }
        let found = self.look_for(settled, selected).await?;
        self.tally().cached = found.cached.is_some();
        lane.framing.number(found.numbers);
        match found.cached {
            Some(cached) => {
                drop(found.selected.selection);
                self.list_memory.lock().await.keep(0);
                self.send_cached(lane, settled, &cached, found.selected.class.incremental).await
            }
            None => self.send_written(lane, settled, found.selected, found.query).await,
        }
    }

    /// The list as it was encoded before, with its numbers.
    async fn look_for(&self, settled: &Arc<Settled>, selected: Selected) -> Result<Found, Ended> {
        let (shared, pinned) = (Arc::clone(&self.shared), Arc::clone(&settled.pinned));
        self.blocking(&settled.pinned.edition.gates.pages, move || {
            let Selected { class, selection, rules } = &selected;
            let query = Query::new(&pinned, *class, selection, rules);
            let cached = query.as_ref().and_then(|query| shared.lists.find(&pinned, query));
            // The same for a list that is cached: it was made with the same rules.
            let is_computed = class.incremental && rules.nothing();
            let numbers = match &cached {
                _ if is_computed => Some(pinned.edition.numbers(selection)),
                Some(cached) => Some(Numbers::Shared(Arc::<CachedList>::clone(cached))),
                None => None,
            };
            Found { query, cached, numbers, selected }
        })
        .await
    }

    /// Has found out and built what saves the next client with these options the work of this one. That reads the
    /// whole index, which this one's first bytes must not wait for; and rules can be costly, so that all searches
    /// together take one turn at a time, with the lists that are encoded. When too many wait for it already, the next
    /// client with these rules tries again.
    fn prepare_next(&self, settled: &Arc<Settled>, rules: &Arc<Rules>, query: Query) {
        if rules.nothing() {
            return self.shared.lists.want(&settled.pinned, query);
        }
        let Some(mut turn) = self.shared.searches.claim(self.network(), 1, SEARCHES) else { return };
        let over = self.over.clone();
        let (shared, settled, rules) = (Arc::clone(&self.shared), Arc::clone(settled), Arc::clone(rules));
        tokio::spawn(async move {
            let search = {
                let (settled, searched) = (Arc::clone(&settled), Arc::clone(&rules));
                let before = rules.counted();
                // What costs no more than honest rules is of use to the next client.
                let goes_on = move || rules.counted() == before || !over.is_cancelled();
                move || {
                    let list = settled.pinned.edition.generation.list();
                    are_void(&settled, &searched, list, goes_on)
                }
            };
            let Some(turn) = turn.granted().await else { return };
            let are_void = tokio::task::spawn_blocking(search).await.ok().flatten();
            drop(turn);
            let query = if are_void == Some(true) { query.without_rules(&settled.pinned) } else { Some(query) };
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
            // Pieces as large as there is room for, but one in any case.
            while let Some(next) = marks.next_if(|next| next.offset as usize <= sent + room) {
                mark = next;
            }
            let Mark { offset, lists, entries } = mark;
            let end = offset as usize;
            let is_last = end == cached.stream().len();
            lane.framing.listed(&mut Vec::new(), Listed { lists, entries, total: cached.total(), is_last });
            window.send(At::after(lists, entries));
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
                (lane, room) = answer_meanwhile(lane, &mut window).await?;
            }
        }
        self.tally().listed = u64::from(cached.entries());
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
            self.tell_lost(&mut lane.framing.replies, settled, class, &mut step.writer);
            if step.writer.is_damaged() {
                return Err(Ended::RottenIndex);
            }
            if step.writer.is_too_long(settled.pinned.edition.generation.list()) {
                return Err(Ended::ListTooLong);
            }
            self.charge(&rules)?;
            let memory = step.writer.memory() + size_of::<u32>() * (lane.framing.numbered() + step.rows.len());
            self.list_memory.lock().await.cover(memory).await?;
            let mut room = CHUNK;
            let (lists, entries, total) = (step.writer.lists(), step.writer.entries(), step.writer.total());
            lane.framing.listed(&mut step.rows, Listed { lists, entries, total, is_last: step.written.done });
            let bytes = std::mem::take(&mut step.bytes);
            let boundary = step.written.boundary.filter(|_| class.incremental && !step.written.done).unwrap_or(0);
            if boundary > 0 {
                lane = self.send_piece(lane, &bytes[..boundary]).await?;
                let (lists, entries) = step.writer.finished();
                window.send(At::after(lists, entries));
                (lane, room) = answer_meanwhile(lane, &mut window).await?;
            }
            lane = self.send_piece(lane, &bytes[boundary..]).await?;
            step.bytes = bytes;
            limit = room;
            if let Some(query) = query.take() {
                self.prepare_next(settled, &rules, query);
            }
        }
        self.tally().listed = u64::from(step.writer.entries());
        Ok(lane)
    }

    /// Tells the client of symlinks that are to be followed and lead nowhere.
    fn tell_lost(&self, replies: &mut Replies, settled: &Settled, class: Class, writer: &mut ListWriter) {
        let lost = writer.take_lost();
        for missing in &lost {
            let severity = missing.severity(settled.options.version);
            missing
                .messages(&settled.pinned.repository.name)
                .into_iter()
                .for_each(|text| replies.message(severity, text));
        }
        if !lost.is_empty() {
            self.tally().io_error |= writer.io_error();
            if !class.carries_errors() {
                replies.io_error(writer.io_error());
            }
        }
    }

    /// Makes the next piece.
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

    /// Sends bytes of the list as one frame, behind what there is to say before.
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

/// Answers what has been asked for, if it is much, and until there is room for more of the list; gives the bytes of
/// that.
async fn answer_meanwhile(mut lane: Lane<Answers>, window: &mut Window) -> Result<(Lane<Answers>, usize), Ended> {
    let mut has_answered = false;
    loop {
        let was_waited_for = lane.framing.has_waited();
        let room = window.room(lane.framing.at(), was_waited_for);
        let is_busy = lane.framing.waiting() >= TURN;
        lane.framing.until = match room {
            0 => Until::Past(window.enough()),
            _ if is_busy && !has_answered => Until::Answers(TURN),
            _ => {
                let most = if is_busy { BUSY_CHUNK } else { CHUNK };
                return Ok((lane, (room as usize * ENTRY).clamp(FIRST_CHUNK, most)));
            }
        };
        has_answered = true;
        lane = lane.run().await?;
        lane.framing.until = Until::End;
        if lane.framing.has_ended() {
            return Err(Fault::Phases.into());
        }
    }
}
