//! One request.

use crate::codec::DecodeError;
use crate::rsync::codec::Cursor;
use crate::rsync::fault::Fault;

/// A request for one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The entry's index, not negative.
    pub ndx: i32,
    /// What is to be done, see [`item`].
    pub flags: u16,
    /// What kind of basis the client has (with [`item::BASIS`]).
    pub basis: Option<u8>,
    /// The basis' name (with [`item::NAME`]).
    pub name: Option<Box<[u8]>>,
    /// An empty list of extended attributes came and goes back.
    pub xattrs: bool,
    /// The head of the block sums, when content is wanted.
    pub sums: Option<SumHead>,
    /// Where the content is to begin: with `--append` behind what the client has, else 0.
    pub from: u64,
}

/// Bits of a request's flags.
pub mod item {
    /// A byte follows: the kind of basis.
    pub const BASIS: u16 = 0x0800;
    /// A vstring follows: the basis' name.
    pub const NAME: u16 = 0x1000;
    /// Extended attributes differ.
    pub const XATTR: u16 = 0x0100;
    /// The client has no such entry yet.
    pub const NEW: u16 = 0x2000;
    /// The client does this one by itself.
    pub const LOCAL_CHANGE: u16 = 0x4000;
    /// Content is wanted.
    pub const TRANSFER: u16 = 0x8000;
}

/// The head of a client's block sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SumHead {
    /// Blocks.
    pub count: i32,
    /// Bytes in a block.
    pub block_len: i32,
    /// Bytes of each block's strong sum.
    pub strong_len: i32,
    /// Bytes in the last block, 0 when it is whole.
    pub remainder: i32,
}

impl SumHead {
    /// Bytes of the client's old file.
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

    /// The number of blocks has no limit of its own: they are dropped as they come.
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

    /// Bytes of the sums behind the head.
    pub(super) fn sums(&self) -> u64 {
        const ROLLING: u64 = 4;
        u64::from(self.count as u32) * (ROLLING + u64::from(self.strong_len as u32))
    }
}

impl Request {
    /// Whether content is wanted (never in a dry run).
    pub fn wants_data(&self) -> bool {
        self.sums.is_some()
    }

    /// Whether this is protocol 29's sign of life: it names the entry behind the last of `len`, and wants
    /// nothing.
    pub fn is_keep_alive(&self, len: u32) -> bool {
        self.flags == item::NEW && u32::try_from(self.ndx) == Ok(len)
    }
}
