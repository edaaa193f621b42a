//! The current file list: unchanged, by deltas, or whole; trusted once its digest is the head's.

use std::io::{self, Write};

use rkyv::util::AlignedVec;
use stillmirror_protocol::changes::{self, Changes};
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::head::Head;
use stillmirror_protocol::list::{self, ListRef};
use stillmirror_protocol::wire::{ListForm, Reply, Request};

use crate::error::PullError;
use crate::source::{Answer, Event, Pinned, Source};

/// A list that came.
pub(crate) struct Listing {
    /// The encoded list, of the head's digest. It is not validated yet.
    pub(crate) encoded: AlignedVec,
    /// The delta that leads to it from the list before, when one came.
    pub(crate) delta: Option<Vec<u8>>,
    /// Bytes that came.
    pub(crate) bytes: u64,
}

/// Asks for the list of a pinned generation, given the one that is held. None: it is the one held.
pub(crate) async fn fetch(
    source: &dyn Source,
    pinned: &Pinned,
    held: Option<(Digest, ListRef<'_>)>,
) -> Result<Option<Listing>, PullError> {
    let have = held.map_or(Digest::NONE, |(digest, _)| digest);
    let mut answer = source.ask(Request::List { handle: pinned.handle, have })?;
    match (form(&mut answer).await?, held) {
        (ListForm::Whole { list_len }, _) => {
            let (encoded, bytes) = receive_whole(answer, &pinned.head, list_len).await?;
            Ok(Some(Listing { encoded, delta: None, bytes }))
        }
        (ListForm::Deltas(lens), Some((digest, held))) => {
            let (encoded, delta, bytes) = receive_deltas(answer, &pinned.head, &lens, digest, held).await?;
            Ok(Some(Listing { encoded, delta: Some(delta), bytes }))
        }
        (ListForm::Unchanged, Some((digest, _))) if digest == pinned.head.list_digest => Ok(None),
        _ => Err(PullError::offence("a list that is told as what it cannot be: unchanged, or by deltas")),
    }
}

/// Receives a list that was asked for whole.
pub(crate) async fn whole(mut answer: Answer, head: &Head) -> Result<AlignedVec, PullError> {
    match form(&mut answer).await? {
        ListForm::Whole { list_len } => Ok(receive_whole(answer, head, list_len).await?.0),
        _ => Err(PullError::offence("a list by deltas where the whole list was asked for")),
    }
}

async fn form(answer: &mut Answer) -> Result<ListForm, PullError> {
    match answer.next().await? {
        Event::Reply(Reply::ListForm(form)) => Ok(form),
        _ => Err(PullError::offence("a list that does not begin with its form")),
    }
}

async fn receive_whole(mut answer: Answer, head: &Head, list_len: u64) -> Result<(AlignedVec, u64), PullError> {
    if list_len != head.list_len {
        return Err(PullError::offence(format!("a list of {list_len} bytes where the head says {}", head.list_len)));
    }
    let broken = |error: io::Error| PullError::offence(format!("file list: {error}"));
    let bounded = Bounded { bytes: AlignedVec::new(), limit: list_len };
    let mut decoder = zstd::stream::write::Decoder::new(bounded).map_err(broken)?;
    let mut received = 0;
    while let Event::Bytes(bytes) = answer.next().await? {
        received += bytes.len() as u64;
        decoder.write_all(&bytes).map_err(broken)?;
    }
    decoder.flush().map_err(broken)?;
    let encoded = decoder.into_inner().bytes;
    check_digest(&encoded, head)?;
    Ok((encoded, received))
}

/// Applies deltas one after the other as they come.
async fn receive_deltas(
    mut answer: Answer,
    head: &Head,
    lens: &[u64],
    mut digest: Digest,
    held: ListRef<'_>,
) -> Result<(AlignedVec, Vec<u8>, u64), PullError> {
    let total: u64 = lens.iter().sum();
    if total > head.list_len.max(SMALL_DELTAS) {
        return Err(PullError::offence(format!("{total} bytes of list deltas, more than the list itself has")));
    }
    let mut input = Vec::new();
    let mut encoded: Option<AlignedVec> = None;
    let mut last = Vec::new();
    for &len in lens {
        while (input.len() as u64) < len {
            match answer.next().await? {
                Event::Bytes(bytes) => input.extend_from_slice(&bytes),
                Event::Reply(_) => return Err(PullError::offence("list deltas that end too soon")),
            }
        }
        let rest = input.split_off(len as usize);
        last = std::mem::replace(&mut input, rest);
        let (from, to, changes) = Changes::decode(&last)?;
        if from != digest {
            return Err(PullError::offence("a list delta for another list"));
        }
        let list = match &encoded {
            Some(encoded) => list::open(encoded)?,
            None => held,
        };
        encoded = Some(changes::apply(Some(list), &changes)?.list.encode());
        digest = to;
    }
    if !matches!(answer.next().await?, Event::Reply(Reply::End)) {
        return Err(PullError::offence("bytes after the last list delta"));
    }
    let encoded = encoded.ok_or_else(|| PullError::offence("no list delta where some were announced"))?;
    check_digest(&encoded, head)?;
    Ok((encoded, last, total))
}

fn check_digest(encoded: &[u8], head: &Head) -> Result<(), PullError> {
    if encoded.len() as u64 != head.list_len || list::digest(encoded) != head.list_digest {
        return Err(PullError::offence("a file list that does not have the digest its head names"));
    }
    Ok(())
}

/// Takes no more than it may.
struct Bounded {
    bytes: AlignedVec,
    limit: u64,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.bytes.len() + bytes.len()) as u64 > self.limit {
            return Err(io::Error::other("it decompresses to more than its length"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Deltas of a small list may well be longer than it.
const SMALL_DELTAS: u64 = 1 << 20;
