//! Maps the owners in a list to user and group numbers of this host.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use stillmirror_protocol::list::{ListRef, Row};

use crate::report::Owners;

/// User and group numbers on this host for every owner in a list. Empty if owners are not changed.
#[derive(Debug, Clone, Default)]
pub(crate) struct OwnerMap {
    numbers: Vec<(u32, u32)>,
}

impl OwnerMap {
    /// Looks up every owner of the list once.
    pub(crate) fn new(list: ListRef<'_>, owners: Owners) -> Self {
        if owners == Owners::Ignore || !rustix::process::geteuid().is_root() {
            return Self::default();
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
        Self { numbers: numbers.collect() }
    }

    /// Returns the user and group for a row. `None` if owners are not changed.
    pub(crate) fn of(&self, row: Row<'_>) -> Option<(u32, u32)> {
        self.numbers.get(row.owner_number() as usize).copied()
    }
}

fn named(name: &[u8]) -> Option<&OsStr> {
    (!name.is_empty()).then(|| OsStr::from_bytes(name))
}
