//! Requests for data, on the data lane.

use std::sync::Arc;

use stillmirror_protocol::wire::{ErrorCode, FRAME_HEADER_BYTES, FrameHeader, Item, Reply, Request, kind};
use tokio::sync::mpsc;

use super::{Session, UnderWay};
use crate::ended::Ended;
use crate::file::Stored;
use crate::pinned::Pinned;
use crate::stream::{Asked, Frames, Framing, Got, Lane, Order};

/// A request for data, not decoded yet: encoded it is smaller.
pub(super) struct Job {
    pub(super) under_way: UnderWay,
    pub(super) pinned: Arc<Pinned>,
    /// The payload of a request that decodes.
    pub(super) request: Box<[u8]>,
}

impl Session {
    /// Sends what is asked for, one request after the other.
    pub(super) async fn answer_data(self: &Arc<Self>, jobs: mpsc::Receiver<Job>) -> Result<(), Ended> {
        let framing = Data { session: Arc::clone(self), jobs };
        Lane::new(Arc::clone(&self.shared), Arc::clone(&self.writer), self.network(), framing).run().await.map(drop)
    }
}

/// A request whose items are known to lie within its generation.
struct Wanted {
    under_way: UnderWay,
    pinned: Arc<Pinned>,
    items: Vec<Item>,
}

impl Order for Wanted {
    fn pinned(&self) -> &Arc<Pinned> {
        &self.pinned
    }

    fn len(&self) -> u32 {
        self.items.len() as u32
    }

    fn asked(&self, item: u32) -> Asked {
        match self.items[item as usize] {
            Item { len: 0, .. } => Asked::Words,
            Item { row, offset, len } => Asked::Bytes { row, offset, len, is_redo: false },
        }
    }
}

/// The native framing: successive bytes share frames, and a failed item has one of its own.
struct Data {
    session: Arc<Session>,
    jobs: mpsc::Receiver<Job>,
}

impl Framing for Data {
    type Order = Wanted;
    type After = ();

    async fn next_order(&mut self, wait: bool) -> Result<Option<Wanted>, Ended> {
        loop {
            let job = if wait { self.jobs.recv().await } else { self.jobs.try_recv().ok() };
            let Some(Job { under_way, pinned, request }) = job else { return Ok(None) };
            let checked = self.session.blocking(&pinned, move |pinned| check(pinned, &request)).await;
            match checked.unwrap_or_else(|| Err((ErrorCode::Internal, "the daemon failed to answer".to_owned()))) {
                Ok(items) => return Ok(Some(Wanted { under_way, pinned, items })),
                Err((code, message)) => self.session.reply(under_way.number, &Reply::Error { code, message }).await?,
            }
        }
    }

    fn frames(&self, order: &Wanted, parts: &[Got], _: &[u8], is_last: bool) -> (Frames, ()) {
        (frames(order.under_way.number, parts, is_last), ())
    }

    fn looks_at_bytes(&self, _: &Wanted, _: u32) -> bool {
        false
    }

    fn settle(&mut self, order: &Wanted, frames: &Frames, (): (), is_last: bool) {
        let rows = order.items.iter().map(|item| item.row);
        let changes = || rows.clone().zip(rows.skip(1)).filter(|(one, next)| one != next).count();
        let files = if is_last { changes() as u64 + 1 } else { 0 };
        let path = |item: u32| order.pinned.edition.generation.list().path(order.items[item as usize].row);
        self.session.tally().counts.add(frames, files, path);
    }
}

fn frames(request: u32, parts: &[Got], is_last: bool) -> Frames {
    let mut frames = Frames::default();
    // The frame that more bytes may join: its header's place and its payload's length.
    let mut open: Option<(usize, u32)> = None;
    for Got { item, bytes, .. } in parts.iter().cloned() {
        match bytes {
            Ok(bytes) if bytes.is_empty() => {}
            Ok(bytes) => {
                let (place, before) = open.unwrap_or_else(|| (frames.words(&[0; FRAME_HEADER_BYTES]), 0));
                let len = before + bytes.len() as u32;
                frames.rewrite(place, &FrameHeader { len, request, kind: kind::BYTES }.encode());
                frames.bytes(bytes);
                open = Some((place, len));
            }
            Err(reason) => {
                frames.words(&Reply::ItemFailed { item, reason }.frame(request));
                frames.fail(item, reason);
                open = None;
            }
        }
    }
    if is_last {
        frames.words(&Reply::End.frame(request));
    }
    frames
}

/// Decodes a request and holds it against its generation. Looks at all that the plan will look at, so that the pages with
/// it are in memory then.
fn check(pinned: &Pinned, request: &[u8]) -> Result<Vec<Item>, (ErrorCode, String)> {
    let Ok(Request::Data { items, .. }) = Request::decode(kind::DATA, request) else {
        return Err((ErrorCode::Malformed, "not a request for data".to_owned()));
    };
    let generation = &pinned.edition.generation;
    let list = generation.list();
    for (at, Item { row, offset, len }) in items.iter().enumerate() {
        if *row >= list.len() || !list.row(*row).is_file() {
            let message = format!("item {at}: the generation has no regular file at row {row}");
            return Err((ErrorCode::NotThere, message));
        }
        let size = list.row(*row).size();
        if offset.checked_add(*len).is_none_or(|end| end > size) {
            let message = format!("item {at}: {len} bytes at {offset} of a file of {size}");
            return Err((ErrorCode::NotThere, message));
        }
        std::hint::black_box((pinned.edition.tree.indexed(generation, *row), Stored::of(generation, *row)));
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use stillmirror_protocol::wire::{ItemFailure, frame};

    use super::*;

    #[test]
    fn successive_items_share_a_frame_that_a_failure_ends() {
        let got = |item, bytes| Got { item, before: 0, bytes };
        let parts = [got(0, Ok(1..3)), got(1, Ok(5..6)), got(2, Err(ItemFailure::Stale)), got(3, Ok(8..10))];
        let frames = frames(7, &parts, true);
        let sent: Vec<u8> = frames.slices(b"0123456789", 0).iter().flat_map(|slice| slice.to_vec()).collect();
        let expected = [
            frame(7, kind::BYTES, b"125"),
            Reply::ItemFailed { item: 2, reason: ItemFailure::Stale }.frame(7),
            frame(7, kind::BYTES, b"89"),
            Reply::End.frame(7),
        ];
        assert_eq!(sent, expected.concat());
        assert_eq!(frames.failures(), [(2, ItemFailure::Stale)]);
    }
}
