//! Publishes the receiver's own generation: what the local tree holds now, to be served on, and to compare
//! the next pull with.
//!
//! A pull that took everything publishes the sender's head, its signature, list and delta byte for byte. A pull of a part,
//! or one in which something failed, publishes the list of what the tree has, and keeps the sender's list beside
//! it.

mod differences;

use std::collections::HashMap;

use rkyv::util::AlignedVec;
use stillmirror_protocol::changes::{self, Source as RowSource};
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::head::{Counts, Head, SliceMark};
use stillmirror_protocol::list::{self, ListRef};
use stillmirror_protocol::local::{Identity, LocalTable, RecordAt};
use stillmirror_store::{Draft, Generation};

use crate::attributes::Attributes;
use crate::commit::Committed;
use crate::error::PullError;
use crate::facts::Facts;
use crate::local::Tree;
use crate::report::{Failure, Options};
use crate::selection::Selection;
use crate::source::Pinned;

/// The inputs of a generation.
pub(crate) struct Publisher<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) pinned: &'a Pinned,
    /// The sender's encoded list, if this pull received it.
    pub(crate) encoded: Option<&'a [u8]>,
    /// The sender's delta to that list, if this pull received it.
    pub(crate) delta: Option<&'a [u8]>,
    pub(crate) held: Option<&'a Generation>,
    pub(crate) selection: &'a Selection<'a>,
    pub(crate) facts: &'a Facts,
    pub(crate) committed: &'a Committed,
    /// Records of the rows whose content this pull brought.
    pub(crate) records: &'a HashMap<u32, RecordAt>,
    /// Rows that failed, so that the tree differs from the list.
    pub(crate) failed: &'a HashMap<u32, Failure>,
    pub(crate) options: &'a Options,
    pub(crate) attributes: &'a Attributes,
    /// Local names that were to be deleted but remain.
    pub(crate) kept: &'a [Vec<u8>],
}

/// The list of the local tree, if it is not the sender's.
struct OwnList {
    encoded: AlignedVec,
    /// The origin of each row: a row of the sender's list, or an index into `put`.
    sources: Vec<RowSource>,
    put: Vec<Identity>,
}

