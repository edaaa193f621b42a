//! Reads and sends uncached extents on one thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::load::{Loaded, Reading, room_to_read};
use super::plan::{ExtentPiece, Piece, Plan};
use super::{Framing, Lane, Order, PartlySent, Writer};
use crate::ended::Ended;
use crate::extents::{Begun, PendingExtent};
use crate::pool::Buffer;

/// How long the first session of a convoy waits before it checks again.
const CONVOY_WAIT: Duration = Duration::from_millis(2);
/// Extents that are sent before other parts of the session get their turn at the writer.
const EXTENTS_PER_TURN: usize = 8;

impl<F: Framing> Lane<F> {
    /// Returns whether the next piece to send is an extent that is neither cached nor being read.
    pub(super) fn sends_extent_next(&self) -> bool {
        self.ahead.is_empty() && self.reads_extent_next()
    }

    /// Returns whether the next piece to read is an extent that is neither cached nor being read.
    pub(super) fn reads_extent_next(&self) -> bool {
        let next = self.plans.front().and_then(Plan::peek_extent);
        next.is_some_and(|extent| self.shared.extents.find(extent.key).is_none())
    }

    /// Reads extents and sends each at once, on one thread, as long as the peer takes them and up to
    /// [`EXTENTS_PER_TURN`]. The socket's buffer serves as the read-ahead, so most bytes cost neither a task switch nor
    /// a buffer that waits to be sent.
    pub(super) async fn pump(self) -> Result<Self, Ended> {
        let shared = Arc::clone(&self.shared);
        if self.should_wait() {
            sleep(CONVOY_WAIT).await;
            return Ok(self);
        }
        let Some(pinned) = self.plans.front().map(|plan| Arc::clone(plan.order().pinned())) else { return Ok(self) };
        // While the session waits for a read, it does not hold the writer, which keep-alives need. While it waits for
        // the writer of a slow peer, it does not hold what other reads need.
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
        let Some(unsent) = result? else { return Ok(lane) };
        lane.finish(&mut writer, unsent).await?;
        // Piping what lies in the page cache does not wait for the disk, so it needs no other thread.
        for _ in 0..EXTENTS_PER_TURN {
            let Some(unsent) = lane.is_in_open_file().then(|| lane.piped()).flatten() else { break };
            lane.finish(&mut writer, unsent).await?;
            lane.pace.step().await;
        }
        Ok(lane)
    }

    /// Returns whether the next piece belongs to the large file that was opened last. Another name of the same file does
    /// not count, because it would have to be opened first.
    fn is_in_open_file(&self) -> bool {
        let (Some(plan), Some(file)) = (self.plans.front(), &self.file) else { return false };
        let is_its = |extent: ExtentPiece| file.is_at(plan.order().pinned(), extent.row);
        file.is_open_locally() && plan.peek_extent().is_some_and(is_its)
    }

    /// Returns whether to let the rest of the convoy catch up before the next extent is read.
    fn should_wait(&self) -> bool {
        let Some(ExtentPiece { key, .. }) = self.plans.front().and_then(Plan::peek_extent) else { return false };
        self.file
            .as_ref()
            .is_some_and(|file| file.state == key.file && file.convoy.should_wait(key.number, Instant::now()))
    }

    /// Reads and sends extents as far as that is possible without waiting for the peer or another reader. Returns a
    /// piece that is not completely sent, if there is one.
    fn pump_now(&mut self, writer: &mut Writer, buffer: Buffer) -> Result<Option<PartlySent<F>>, Ended> {
        let mut buffer = Some(buffer);
        for _ in 0..EXTENTS_PER_TURN {
            if self.plans.front().and_then(Plan::peek_extent).is_none() {
                break;
            }
            let Some(mut unsent) = self.piped().or_else(|| self.read_next(&mut buffer)) else { break };
            unsent.sent += unsent.loaded.send_now(writer, &unsent.frames, 0)?;
            if unsent.sent < unsent.frames.len() {
                return Ok(Some(unsent));
            }
            self.commit(&unsent.load, &unsent.frames, unsent.next_state, unsent.loaded.sources);
        }
        Ok(None)
    }

    /// Reads the next extent. `None` if there is a reason to wait: for the convoy, for a buffer, or for another session
    /// that already reads the extent.
    fn read_next(&mut self, buffer: &mut Option<Buffer>) -> Option<PartlySent<F>> {
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
            Begun::Mine(task) => {
                let read = |buffer: &mut [u8]| shared.metrics.time_read(|| file.read(span, buffer));
                task.read(free, file.is_kept(key.number), read)
            }
            Begun::Found(pending) => {
                *buffer = Some(free);
                match pending {
                    PendingExtent::Ready(extent) => Ok(extent),
                    pending => {
                        load.reading = Reading::Extent(pending);
                        self.ahead.push_back(load);
                        return None;
                    }
                }
            }
        };
        let loaded = Loaded::extent(&load.piece, outcome);
        let (frames, next_state) = self.frames(&load, &loaded);
        Some(PartlySent { load, loaded, frames, next_state, sent: 0 })
    }
}
