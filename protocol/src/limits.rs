//! The limits on values that a peer, a store or a configuration may claim, each with its reason.
//!
//! Every count and length from outside is checked against one of these limits before anything is allocated.

/// Bytes in one name (one path component). Equals Linux's `NAME_MAX`.
pub const NAME: usize = 255;
/// Bytes in a path relative to a repository's root. Equals Linux's `PATH_MAX` less the NUL.
pub const PATH: usize = 4095;
/// Bytes in a symlink's target. Equals Linux's `PATH_MAX` less the NUL.
pub const TARGET: usize = 4095;
/// Directory levels below the root. A level takes at least two bytes of a path (`a/`).
pub const DEPTH: usize = PATH / 2 + 1;
/// Total bytes of the missing names that are kept for one stock client. When a client wants missing names listed for
/// deletion, these are the only names that are kept as the client sent them. Names over the limit count as missing.
pub const GONE_NAMES: usize = 256 << 10;
/// Bytes in a repository's name, which is one component of a URL and of a store's path.
pub const REPOSITORY_NAME: usize = 128;
/// Bytes in a user's or group's name. Equals the limit of stock rsync's wire protocol.
pub const OWNER_NAME: usize = 255;
/// Bytes in one line of a stock session's greeting, without its line end. Stock clients read no more of a line.
pub const RSYNC_LINE: usize = 5119;
/// Arguments of one stock client. Thousands of paths on one command line do occur; more than a shell can pass do not.
pub const ARGUMENTS: usize = 16 << 10;
/// Total bytes of the arguments of one stock client. An eighth of what Linux lets a shell pass.
pub const ARGUMENT_BYTES: usize = 1 << 20;
/// Entries in one file list. Row numbers are `u32`, and the largest public mirrors hold about 12 million entries.
pub const ENTRIES: u64 = 1 << 28;
/// Entries that one list for a stock client may have in excess of the repository's. Paths that are requested twice repeat
/// entries, loops of followed symlinks multiply them, and a session keeps four bytes per entry. A tree of 400,000
/// entries with a symlink to itself fits.
pub const REPEATED_ENTRIES: u32 = 16 << 20;
/// Distinct (user, group) pairs in one list. A mirror has a handful; a file server may have thousands.
pub const OWNERS: u64 = 1 << 20;
/// Bytes in one file. System calls pass offsets as `i64`.
pub const FILE_SIZE: u64 = i64::MAX as u64;
/// Bytes in an uncompressed `list` that a receiver accepts. Enough for about 200 million entries.
pub const LIST_BYTES: u64 = 24 << 30;
/// Bytes in one uncompressed delta. The whole list is cheaper than a larger delta.
pub const DELTA_BYTES: u64 = 1 << 30;
/// Deltas in one reply. A receiver that is further behind fetches the whole list.
pub const DELTAS: usize = 64;
/// Bytes in an encoded `head`: fixed fields, a repository's name, and what a slice has.
pub const HEAD: usize = 512;
/// Bytes of the text in a head that says what a slice has. As long as fits into the head.
pub const SLICE_TEXT: usize = 160;
/// Bytes in the signature file of a head: two signatures in base64 and two comments of one line.
pub const SIGNATURE: usize = 2048;
/// Bytes in a file with a public key: a comment and the key in base64. Equals the limit of minisign for a comment.
pub const PUBLIC_KEY: usize = 2048;

/// Payload bytes in one frame from the sender. Large enough to make the cost of headers negligible, and small enough
/// that a control reply waits little behind data.
pub const REPLY_PAYLOAD: usize = 1 << 20;
/// Payload bytes in one request frame. Enough for some ten thousand items.
pub const REQUEST_PAYLOAD: usize = 64 << 10;
/// Payload bytes in a request of a follower: a repository's name, its length, and a digest.
pub const FOLLOW_PAYLOAD: usize = 2 + REPOSITORY_NAME + 32;
/// Items in one request for data or block checksums.
pub const REQUEST_ITEMS: usize = 16 << 10;
/// Requests in flight in one session. The sender does not read further requests until one of these is answered.
pub const REQUESTS_UNDER_WAY: usize = 16;
/// Bytes of a message in an error frame.
pub const MESSAGE: usize = 1024;
/// Repositories that one daemon announces.
pub const REPOSITORIES: usize = 1024;
/// Bytes in one block checksum record. Enough for a file of several terabytes.
pub const SUMS_RECORD: u64 = 1 << 34;
/// Bytes of the largest content that a pack keeps. Larger files can be read just as fast from the tree.
pub const KEPT_CONTENT: u32 = 64 << 10;
