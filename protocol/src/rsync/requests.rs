//! What the client sends after the setup: filter rules, names of `--files-from`, requests, ends of phases.

use std::fmt;

use crate::rsync::arguments::Options;
use crate::rsync::fault::Fault;
use crate::rsync::setup::Setup;

/// Filter rules of one client, in number. Debian's longest mirror scripts have dozens.
pub const RULES: usize = 10_000;
/// Bytes of all filter rules.
pub const RULES_BYTES: usize = 256 << 10;

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A filter rule in the version's own words.
    Rule(Vec<u8>),
    /// No more rules.
    RulesEnd,
    /// A name of `--files-from=-`. Their number is the caller's to bound.
    Name(Vec<u8>),
    /// No more names.
    NamesEnd,
    /// A request for one entry.
    Request(Request),
    /// The end of a list or phase: ask [`super::phases::Phases::done`] for the answer.
    Done,
    /// What the client deleted; to be echoed with [`super::replies::Replies::deleted`].
    Deleted([i32; 5]),
    /// A sign of life without meaning.
    KeepAlive,
    /// The client ends with this exit code; answer with [`super::replies::Replies::exit_seen`] and close.
    Exit(Option<i32>),
    /// The client has this file (`--remove-source-files`, which is refused here).
    Success(i32),
    /// Text of the client, for the log.
    Text(Vec<u8>),
}

/// A request for one entry.
#[derive(Clone, PartialEq, Eq)]
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
    /// Bytes of the client's old file: with `--append` the place to go on from.
    pub fn bytes(&self) -> u64 {
        unreachable!()
    }
}

impl Request {
    /// Whether content is wanted (never in a dry run).
    pub fn wants_data(&self) -> bool {
        self.sums.is_some()
    }
    /// Whether this is protocol 29's sign of life: a request beyond the list of `len` entries that wants nothing.
    pub fn is_keep_alive(&self, len: u32) -> bool {
        self.flags == item::NEW && u32::try_from(self.ndx) == Ok(len)
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Request")
    }
}

/// Reads a client's stream. It holds what has been received and not been asked for; block sums are dropped
/// as they come.
#[derive(Debug)]
pub struct Requests {
    _todo: (),
}

impl Requests {
    /// At the first byte after the setup.
    pub fn new(setup: &Setup, options: &Options) -> Self {
        unreachable!("{setup:?}{options:?}")
    }
    /// Takes bytes of the client. Ask for all events before more is given, and memory stays bounded.
    pub fn receive(&mut self, bytes: &[u8]) {
        unreachable!("{bytes:?}")
    }
    /// The next event; none until more bytes come.
    pub fn next(&mut self) -> Result<Option<Event>, Fault> {
        unreachable!()
    }
}
