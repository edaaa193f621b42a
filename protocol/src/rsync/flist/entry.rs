//! Encodes one entry: flags, name, and the fields that differ from the previous entry.

mod flags;
mod plan;

use super::links::{self, Links};
use super::owners::{Owners, put_name};
use super::walk::Entry;
use super::{Class, ListDigest};
use crate::list::{ListRef, Row};
use crate::rsync::codec::{put_i32, put_int30, put_long30, put_longint, put_varint, put_varlong};
use crate::rsync::version::{Facts, LinkForm};

use flags::{
    END_WITH_ERROR, GROUP_NAME, LONG_NAME, MORE_FLAGS, NSEC, SAME_ATIME, SAME_DEVICE_28, SAME_DEVICE_NUMBER_27,
    SAME_GID, SAME_MAJOR, SAME_MODE, SAME_NAME, SAME_TIME, SAME_UID, SHORT_MINOR_28, TOP_DIR, USER_NAME,
};
use plan::Plan;

const TYPE: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHAR_DEVICE: u32 = 0o020_000;
const BLOCK_DEVICE: u32 = 0o060_000;
const FIFO: u32 = 0o010_000;
const SOCKET: u32 = 0o140_000;

/// The length that is sent for directories, which is that of most directories on common file systems. The
/// index does not hold the real length, and clients only display it.
const DIRECTORY_LENGTH: i64 = 4096;
/// Maximum number of bytes that an entry can share with the previous name.
const MAX_SHARED: usize = 255;
/// The prefix that a receiving stock daemon puts before symlinks' targets, so that nobody can follow them.
const MUNGE_PREFIX: &[u8] = b"/rsyncd-munged/";
/// The device number that is sent for hard link groups before protocol 30.
const LINK_DEVICE: i64 = 1;

/// Encodes entries, each relative to the previous one.
#[derive(Debug)]
pub(super) struct EntryEncoder {
    class: Class,
    facts: &'static Facts,
    previous: Previous,
    owners: Owners,
    pub(super) links: Links,
    /// The index of the next entry.
    pub(super) ndx: u32,
    /// Total size of the files and symlink targets so far, in bytes. It is sent to the client as the total size.
    pub(super) total: u64,
    /// The index of the first entry in the current list.
    list_start: u32,
    acl_sent: bool,
    default_acl_sent: bool,
    xattrs_sent: bool,
}

/// The fields of the previous entry that the receiver remembers.
#[derive(Debug, Default)]
struct Previous {
    name: Vec<u8>,
    /// The mode. 0 stands for no mode.
    mode: u32,
    mtime: Option<i64>,
    atime: Option<i64>,
    uid: Option<u32>,
    gid: Option<u32>,
    device_sent: bool,
    is_device: bool,
}

impl EntryEncoder {
    pub(super) fn new(list: ListRef<'_>, class: Class) -> Self {
        let ndx = u32::from(class.incremental);
        Self {
            class,
            facts: class.version.facts(),
            previous: Previous::default(),
            owners: Owners::of(list),
            links: Links::of(list),
            ndx,
            total: 0,
            list_start: ndx,
            acl_sent: false,
            default_acl_sent: false,
            xattrs_sent: false,
        }
    }

    /// Appends an entry.
    pub(super) fn put(&mut self, list: ListRef<'_>, entry: Entry, name: &[u8], out: &mut Vec<u8>) {
        let row = list.row(entry.row);
        let mode = u32::from(row.mode());
        let linked = self.class.hard_links && links::is_linked(list, entry.row);
        let first = if linked { self.links.first(list, entry.row, self.ndx) } else { None };
        let plan = self.plan(list, row, entry, linked, first);
        self.put_flags_and_name(plan.flags, mode & TYPE == DIRECTORY, name, out);
        self.total = self.total.saturating_add(match mode & TYPE {
            FILE => row.size(),
            SYMLINK => row.target().unwrap_or_default().len() as u64,
            _ => 0,
        });
        let by_index = first.filter(|_| self.facts.links == LinkForm::Index);
        if let Some(first) = by_index {
            put_varint(out, first.cast_signed());
        }
        if by_index.is_some_and(|first| first >= self.list_start) {
            // The receiver copies the other fields. What it remembers of them afterwards is not relied upon.
            self.previous = Previous { name: std::mem::take(&mut self.previous.name), ..Previous::default() };
        } else {
            self.put_attributes(list, row, &plan, out);
        }
        if self.class.acls || self.class.xattrs {
            self.put_no_extras(mode, out);
        }
        self.ndx += 1;
    }

