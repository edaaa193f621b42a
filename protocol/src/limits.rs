//! The largest values that any peer, store or configuration may claim, each with its reason.
//!
//! Every count and length that arrives from outside meets one of these before anything is allocated.

/// Bytes in one name (one path component): Linux's own `NAME_MAX`.
pub const NAME: usize = 255;
/// Bytes in a path relative to a repository's root: Linux's `PATH_MAX` less the NUL.
pub const PATH: usize = 4095;
/// Bytes in a symlink's target: the same bound.
pub const TARGET: usize = 4095;
/// Directory levels below the root. Two bytes (`a/`) are the least that a level costs in a path.
pub const DEPTH: usize = PATH / 2 + 1;
/// Bytes of the names that a stock client asks for and that are not there, when it wants them listed for deletion:
/// they alone are kept as they came. What is beyond counts as missing.
pub const GONE_NAMES: usize = 256 << 10;
/// Bytes in a repository's name: it is one component of a URL and of a store's path.
pub const REPOSITORY_NAME: usize = 128;
/// Bytes in a user's or group's name, as stock rsync's wire has it.
pub const OWNER_NAME: usize = 255;
/// Bytes in one line of a stock session's greeting, without its end: what stock clients read of one.
pub const RSYNC_LINE: usize = 5119;
/// Arguments of one stock client. Thousands of paths on one command line are real; more than a shell can pass
/// are not.
pub const ARGUMENTS: usize = 16 << 10;
/// Bytes of all arguments: an eighth of what Linux lets a shell pass.
pub const ARGUMENT_BYTES: usize = 1 << 20;
/// Entries in one file list: rows are `u32`, and the largest public mirrors hold about 12 million.
pub const ENTRIES: u64 = 1 << 28;
/// Entries that one list for a stock client may have beyond those of the repository: paths that are asked for twice repeat
/// them, loops of symlinks that are followed multiply them, and a session remembers four bytes an entry. A tree of 400,000
/// with a link to itself fits.
pub const REPEATED_ENTRIES: u32 = 16 << 20;
/// Distinct (user, group) pairs in one list. A mirror has a handful; a file server may have thousands.
pub const OWNERS: u64 = 1 << 20;
/// Bytes in one file: offsets travel as `i64` in every system call.
pub const FILE_SIZE: u64 = i64::MAX as u64;
/// Bytes in an uncompressed `list` that a receiver takes from a sender: about 200 million entries.
pub const LIST_BYTES: u64 = 24 << 30;
/// Bytes in one uncompressed delta. A delta larger than this loses to the whole list.
pub const DELTA_BYTES: u64 = 1 << 30;
/// Deltas in one reply. A receiver further behind takes the whole list.
pub const DELTAS: usize = 64;
/// Bytes in an encoded `head`: fixed fields and a repository's name.
pub const HEAD: usize = 512;

/// Payload bytes in one frame from the sender. Large enough that a header costs nothing, small enough
/// that a control reply waits little behind data.
pub const REPLY_PAYLOAD: usize = 1 << 20;
/// Payload bytes in one request frame: some ten thousand items.
pub const REQUEST_PAYLOAD: usize = 64 << 10;
/// Items in one request for data or block checksums.
pub const REQUEST_ITEMS: usize = 16 << 10;
/// Requests that one session may have under way; a receiver that sends more is read no further until
/// one is done.
pub const REQUESTS_UNDER_WAY: usize = 16;
/// Bytes of a message in an error frame.
pub const MESSAGE: usize = 1024;
/// Repositories that one daemon announces.
pub const REPOSITORIES: usize = 1024;
/// Bytes in one block checksum record: the record of a file of several terabytes.
pub const SUMS_RECORD: u64 = 1 << 34;
/// Bytes of the largest content that a pack keeps: larger files are read as fast from where they are.
pub const KEPT_CONTENT: u32 = 64 << 10;
