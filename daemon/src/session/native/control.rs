//! The control lane: answers requests for heads, lists, directories and block checksums.

use std::io::IoSlice;
use std::sync::Arc;

use stillmirror_protocol::changes::EntryEncoder;
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::wire::{self, ErrorCode, Item, ListForm, Reply, Request, kind};
use tokio::sync::mpsc;
use tokio::task::yield_now;

use super::{InFlight, Session};
use crate::damage;
use crate::dialect::Dialect;
use crate::ended::Ended;
use crate::pinned::Pinned;
use crate::session::touch;
use crate::visible::Visible;

/// The maximum payload (bytes) of one frame of a control answer.
const CHUNK: usize = 256 << 10;
/// Bytes of directory entries that are encoded at a time. This bounds the memory for one session's answer.
const DIR_CHUNK: usize = 32 << 10;
/// The maximum number of slices in one frame, so that one `writev` takes them all and the header.
const MAX_SLICES: usize = 512;

/// A request for the control lane.
pub(super) struct Job {
    pub(super) in_flight: InFlight,
    pub(super) answer: Answer,
}

/// The answer to send, with what it is made from.
pub(super) enum Answer {
    Repositories,
    /// A head: the handle, and the edition that it stands for.
    Head(u32, Arc<Pinned>),
    /// A list: the edition, and the digest of the list that the receiver has.
    List(Arc<Pinned>, Digest),
    /// A directory: the edition, and the path.
    Dir(Arc<Pinned>, Vec<u8>),
    /// Block checksums: the edition, and the payload of the request, which is known to decode.
    Sums(Arc<Pinned>, Box<[u8]>),
    Refusal(ErrorCode, String),
}

impl Session {
    /// Answers one request after the other.
    pub(super) async fn answer_control(&self, mut jobs: mpsc::Receiver<Job>) -> Result<(), Ended> {
        while let Some(Job { in_flight, answer }) = jobs.recv().await {
            let number = in_flight.number;
            let refusal = match answer {
                Answer::Repositories => self.announce(number).await?,
                Answer::Head(handle, pinned) => self.head(number, handle, &pinned).await?,
                Answer::List(pinned, have) => self.list(number, &pinned, have).await?,
                Answer::Dir(pinned, path) => self.dir(number, pinned, path).await?,
                Answer::Sums(pinned, request) => self.sums(number, &pinned, request).await?,
                Answer::Refusal(code, message) => Some(Reply::Error { code, message }),
            };
            self.reply(number, &refusal.unwrap_or(Reply::End)).await?;
        }
        Ok(())
    }

    async fn announce(&self, number: u32) -> Result<Option<Reply>, Ended> {
        let announcement = {
            let settings = self.shared.settings();
            let visible = Visible::new(&settings.registry, self.peer.ip());
            wire::Repository::encode_all(&visible.announcement(self.capabilities))
        };
        self.send_chunks(number, &announcement).await?;
        Ok(None)
    }

    async fn head(&self, number: u32, handle: u32, pinned: &Pinned) -> Result<Option<Reply>, Ended> {
        let head = pinned.edition.head_for(self.capabilities);
        let mut frames = Reply::Pinned { handle, head }.frame(number);
        if self.capabilities & wire::SIGNED_HEADS != 0
            && let Some(signature) = pinned.edition.generation.signature()
        {
            frames.extend(Reply::Signature(signature.to_vec()).frame(number));
        }
        let mut writer = self.writer.lock().await;
        writer.draw_on(pinned.repository.bandwidth.as_ref());
        writer.count_for(self.shared.metrics.meter(Dialect::Native, &pinned.repository.name));
        writer.send_bytes(&frames).await?;
        Ok(None)
    }

