//! Users and groups: a number in every entry, and each name once.

use crate::list::ListRef;
use crate::rsync::codec::put_int30;
use crate::rsync::version::Version;

/// The owners of a list. Each owner is a user and a group.
#[derive(Debug)]
pub(super) struct Owners {
    pub(super) users: Ids,
    pub(super) groups: Ids,
}

/// The users or the groups of the owners.
#[derive(Debug)]
pub(super) struct Ids {
    ids: Vec<u32>,
    /// For each owner, the first owner with the same id that has a name. If none has a name, the first with
    /// the same id.
    same: Vec<u32>,
    /// Whether an entry with the owner's id was written, indexed by the owner in `same`.
    seen: Vec<bool>,
    name: fn(ListRef<'_>, u32) -> Vec<u8>,
}

impl Owners {
    pub(super) fn of(list: ListRef<'_>) -> Self {
        Self {
            users: Ids::new(
                list,
                |list, owner| list.archived().uid[owner as usize].to_native(),
                |list, owner| list.owner(owner).user,
            ),
            groups: Ids::new(
                list,
                |list, owner| list.archived().gid[owner as usize].to_native(),
                |list, owner| list.owner(owner).group,
            ),
        }
    }
}

impl Ids {
    fn new(list: ListRef<'_>, id: fn(ListRef<'_>, u32) -> u32, name: fn(ListRef<'_>, u32) -> Vec<u8>) -> Self {
        let count = list.owners();
        let ids: Vec<u32> = (0..count).map(|owner| id(list, owner)).collect();
        let mut by_id: Vec<u32> = (0..count).collect();
        by_id.sort_by_cached_key(|&owner| (ids[owner as usize], name(list, owner).is_empty(), owner));
        let mut same = vec![0; count as usize];
        for run in by_id.chunk_by(|&a, &b| ids[a as usize] == ids[b as usize]) {
            run.iter().for_each(|&owner| same[owner as usize] = run[0]);
        }
        Self { seen: vec![false; ids.len()], ids, same, name }
    }

    pub(super) fn id(&self, owner: u32) -> u32 {
        self.ids.get(owner as usize).copied().unwrap_or(0)
    }

    /// Records that an entry has this owner. Returns true the first time that its id occurs.
    pub(super) fn see(&mut self, owner: u32) -> bool {
        let same = self.same.get(owner as usize).and_then(|&same| self.seen.get_mut(same as usize));
        same.is_some_and(|seen| !std::mem::replace(seen, true))
    }

    /// Returns the name for the owner's id. It may be empty.
    pub(super) fn name(&self, list: ListRef<'_>, owner: u32) -> Vec<u8> {
        self.same.get(owner as usize).map_or_else(Vec::new, |&same| (self.name)(list, same))
    }

    /// Appends the list of names for the ids that occurred, without id 0 and ids without a name. The list is
    /// empty if `names` is false.
    pub(super) fn put_names(
        &self,
        list: ListRef<'_>,
        out: &mut Vec<u8>,
        version: Version,
        names: bool,
        id0_name: bool,
    ) {
        for (owner, _) in self.seen.iter().enumerate().filter(|&(_, &seen)| seen && names) {
            let (id, name) = (self.ids[owner], (self.name)(list, owner as u32));
            if id != 0 && !name.is_empty() {
                put_int30(out, version, id.cast_signed());
                put_name(out, &name);
            }
        }
        put_int30(out, version, 0);
        if id0_name {
            let zero = self.ids.iter().position(|&id| id == 0);
            let name = zero.map(|owner| self.name(list, owner as u32)).filter(|name| !name.is_empty());
            put_name(out, name.as_deref().unwrap_or(b"root"));
        }
    }
}

/// Appends a name after its length in one byte, which suffices for [`crate::limits::OWNER_NAME`].
pub(super) fn put_name(out: &mut Vec<u8>, name: &[u8]) {
    out.push(name.len() as u8);
    out.extend_from_slice(name);
}
