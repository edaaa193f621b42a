//! A decoder of stock file lists that shares no code with the encoder.

use std::collections::BTreeMap;

use stillmirror_protocol::rsync::flist::{Class, ListDigest};

/// One entry with the attributes that a client knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) top: bool,
    pub(crate) no_contents: bool,
    pub(crate) len: i64,
    pub(crate) mtime: i64,
    pub(crate) nsec: u32,
    pub(crate) mode: u32,
    pub(crate) atime: i64,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) device: Option<(u32, u32)>,
    pub(crate) target: Option<Vec<u8>>,
    /// A value that is equal for all names of one file: the index of the first one, or a pair of device and inode.
    pub(crate) link: Option<(i64, i64)>,
    pub(crate) digest: Option<Vec<u8>>,
}

/// One list of a session.
#[derive(Debug, Default)]
pub(crate) struct List {
    /// The position, in the client's table of directories, of the list's directory. `None` for the first list.
    pub(crate) dir: Option<usize>,
    /// The index of its first entry.
    pub(crate) start: i64,
    pub(crate) entries: Vec<Entry>,
    pub(crate) io_error: i32,
}

/// Everything that a sender transmits in a list.
#[derive(Debug, Default)]
pub(crate) struct Decoded {
    pub(crate) lists: Vec<List>,
    pub(crate) users: BTreeMap<u32, Vec<u8>>,
    pub(crate) groups: BTreeMap<u32, Vec<u8>>,
    pub(crate) io_error: i32,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    class: Class,
    p: u32,
    last: Entry,
    major: u32,
    rdev27: u32,
    dev: i64,
    negative: i64,
    acls: [bool; 2],
    xattrs: bool,
}

/// Decodes a whole list. Panics where a client would give up.
pub(crate) fn decode(class: Class, bytes: &[u8]) -> Decoded {
    let p = class.version.number();
    let mut reader = Reader {
        bytes,
        at: 0,
        class,
        p,
        last: Entry::default(),
        major: 0,
        rdev27: 0,
        dev: 0,
        negative: 1,
        acls: [false; 2],
        xattrs: false,
    };
    let mut decoded = reader.session();
    assert_eq!(reader.at, bytes.len(), "bytes follow the list");
    if p < 29 {
        sort_by_paths(&mut decoded.lists[0].entries);
    }
    decoded
}

/// Sorts entries as these clients do. The received entries must be sorted already, except for `.`: clients
/// take only the directories after it as sent with their contents.
fn sort_by_paths(entries: &mut [Entry]) {
    let dots = entries.iter().take_while(|entry| entry.name == b".").count();
    assert!(entries[dots..].iter().all(|entry| entry.name != b"."), "`.` after others");
    assert!(entries[dots..].is_sorted_by_key(|entry| &entry.name), "entries out of order");
    entries.sort_by(|a, b| a.name.cmp(&b.name));
}

