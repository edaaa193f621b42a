//! A single request and the head of its block checksums.

use crate::codec::DecodeError;
use crate::rsync::codec::Cursor;
use crate::rsync::fault::Fault;

/// A request for one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The entry's index, not negative.
    pub ndx: i32,
    /// The item flags, see [`item`].
    pub flags: u16,
    /// The kind of basis file that the client has, with [`item::BASIS`].
    pub basis: Option<u8>,
    /// The name of the basis file, with [`item::NAME`].
    pub name: Option<Box<[u8]>>,
    /// Whether the request carries an empty list of extended attributes, to be echoed.
    pub xattrs: bool,
    /// The head of the block checksums. `None` if no content is wanted.
    pub sums: Option<SumHead>,
    /// The offset at which the content begins. With `--append` it is the length that the client has, otherwise 0.
    pub from: u64,
}

/// Item flags.
pub mod item {
    /// A byte with the kind of basis follows.
    pub const BASIS: u16 = 0x0800;
    /// A vstring with the name of the basis follows.
    pub const NAME: u16 = 0x1000;
    /// The extended attributes differ.
    pub const XATTR: u16 = 0x0100;
    /// The client does not have this entry yet.
    pub const NEW: u16 = 0x2000;
    /// The client makes this change by itself.
    pub const LOCAL_CHANGE: u16 = 0x4000;
    /// The client wants the content.
    pub const TRANSFER: u16 = 0x8000;
}

/// The head of a client's block checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SumHead {
    /// The number of blocks.
    pub count: i32,
    /// The block length, in bytes.
    pub block_len: i32,
    /// The length of each strong checksum, in bytes.
    pub strong_len: i32,
    /// The length of the last block, in bytes. 0 if it is a full block.
    pub remainder: i32,
}

impl SumHead {
    /// Returns the length of the client's old file, in bytes.
    pub fn bytes(&self) -> u64 {
        let [count, block, remainder] =
            [self.count, self.block_len, self.remainder].map(|n| u64::from(n.max(0) as u32));
        let missing = if remainder > 0 { block.saturating_sub(remainder) } else { 0 };
        (count * block).saturating_sub(missing)
    }

    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            count: cursor.i32("number of blocks")?,
            block_len: cursor.i32("block length")?,
            strong_len: cursor.i32("sum length")?,
            remainder: cursor.i32("last block's length")?,
        })
    }

    /// Validates the fields. The number of blocks has no limit of its own, because their checksums are
    /// discarded as they arrive.
    pub(super) fn check(self, block_limit: i32, strong_limit: i32) -> Result<Self, Fault> {
        let least_block = i32::from(self.count > 0);
        for (field, value, allowed) in [
            ("number of blocks", self.count, 0..=i32::MAX),
            ("block length", self.block_len, least_block..=block_limit),
            ("sum length", self.strong_len, 0..=strong_limit),
            ("last block's length", self.remainder, 0..=self.block_len),
        ] {
            if !allowed.contains(&value) {
                return Err(Fault::SumHead { field, value });
            }
        }
        Ok(self)
    }

    /// Returns the length of the block checksums after the head, in bytes.
    pub(super) fn checksum_bytes(&self) -> u64 {
        const ROLLING: u64 = 4;
        u64::from(self.count as u32) * (ROLLING + u64::from(self.strong_len as u32))
    }
}

impl Request {
    /// Returns whether the client wants the content. It never does in a dry run.
    pub fn wants_data(&self) -> bool {
        self.sums.is_some()
    }

    /// Returns whether this is protocol 29's keep-alive for a list of `len` entries: a request that names the
    /// entry after the last one and wants nothing.
    pub fn is_keep_alive(&self, len: u32) -> bool {
        self.flags == item::NEW && u32::try_from(self.ndx) == Ok(len)
    }
}
