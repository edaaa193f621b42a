//! The differences between protocol versions, as one table, and the types of its columns.
//!
//! Sources: releases 2.6.0 to 3.5.0 observed on the wire. 2.6.0 speaks 27, 2.6.1 to 2.6.3 speak 28, 2.6.4 to
//! 2.6.9 speak 29, 3.0 speaks 30, 3.1 to 3.3 speak 31, 3.4 and later speak 32.

use std::fmt;

use crate::rsync::auth::Method;
use crate::rsync::digest::Algorithm;

/// A protocol version that this sender speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u8);

/// The behaviour of one protocol version. Every difference that the code knows of is a field here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Varints and varlongs replace fixed integers (`i32`, longint), and file indices are encoded as differences.
    pub variable_ints: bool,
    /// Entries may have a second flags byte.
    pub second_flags_byte: bool,
    /// The sort order that defines the entries' indices.
    pub order: ListOrder,
    /// How the list marks the names of one inode.
    pub links: LinkForm,
    /// Fifos and sockets carry a device number.
    pub special_devices: bool,
    /// Entries may carry nanoseconds.
    pub nanoseconds: bool,
    /// The list's end mark may carry an I/O error regardless of the client's capabilities.
    pub error_on_end_mark: bool,
    /// With `-c`, every entry carries a digest; for entries other than regular files it is all zeros.
    pub digest_of_everything: bool,
    /// Greetings carry a sub-version and names of digests.
    pub sub_version: bool,
    /// The authentication digest if the client announces none.
    pub implied_method: Method,
    /// Arguments end with a NUL instead of a newline.
    pub arguments_end_with_nul: bool,
    /// The client's stream is framed too.
    pub framed_requests: bool,
    /// The names of `--files-from` are sent outside the client's frames.
    pub raw_names: bool,
    /// Filter rules have prefixes and modifiers, not only `+ `, `- ` and `!`.
    pub filter_modifiers: bool,
    /// Requests and echoes carry item flags, and entries without content are requested too.
    pub item_flags: bool,
    /// Maximum length of a client's block, in bytes.
    pub block_len: i32,
    /// The digest after every file if none was negotiated.
    pub implied_digest: Algorithm,
    /// There are messages for warnings, for errors that do not fail the session, and for single files that
    /// are not sent.
    pub graded_messages: bool,
    /// There are messages for a peer's exit and for its timeout.
    pub exit_messages: bool,
    /// The statistics include the times for building and sending the list.
    pub list_times: bool,
    /// The replies to the client's `done`s that follow the `done`s of the lists.
    pub closing: &'static [Closing],
}

/// The sort order of a file list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListOrder {
    /// Full paths as unsigned bytes, without a slash at the end of a directory.
    Paths,
    /// The order of [`crate::order`]: a directory comes right before its contents.
    Tree,
}

/// How a list marks the names of one inode, with `-H`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkForm {
    /// Device and inode of every regular file.
    InodeOfEveryFile,
    /// Device and inode of every entry that has several names.
    Inode,
    /// The index of the hard link group's first entry.
    Index,
}

/// The reply to one `done`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// Echo it.
    Done,
    /// Echo it. First send an `IO_ERROR` if files could not be sent; afterwards send the statistics.
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
    /// The oldest supported version, 27.
    pub const OLDEST: Self = Self(27);
    /// The newest supported version, 32.
    pub const NEWEST: Self = Self(32);

    /// Version 31. Version 32 differs from it only in the greeting.
    pub const BEFORE_NEWEST: Self = Self(31);

    /// Returns the version with this number. `None` if it is outside 27 to 32.
    pub fn new(number: u32) -> Option<Self> {
        (27..=32).contains(&number).then_some(Self(number as u8))
    }

    /// Returns all supported versions, the oldest first.
    pub fn all() -> impl Iterator<Item = Self> {
        (Self::OLDEST.0..=Self::NEWEST.0).map(Self)
    }

    /// Returns the version number.
    pub fn number(self) -> u32 {
        u32::from(self.0)
    }

    /// Returns the behaviour of this version.
    pub fn facts(self) -> &'static Facts {
        &FACTS[usize::from(self.0 - Self::OLDEST.0)]
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
