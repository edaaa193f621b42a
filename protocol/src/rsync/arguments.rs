//! The arguments of a client that pulls: its command line for the server.

mod collect;
mod names;
mod parse;
#[cfg(test)]
mod tests;

use std::fmt;

pub(super) use collect::Collector;

use crate::rsync::digest::Algorithm;
use crate::rsync::fault::Fault;
use crate::rsync::selection::{Follow, Wanted};
use crate::rsync::version::Version;

/// The parsed arguments of a client.
///
/// Paths are relative to the module. `a/sub/` keeps its slash, and the module itself is the empty path.
/// Wildcards (`* ? [ ]`) and backslashes are left as the client sent them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The negotiated version.
    pub version: Version,
    /// The requested paths.
    pub paths: Vec<Vec<u8>>,
    /// `r`: directories are sent with everything below them.
    pub recurse: bool,
    /// `d`: directories are sent without their contents, except that an argument `dir/` is sent one level deep.
    pub dirs: bool,
    /// `R`: names keep the requested path.
    pub relative: bool,
    /// Without `--no-implied-dirs`: with `relative`, the directories of a requested path are entries.
    pub implied_dirs: bool,
    /// `x`.
    pub one_file_system: bool,
    /// `l`: symlinks are sent with their targets.
    pub links: bool,
    /// `L`.
    pub copy_links: bool,
    /// `k`.
    pub copy_dirlinks: bool,
    /// `--copy-unsafe-links`.
    pub copy_unsafe_links: bool,
    /// `H`.
    pub hard_links: bool,
    /// `o`.
    pub owner: bool,
    /// `g`.
    pub group: bool,
    /// `D`, as far as it concerns devices.
    pub devices: bool,
    /// `D` or `--specials`, without `--no-specials`.
    pub specials: bool,
    /// `U`.
    pub atimes: bool,
    /// `A`.
    pub acls: bool,
    /// `X`.
    pub xattrs: bool,
    /// `c`: the list carries digests.
    pub checksum: bool,
    /// `C`: the sender adds CVS's default excludes.
    pub cvs_exclude: bool,
    /// `n`: the client wants no data.
    pub dry_run: bool,
    /// `--list-only`: the client requests nothing.
    pub list_only: bool,
    /// `--numeric-ids`: no user or group names are sent.
    pub numeric_ids: bool,
    /// `--ignore-missing-args`: a missing path is not an error.
    pub ignore_missing_args: bool,
    /// `--delete-missing-args`: a missing path is sent as an entry of mode 0.
    pub delete_missing_args: bool,
    /// `--ignore-errors`.
    pub ignore_errors: bool,
    /// `--inplace`.
    pub inplace: bool,
    /// `--append`, given once or twice.
    pub append: Append,
    /// `--files-from`.
    pub files_from: FilesFrom,
    /// `--from0`: the names in the list of `--files-from` end with a NUL instead of a newline.
    pub from0: bool,
    /// `--checksum-choice`: the algorithms for transfers and for the list.
    pub checksum_choice: Option<(Algorithm, Algorithm)>,
    /// The requested compression of data.
    pub compress: Compress,
    /// `--compress-level`. Level 0 turns zlib off.
    pub compress_level: Option<i32>,
    /// `--checksum-seed`. `None` if it is 0.
    pub seed: Option<i32>,
    /// `--timeout`, in seconds. `None` if it is 0.
    pub timeout: Option<u32>,
    /// `--bwlimit`, in KiB per second. `None` if it is 0.
    pub bwlimit: Option<u64>,
    /// The client's capabilities.
    pub capabilities: Capabilities,
    /// Every option that the client used, by its long name, for `refuse options`.
    pub used: Vec<Used>,
    /// The reason why the session must end once its setup block is sent. `None` if it may go on. A caller
    /// that refuses an option stores its [`Fault::Refused`] here.
    pub fault: Option<Fault>,
}

/// An option that a client used, as `refuse options` may name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// The long name, without dashes.
    pub name: &'static str,
    /// The letter. `None` if the option has no short form.
    pub letter: Option<char>,
}

/// The modes of `--append`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Append {
    /// No `--append`.
    #[default]
    No,
    /// From protocol 30 on, the digest covers only the bytes that are sent; the existing ones are not verified.
    Blind,
    /// The digest covers the whole file.
    Verified,
}

/// The source of the names to send, with `--files-from`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum FilesFrom {
    /// No `--files-from`: only the requested paths.
    #[default]
    No,
    /// The client sends the names after its filter rules.
    Client,
    /// The names are in this file of the module.
    Path(Vec<u8>),
}

