//! What the sender of a pulled repository had when it was asked last. Receivers write it, and the daemon of the mirror
//! tells from it how far behind its sender the mirror is. It is a hint: nothing depends on it, and it is not synced.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::error::{At, StoreError};

/// How the file begins.
const FORMAT: &str = "stillmirror sender 1";
/// Maximum size of the file, in bytes.
const MAX_BYTES: u64 = 128;

/// What the sender had when it was asked last. Times are seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderSeen {
    /// The number of its generation, at the origin.
    pub generation: u64,
    /// When that was indexed at the origin.
    pub created: i64,
    /// When the sender was asked.
    pub asked: i64,
}

impl SenderSeen {
    /// Reads what is known of the sender of the store in `dir`. `None` if nothing is.
    pub fn read(dir: &Path) -> Option<Self> {
        let mut text = String::new();
        File::open(path(dir)).ok()?.take(MAX_BYTES).read_to_string(&mut text).ok()?;
        Self::decode(&text)
    }

    /// Writes it to the store in `dir`, in place of what was there.
    pub fn write(&self, dir: &Path) -> Result<(), StoreError> {
        let (path, draft) = (path(dir), dir.join("sender.tmp"));
        fs::write(&draft, self.encode()).at("write", &draft)?;
        fs::rename(&draft, &path).at("rename", &draft)
    }

    fn encode(&self) -> String {
        format!("{FORMAT} {} {} {}\n", self.generation, self.created, self.asked)
    }

    fn decode(text: &str) -> Option<Self> {
        let mut fields = text.strip_prefix(FORMAT)?.strip_prefix(' ')?.strip_suffix('\n')?.split(' ');
        let seen = Self {
            generation: fields.next()?.parse().ok()?,
            created: fields.next()?.parse().ok()?,
            asked: fields.next()?.parse().ok()?,
        };
        fields.next().is_none().then_some(seen)
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("sender")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_of_a_sender_survives_a_round_trip_and_anything_else_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(SenderSeen::read(dir.path()), None);
        let seen = SenderSeen { generation: u64::MAX, created: -5, asked: i64::MAX };
        seen.write(dir.path()).unwrap();
        assert_eq!(SenderSeen::read(dir.path()), Some(seen));
        assert!(seen.encode().len() < MAX_BYTES as usize);
        for text in ["", "stillmirror sender 1 1 2 3", "stillmirror sender 1 1 2 3 4\n", "stillmirror sender 2 1 2 3\n"]
        {
            assert_eq!(SenderSeen::decode(text), None, "{text:?}");
        }
    }
}
