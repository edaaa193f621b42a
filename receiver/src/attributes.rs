//! The owners and modes that local files get, which may differ from those in the list.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use stillmirror_protocol::list::{ListRef, Row};

use crate::report::Owners;

/// Bits that let a program run with the rights of its owner or group.
const SETID: u16 = 0o6000;

/// The owners and modes of the local files of one list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attributes {
    /// User and group numbers on this host for every owner in the list. Empty if owners are not changed.
    numbers: Vec<(u32, u32)>,
    /// Whether files keep setuid and setgid bits.
    setid: bool,
}

impl Attributes {
    /// Looks up every owner of the list once.
    pub(crate) fn new(list: ListRef<'_>, owners: Owners, setid: bool) -> Self {
        if owners == Owners::Ignore || !rustix::process::geteuid().is_root() {
            return Self { numbers: Vec::new(), setid };
        }
        let numbers = (0..list.owners()).map(|number| {
            let owner = list.owner(number);
            if owners == Owners::ByNumber {
                return (owner.uid, owner.gid);
            }
            // Root has the same number everywhere. If this host lacks a name, the number is used.
            let user = named(&owner.user).and_then(uzers::get_user_by_name).map(|user| user.uid());
            let group = named(&owner.group).and_then(uzers::get_group_by_name).map(|group| group.gid());
            (user.unwrap_or(owner.uid), group.unwrap_or(owner.gid))
        });
        Self { numbers: numbers.collect(), setid }
    }

    /// Returns the user and group for a row. `None` if owners are not changed.
    pub(crate) fn owner(&self, row: Row<'_>) -> Option<(u32, u32)> {
        self.numbers.get(row.owner_number() as usize).copied()
    }

    /// Returns the permission bits for a row.
    pub(crate) fn mode(&self, row: Row<'_>) -> u16 {
        if self.clears_setid(row) { row.permissions() & !SETID } else { row.permissions() }
    }

    /// Returns whether the row is a file that does not get its setuid or setgid bits. On a directory, the setgid bit only
    /// chooses the group of new files, so it stays.
    pub(crate) fn clears_setid(&self, row: Row<'_>) -> bool {
        !self.setid && row.is_file() && row.permissions() & SETID != 0
    }
}

fn named(name: &[u8]) -> Option<&OsStr> {
    (!name.is_empty()).then(|| OsStr::from_bytes(name))
}