impl Reader<'_> {
    fn session(&mut self) -> Decoded {
        let mut decoded = Decoded::default();
        let mut start = i64::from(self.class.incremental);
        let first = self.list(&decoded, start, None);
        start += first.entries.len() as i64 + 1;
        decoded.io_error = first.io_error;
        decoded.lists.push(first);
        if self.class.incremental {
            loop {
                let ndx = self.negative_ndx();
                if ndx == -2 {
                    return decoded;
                }
                assert!(ndx <= -101, "index {ndx} between lists");
                let list = self.list(&decoded, start, Some((-101 - ndx) as usize));
                start += list.entries.len() as i64 + 1;
                decoded.io_error |= list.io_error;
                decoded.lists.push(list);
            }
        }
        if !self.class.numeric_ids {
            // Names of users and groups are sent with ACLs too.
            if self.class.owner || self.class.acls {
                decoded.users = self.names();
            }
            if self.class.group || self.class.acls {
                decoded.groups = self.names();
            }
        }
        if self.p < 30 {
            decoded.io_error = self.fixed() as i32;
        }
        decoded
    }

    fn names(&mut self) -> BTreeMap<u32, Vec<u8>> {
        let mut names = BTreeMap::new();
        loop {
            let id = self.int30() as u32;
            if id == 0 {
                if self.class.id0_names {
                    let name = self.name();
                    names.insert(0, name);
                }
                return names;
            }
            let name = self.name();
            assert!(names.insert(id, name).is_none(), "id {id} twice");
        }
    }

    fn name(&mut self) -> Vec<u8> {
        let len = usize::from(self.byte());
        self.take(len).to_vec()
    }

    fn list(&mut self, before: &Decoded, start: i64, dir: Option<usize>) -> List {
        let mut list = List { dir, start, ..List::default() };
        loop {
            let mut flags = if self.class.varint_flags {
                let flags = self.varint() as u32;
                if flags == 0 {
                    list.io_error = self.varint() as i32;
                    return list;
                }
                flags
            } else {
                let flags = u32::from(self.byte());
                if flags == 0 {
                    return list;
                }
                if self.p >= 28 && flags & 4 != 0 { flags | u32::from(self.byte()) << 8 } else { flags }
            };
            if !self.class.varint_flags && flags == 0x1004 && self.p >= 30 {
                list.io_error = self.varint() as i32;
                return list;
            }
            if self.p < 28 {
                flags &= 0xff;
            }
            let entry = self.entry(flags, before, &list);
            list.entries.push(entry);
        }
    }

    fn entry(&mut self, flags: u32, before: &Decoded, list: &List) -> Entry {
        let has = |flag: u32| flags & flag != 0;
        let shared = if has(0x20) { usize::from(self.byte()) } else { 0 };
        let len = if has(0x40) { self.int30() as usize } else { usize::from(self.byte()) };
        let mut name = self.last.name[..shared].to_vec();
        name.extend_from_slice(self.take(len));
        let mut entry =
            Entry { name, device: None, target: None, link: None, digest: None, nsec: 0, ..self.last.clone() };
        if self.p >= 30 && has(0x200) {
            let ndx = list.start + list.entries.len() as i64;
            let first = if has(0x1000) { ndx } else { self.varint() };
            assert!(first < ndx || has(0x1000), "a link to a later entry");
            entry.link = Some((first, 0));
            if first >= list.start && first < ndx {
                let leader = &list.entries[(first - list.start) as usize];
                entry = Entry { name: entry.name, link: entry.link, ..leader.clone() };
                self.extras(entry.mode);
                self.last = entry.clone();
                return entry;
            }
            let leader =
                before.lists.iter().find(|list| (0..list.entries.len() as i64).contains(&(first - list.start)));
            assert!(leader.is_some() || first == ndx, "a link to no entry");
        }
        entry.len = self.long30();
        if !has(0x80) {
            entry.mtime = if self.p >= 30 { self.varlong(4) } else { i64::from(self.fixed()) };
        }
        if has(0x2000) {
            assert!(self.p >= 31);
            entry.nsec = self.varint() as u32;
            assert!((1..1_000_000_000).contains(&entry.nsec));
        }
        if !has(2) {
            entry.mode = self.fixed();
        }
        let kind = entry.mode & 0o170_000;
        entry.top = has(1) && kind == 0o040_000;
        entry.no_contents = self.p >= 30 && kind == 0o040_000 && has(0x100);
        if self.class.atimes && kind != 0o040_000 && !has(0x4000) {
            entry.atime = self.varlong(4);
        }
        let names = self.p >= 30;
        if self.class.owner && !has(8) {
            entry.uid = self.int30() as u32;
            if names && has(0x400) {
                assert!(self.class.incremental && !self.class.numeric_ids);
                self.name();
            }
        }
        if self.class.group && !has(0x10) {
            entry.gid = self.int30() as u32;
            if names && has(0x800) {
                self.name();
            }
        }
        let special = matches!(kind, 0o010_000 | 0o140_000);
        let device = matches!(kind, 0o020_000 | 0o060_000);
        if (device && self.class.devices) || (special && self.class.specials && self.p <= 30) {
            entry.device = Some(self.device(flags));
        } else {
            self.rdev27 = 0;
        }
        if kind == 0o120_000 && self.class.links {
            let len = self.int30() as usize;
            assert!((1..4096).contains(&len));
            entry.target = Some(self.take(len).to_vec());
        }
        if self.class.hard_links && self.p < 30 && if self.p == 27 { kind == 0o100_000 } else { has(0x200) } {
            if self.p == 27 || !has(0x400) {
                self.dev = self.longint() - 1;
            }
            entry.link = Some((self.dev, self.longint()));
        }
        if let Some(digest) = self.class.checksum.filter(|_| kind == 0o100_000 || self.p == 27) {
            let len = if let ListDigest::Unknown(len) = digest { usize::from(len) } else { 16 };
            entry.digest = Some(self.take(len).to_vec());
        }
        self.extras(entry.mode);
        self.last = entry.clone();
        entry
    }

    fn device(&mut self, flags: u32) -> (u32, u32) {
        if self.p == 27 {
            if flags & 4 == 0 {
                self.rdev27 = self.fixed();
            }
            let number = self.rdev27;
            return (number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xf_ff00);
        }
        if flags & 0x100 == 0 {
            self.major = self.int30() as u32;
        }
        let minor = match self.p {
            30.. => self.varint() as u32,
            _ if flags & 0x800 != 0 => u32::from(self.byte()),
            _ => self.fixed(),
        };
        (self.major, minor)
    }

    fn extras(&mut self, mode: u32) {
        if self.p < 30 {
            return;
        }
        let kind = mode & 0o170_000;
        if self.class.acls && kind != 0o120_000 {
            for which in 0..1 + usize::from(kind == 0o040_000) {
                let expected: &[u8] = if std::mem::replace(&mut self.acls[which], true) { &[1] } else { &[0, 0] };
                assert_eq!(self.take(expected.len()), expected);
            }
        }
        if self.class.xattrs {
            let expected: &[u8] = if std::mem::replace(&mut self.xattrs, true) { &[1] } else { &[0, 0] };
            assert_eq!(self.take(expected.len()), expected);
        }
    }

    fn negative_ndx(&mut self) -> i64 {
        assert_eq!(self.byte(), 0xff, "a negative index");
        let first = self.byte();
        let value = if first == 0xfe {
            let (high, low) = (i64::from(self.byte()), i64::from(self.byte()));
            if high & 0x80 != 0 {
                (high & 0x7f) << 24 | low | i64::from(self.byte()) << 8 | i64::from(self.byte()) << 16
            } else {
                (high << 8) + low + self.negative
            }
        } else {
            i64::from(first) + self.negative
        };
        self.negative = value;
        -value
    }

    fn take(&mut self, len: usize) -> &[u8] {
        assert!(self.at + len <= self.bytes.len(), "the list ends inside a field");
        self.at += len;
        &self.bytes[self.at - len..self.at]
    }

    fn byte(&mut self) -> u8 {
        self.take(1)[0]
    }

    fn fixed(&mut self) -> u32 {
        (0..4).fold(0, |value, at| value | u32::from(self.byte()) << (8 * at))
    }

    fn with_lead(&mut self, least: u32) -> i64 {
        let lead = self.byte();
        let extra = lead.leading_ones();
        let mut value: u64 = 0;
        for at in 0..least - 1 + extra {
            value |= u64::from(self.byte()) << (8 * at);
        }
        let bits = lead & (0xffu16 >> (extra + 1)) as u8;
        let shift = 8 * (least - 1 + extra);
        (if shift < 64 { value | u64::from(bits) << shift } else { value }) as i64
    }

    fn varint(&mut self) -> i64 {
        i64::from(self.with_lead(1) as i32)
    }

    fn varlong(&mut self, least: u32) -> i64 {
        self.with_lead(least)
    }

    fn longint(&mut self) -> i64 {
        let low = self.fixed();
        if low != u32::MAX {
            return i64::from(low);
        }
        let low = i64::from(self.fixed());
        low | i64::from(self.fixed()) << 32
    }

    fn int30(&mut self) -> i64 {
        if self.p >= 30 { self.varint() } else { i64::from(self.fixed() as i32) }
    }

    fn long30(&mut self) -> i64 {
        if self.p >= 30 { self.varlong(3) } else { self.longint() }
    }
}