    /// Appends the entry of a missing name: it has no type, and all its fields are zero.
    pub(super) fn put_deletion(&mut self, name: &[u8], out: &mut Vec<u8>) {
        let Class { version, owner, group, atimes, .. } = self.class;
        let same_user = if owner { 0 } else { SAME_UID };
        let same_group = if group { 0 } else { SAME_GID };
        self.put_flags_and_name(same_user | same_group, false, name, out);
        put_long30(out, version, 0);
        self.put_time(0, out);
        put_i32(out, 0);
        if atimes {
            put_varlong(out, 0, 4);
        }
        for _ in 0..usize::from(owner) + usize::from(group) {
            put_int30(out, version, 0);
        }
        if let Some(digest) = self.class.checksum.filter(|_| self.facts.digest_of_everything) {
            out.resize(out.len() + digest.len(), 0);
        }
        if self.class.acls || self.class.xattrs {
            self.put_no_extras(0, out);
        }
        // The next entry sends all its attributes in full. Only the name and the device of hard link groups
        // remain known.
        let Previous { name, device_sent, .. } = std::mem::take(&mut self.previous);
        self.previous = Previous { name, device_sent, ..Previous::default() };
        self.ndx += 1;
    }

    /// Appends the end of a list. The entries of the next list begin one index later.
    pub(super) fn put_end(&mut self, io_error: i32, out: &mut Vec<u8>) {
        if self.class.varint_flags {
            out.push(0);
            put_varint(out, io_error);
        } else if io_error != 0 && self.facts.variable_ints && self.class.carries_errors() {
            out.extend_from_slice(&(END_WITH_ERROR as u16).to_le_bytes());
            put_varint(out, io_error);
        } else {
            out.push(0);
        }
        self.ndx += 1;
        self.list_start = self.ndx;
    }

    /// Appends what follows the end of a complete list: user and group names, and the I/O error. ACLs refer
    /// to users and groups too, so with ACLs both lists of names are sent, even if they are empty.
    pub(super) fn put_trailer(&self, list: ListRef<'_>, io_error: i32, out: &mut Vec<u8>) {
        let Class { version, id0_names, acls, .. } = self.class;
        let names = !self.class.nameless;
        if !self.class.numeric_ids {
            if self.class.owner || acls {
                self.owners.users.put_names(list, out, version, names, id0_names);
            }
            if self.class.group || acls {
                self.owners.groups.put_names(list, out, version, names, id0_names);
            }
        }
        if !self.facts.variable_ints {
            put_i32(out, io_error);
        }
    }

    #[inline]
    fn put_flags_and_name(&mut self, mut flags: u32, is_dir: bool, name: &[u8], out: &mut Vec<u8>) {
        let shared = shared_prefix(&self.previous.name, name).min(MAX_SHARED);
        let suffix = &name[shared..];
        self.previous.name.truncate(shared);
        self.previous.name.extend_from_slice(suffix);
        if shared > 0 {
            flags |= SAME_NAME;
        }
        if suffix.len() > 0xff {
            flags |= LONG_NAME;
        }
        if self.class.varint_flags {
            put_varint(out, if flags == 0 { MORE_FLAGS } else { flags }.cast_signed());
        } else if self.facts.second_flags_byte {
            if flags == 0 && !is_dir {
                flags |= TOP_DIR;
            }
            if flags == 0 || flags > 0xff {
                out.extend_from_slice(&((flags | MORE_FLAGS) as u16).to_le_bytes());
            } else {
                out.push(flags as u8);
            }
        } else {
            if flags == 0 {
                flags = if is_dir { LONG_NAME } else { TOP_DIR };
            }
            out.push(flags as u8);
        }
        if shared > 0 {
            out.push(shared as u8);
        }
        if flags & LONG_NAME != 0 {
            put_int30(out, self.class.version, suffix.len() as i32);
        } else {
            out.push(suffix.len() as u8);
        }
        out.extend_from_slice(suffix);
    }

