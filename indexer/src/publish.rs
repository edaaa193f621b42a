//! Builds a generation from changes, writes it and makes it current.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use rkyv::util::AlignedVec;
use stillmirror_protocol::changes::{Applied, ApplyError, Changes, Source, apply};
use stillmirror_protocol::entry::{Digest, Time};
use stillmirror_protocol::head::{Counts, Head};
use stillmirror_protocol::list::{self, ListRef};
use stillmirror_protocol::local::{LocalTable, Pooled, RecordAt};
use stillmirror_store::{Draft, Generation, Store, StoreLock};

use crate::error::IndexError;
use crate::pooling::Pooling;
use crate::settle::{LocalFacts, Settled};
use crate::signer::Signer;
use crate::walk::Old;

/// What a generation gets besides its list and its local facts.
pub(crate) struct Seal<'a> {
    /// Whether the run has looked at the whole tree. Records of packs that are little used then move to the new pack.
    pub(crate) is_whole: bool,
    pub(crate) signer: Option<&'a Signer>,
    pub(crate) pooling: Option<&'a Pooling>,
}

/// A generation that was published.
pub(crate) struct Published {
    pub(crate) number: u64,
    pub(crate) counts: Counts,
    /// The number of files that the pool does not have although it should.
    pub(crate) unpooled: u64,
}

/// Builds and publishes the generation that follows `before`, signed if there is a signer. `old` is what the changes apply to: the same generation, or `None` if the changes contain a whole tree.
pub(crate) fn publish(
    store: &Store,
    draft: Draft,
    before: Option<&Generation>,
    old: Option<Old<'_>>,
    settled: &Settled,
    seal: &Seal<'_>,
) -> Result<Published, IndexError> {
    let Seal { is_whole, signer, pooling } = *seal;
    let previous = before.map_or(Digest::NONE, |before| before.head().list_digest);
    let built = build(before, old, settled)?;
    let encoded = built.encoded.as_deref();
    // Writing and compressing the list takes as long as everything else, so it has a thread of its own.
    let (digest, written) = std::thread::scope(|scope| {
        let list = scope.spawn(|| match (encoded, before) {
            (Some(encoded), _) => draft.write_list(encoded),
            (None, Some(before)) => draft.link_list(before),
            (None, None) => Ok(()),
        });
        let digest = encoded.map_or(previous, list::digest);
        let compact = before.filter(|_| is_whole);
        let local = local_table(&draft, compact, old, settled, &built.sources, pooling.is_some());
        let local = local.and_then(|(local, unpooled)| {
            draft.write_local(&local.encode(digest))?;
            Ok(unpooled)
        });
        let list = list.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (digest, list.map_err(IndexError::from).and(local))
    });
    let unpooled = written?;
    if old.is_some() && is_worth_a_delta(&settled.changes, built.sources.len()) {
        draft.write_delta(&settled.changes.encode(previous, digest))?;
    }
    let (counts, list_len) = match (encoded, before) {
        (None, Some(before)) => (before.head().counts, before.head().list_len),
        _ => (Counts::of(list_in(encoded.unwrap_or_default())?), encoded.map_or(0, <[u8]>::len) as u64),
    };
    let created = now();
    let head = Head {
        repository: store.repository().to_owned(),
        generation: draft.number(),
        created,
        list_digest: digest,
        list_len,
        previous,
        counts,
        expires: signer.map(|signer| signer.expires(created)),
        slice: None,
    };
    write_head(&draft, &head, signer)?;
    if let Some(Pooling { pool, place, .. }) = pooling {
        pool.sync()?;
        draft.write_pool(place, before)?;
    }
    Ok(Published { number: draft.publish()?, counts, unpooled })
}

/// Publishes the generation of the current one's list with a head that is signed now. It replaces the current
/// generation, so that signatures do not count among the generations that are kept. Returns the new head.
pub(crate) fn renew(
    store: &Store,
    lock: &StoreLock,
    current: &Generation,
    signer: &Signer,
) -> Result<Head, IndexError> {
    let draft = store.begin(lock)?;
    draft.link_all(current)?;
    let head = Head { generation: draft.number(), expires: Some(signer.expires(now())), ..current.head().clone() };
    write_head(&draft, &head, Some(signer))?;
    draft.publish()?;
    store.remove_replaced(lock, current.number())?;
    Ok(head)
}

