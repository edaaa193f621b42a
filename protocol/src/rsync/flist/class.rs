//! The session parameters that change the bytes of a list.

use crate::list::ListRef;
use crate::rsync::chmod::Chmod;
use crate::rsync::version::{LinkForm, Version};

/// All parameters of a session, except its selection, that change the bytes of its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Class {
    /// The protocol version.
    pub version: Version,
    /// Whether flags are varints (compatibility bit 0x80).
    pub varint_flags: bool,
    /// Whether each directory has its own list (0x001). Only for a selection that [can be
    /// incremental](super::super::selection::Wanted::may_be_incremental).
    pub incremental: bool,
    /// Whether id lists end with the name of id 0 (0x100).
    pub id0_names: bool,
    /// Whether the end mark of a list with byte flags may carry an I/O error (0x008).
    pub safe_list: bool,
    /// `-l`: symlinks are sent with their targets.
    pub links: bool,
    /// `-H`.
    pub hard_links: bool,
    /// `-o`.
    pub owner: bool,
    /// `-g`.
    pub group: bool,
    /// `-D` or `--devices`: device numbers are sent.
    pub devices: bool,
    /// `-D` without `--no-specials`, or `--specials`: device numbers of fifos and sockets are sent, up to
    /// protocol 30.
    pub specials: bool,
    /// `--numeric-ids`: no user or group names are sent.
    pub numeric_ids: bool,
    /// The sender chooses to send no names. The client does not know this and gets empty lists of names.
    pub nameless: bool,
    /// `-U`. The index holds no access times, so modification times are sent instead.
    pub atimes: bool,
    /// `-A`, from protocol 30: "none" for every entry.
    pub acls: bool,
    /// `-X`, from protocol 30: "none" for every entry.
    pub xattrs: bool,
    /// `-c`.
    pub checksum: Option<ListDigest>,
    /// The sender chooses to send digests only for files that everybody may read.
    pub public_digests: bool,
    /// The sender chooses to strip the prefix that a receiving daemon put before the targets of symlinks.
    pub munged: bool,
    /// The sender's own mode change.
    pub chmod: Chmod,
}

/// The digest of files' contents in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListDigest {
    /// XXH128 from the index.
    Xxh128,
    /// MD5 from the index.
    Md5,
    /// A digest of this many bytes that the index does not hold. Zeros are sent, so that the client finds
    /// every file changed and fetches it.
    Unknown(u8),
}

impl ListDigest {
    /// The length of the digest, in bytes.
    pub(super) fn len(self) -> usize {
        match self {
            Self::Xxh128 | Self::Md5 => 16,
            Self::Unknown(len) => usize::from(len),
        }
    }
}

impl Class {
    /// Returns a class with all options off.
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

    /// Clears the parameters that do not change the bytes of this list. Sessions with equal results can share
    /// an encoded list.
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

    /// Returns whether the list itself can carry an I/O error. If it cannot, a message must report it.
    pub fn carries_errors(&self) -> bool {
        let facts = self.version.facts();
        !facts.variable_ints || self.varint_flags || self.safe_list || facts.error_on_end_mark
    }

    /// Returns bytes that are equal only for equal classes. They are part of a cached list's key.
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
    fn classes_with_different_bytes_have_different_keys() {
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