    fn put_attributes(&mut self, list: ListRef<'_>, row: Row<'_>, plan: &Plan, out: &mut Vec<u8>) {
        let Class { version, .. } = self.class;
        let kind = plan.mode & TYPE;
        let target = if kind == SYMLINK { row.target().unwrap_or_default() } else { b"" };
        let length = match kind {
            FILE => row.size().cast_signed(),
            DIRECTORY => DIRECTORY_LENGTH,
            _ => target.len() as i64,
        };
        put_long30(out, version, length);
        let has = |flag: u32| plan.flags & flag != 0;
        if !has(SAME_TIME) {
            self.put_time(plan.mtime, out);
        }
        if has(NSEC) {
            put_varint(out, plan.nsec.cast_signed());
        }
        if !has(SAME_MODE) {
            put_i32(out, plan.mode.cast_signed());
        }
        if self.class.atimes && kind != DIRECTORY {
            if !has(SAME_ATIME) {
                put_varlong(out, plan.mtime, 4);
            }
            self.previous.atime = Some(plan.mtime);
        }
        if !has(SAME_UID) {
            put_int30(out, version, plan.uid.cast_signed());
            if self.class.incremental && has(USER_NAME) {
                put_name(out, &self.owners.users.name(list, plan.owner));
            }
        }
        if !has(SAME_GID) {
            put_int30(out, version, plan.gid.cast_signed());
            if self.class.incremental && has(GROUP_NAME) {
                put_name(out, &self.owners.groups.name(list, plan.owner));
            }
        }
        (self.previous.mode, self.previous.mtime) = (plan.mode, Some(plan.mtime));
        (self.previous.uid, self.previous.gid) = (Some(plan.uid), Some(plan.gid));
        self.previous.is_device = plan.device.is_some() && matches!(kind, CHAR_DEVICE | BLOCK_DEVICE);
        if let Some((major, minor)) = plan.device {
            self.put_device(plan.flags, major, minor, out);
        }
        if kind == SYMLINK && self.class.links {
            let target = if self.class.munged { unmunged(target) } else { target };
            put_int30(out, version, target.len() as i32);
            out.extend_from_slice(target);
        }
        if let Some(inode) = plan.link {
            if !has(SAME_DEVICE_28) {
                put_longint(out, LINK_DEVICE + 1);
            }
            put_longint(out, inode);
            self.previous.device_sent = true;
        }
        if let Some(digest) = self.class.checksum {
            self.put_digest(digest, list, row, kind, out);
        }
    }

    fn put_time(&self, seconds: i64, out: &mut Vec<u8>) {
        if self.facts.variable_ints {
            put_varlong(out, seconds, 4);
        } else {
            put_i32(out, seconds as i32);
        }
    }

    fn put_device(&self, flags: u32, major: u32, minor: u32, out: &mut Vec<u8>) {
        let version = self.class.version;
        if !self.facts.second_flags_byte {
            if flags & SAME_DEVICE_NUMBER_27 == 0 {
                // The C library packs both numbers into the low 32 bits of a `dev_t` like this.
                let number = (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12;
                put_i32(out, number.cast_signed());
            }
            return;
        }
        if flags & SAME_MAJOR == 0 {
            put_int30(out, version, major.cast_signed());
        }
        if self.facts.variable_ints {
            put_varint(out, minor.cast_signed());
        } else if flags & SHORT_MINOR_28 != 0 {
            out.push(minor as u8);
        } else {
            put_i32(out, minor.cast_signed());
        }
    }

    fn put_digest(&self, digest: ListDigest, list: ListRef<'_>, row: Row<'_>, kind: u32, out: &mut Vec<u8>) {
        if kind == FILE {
            let is_told = !self.class.public_digests || list.is_public(row.number());
            let digests = row.digests().filter(|_| is_told).unwrap_or_default();
            match digest {
                ListDigest::Xxh128 => out.extend_from_slice(&digests.xxh128),
                ListDigest::Md5 => out.extend_from_slice(&digests.md5),
                ListDigest::Unknown(len) => out.resize(out.len() + usize::from(len), 0),
            }
        } else if self.facts.digest_of_everything {
            out.resize(out.len() + digest.len(), 0);
        }
    }

    /// Appends empty ACLs and extended attributes, because the index holds none. The first one of each kind
    /// is sent in full, and the others refer to it.
    fn put_no_extras(&mut self, mode: u32, out: &mut Vec<u8>) {
        let mut none = |sent: &mut bool| {
            out.extend_from_slice(if std::mem::replace(sent, true) { &[1] } else { &[0, 0] });
        };
        if self.class.acls && mode & TYPE != SYMLINK {
            none(&mut self.acl_sent);
            if mode & TYPE == DIRECTORY {
                none(&mut self.default_acl_sent);
            }
        }
        if self.class.xattrs {
            none(&mut self.xattrs_sent);
        }
    }
}

/// Returns a symlink's target without the prefix of a receiving daemon with `munge symlinks`. As in stock
/// rsync, the length in the list remains that of the symlink on disk.
fn unmunged(target: &[u8]) -> &[u8] {
    target.strip_prefix(MUNGE_PREFIX).filter(|rest| !rest.is_empty()).unwrap_or(target)
}

/// Returns the length of the common prefix of two names.
#[inline]
fn shared_prefix(a: &[u8], b: &[u8]) -> usize {
    let words = a.chunks_exact(8).zip(b.chunks_exact(8)).take_while(|(x, y)| x == y).count() * 8;
    words + a[words..].iter().zip(&b[words..]).take_while(|(x, y)| x == y).count()
}