    async fn list(&self, number: u32, pinned: &Arc<Pinned>, have: Digest) -> Result<Option<Reply>, Ended> {
        let form = self.blocking(pinned, move |pinned| pinned.edition.list_form(have));
        let Some(form) = form.await else { return Ok(Some(internal())) };
        self.reply(number, &Reply::ListForm(form.clone())).await?;
        match form {
            ListForm::Unchanged => {}
            ListForm::Deltas(_) => {
                for (nth, delta) in pinned.edition.list_forms.deltas(have).into_iter().flatten().enumerate() {
                    let delta = delta.bytes();
                    for at in (0..delta.len()).step_by(CHUNK) {
                        let touched = self.blocking(pinned, move |pinned| {
                            let delta = pinned.edition.list_forms.deltas(have).into_iter().flatten().nth(nth);
                            delta.into_iter().for_each(|delta| touch(chunk(delta.bytes(), at)));
                        });
                        if touched.await.is_none() {
                            return Ok(Some(internal()));
                        }
                        self.send_chunks(number, chunk(delta, at)).await?;
                    }
                }
            }
            ListForm::Whole { .. } => {
                let checked = self.blocking(pinned, |pinned| pinned.edition.check_compressed());
                if checked.await != Some(true) {
                    return Ok(Some(internal()));
                }
                let list = pinned.edition.compressed();
                for at in (0..list.len()).step_by(CHUNK) {
                    let touched = self.blocking(pinned, move |pinned| touch(chunk(pinned.edition.compressed(), at)));
                    if touched.await.is_none() {
                        return Ok(Some(internal()));
                    }
                    self.send_chunks(number, chunk(list, at)).await?;
                }
            }
        }
        Ok(None)
    }

    async fn dir(&self, number: u32, pinned: Arc<Pinned>, path: Vec<u8>) -> Result<Option<Reply>, Ended> {
        let begin = self.blocking(&pinned, move |pinned| {
            let list = pinned.edition.generation.list();
            list.find(&path).map(|row| row.number()).ok_or(path)
        });
        let row = match begin.await {
            None => return Ok(Some(internal())),
            Some(Err(path)) => return Ok(Some(not_there("there is no", &path))),
            Some(Ok(row)) => row,
        };
        let mut listing = Some(Listing { row, next: 0, encoder: EntryEncoder::default() });
        while let Some(mut rest) = listing.take() {
            let step = self.blocking(&pinned, move |pinned| {
                let encoded = rest.encode(pinned);
                (encoded, rest)
            });
            let Some(((encoded, more), rest)) = step.await else { return Ok(Some(internal())) };
            self.send_chunks(number, &encoded).await?;
            listing = more.then_some(rest);
        }
        Ok(None)
    }

    async fn sums(&self, number: u32, pinned: &Arc<Pinned>, request: Box<[u8]>) -> Result<Option<Reply>, Ended> {
        let Ok(Request::Sums { items, .. }) = Request::decode(kind::SUMS, &request) else {
            return Ok(Some(internal()));
        };
        drop(request);
        let items: Arc<[Item]> = items.into();
        let wrong = {
            let items = Arc::clone(&items);
            self.blocking(pinned, move |pinned| items.iter().position(|item| !is_file(pinned, item)))
        };
        match wrong.await {
            None => return Ok(Some(internal())),
            Some(None) => {}
            Some(Some(at)) => {
                let message = format!("item {at}: the generation has no regular file at row {}", items[at].row);
                return Ok(Some(Reply::Error { code: ErrorCode::NotThere, message }));
            }
        }
        let mut begin = 0;
        while begin < items.len() {
            let checked = {
                let items = Arc::clone(&items);
                self.blocking(pinned, move |pinned| check_records(pinned, &items[begin..]))
            };
            let Some(right) = checked.await else { return Ok(Some(internal())) };
            let end = begin + right.len();
            // A damaged record is sent as an empty one. The receiver then does without it.
            let records = items[begin..end].iter().zip(right);
            let records: Vec<&[u8]> =
                records.map(|(item, is_right)| if is_right { record(pinned, item) } else { &[] }).collect();
            self.send_records(number, &records).await?;
            begin = end;
        }
        Ok(None)
    }

    /// Sends records, each preceded by its length, in frames of bounded size.
    async fn send_records(&self, number: u32, records: &[&[u8]]) -> Result<(), Ended> {
        let lens: Vec<[u8; 4]> = records.iter().map(|record| (record.len() as u32).to_le_bytes()).collect();
        let mut frame = Vec::new();
        let mut room = CHUNK;
        for (record, len) in records.iter().zip(&lens) {
            for mut piece in [len.as_slice(), record] {
                while !piece.is_empty() {
                    let (now, later) = piece.split_at(piece.len().min(room));
                    frame.push(IoSlice::new(now));
                    room -= now.len();
                    piece = later;
                    if room == 0 {
                        self.send_answer(number, &frame).await?;
                        frame.clear();
                        room = CHUNK;
                    }
                }
            }
        }
        if frame.is_empty() {
            return Ok(());
        }
        self.send_answer(number, &frame).await
    }

