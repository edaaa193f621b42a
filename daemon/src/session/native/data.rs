//! Answers requests for data, on the data lane.

use std::sync::Arc;

use stillmirror_protocol::wire::{ErrorCode, FRAME_HEADER_BYTES, FrameHeader, Item, Reply, Request, kind};
use tokio::sync::mpsc;

use super::{InFlight, Session};
use crate::dialect::Dialect;
use crate::ended::Ended;
use crate::file::Stored;
use crate::pinned::Pinned;
use crate::stream::{Frames, Framing, ItemContent, Lane, Order, PartResult};

/// A request for data that waits for its turn. It is kept encoded because that takes less memory.
pub(super) struct Job {
    pub(super) in_flight: InFlight,
    pub(super) pinned: Arc<Pinned>,
    /// The payload, which is known to decode.
    pub(super) request: Box<[u8]>,
}

impl Session {
    /// Answers requests for data, one after the other.
    pub(super) async fn answer_data(self: &Arc<Self>, jobs: mpsc::Receiver<Job>) -> Result<(), Ended> {
        let framing = Data { session: Arc::clone(self), jobs };
        Lane::new(Arc::clone(&self.shared), Arc::clone(&self.writer), self.client, framing).run().await.map(drop)
    }
}

/// A request whose items are known to exist in its generation.
struct DataOrder {
    in_flight: InFlight,
    pinned: Arc<Pinned>,
    items: Vec<Item>,
}

impl Order for DataOrder {
    fn pinned(&self) -> &Arc<Pinned> {
        &self.pinned
    }

    fn len(&self) -> u32 {
        self.items.len() as u32
    }

    fn content(&self, item: u32) -> ItemContent {
        match self.items[item as usize] {
            Item { len: 0, .. } => ItemContent::NoFile,
            Item { row, offset, len } => ItemContent::Bytes { row, offset, len, is_redo: false },
        }
    }
}

/// The native framing. Successive bytes share a frame, and a failed item has a frame of its own.
struct Data {
    session: Arc<Session>,
    jobs: mpsc::Receiver<Job>,
}

impl Framing for Data {
    type Order = DataOrder;
    type NextState = ();

    const DIALECT: Dialect = Dialect::Native;

    async fn next_order(&mut self, wait: bool) -> Result<Option<DataOrder>, Ended> {
        loop {
            let job = if wait { self.jobs.recv().await } else { self.jobs.try_recv().ok() };
            let Some(Job { in_flight, pinned, request }) = job else { return Ok(None) };
            let checked = self.session.blocking(&pinned, move |pinned| check(pinned, &request)).await;
            match checked.unwrap_or_else(|| Err((ErrorCode::Internal, "the daemon failed to answer".to_owned()))) {
                Ok(items) => return Ok(Some(DataOrder { in_flight, pinned, items })),
                Err((code, message)) => self.session.reply(in_flight.number, &Reply::Error { code, message }).await?,
            }
        }
    }

    fn frames(&self, order: &DataOrder, parts: &[PartResult], _: &[u8], is_last: bool) -> (Frames, ()) {
        (frames(order.in_flight.number, parts, is_last), ())
    }

    fn needs_bytes(&self, _: &DataOrder, _: u32) -> bool {
        false
    }

    fn commit(&mut self, order: &DataOrder, frames: &Frames, (): (), is_last: bool) {
        let rows = order.items.iter().map(|item| item.row);
        let changes = || rows.clone().zip(rows.skip(1)).filter(|(one, next)| one != next).count();
        let files = if is_last { changes() as u64 + 1 } else { 0 };
        let path = |item: u32| order.pinned.edition.generation.list().path(order.items[item as usize].row);
        self.session.record().add(frames, files, path);
    }
}

fn frames(request: u32, parts: &[PartResult], is_last: bool) -> Frames {
    let mut frames = Frames::default();
    // The frame that more bytes may be added to: the position of its header, and the length of its payload.
    let mut open: Option<(usize, u32)> = None;
    for PartResult { item, bytes, .. } in parts.iter().cloned() {
        match bytes {
            Ok(bytes) if bytes.is_empty() => {}
            Ok(bytes) => {
                let (place, before) = open.unwrap_or_else(|| (frames.push_protocol(&[0; FRAME_HEADER_BYTES]), 0));
                let len = before + bytes.len() as u32;
                frames.overwrite(place, &FrameHeader { len, request, kind: kind::BYTES }.encode());
                frames.push_file(bytes);
                open = Some((place, len));
            }
            Err(reason) => {
                frames.push_protocol(&Reply::ItemFailed { item, reason }.frame(request));
                frames.push_failure(item, reason);
                open = None;
            }
        }
    }
    if is_last {
        frames.push_protocol(&Reply::End.frame(request));
    }
    frames
}

/// Decodes a request and checks its items against the generation. Fails with the error to report to the client.
///
/// It also looks up everything that the plan will look up, so that those pages of the index are in memory when the plan
/// is made on the runtime's threads.
fn check(pinned: &Pinned, request: &[u8]) -> Result<Vec<Item>, (ErrorCode, String)> {
    let Ok(Request::Data { items, .. }) = Request::decode(kind::DATA, request) else {
        return Err((ErrorCode::Malformed, "invalid data request".to_owned()));
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
            let message = format!("item {at}: {len} bytes at offset {offset} exceed the file size of {size} bytes");
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
    fn successive_items_share_a_frame_until_one_fails() {
        let got = |item, bytes| PartResult { item, before: 0, bytes };
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
