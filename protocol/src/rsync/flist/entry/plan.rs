//! Decides which fields of an entry are sent and which are implied by the previous entry.

use super::flags::{
    FIRST_LINK, GROUP_NAME, LINKED, NO_CONTENTS, NSEC, SAME_ATIME, SAME_DEVICE_28, SAME_DEVICE_NUMBER_27, SAME_GID,
    SAME_MAJOR, SAME_MODE, SAME_TIME, SAME_UID, SHORT_MINOR_28, TOP_DIR, USER_NAME,
};
use super::{BLOCK_DEVICE, CHAR_DEVICE, DIRECTORY, EntryEncoder, FIFO, FILE, SOCKET, TYPE};
use crate::list::{ListRef, Row};
use crate::rsync::flist::walk::Entry;
use crate::rsync::version::LinkForm;

/// Everything that is decided about an entry before its first byte is written.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) flags: u32,
    pub(super) mode: u32,
    pub(super) mtime: i64,
    pub(super) nsec: u32,
    pub(super) owner: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) device: Option<(u32, u32)>,
    /// The number that stands for the inode of a hard link group.
    pub(super) link: Option<i64>,
}

impl EntryEncoder {
    /// Decides the flags of an entry.
    #[inline]
    pub(super) fn plan(
        &mut self,
        list: ListRef<'_>,
        row: Row<'_>,
        entry: Entry,
        linked: bool,
        first: Option<u32>,
    ) -> Plan {
        let mode = self.class.chmod.apply(u32::from(row.mode()));
        let (time, owner) = (row.mtime(), row.owner_number());
        let is_dir = mode & TYPE == DIRECTORY;
        let mut plan = Plan { mode, mtime: time.sec, owner, link: None, ..Plan::default() };
        let mut flag = |on: bool, flag: u32| plan.flags |= if on { flag } else { 0 };
        // Before protocol 30 there is no flag for a directory without contents, and this one would cause deletions.
        flag(is_dir && entry.top && (entry.contents || self.facts.variable_ints), TOP_DIR);
        flag(is_dir && !entry.contents && self.facts.variable_ints, NO_CONTENTS);
        flag(mode == self.previous.mode, SAME_MODE);
        flag(Some(time.sec) == self.previous.mtime, SAME_TIME);
        flag(self.facts.nanoseconds && time.nsec != 0, NSEC);
        flag(self.class.atimes && !is_dir && Some(time.sec) == self.previous.atime, SAME_ATIME);
        let named = self.class.incremental && !self.class.numeric_ids && !self.class.nameless;
        let users = &mut self.owners.users;
        plan.uid = users.id(owner);
        let same = !self.class.owner || self.previous.uid == Some(plan.uid);
        flag(same, SAME_UID);
        flag(!same && users.see(owner) && named && !users.name(list, owner).is_empty(), USER_NAME);
        let groups = &mut self.owners.groups;
        plan.gid = groups.id(owner);
        let same = !self.class.group || self.previous.gid == Some(plan.gid);
        flag(same, SAME_GID);
        flag(!same && groups.see(owner) && named && !groups.name(list, owner).is_empty(), GROUP_NAME);
        plan.nsec = time.nsec;
        self.plan_device(row, &mut plan);
        self.plan_link(list, entry.row, linked, first, &mut plan);
        plan
    }

    fn plan_device(&self, row: Row<'_>, plan: &mut Plan) {
        plan.device = match plan.mode & TYPE {
            CHAR_DEVICE | BLOCK_DEVICE if self.class.devices => row.device().map(|device| (device.major, device.minor)),
            FIFO | SOCKET if self.class.specials && self.facts.special_devices => {
                plan.flags |= match self.facts.second_flags_byte {
                    true => SAME_MAJOR,
                    // The number is that of the previous entry, which is 0 unless that is a device.
                    false if self.previous.is_device => 0,
                    false => SAME_DEVICE_NUMBER_27,
                };
                Some((0, 0))
            }
            _ => None,
        };
        let two_flag_bytes = self.facts.second_flags_byte && !self.facts.variable_ints;
        if plan.device.is_some_and(|(_, minor)| two_flag_bytes && minor <= 0xff) {
            plan.flags |= SHORT_MINOR_28;
        }
    }

    fn plan_link(&mut self, list: ListRef<'_>, row: u32, linked: bool, first: Option<u32>, plan: &mut Plan) {
        // Any number that is unique to the group can stand for the inode.
        let inode = |leader: u32| Some(i64::from(leader) + 1);
        match self.facts.links {
            LinkForm::Index if linked => plan.flags |= LINKED | if first.is_none() { FIRST_LINK } else { 0 },
            LinkForm::Inode if linked => {
                plan.flags |= LINKED | if self.previous.device_sent { SAME_DEVICE_28 } else { 0 };
                plan.link = list.row(row).link_leader().and_then(inode);
            }
            LinkForm::InodeOfEveryFile if self.class.hard_links && plan.mode & TYPE == FILE => {
                plan.link = inode(list.row(row).link_leader().unwrap_or(row));
            }
            _ => {}
        }
    }
}
