//! Extents that nobody has read yet: read and sent on one thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::load::{Arriving, Loaded, room_to_read};
use super::plan::{ExtentPiece, Piece, Plan};
use super::{Framing, Lane, Order, Stuck, Writer};
use crate::ended::Ended;
use crate::extents::{Begun, Coming};
use crate::pool::Buffer;

/// How long the first of a pack waits before it looks again.
const WAIT: Duration = Duration::from_millis(2);
/// Extents that are sent before others get their turn at the writer.
const PUMPED: usize = 8;

impl<F: Framing> Lane<F> {
    /// Whether the next thing to send is an extent that nobody has read.
    pub(super) fn is_at_extent(&self) -> bool {
        self.ahead.is_empty() && self.comes_to_extent()
    }

    /// Whether the next thing to read is an extent that nobody has read.
    pub(super) fn comes_to_extent(&self) -> bool {
        let next = self.plans.front().and_then(Plan::peek_extent);
        next.is_some_and(|extent| self.shared.extents.find(extent.key).is_none())
    }

    /// Reads extents and sends each at once, on one thread, for as long as the peer takes them and at
    /// most [`PUMPED`]. While it takes no more, the socket's own buffer is what is read ahead: so most
    /// bytes cost neither a task switch nor a buffer that waits.
    pub(super) async fn pump(self) -> Result<Self, Ended> {
        let shared = Arc::clone(&self.shared);
        if self.should_wait() {
            sleep(WAIT).await;
            return Ok(self);
        }
        let Some(pinned) = self.plans.front().map(|plan| Arc::clone(plan.order().pinned())) else { return Ok(self) };
        // A wait for a read does not hold the writer, which signs of life need. A wait for the writer, because a peer is
        // slow, does not hold what reads need.
        let Some((pass, buffer)) = room_to_read(&shared, &pinned, true).await else { return Ok(self) };
        let Ok(writer) = Arc::clone(&self.writer).try_lock_owned() else {
            drop((pass, buffer));
            drop(self.writer.lock().await);
            return Ok(self);
        };
        let pumped = pass.run(move || {
            let (mut lane, mut writer) = (self, writer);
            let result = lane.pump_now(&mut writer, buffer);
            (lane, writer, result)
        });
        let Ok((mut lane, mut writer, result)) = pumped.await else { return Err(Ended::Panicked) };
        let Some(stuck) = result? else { return Ok(lane) };
        lane.finish(&mut writer, stuck).await?;
        // To pass on what lies in the page cache does not wait for the disk: that needs no other thread.
        for _ in 0..PUMPED {
            let Some(stuck) = lane.is_in_open_file().then(|| lane.piped()).flatten() else { break };
            lane.finish(&mut writer, stuck).await?;
            lane.pace.step().await;
        }
        Ok(lane)
    }

    /// Whether the next thing to send is of the large file that was opened last: under that name, for another one
    /// would have to be opened.
    fn is_in_open_file(&self) -> bool {
        let (Some(plan), Some(file)) = (self.plans.front(), &self.file) else { return false };
        let is_its = |extent: ExtentPiece| file.is_at(plan.order().pinned(), extent.row);
        file.is_open_locally() && plan.peek_extent().is_some_and(is_its)
    }

    /// Whether to let the rest of the pack come closer before the next extent is read.
    fn should_wait(&self) -> bool {
        let Some(ExtentPiece { key, .. }) = self.plans.front().and_then(Plan::peek_extent) else { return false };
        self.file
            .as_ref()
            .is_some_and(|file| file.state == key.file && file.convoy.should_wait(key.number, Instant::now()))
    }

    /// As much of it as goes without waiting for the peer or another reader.
    fn pump_now(&mut self, writer: &mut Writer, buffer: Buffer) -> Result<Option<Stuck<F>>, Ended> {
        let mut buffer = Some(buffer);
        for _ in 0..PUMPED {
            if self.plans.front().and_then(Plan::peek_extent).is_none() {
                break;
            }
            let Some(mut stuck) = self.piped().or_else(|| self.read_next(&mut buffer)) else { break };
            stuck.sent += stuck.loaded.send_now(writer, &stuck.frames, 0)?;
            if stuck.sent < stuck.frames.len() {
                return Ok(Some(stuck));
            }
            self.settle(&stuck.load, &stuck.frames, stuck.after);
        }
        Ok(None)
    }

    /// Reads the next extent. `None` when there is a reason to wait: for the pack, for a buffer, or for who reads
    /// it already.
    fn read_next(&mut self, buffer: &mut Option<Buffer>) -> Option<Stuck<F>> {
        let shared = Arc::clone(&self.shared);
        let mut load = self.plan_next(Plan::next)?;
        let Piece::Extent(extent) = &load.piece else { return None };
        let (key, span) = (extent.key, &extent.span);
        let file = self.large_file(&load.order, extent.row, key);
        let wait = file.convoy.should_wait(key.number, Instant::now()) && shared.extents.find(key).is_none();
        let Some(free) = buffer.take().or_else(|| shared.pool.try_take()).filter(|_| !wait) else {
            self.put_back(load);
            return None;
        };
        let outcome = match shared.extents.begin(key) {
            Begun::Mine(lead) => lead.read(free, file.is_kept(key.number), |buffer| file.read(span, buffer)),
            Begun::Coming(coming) => {
                *buffer = Some(free);
                match coming {
                    Coming::Ready(extent) => Ok(extent),
                    coming => {
                        load.coming = Arriving::Extent(coming);
                        self.ahead.push_back(load);
                        return None;
                    }
                }
            }
        };
        let loaded = Loaded::extent(&load.piece, outcome);
        let (frames, after) = self.frames(&load, &loaded);
        Some(Stuck { load, loaded, frames, after, sent: 0 })
    }
}
