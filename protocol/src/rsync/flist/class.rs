//! What makes the same tree different bytes.

use crate::list::ListRef;
use crate::rsync::chmod::Chmod;
use crate::rsync::version::{LinkForm, Version};

/// Everything about a session, beside what it selects, that changes the bytes of its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Class {
    /// The protocol.
    pub version: Version,
    /// Flags are varints (compatibility bit 0x80).
    pub varint_flags: bool,
    /// One list a directory (0x001). Only for a selection that [can](super::super::selection::Wanted::may_be_incremental).
    pub incremental: bool,
    /// Id lists end with the name of id 0 (0x100).
    pub id0_names: bool,
    /// An I/O error may ride on the end mark of a list with byte flags (0x008).
    pub safe_list: bool,
    /// `-l`: symlinks come with their targets.
    pub links: bool,
    /// `-H`.
    pub hard_links: bool,
    /// `-o`.
    pub owner: bool,
    /// `-g`.
    pub group: bool,
    /// Device numbers (`-D`, `--devices`).
    pub devices: bool,
    /// Device numbers of fifos and sockets, to protocol 30 (`-D` without `--no-specials`, or `--specials`).
    pub specials: bool,
    /// `--numeric-ids`: no names of users and groups.
    pub numeric_ids: bool,
    /// The sender's own choice to tell no names: the client, which does not know of it, finds empty lists
    /// of them.
    pub nameless: bool,
    /// `-U`. The index holds no access times; modification times stand in.
    pub atimes: bool,
    /// `-A`, from protocol 30: "none" for every entry.
    pub acls: bool,
    /// `-X`, from protocol 30: "none" for every entry.
    pub xattrs: bool,
    /// `-c`.
    pub checksum: Option<ListDigest>,
    /// The sender's own choice to tell digests of those files alone that everybody may read.
    pub public_digests: bool,
    /// The sender's own choice to strip from symlinks' targets what a receiving daemon put before them.
    pub munged: bool,
    /// The sender's own choice of other permissions.
    pub chmod: Chmod,
}

/// The digests of contents in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListDigest {
    /// XXH128 from the index.
    Xxh128,
    /// MD5 from the index.
    Md5,
    /// Of so many bytes, and the index does not hold it: zeros, so that the client finds every file
    /// changed and fetches it.
    Unknown(u8),
}

impl ListDigest {
    /// Bytes.
    pub(super) fn len(self) -> usize {
        match self {
            Self::Xxh128 | Self::Md5 => 16,
            Self::Unknown(len) => usize::from(len),
        }
    }
}

impl Class {
    /// A class with every option off.
    pub fn plain(version: Version) -> Self {
        Self {
            version,
            varint_flags: false,
            incremental: false,
            id0_names: false,
            safe_list: false,
            links: false,
            hard_links: false,
            owner: false,
            group: false,
            devices: false,
            specials: false,
            numeric_ids: false,
            nameless: false,
            atimes: false,
            acls: false,
            xattrs: false,
            checksum: None,
            public_digests: false,
            munged: false,
            chmod: Chmod::default(),
        }
    }

    /// The same class without what makes no difference to the bytes of this list: sessions with equal
    /// results can share an encoded list.
    #[must_use]
    pub fn canonical(self, list: ListRef<'_>) -> Self {
        let facts = self.version.facts();
        let ids = self.owner || self.group || self.acls;
        let xxh128 = list.has_xxh128();
        let md5 = list.has_md5();
        Self {
            version: if self.version == Version::NEWEST { Version::BEFORE_NEWEST } else { self.version },
            varint_flags: self.varint_flags && facts.variable_ints,
            incremental: self.incremental && facts.variable_ints,
            id0_names: self.id0_names && ids && !self.numeric_ids && !self.incremental,
            safe_list: self.safe_list && !self.varint_flags && !facts.error_on_end_mark,
            links: self.links && !list.archived().targets.is_empty(),
            public_digests: self.public_digests && self.checksum.is_some(),
            munged: self.munged && self.links && !list.archived().targets.is_empty(),
            hard_links: self.hard_links && (facts.links == LinkForm::InodeOfEveryFile || list.links().len() > 0),
            devices: self.devices && !list.archived().major.is_empty(),
            specials: self.specials && facts.special_devices,
            numeric_ids: self.numeric_ids && ids,
            nameless: self.nameless && ids && !self.numeric_ids,
            acls: self.acls && facts.variable_ints,
            xattrs: self.xattrs && facts.variable_ints,
            checksum: self.checksum.map(|digest| match digest {
                ListDigest::Xxh128 if !xxh128 => ListDigest::Unknown(16),
                ListDigest::Md5 if !md5 => ListDigest::Unknown(16),
                digest => digest,
            }),
            ..self
        }
    }

    /// Whether the list itself says that there was an I/O error. Where it does not, a message must.
    pub fn carries_errors(&self) -> bool {
        let facts = self.version.facts();
        !facts.variable_ints || self.varint_flags || self.safe_list || facts.error_on_end_mark
    }

    /// Bytes that are equal for equal classes only. Part of the name of a cached list.
    pub fn key(&self) -> Vec<u8> {
        let bits = [
            self.varint_flags,
            self.incremental,
            self.id0_names,
            self.safe_list,
            self.links,
            self.hard_links,
            self.owner,
            self.group,
            self.devices,
            self.specials,
            self.numeric_ids,
            self.atimes,
            self.acls,
            self.xattrs,
            self.nameless,
            self.munged,
        ];
        let bits = bits.into_iter().enumerate().fold(0u16, |bits, (at, bit)| bits | u16::from(bit) << at);
        let [low, high] = bits.to_le_bytes();
        let (kind, len) = match self.checksum {
            None => (0, 0),
            Some(ListDigest::Xxh128) => (1, 16),
            Some(ListDigest::Md5) => (2, 16),
            Some(ListDigest::Unknown(len)) => (3, len),
        };
        let public = u8::from(self.public_digests);
        [self.version.number() as u8, low, high, kind, len, public].into_iter().chain(self.chmod.key()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_with_other_targets_or_permissions_have_other_names() {
        let plain = Class::plain(Version::NEWEST);
        let chmod = |text| Class { chmod: Chmod::parse(text).unwrap(), ..plain };
        let public = Class { public_digests: true, ..plain };
        let classes = [plain, public, Class { munged: true, ..plain }, chmod("D755"), chmod("F755"), chmod("a+X")];
        for (at, class) in classes.iter().enumerate() {
            assert!(classes[..at].iter().all(|other| other.key() != class.key()), "{class:?}");
        }
        assert_eq!(chmod("a+r,u+r").key(), chmod("a+r").key());
    }
}
