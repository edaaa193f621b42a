//! The table of contents that a generation has dropped: the generation before it refers to them, and it does not.

use std::path::Path;

use stillmirror_protocol::codec::Reader;
use twox_hash::XxHash3_128;

use crate::content_pool::PoolName;
use crate::error::{At, Damage, StoreError};
use crate::packs::read_small;
use crate::part::{DROPPED, damaged, optional};

const MAGIC: [u8; 8] = *b"SMDROP\r\n";
const VERSION: u16 = 1;
/// The maximum size of the file, in bytes. A name takes 29 or 33.
const MAX_BYTES: u64 = 8 << 30;

/// Reads the file `dropped` in a generation's directory. `None` if there is none.
pub(crate) fn read(dir: &Path) -> Result<Option<Vec<PoolName>>, StoreError> {
    let path = dir.join(DROPPED);
    let Some(bytes) = optional(read_small(&path, MAX_BYTES).at("read", &path))? else { return Ok(None) };
    decode(&bytes).map(Some).map_err(|damage| damaged(&path, damage))
}

/// Encodes a table.
pub(crate) fn encode<'a>(names: impl ExactSizeIterator<Item = &'a PoolName>) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&(names.len() as u32).to_le_bytes());
    names.for_each(|name| name.encode(&mut out));
    out.extend_from_slice(&XxHash3_128::oneshot(&out).to_le_bytes());
    out
}

fn decode(bytes: &[u8]) -> Result<Vec<PoolName>, Damage> {
    let damage = || Damage::Other("the table of dropped contents is damaged");
    let (fields, checksum) = bytes.split_last_chunk::<16>().ok_or_else(damage)?;
    let mut reader = Reader::new(fields);
    if reader.array("magic").ok() != Some(MAGIC) || reader.u16("version").ok() != Some(VERSION) {
        return Err(Damage::Other("not a table of dropped contents of format 1"));
    }
    if XxHash3_128::oneshot(fields).to_le_bytes() != *checksum {
        return Err(damage());
    }
    let mut names = Vec::new();
    let mut read = || {
        reader.u16("reserved")?;
        for _ in 0..reader.u32("names")? {
            names.push(PoolName::decode(&mut reader)?);
        }
        reader.finish("table of dropped contents")
    };
    read().map_err(|_| damage())?;
    Ok(names)
}

#[cfg(test)]
mod tests {
    use stillmirror_protocol::entry::{Digest, Time};

    use super::*;

    #[test]
    fn a_table_is_read_back_and_a_damaged_one_is_refused() {
        let names = [
            PoolName::of_copy(Digest([7; 32]), true),
            PoolName::of_link(u64::MAX, Time { sec: -5, nsec: 9 }, 3, false),
        ];
        let encoded = encode(names.iter());
        assert_eq!(decode(&encoded).unwrap(), names);
        for at in 0..encoded.len() {
            let mut bytes = encoded.clone();
            bytes[at] ^= 1;
            assert!(decode(&bytes).is_err() && decode(&encoded[..at]).is_err(), "{at}");
        }
    }
}
