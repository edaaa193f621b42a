//! Decides whether a sender's head is trusted, by the keys of the caller and by what was accepted before.
//!
//! For each key, a receiver's store remembers the highest generation that was accepted with its signature, in the file
//! `trust`. So a sender cannot go back to an older generation, and a new key begins without a past.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use stillmirror_protocol::entry::{Digest, Time};
use stillmirror_protocol::list;
use stillmirror_protocol::signature::{self, PublicKey};
use stillmirror_store::Store;

use crate::distrust::TrustError;
use crate::error::{At as _, PullError};
use crate::local;
use crate::source::Pinned;

/// The highest generation that was accepted with each key, and its list.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Memory {
    accepted: BTreeMap<String, Accepted>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Accepted {
    generation: u64,
    list: Digest,
}

/// Checks a head: a trusted key has signed it, it had not expired when the pull `began`, and it is not older than what
/// was accepted with that key. Returns that key.
pub(crate) fn check<'a>(
    pinned: &Pinned,
    keys: &'a [PublicKey],
    memory: &Memory,
    began: Time,
) -> Result<&'a PublicKey, TrustError> {
    let signature = pinned.signature.as_deref().ok_or(TrustError::Unsigned)?;
    let key = signature::verify(&pinned.head_bytes, signature, keys)?;
    let head = &pinned.head;
    let at = head.expires.ok_or(TrustError::NoExpiry)?;
    if at <= began {
        return Err(TrustError::Expired { at });
    }
    match memory.accepted.get(key.as_str()) {
        Some(Accepted { generation, .. }) if head.generation < *generation => {
            Err(TrustError::Older { found: head.generation, accepted: *generation })
        }
        Some(Accepted { generation, list }) if head.generation == *generation && head.list_digest != *list => {
            Err(TrustError::Equivocation { generation: *generation, found: head.list_digest, accepted: *list })
        }
        _ => Ok(key),
    }
}

/// Like [`check`], with the memory in a store, if there is one yet, and without a check if there are no keys. Returns
/// what the store is to remember, or `None` if it does already.
pub(crate) fn check_with_store(
    pinned: &Pinned,
    keys: &[PublicKey],
    store: Option<&Store>,
    began: Time,
) -> Result<Option<Memory>, PullError> {
    if keys.is_empty() {
        return Ok(None);
    }
    let before = store.map_or_else(|| Ok(Memory::default()), Memory::load)?;
    let key = check(pinned, keys, &before, began);
    let key = key.map_err(|reason| PullError::Untrusted { repository: pinned.head.repository.clone(), reason })?;
    let mut after = before.clone();
    after.accept(key, pinned);
    Ok((after != before).then_some(after))
}

/// Returns the time now.
pub(crate) fn now() -> Time {
    // A clock that shows a time before 1970 is not set.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time { sec: since.as_secs().cast_signed(), nsec: since.subsec_nanos() }
}

impl Memory {
    /// Reads what the store remembers. Fails if the file is damaged, because an empty memory accepts any generation.
    pub(crate) fn load(store: &Store) -> Result<Self, PullError> {
        let path = path(store);
        let mut text = Vec::new();
        let Some(file) = local::optional(File::open(&path)).at("open", &path)? else { return Ok(Self::default()) };
        file.take(MAX_BYTES + 1).read_to_end(&mut text).at("read", &path)?;
        Self::decode(&text).ok_or(PullError::TrustFile(path))
    }

    /// Remembers that a head was accepted with a key.
    fn accept(&mut self, key: &PublicKey, pinned: &Pinned) {
        let accepted = Accepted { generation: pinned.head.generation, list: pinned.head.list_digest };
        self.accepted.insert(key.as_str().to_owned(), accepted);
    }

    /// Replaces what the store remembers.
    pub(crate) fn save(&self, store: &Store) -> Result<(), PullError> {
        let (path, draft) = (path(store), store.dir().join("trust.tmp"));
        let mut file = File::create(&draft).at("create", &draft)?;
        file.write_all(&self.encode()).at("write", &draft)?;
        file.sync_all().at("sync", &draft)?;
        fs::rename(&draft, &path).at("rename", &draft)?;
        File::open(store.dir()).and_then(|dir| dir.sync_all()).at("sync", store.dir())
    }

    fn encode(&self) -> Vec<u8> {
        let line = |(key, Accepted { generation, list }): (&String, &Accepted)| format!("{key} {generation} {list}\n");
        let lines: String = self.accepted.iter().map(line).collect();
        format!("{FORMAT} {}\n{lines}", list::digest(lines.as_bytes())).into_bytes()
    }

    fn decode(text: &[u8]) -> Option<Self> {
        if text.len() as u64 > MAX_BYTES {
            return None;
        }
        let (header, lines) = std::str::from_utf8(text).ok()?.split_once('\n')?;
        if header != format!("{FORMAT} {}", list::digest(lines.as_bytes())) {
            return None;
        }
        let entry = |line: &str| {
            let mut words = line.split(' ');
            let (key, generation, list) = (words.next()?, words.next()?.parse().ok()?, digest(words.next()?)?);
            Some((key.to_owned(), Accepted { generation, list }))
        };
        Some(Self { accepted: lines.lines().map(entry).collect::<Option<_>>()? })
    }
}

/// Parses a digest in hex.
fn digest(text: &str) -> Option<Digest> {
    let mut digest = Digest::NONE;
    if text.len() != 2 * digest.0.len() || !text.is_ascii() {
        return None;
    }
    for (at, byte) in digest.0.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(digest)
}

fn path(store: &Store) -> PathBuf {
    store.dir().join("trust")
}

const FORMAT: &str = "stillmirror trust 1";
/// Maximum size of the file, in bytes. An entry takes about 150.
const MAX_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn memory() -> impl Strategy<Value = Memory> {
        let entry = ("[A-Za-z0-9+/]{56}", any::<u64>(), any::<[u8; 32]>());
        let entry = entry.prop_map(|(key, generation, list)| (key, Accepted { generation, list: Digest(list) }));
        prop::collection::btree_map("[a-z]", entry, 0..5)
            .prop_map(|entries| Memory { accepted: entries.into_values().collect() })
    }

    proptest! {
        #[test]
        fn a_memory_survives_a_round_trip(memory in memory()) {
            prop_assert_eq!(Memory::decode(&memory.encode()), Some(memory));
        }

        #[test]
        fn a_memory_with_any_changed_byte_is_damaged(memory in memory(), at: prop::sample::Index, to: u8) {
            let mut text = memory.encode();
            let at = at.index(text.len());
            prop_assume!(text[at] != to);
            text[at] = to;
            prop_assert_eq!(Memory::decode(&text), None);
        }

        #[test]
        fn any_bytes_are_decoded_or_damaged(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Memory::decode(&bytes);
        }
    }

    #[test]
    fn a_memory_of_another_format_is_damaged() {
        assert_eq!(Memory::decode(b""), None);
        assert_eq!(Memory::decode(b"stillmirror trust 2\n"), None);
    }
}
