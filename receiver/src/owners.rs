//! Whose a file becomes: the list's owners in this host's numbers.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use stillmirror_protocol::list::{ListRef, Row};

use crate::report::Owners;

/// User and group numbers of this host for every owner in a list; empty when owners are left alone.
#[derive(Debug, Clone, Default)]
pub(crate) struct OwnerMap {
    numbers: Vec<(u32, u32)>,
}

impl OwnerMap {
    /// Looks every owner of the list up, once.
    pub(crate) fn new(list: ListRef<'_>, owners: Owners) -> Self {
        if owners == Owners::Ignore || !rustix::process::geteuid().is_root() {
            return Self::default();
        }
        let numbers = (0..list.owners()).map(|number| {
            let owner = list.owner(number);
            if owners == Owners::ByNumber {
                return (owner.uid, owner.gid);
            }
            // Root's number is the same everywhere, and a name that this host lacks leaves the number.
            let user = named(&owner.user).and_then(uzers::get_user_by_name).map(|user| user.uid());
            let group = named(&owner.group).and_then(uzers::get_group_by_name).map(|group| group.gid());
            (user.unwrap_or(owner.uid), group.unwrap_or(owner.gid))
        });
        Self { numbers: numbers.collect() }
    }

    /// User and group that a row is to have; None when owners are left alone.
    pub(crate) fn of(&self, row: Row<'_>) -> Option<(u32, u32)> {
        self.numbers.get(row.owner_number() as usize).copied()
    }
}

fn named(name: &[u8]) -> Option<&OsStr> {
    (!name.is_empty()).then(|| OsStr::from_bytes(name))
}
