//! Looks up the names of users and groups, each once.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Mutex, PoisonError};

use stillmirror_protocol::entry::Owner;
use stillmirror_protocol::limits;
use stillmirror_protocol::list::ListRef;

/// The owners that have been looked up.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    known: Mutex<HashMap<(u32, u32), Owner>>,
}

impl Owners {
    /// Returns the owner with these IDs. The names are those of this host, and empty where it has none.
    pub(crate) fn get(&self, uid: u32, gid: u32) -> Owner {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry((uid, gid)).or_insert_with(|| look_up(uid, gid)).clone()
    }

    /// Returns the IDs of each owner in a list. `None` for owners whose names on this host have changed since.
    pub(crate) fn of_list(&self, list: ListRef<'_>) -> Vec<Option<(u32, u32)>> {
        let current = |number| {
            let owner = list.owner(number);
            (self.get(owner.uid, owner.gid) == owner).then_some((owner.uid, owner.gid))
        };
        (0..list.owners()).map(current).collect()
    }
}

fn look_up(uid: u32, gid: u32) -> Owner {
    let name = |name: &OsStr| Some(name.as_bytes().to_vec()).filter(|name| name.len() <= limits::OWNER_NAME);
    let user = uzers::get_user_by_uid(uid).and_then(|user| name(user.name()));
    let group = uzers::get_group_by_gid(gid).and_then(|group| name(group.name()));
    Owner { uid, gid, user: user.unwrap_or_default(), group: group.unwrap_or_default() }
}
