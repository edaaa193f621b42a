//! What differs from version to version: one table, and the words for its columns.
//!
//! Sources: releases 2.6.0 to 3.5.0 observed on the wire. 2.6.0 speaks 27, 2.6.1 to 2.6.3 speak 28,
//! 2.6.4 to 2.6.9 speak 29, 3.0 speaks 30, 3.1 to 3.3 speak 31, 3.4 and later speak 32.

use std::fmt;

use crate::rsync::auth::Method;
use crate::rsync::digest::Algorithm;

/// A protocol version that this sender speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u8);

/// What a version does. Every difference that the code knows of is a field here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Integers that were fixed (`i32`, longint) are varint and varlong; file indices are differences.
    pub variable_ints: bool,
    /// Entries have a second byte of flags.
    pub second_flags_byte: bool,
    /// The order that numbers the entries.
    pub order: ListOrder,
    /// How the list says which names are one inode.
    pub links: LinkForm,
    /// Fifos and sockets carry a device number.
    pub special_devices: bool,
    /// Entries may carry nanoseconds.
    pub nanoseconds: bool,
    /// An I/O error may ride on the list's end mark whatever the client's capabilities.
    pub error_on_end_mark: bool,
    /// With `-c` every entry carries a digest, that of a non-file being zeros.
    pub digest_of_everything: bool,
    /// Greetings have a sub-version, and names of digests.
    pub sub_version: bool,
    /// The digest for authentication when the client names none.
    pub implied_method: Method,
    /// Arguments end with a NUL, not with a newline.
    pub arguments_end_with_nul: bool,
    /// The client's bytes come in frames too.
    pub framed_requests: bool,
    /// Names of `--files-from` come outside the client's frames.
    pub raw_names: bool,
    /// Filter rules have prefixes and modifiers, not only `+ `, `- ` and `!`.
    pub filter_modifiers: bool,
    /// Requests and echoes have flags; entries without content are requested too.
    pub item_flags: bool,
    /// The most bytes in one of a client's blocks.
    pub block_len: i32,
    /// The digest behind every file when none is agreed.
    pub implied_digest: Algorithm,
    /// There are warnings, errors that are no failure, and messages of single files that do not come.
    pub graded_messages: bool,
    /// There are messages of a side's exit and of its patience.
    pub exit_messages: bool,
    /// Statistics tell how long the list took.
    pub list_times: bool,
    /// What answers the client's `done`s behind those of the lists.
    pub closing: &'static [Closing],
}

/// The order of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListOrder {
    /// Unsigned bytes of full paths; a directory has no slash at its end.
    Paths,
    /// [`crate::order`], a directory right before its contents.
    Tree,
}

/// How a list joins the names of one inode, with `-H`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkForm {
    /// Device and inode with every regular file.
    InodeOfEveryFile,
    /// Device and inode with whatever has several names.
    Inode,
    /// The index of the group's first entry.
    Index,
}

/// The answer to one `done`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// Echo it.
    Done,
    /// Echo it; before that an `IO_ERROR` if files could not be sent, behind it the statistics.
    DoneAndStatistics,
    /// The session is over: flush and close.
    End,
}

const OLDEST: Facts = Facts {
    variable_ints: false,
    second_flags_byte: false,
    order: ListOrder::Paths,
    links: LinkForm::InodeOfEveryFile,
    special_devices: true,
    nanoseconds: false,
    error_on_end_mark: false,
    digest_of_everything: true,
    sub_version: false,
    implied_method: Method::OldMd4,
    arguments_end_with_nul: false,
    framed_requests: false,
    raw_names: false,
    filter_modifiers: false,
    item_flags: false,
    block_len: 1 << 29,
    implied_digest: Algorithm::SeededMd4,
    graded_messages: false,
    exit_messages: false,
    list_times: false,
    closing: &[Closing::DoneAndStatistics, Closing::End],
};
const P28: Facts = Facts { second_flags_byte: true, links: LinkForm::Inode, digest_of_everything: false, ..OLDEST };
const P29: Facts = Facts {
    order: ListOrder::Tree,
    filter_modifiers: true,
    item_flags: true,
    list_times: true,
    closing: &[Closing::Done, Closing::DoneAndStatistics, Closing::End],
    ..P28
};
const P30: Facts = Facts {
    variable_ints: true,
    links: LinkForm::Index,
    sub_version: true,
    implied_method: Method::Md5,
    arguments_end_with_nul: true,
    framed_requests: true,
    raw_names: true,
    block_len: 128 << 10,
    implied_digest: Algorithm::Md5,
    graded_messages: true,
    ..P29
};
const P31: Facts = Facts {
    special_devices: false,
    nanoseconds: true,
    error_on_end_mark: true,
    raw_names: false,
    exit_messages: true,
    closing: &[Closing::Done, Closing::DoneAndStatistics, Closing::Done, Closing::End],
    ..P30
};

const FACTS: [Facts; 6] = [OLDEST, P28, P29, P30, P31, P31];

impl Version {
    /// 27, the oldest that is spoken.
    pub const OLDEST: Self = Self(27);
    /// 32, the newest that is spoken.
    pub const NEWEST: Self = Self(32);

    /// 31, of which 32 differs in the greeting alone.
    pub const BEFORE_NEWEST: Self = Self(31);

    /// From a number; none outside 27 to 32.
    pub fn new(number: u32) -> Option<Self> {
        (27..=32).contains(&number).then_some(Self(number as u8))
    }

    /// All versions, the oldest first.
    pub fn all() -> impl Iterator<Item = Self> {
        (Self::OLDEST.0..=Self::NEWEST.0).map(Self)
    }

    /// The number.
    pub fn number(self) -> u32 {
        u32::from(self.0)
    }

    /// What this version does.
    pub fn facts(self) -> &'static Facts {
        &FACTS[usize::from(self.0 - Self::OLDEST.0)]
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
