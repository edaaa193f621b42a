//! What the client asks for: the server's command line, as a puller sends it.

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

/// What a client asked for.
///
/// Paths are relative to the module, `a/sub/` keeping its slash and the module itself being empty; their
/// wildcards (`* ? [ ]`) and backslashes are left as they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The version in force.
    pub version: Version,
    /// What to send.
    pub paths: Vec<Vec<u8>>,
    /// `r`: directories with all below them.
    pub recurse: bool,
    /// `d`: directories without their contents (those of an argument `dir/` one level deep).
    pub dirs: bool,
    /// `R`: names keep the requested path.
    pub relative: bool,
    /// Not `--no-implied-dirs`: with `relative`, the requested path's directories are entries.
    pub implied_dirs: bool,
    /// `x`.
    pub one_file_system: bool,
    /// `l`: symlinks travel with their targets.
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
    /// `D`, as far as devices go.
    pub devices: bool,
    /// `D` or `--specials`, unless `--no-specials`.
    pub specials: bool,
    /// `U`.
    pub atimes: bool,
    /// `A`.
    pub acls: bool,
    /// `X`.
    pub xattrs: bool,
    /// `c`: the list carries digests.
    pub checksum: bool,
    /// `C`: the sender adds CVS's excludes.
    pub cvs_exclude: bool,
    /// `n`: no data is wanted.
    pub dry_run: bool,
    /// `--list-only`: nothing will be requested.
    pub list_only: bool,
    /// `--numeric-ids`: no names of users and groups.
    pub numeric_ids: bool,
    /// `--ignore-missing-args`: a missing path is no error.
    pub ignore_missing_args: bool,
    /// `--delete-missing-args`: a missing path is an entry of mode 0.
    pub delete_missing_args: bool,
    /// `--ignore-errors`.
    pub ignore_errors: bool,
    /// `--inplace`.
    pub inplace: bool,
    /// `--append`, possibly twice.
    pub append: Append,
    /// `--files-from`.
    pub files_from: FilesFrom,
    /// `--from0`: names in a file of names end with NUL, not with a newline.
    pub from0: bool,
    /// `--checksum-choice`: for transfers and for the list.
    pub checksum_choice: Option<(Algorithm, Algorithm)>,
    /// Whether data is to be compressed and how.
    pub compress: Compress,
    /// `--compress-level`: 0 turns zlib off.
    pub compress_level: Option<i32>,
    /// `--checksum-seed`, unless 0.
    pub seed: Option<i32>,
    /// `--timeout`, in seconds, unless 0.
    pub timeout: Option<u32>,
    /// `--bwlimit`, in KiB a second, unless 0.
    pub bwlimit: Option<u64>,
    /// What the client can do.
    pub capabilities: Capabilities,
    /// Every option that was given, by its long name, for `refuse options`.
    pub used: Vec<Used>,
    /// Why the session must end once its setup block is sent, if it must. A caller that refuses an option puts its
    /// [`Fault::Refused`] here.
    pub fault: Option<Fault>,
}

/// An option that a client gave, as `refuse options` may name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// The long name without dashes.
    pub name: &'static str,
    /// The letter, for options that have one.
    pub letter: Option<char>,
}

/// How far `--append` goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Append {
    /// Not.
    #[default]
    No,
    /// The digest covers what is sent (what was there is not checked), from protocol 30 on.
    Blind,
    /// The digest covers the whole file.
    Verified,
}

/// Where names to send come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum FilesFrom {
    /// Only from the paths.
    #[default]
    No,
    /// The client sends them after its filter rules.
    Client,
    /// They stand in a file of the module.
    Path(Vec<u8>),
}

/// What the client said about compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compress {
    /// None wanted.
    #[default]
    No,
    /// `z` alone: negotiated, or zlib with clients that cannot.
    Negotiated,
    /// Chosen by the client.
    Chosen(Compression),
}

/// How literal data is wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Plain.
    #[default]
    None,
    /// Deflate with matched data in the dictionary; for literal data the same as `Zlibx`.
    Zlib,
    /// Deflate.
    Zlibx,
    /// Zstandard.
    Zstd,
    /// LZ4 blocks.
    Lz4,
}

/// What a client of protocol 30 or later can do, from the letters after `e.`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// `i`: takes the list in parts.
    pub incremental: bool,
    /// `f`: takes an I/O error on the list's end mark.
    pub safe_list: bool,
    /// `x`: extended attributes of hard links need no short cut.
    pub plain_xattr_links: bool,
    /// `C`: the seed precedes the data in block sums.
    pub seed_first: bool,
    /// `I`: `--inplace` together with a partial directory.
    pub inplace_partial: bool,
    /// `v`: varint list flags and negotiated names.
    pub varint_flags: bool,
    /// `u`: names of user and group 0 in the id lists.
    pub id0_names: bool,
}

impl Options {
    /// The entries that this client wants, by path.
    pub fn wanted(&self) -> Wanted {
        Wanted {
            paths: self.paths.clone(),
            recurse: self.recurse,
            dirs: self.dirs,
            relative: self.relative,
            // Since protocol 30 a client counts on every parent being in the list, and leaves them alone itself.
            implied_dirs: self.implied_dirs || self.version.facts().variable_ints,
            files_from: self.files_from != FilesFrom::No,
            delete_missing: self.delete_missing_args,
            follow: Follow { all: self.copy_links, dirs: self.copy_dirlinks, leaving: self.copy_unsafe_links },
        }
    }

    /// Whether the digest behind a file covers only what is sent of it ([`Append::Blind`], from protocol 30 on).
    pub fn digest_of_the_rest(&self) -> bool {
        self.append == Append::Blind && self.version.facts().variable_ints
    }

    /// Nothing asked for.
    pub(super) fn none(version: Version) -> Self {
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
    /// What a client may choose, in the order in which stock rsync prefers them.
    pub const NAMED: [Self; 5] = [Self::Zstd, Self::Lz4, Self::Zlibx, Self::Zlib, Self::None];

    /// By a client's name for it.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::NAMED.into_iter().find(|compression| compression.name().as_bytes() == name)
    }

    /// The name on the wire.
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
    /// From what follows an `e` among the letters. Clients write it whatever version is in force, and before 30
    /// it means nothing.
    fn read(version: Version, letters: &[u8]) -> Self {
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