fn write_head(draft: &Draft, head: &Head, signer: Option<&Signer>) -> Result<(), IndexError> {
    let encoded = head.encode();
    draft.write_head(&encoded)?;
    match signer {
        Some(signer) => Ok(draft.write_signature(&signer.sign(head, &encoded, now())?)?),
        None => Ok(()),
    }
}

/// A new list.
struct Built {
    /// The encoded list. `None` if it is the previous one.
    encoded: Option<AlignedVec>,
    /// Where each of its rows came from.
    sources: Vec<Source>,
}

fn build(before: Option<&Generation>, old: Option<Old<'_>>, settled: &Settled) -> Result<Built, IndexError> {
    if let (Some(before), Some(_), true) = (before, old, settled.changes.is_empty()) {
        return Ok(Built { encoded: None, sources: (0..before.list().len()).map(Source::Old).collect() });
    }
    let Applied { list, sources } = apply(old.map(|old| old.list), &settled.changes)?;
    Ok(Built { encoded: Some(list.encode()), sources })
}

/// Returns the list in bytes that this process has encoded.
fn list_in(encoded: &[u8]) -> Result<ListRef<'_>, IndexError> {
    let list = rkyv::access::<list::ArchivedFileList, rkyv::rancor::Error>(&encoded[list::HEADER_BYTES..]);
    Ok(ListRef::new(list.map_err(|_| ApplyError::TooLarge)?))
}

/// Builds the local facts of the new list's rows, and counts the files that the pool should have and does not. A row's
/// source tells where its facts are.
fn local_table(
    draft: &Draft,
    compact: Option<&Generation>,
    old: Option<Old<'_>>,
    settled: &Settled,
    sources: &[Source],
    has_pool: bool,
) -> Result<(LocalTable, u64), IndexError> {
    let moved = compact.map_or(Ok(HashMap::new()), |before| compacted(before, draft))?;
    let now_at = |record: RecordAt| moved.get(&record).copied().unwrap_or(record);
    let (mut table, mut unpooled) = (LocalTable::with_capacity(sources.len(), sources.len()), 0);
    for source in sources {
        let facts = match (*source, old) {
            (Source::Put(tag), _) => settled.put_facts[tag as usize],
            (Source::Old(row), Some(old)) => match settled.row_facts.get(&row) {
                Some(facts) => *facts,
                None => LocalFacts::of_row(old, row),
            },
            (Source::Old(_), None) => continue,
        };
        table.push(facts.identity, facts.links, facts.record.map(now_at));
        if facts.is_rotten {
            table.mark_rotten();
        }
        if has_pool {
            table.mark_pooled(facts.pooled);
            unpooled += u64::from(facts.pooled == Pooled::No);
        }
    }
    Ok((table, unpooled))
}

/// Copies the records of packs that are little used to the draft's pack. Returns the new location of each
/// record.
fn compacted(before: &Generation, draft: &Draft) -> Result<HashMap<RecordAt, RecordAt>, IndexError> {
    let packs = before.packs_to_compact();
    let mut moved = HashMap::new();
    if packs.is_empty() {
        return Ok(moved);
    }
    for file in 0..before.list().files() {
        let Some(at) = before.local().record(file).filter(|at| packs.contains(&at.pack)) else { continue };
        if moved.contains_key(&at) {
            continue;
        }
        // A damaged record is dropped, because everything in it can be computed from the tree again.
        let record = before.record(file).ok().flatten().unwrap_or_default();
        let now = draft.append(before.list().sha256(file), record)?;
        moved.insert(at, now);
    }
    Ok(moved)
}

/// Returns whether a delta pays. One that touches most of a large list takes longer to create and to send
/// than the list.
fn is_worth_a_delta(changes: &Changes, entries: usize) -> bool {
    changes.len() <= (entries / 2).max(1000)
}

pub(crate) fn now() -> Time {
    // A clock that shows a time before 1970 is not set.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time { sec: since.as_secs() as i64, nsec: since.subsec_nanos() }
}