impl Publisher<'_> {
    /// Writes the generation. Returns its number in the store.
    pub(crate) fn publish(&self, draft: Draft) -> Result<u64, PullError> {
        match self.own_list()? {
            None => self.publish_whole(draft),
            Some(own) => self.publish_own(draft, &own),
        }
    }

    /// Returns whether the held generation says all of this already.
    pub(crate) fn is_published(&self) -> Result<bool, PullError> {
        let Some(held) = self.held else { return Ok(false) };
        let signature = self.pinned.signature.as_deref();
        Ok(match (self.own_list()?, held.origin()) {
            (None, None) => {
                held.head_bytes() == self.pinned.head_bytes
                    && held.signature() == signature
                    && self.knows_files(held, |row| self.identity(row))
            }
            (Some(own), Some(origin)) => {
                *origin.head == self.pinned.head
                    && origin.signature == signature
                    && held.head().list_digest == list::digest(&own.encoded)
                    && held.head().slice == self.slice_mark()
                    && self.knows_files(held, |row| self.identity_of(&own, row))
            }
            _ => false,
        })
    }

    /// Returns whether the held local facts still describe the disk. A daemon compares them with the root and the files
    /// that it opens.
    fn knows_files(&self, held: &Generation, identity: impl Fn(u32) -> Identity) -> bool {
        let (list, local) = (held.list(), held.local());
        if identity(0).inode != local.identity(0).inode {
            return false;
        }
        (0..list.len()).filter(|&row| list.row(row).is_file()).all(|row| identity(row) == local.identity(row))
    }

    /// Returns the mark of the tree's own list, if it has only a part of the sender's.
    fn slice_mark(&self) -> Option<SliceMark> {
        let head = &self.pinned.head;
        if self.selection.is_whole() {
            return head.slice.clone();
        }
        let mut selected = self.options.selected();
        if let Some(slice) = &head.slice {
            selected = format!("{selected}, of: {}", slice.selected);
        }
        Some(SliceMark::new(head.list_digest, &selected))
    }

    /// Returns the list of what the tree has. `None` if it has everything in the sender's list and nothing
    /// else.
    fn own_list(&self) -> Result<Option<OwnList>, PullError> {
        let differences = self.differences()?;
        if differences.changes.is_empty() && self.selection.is_whole() {
            return Ok(None);
        }
        let applied = changes::apply_below(self.selection.list, self.selection.root, &differences.changes)?;
        Ok(Some(OwnList { encoded: applied.list.encode(), sources: applied.sources, put: differences.put }))
    }

    fn publish_whole(&self, draft: Draft) -> Result<u64, PullError> {
        let digest = self.pinned.head.list_digest;
        match (self.held, self.encoded) {
            (Some(held), _) if held.head().list_digest == digest => draft.link_list(held)?,
            (_, Some(encoded)) => draft.write_list(encoded)?,
            // The list is the held generation's origin.
            (Some(held), None) => draft.write_list(&origin_list(held)?)?,
            (None, None) => return Err(PullError::usage("no list to publish")),
        }
        let local = self.local_table(self.selection.list, |row| (self.identity(row), Some(row)), &draft)?;
        draft.write_local(&local.encode(digest))?;
        if let Some(delta) = self.delta_to_whole() {
            draft.write_delta(&delta)?;
        }
        draft.write_head(&self.pinned.head_bytes)?;
        if let Some(signature) = &self.pinned.signature {
            draft.write_signature(signature)?;
        }
        Ok(draft.publish()?)
    }

    /// Returns the delta that the sender's head promises, from its previous list to its list.
    fn delta_to_whole(&self) -> Option<Vec<u8>> {
        let head = &self.pinned.head;
        if let Some(delta) = self.delta {
            return Some(delta.to_vec());
        }
        let held = self.held?;
        if held.head().list_digest == head.list_digest && held.head().previous == head.previous {
            return held.delta().filter(|delta| delta.is_right()).map(|delta| delta.bytes().to_vec());
        }
        let leads = held.head().list_digest == head.previous && head.previous != head.list_digest;
        leads.then(|| changes::diff(held.list(), self.selection.list).encode(head.previous, head.list_digest))
    }

    fn publish_own(&self, draft: Draft, own: &OwnList) -> Result<u64, PullError> {
        let list = list::open(&own.encoded)?;
        let digest = list::digest(&own.encoded);
        let origin = &self.pinned.head;
        let before = self.held.map_or(Digest::NONE, |held| held.head().list_digest);
        let same = self.held.filter(|_| before == digest);
        match same {
            Some(held) => draft.link_list(held)?,
            None => draft.write_list(&own.encoded)?,
        }
        let facts = |row| match own.sources[row as usize] {
            RowSource::Old(origin) => (self.identity(origin), Some(origin)),
            RowSource::Put(_) => (self.identity_of(own, row), None),
        };
        let local = self.local_table(list, facts, &draft)?;
        draft.write_local(&local.encode(digest))?;
        let head = Head {
            repository: origin.repository.clone(),
            generation: origin.generation,
            created: origin.created,
            list_digest: digest,
            list_len: own.encoded.len() as u64,
            previous: same.map_or(before, |held| held.head().previous),
            counts: Counts::of(list),
            // The origin's signature is not one of this head.
            expires: None,
            slice: self.slice_mark(),
        };
        match (same, self.held) {
            (Some(held), _) => {
                let delta = held.delta().filter(|delta| delta.is_right());
                delta.map_or(Ok(()), |delta| draft.write_delta(delta.bytes()))?;
            }
            (None, Some(held)) => draft.write_delta(&changes::diff(held.list(), list).encode(before, digest))?,
            (None, None) => {}
        }
        draft.write_head(&head.encode())?;
        let (head_bytes, signature) = (&self.pinned.head_bytes, self.pinned.signature.as_deref());
        match (self.encoded, self.held) {
            (Some(encoded), _) => draft.write_origin(head_bytes, signature, Some(encoded))?,
            (None, Some(held)) => draft.write_origin(head_bytes, signature, Some(&origin_list(held)?))?,
            (None, None) => return Err(PullError::usage("no list to publish")),
        }
        Ok(draft.publish()?)
    }

    /// Returns local facts for every row of a list. `facts` returns a row's identity, and its row in the
    /// sender's list if it has one.
    fn local_table(
        &self,
        list: ListRef<'_>,
        facts: impl Fn(u32) -> (Identity, Option<u32>),
        draft: &Draft,
    ) -> Result<LocalTable, PullError> {
        let mut table = LocalTable::default();
        let mut carried = Carried::new(self.held);
        for number in 0..list.len() {
            let row = list.row(number);
            let (identity, origin) = facts(number);
            let record = match (row.is_file(), origin.and_then(|origin| self.records.get(&origin).copied())) {
                (false, _) => None,
                (true, Some(record)) => Some(record),
                (true, None) => Some(carried.of(row.sha256(), draft)?),
            };
            table.push(identity, None, record);
        }
        Ok(table)
    }

    /// Returns the identity of the file at a row of the tree's own list.
    fn identity_of(&self, own: &OwnList, row: u32) -> Identity {
        match own.sources[row as usize] {
            RowSource::Old(origin) => self.identity(origin),
            RowSource::Put(tag) => own.put.get(tag as usize).copied().unwrap_or(Identity::UNKNOWN),
        }
    }

    /// Returns the identity of the local file at a row of the sender's list.
    fn identity(&self, row: u32) -> Identity {
        let before = || match self.selection.index(row) {
            Some(index) => self.facts.rows[index].map(|fact| fact.identity),
            None => self.facts.root.map(|fact| fact.identity),
        };
        let changed = self.committed.identities.get(&row).copied();
        changed.or_else(|| before().filter(|_| !self.failed.contains_key(&row))).unwrap_or(Identity::UNKNOWN)
    }
}

