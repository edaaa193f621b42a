//! The head of a generation: a few hundred bytes that identify and summarize it. The layout is described in
//! `docs/index-format.md`.

use thiserror::Error;
use twox_hash::XxHash3_128;

use crate::codec::{DecodeError, Reader, put_bytes};
use crate::entry::{Digest, Time};
use crate::limits;
use crate::list::{FileType, ListRef};

const MAGIC: [u8; 8] = *b"SMHEAD\r\n";
/// The format of a head that does not expire.
const VERSION: u16 = 1;
/// The format of a head that expires.
const VERSION_EXPIRING: u16 = 2;
/// The format of a head of a slice.
const VERSION_SLICE: u16 = 3;
/// In format 3: the head expires.
const EXPIRES: u8 = 1;
const CHECKSUM_BYTES: usize = 16;

/// The description of a generation, without its list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The repository's name.
    pub repository: String,
    /// The generation's number. The first is 1.
    pub generation: u64,
    /// The time at which it was indexed.
    pub created: Time,
    /// The SHA-256 of the encoded list. Two generations with equal list digests describe the same tree.
    pub list_digest: Digest,
    /// The length of the encoded list in bytes.
    pub list_len: u64,
    /// The list digest of the previous generation; [`Digest::NONE`] for the first.
    pub previous: Digest,
    /// The number of entries of each type, and their total size.
    pub counts: Counts,
    /// The time until which the head's signature is accepted. Signed heads have one, others have none.
    pub expires: Option<Time>,
    /// What the list is a slice of. `None` if the generation is whole.
    pub slice: Option<SliceMark>,
}

/// The mark of a generation that has a selected part of another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceMark {
    /// The digest of the list that the part was selected from.
    pub of: Digest,
    /// What was selected, for people.
    pub selected: String,
}

impl SliceMark {
    /// Creates a mark. Of a text that is longer than [`limits::SLICE_TEXT`], the beginning is kept.
    pub fn new(of: Digest, selected: &str) -> Self {
        let mut kept: String = selected.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        if kept.len() > limits::SLICE_TEXT {
            kept.truncate(kept.floor_char_boundary(limits::SLICE_TEXT - CUT.len_utf8()));
            kept.push(CUT);
        }
        Self { of, selected: kept }
    }
}

/// The end of a text of which only the beginning is kept.
const CUT: char = '…';

/// Totals over a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Regular files.
    pub files: u64,
    /// Directories, including the root.
    pub directories: u64,
    /// Symlinks.
    pub symlinks: u64,
    /// Devices, fifos and sockets.
    pub specials: u64,
    /// Total size of the regular files in bytes. Each link group is counted once.
    pub bytes: u64,
}

impl Counts {
    /// Counts the entries of a list. Takes time linear in its length.
    pub fn of(list: ListRef<'_>) -> Self {
        let mut counts = Self::default();
        for row in (0..list.len()).map(|row| list.row(row)) {
            match row.file_type() {
                FileType::File => {
                    counts.files += 1;
                    if row.link_leader().is_none_or(|leader| leader == row.number()) {
                        // Sizes may come from a peer, and three of the largest possible ones overflow the sum.
                        counts.bytes = counts.bytes.saturating_add(row.size());
                    }
                }
                FileType::Directory => counts.directories += 1,
                FileType::Symlink => counts.symlinks += 1,
                _ => counts.specials += 1,
            }
        }
        counts
    }
}

/// Why an encoded head is invalid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HeadError {
    /// The bytes are not a head.
    #[error("not a generation's head (wrong magic)")]
    Magic,
    /// The head has another version of the format.
    #[error("generation head format {found}; this program reads formats {VERSION} to {VERSION_SLICE}")]
    Version {
        /// The version found.
        found: u16,
    },
    /// The head is damaged.
    #[error("generation head is damaged (checksum differs)")]
    Checksum,
    /// A field does not decode.
    #[error("generation head: {0}")]
    Decode(#[from] DecodeError),
}