/// The client's request for compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compress {
    /// No compression.
    #[default]
    No,
    /// `z` alone: negotiated, or zlib for clients that cannot negotiate.
    Negotiated,
    /// The client chose this compression.
    Chosen(Compression),
}

/// The compression of literal data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// No compression.
    #[default]
    None,
    /// Deflate with matched data in its dictionary. For literal data it is the same as `Zlibx`.
    Zlib,
    /// Deflate without matched data.
    Zlibx,
    /// Zstandard.
    Zstd,
    /// LZ4 blocks.
    Lz4,
}

/// The capabilities of a client of protocol 30 or later, from the letters after `e.`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// `i`: accepts an incremental list.
    pub incremental: bool,
    /// `f`: accepts an I/O error on the list's end mark.
    pub safe_list: bool,
    /// `x`: does not want the short cut for extended attributes of hard links.
    pub plain_xattr_links: bool,
    /// `C`: the seed precedes the data in block checksums.
    pub seed_first: bool,
    /// `I`: supports `--inplace` together with a partial directory.
    pub inplace_partial: bool,
    /// `v`: supports varint list flags and negotiated names.
    pub varint_flags: bool,
    /// `u`: accepts the names of user and group 0 in the id lists.
    pub id0_names: bool,
}

impl Options {
    /// Returns the selection of entries that this client wants.
    pub fn wanted(&self) -> Wanted {
        Wanted {
            paths: self.paths.clone(),
            recurse: self.recurse,
            dirs: self.dirs,
            relative: self.relative,
            // From protocol 30 on, a client requires every parent in the list. With `--no-implied-dirs`, it leaves
            // those directories unchanged itself.
            implied_dirs: self.implied_dirs || self.version.facts().variable_ints,
            files_from: self.files_from != FilesFrom::No,
            delete_missing: self.delete_missing_args,
            follow: Follow { all: self.copy_links, dirs: self.copy_dirlinks, leaving: self.copy_unsafe_links },
        }
    }

    /// Returns whether a file's digest covers only the bytes that are sent: with [`Append::Blind`], from
    /// protocol 30 on.
    pub fn digest_of_the_rest(&self) -> bool {
        self.append == Append::Blind && self.version.facts().variable_ints
    }

    /// Returns the options of a client that requests nothing.
    pub(super) fn new(version: Version) -> Self {
        Self {
            version,
            paths: Vec::new(),
            recurse: false,
            dirs: false,
            relative: false,
            implied_dirs: true,
            one_file_system: false,
            links: false,
            copy_links: false,
            copy_dirlinks: false,
            copy_unsafe_links: false,
            hard_links: false,
            owner: false,
            group: false,
            devices: false,
            specials: false,
            atimes: false,
            acls: false,
            xattrs: false,
            checksum: false,
            cvs_exclude: false,
            dry_run: false,
            list_only: false,
            numeric_ids: false,
            ignore_missing_args: false,
            delete_missing_args: false,
            ignore_errors: false,
            inplace: false,
            append: Append::No,
            files_from: FilesFrom::No,
            from0: false,
            checksum_choice: None,
            compress: Compress::No,
            compress_level: None,
            seed: None,
            timeout: None,
            bwlimit: None,
            capabilities: Capabilities::default(),
            used: Vec::new(),
            fault: None,
        }
    }
}

impl Compression {
    /// The compressions that a client may choose, in stock rsync's order of preference.
    pub const NAMED: [Self; 5] = [Self::Zstd, Self::Lz4, Self::Zlibx, Self::Zlib, Self::None];

    /// Returns the compression that a client calls `name`.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::NAMED.into_iter().find(|compression| compression.name().as_bytes() == name)
    }

    /// Returns the name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zlib => "zlib",
            Self::Zlibx => "zlibx",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Capabilities {
    /// Parses the letters after an `e` in the short options. Clients send them with any version, but before
    /// 30 they mean nothing.
    fn parse(version: Version, letters: &[u8]) -> Self {
        let has = |letter| version.facts().variable_ints && letters.contains(&letter);
        Self {
            incremental: has(b'i'),
            safe_list: has(b'f'),
            plain_xattr_links: has(b'x'),
            seed_first: has(b'C'),
            inplace_partial: has(b'I'),
            varint_flags: has(b'v'),
            id0_names: has(b'u'),
        }
    }
}