/// Records of the held generation, by content.
struct Carried<'a> {
    held: Option<&'a Generation>,
    files: HashMap<Digest, u32>,
    /// Packs whose records are moved to the draft, so that the packs can be removed.
    compacted: Vec<u32>,
    moved: HashMap<Digest, RecordAt>,
}

impl<'a> Carried<'a> {
    fn new(held: Option<&'a Generation>) -> Self {
        let mut files = HashMap::new();
        if let Some(held) = held {
            let (list, local) = (held.list(), held.local());
            for row in (0..list.len()).map(|row| list.row(row)) {
                let Some(file) = row.file_number() else { continue };
                if local.record(file).is_some() {
                    files.insert(row.sha256(), file);
                }
            }
        }
        let compacted = held.map(Generation::packs_to_compact).unwrap_or_default();
        Self { held, files, compacted, moved: HashMap::new() }
    }

    /// Returns where the record of a content is. The default value means that there is none.
    fn of(&mut self, content: Digest, draft: &Draft) -> Result<RecordAt, PullError> {
        let (Some(held), Some(&file)) = (self.held, self.files.get(&content)) else { return Ok(RecordAt::default()) };
        let Some(at) = held.local().record(file) else { return Ok(RecordAt::default()) };
        if !self.compacted.contains(&at.pack) {
            return Ok(at);
        }
        if let Some(&at) = self.moved.get(&content) {
            return Ok(at);
        }
        // A damaged record is dropped. The tree has everything that it contained.
        let record = held.record(file).ok().flatten().unwrap_or_default();
        let at = draft.append(content, record)?;
        self.moved.insert(content, at);
        Ok(at)
    }
}

/// Returns the encoded list of a held generation's origin, read from the disk.
fn origin_list(held: &Generation) -> Result<Vec<u8>, PullError> {
    let path = held.dir().join("origin-list");
    match std::fs::read(&path) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(held.list_bytes().to_vec()),
        Err(error) => crate::error::At::at(Err(error), "read", &path),
    }
}