impl Head {
    /// Encodes the head to at most [`limits::HEAD`] bytes. The format is 3 for a slice, 2 for another head that expires, and
    /// 1 otherwise.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC);
        let version = match (&self.slice, self.expires) {
            (Some(_), _) => VERSION_SLICE,
            (None, Some(_)) => VERSION_EXPIRING,
            (None, None) => VERSION,
        };
        out.extend_from_slice(&version.to_le_bytes());
        put_bytes(&mut out, self.repository.as_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        put_time(&mut out, self.created);
        out.extend_from_slice(&self.list_digest.0);
        out.extend_from_slice(&self.list_len.to_le_bytes());
        out.extend_from_slice(&self.previous.0);
        let Counts { files, directories, symlinks, specials, bytes } = self.counts;
        for count in [files, directories, symlinks, specials, bytes] {
            out.extend_from_slice(&count.to_le_bytes());
        }
        if self.slice.is_some() {
            out.push(if self.expires.is_some() { EXPIRES } else { 0 });
        }
        self.expires.into_iter().for_each(|expires| put_time(&mut out, expires));
        if let Some(SliceMark { of, selected }) = &self.slice {
            out.extend_from_slice(&of.0);
            put_bytes(&mut out, selected.as_bytes());
        }
        let checksum = XxHash3_128::oneshot(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Decodes a head and checks its checksum.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeadError> {
        let mut reader = Reader::new(bytes);
        if reader.array("magic")? != MAGIC {
            return Err(HeadError::Magic);
        }
        let found = reader.u16("version")?;
        if ![VERSION, VERSION_EXPIRING, VERSION_SLICE].contains(&found) {
            return Err(HeadError::Version { found });
        }
        let Some((fields, checksum)) = bytes.split_last_chunk::<CHECKSUM_BYTES>() else {
            return Err(DecodeError::Short("checksum").into());
        };
        if XxHash3_128::oneshot(fields).to_le_bytes() != *checksum {
            return Err(HeadError::Checksum);
        }
        let repository = reader.text("repository", limits::REPOSITORY_NAME)?;
        check_repository_name(repository).map_err(|_| DecodeError::Invalid("repository"))?;
        let mut head = Self {
            repository: repository.to_owned(),
            generation: reader.u64("generation")?,
            created: time(&mut reader, "created")?,
            list_digest: Digest(reader.array("list digest")?),
            list_len: reader.u64("list length")?,
            previous: Digest(reader.array("previous")?),
            counts: Counts {
                files: reader.u64("files")?,
                directories: reader.u64("directories")?,
                symlinks: reader.u64("symlinks")?,
                specials: reader.u64("specials")?,
                bytes: reader.u64("bytes")?,
            },
            expires: None,
            slice: None,
        };
        let expires = match found {
            VERSION => false,
            VERSION_EXPIRING => true,
            _ => match reader.u8("flags")? {
                0 => false,
                EXPIRES => true,
                _ => return Err(DecodeError::Invalid("flags").into()),
            },
        };
        if expires {
            head.expires = Some(time(&mut reader, "expires")?);
        }
        if found == VERSION_SLICE {
            let of = Digest(reader.array("slice of")?);
            let selected = reader.text("slice", limits::SLICE_TEXT)?;
            if selected.is_empty() || selected.contains(char::is_control) {
                return Err(DecodeError::Invalid("slice").into());
            }
            head.slice = Some(SliceMark { of, selected: selected.to_owned() });
        }
        reader.take("checksum", CHECKSUM_BYTES)?;
        reader.finish("generation head")?;
        if head.list_len > limits::LIST_BYTES {
            let limit = limits::LIST_BYTES;
            return Err(DecodeError::TooLarge { field: "list length", value: head.list_len, limit }.into());
        }
        Ok(head)
    }
}

fn put_time(out: &mut Vec<u8>, time: Time) {
    out.extend_from_slice(&time.sec.to_le_bytes());
    out.extend_from_slice(&time.nsec.to_le_bytes());
}

fn time(reader: &mut Reader<'_>, field: &'static str) -> Result<Time, DecodeError> {
    let time = Time { sec: reader.u64(field)?.cast_signed(), nsec: reader.u32(field)? };
    if time.nsec > 999_999_999 { Err(DecodeError::Invalid(field)) } else { Ok(time) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(repository: &str, slice: SliceMark) -> Head {
        let time = Time { sec: i64::MAX, nsec: 999_999_999 };
        Head {
            repository: repository.to_owned(),
            generation: u64::MAX,
            created: time,
            list_digest: Digest([1; 32]),
            list_len: 1,
            previous: Digest([2; 32]),
            counts: Counts::default(),
            expires: Some(time),
            slice: Some(slice),
        }
    }

    fn with_checksum(fields: &[u8]) -> Vec<u8> {
        [fields, &XxHash3_128::oneshot(fields).to_le_bytes()].concat()
    }

    proptest! {
        #[test]
        fn the_mark_of_a_slice_fits_into_a_head_whatever_its_text(text in "\\PC{1,400}|[a-z\n\u{1b}é…]{1,400}") {
            let mark = SliceMark::new(Digest([3; 32]), &text);
            let encoded = head(&"r".repeat(limits::REPOSITORY_NAME), mark.clone()).encode();
            prop_assert!(encoded.len() <= limits::HEAD);
            prop_assert_eq!(Head::decode(&encoded).unwrap().slice, Some(mark));
        }
    }

    #[test]
    fn a_mark_that_no_program_writes_is_refused() {
        let right = head("r", SliceMark { of: Digest([3; 32]), selected: "text".to_owned() }).encode();
        let fields = &right[..right.len() - CHECKSUM_BYTES];
        let flags = fields.len() - 4 - 1 - 32 - 12 - 1;
        assert_eq!(fields[flags], EXPIRES);
        for (at, byte) in [(flags, 3), (flags, 0), (fields.len() - 1, 0x1b), (fields.len() - 5, 0)] {
            let mut wrong = fields.to_vec();
            wrong[at] = byte;
            assert!(matches!(Head::decode(&with_checksum(&wrong)), Err(HeadError::Decode(_))), "{at}: {byte}");
        }
        assert_eq!(Head::decode(&with_checksum(fields)).unwrap().encode(), right);
    }
}

/// The error for an invalid repository name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is not a valid repository name: use 1 to {max} of the characters A-Z a-z 0-9 . _ + -, and do not begin with '.' or '-'", max = limits::REPOSITORY_NAME)]
pub struct BadRepositoryName(String);

/// Checks a repository's name, which appears in URLs, in rsync's module lists and in paths.
pub fn check_repository_name(name: &str) -> Result<(), BadRepositoryName> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'+' | b'-');
    let fits = (1..=limits::REPOSITORY_NAME).contains(&name.len());
    if fits && name.bytes().all(allowed) && !name.starts_with(['.', '-']) {
        Ok(())
    } else {
        Err(BadRepositoryName(name.chars().take(limits::REPOSITORY_NAME).collect()))
    }
}