    /// Sends an answer's bytes in frames, between which the data lane can send.
    async fn send_chunks(&self, number: u32, bytes: &[u8]) -> Result<(), Ended> {
        for chunk in bytes.chunks(CHUNK) {
            self.send_answer(number, &[IoSlice::new(chunk)]).await?;
            // With a peer that takes everything at once, no await point would ever yield to other tasks.
            yield_now().await;
        }
        Ok(())
    }

    /// Runs `work` on a thread for blocking work, since access to a mapped generation may wait for the disk. `None` if
    /// `work` panicked.
    pub(super) async fn blocking<T, F>(&self, pinned: &Arc<Pinned>, work: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce(&Pinned) -> T + Send + 'static,
    {
        let pinned = Arc::clone(pinned);
        let gate = pinned.edition.gates.pages.clone();
        gate.run(move || work(&pinned)).await
    }
}

/// Checks the records of the first items: of as many items as fit into one frame, and of at least one. Returns for each
/// of them whether its record may be sent.
fn check_records(pinned: &Pinned, items: &[Item]) -> Vec<bool> {
    let mut bytes = 0;
    let room = |item: &&Item| {
        let fits = bytes < CHUNK;
        bytes += record(pinned, item).len();
        fits
    };
    items
        .iter()
        .take(MAX_SLICES / 2)
        .take_while(room)
        .map(|item| pinned.may_send(item.row) && is_right(pinned, item))
        .collect()
}

fn is_file(pinned: &Pinned, item: &Item) -> bool {
    let list = pinned.edition.generation.list();
    item.row < list.len() && list.row(item.row).is_file()
}

/// A directory that is being listed.
struct Listing {
    row: u32,
    /// The number of children encoded so far.
    next: u32,
    encoder: EntryEncoder,
}

impl Listing {
    /// Encodes the next children. Returns their bytes, and whether there are more children. A file is its own only
    /// child.
    fn encode(&mut self, pinned: &Pinned) -> (Vec<u8>, bool) {
        let list = pinned.edition.generation.list();
        let row = list.row(self.row);
        let (dir, rows) = match row.dir_number() {
            Some(number) => (list.dir(number), list.dir(number).rows()),
            None => (list.parent_of(self.row), self.row..self.row + 1),
        };
        let mut out = Vec::new();
        for child in rows.clone().skip(self.next as usize) {
            if out.len() >= DIR_CHUNK {
                return (out, true);
            }
            wire::encode_child(&mut out, &mut self.encoder, dir.name_of(child), &list.row(child).to_entry());
            self.next += 1;
        }
        (out, false)
    }
}

/// Returns the part of a file's block checksum record that an item asks for.
fn record<'a>(pinned: &'a Pinned, item: &Item) -> &'a [u8] {
    let generation = &pinned.edition.generation;
    let whole = generation.list().row(item.row).file_number().and_then(|file| generation.sums(file)).unwrap_or(&[]);
    let cut = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(whole.len());
    let part = &whole[cut(item.offset)..cut(item.offset.saturating_add(item.len))];
    &part[..part.len().min(u32::MAX as usize)]
}

/// Returns whether that part is what the indexer wrote. This reads it, so sending it does not wait for the disk.
fn is_right(pinned: &Pinned, item: &Item) -> bool {
    let (generation, part) = (&pinned.edition.generation, record(pinned, item));
    let Some(file) = generation.list().row(item.row).file_number().filter(|_| !part.is_empty()) else { return true };
    let checked = generation.check_sums(file, item.offset..item.offset.saturating_add(part.len() as u64));
    if let Err(error) = &checked {
        pinned.edition.damage_log.record(damage::Part::BlockChecksums, &pinned.repository.name, generation, error);
    }
    checked.is_ok()
}

fn chunk(bytes: &[u8], at: usize) -> &[u8] {
    &bytes[at.min(bytes.len())..bytes.len().min(at + CHUNK)]
}

fn not_there(what: &str, path: &[u8]) -> Reply {
    let message = format!("{what} '{}' in this generation", stillmirror_protocol::path::Escaped(path));
    Reply::Error { code: ErrorCode::NotThere, message }
}

fn internal() -> Reply {
    Reply::Error { code: ErrorCode::Internal, message: "the daemon failed to answer; its log says why".to_owned() }
}
