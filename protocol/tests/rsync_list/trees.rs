//! Random trees for the file list tests.

use proptest::prelude::*;
use rkyv::util::AlignedVec;
use stillmirror_protocol::changes::apply;
use stillmirror_protocol::entry::{Device, Digest, Digests, Entry, Kind, Owner, Time};

pub(crate) use crate::common::Tree;
use crate::common::{grow, whole};

/// Generates a tree with entries of every type, link groups, and names with unusual sort positions.
pub(crate) fn tree() -> impl Strategy<Value = Tree> {
    // There are few directories, so that several names fall into each.
    let dirs = prop::collection::vec(prop::sample::select(vec!["a", "a.d", "a-b", "b"]), 0..4);
    let path = (dirs, name()).prop_map(|(dirs, name)| {
        let dirs: Vec<u8> = dirs.iter().flat_map(|dir| dir.bytes().chain(*b"/")).collect();
        [dirs, name].concat()
    });
    let root = single(Just(Kind::Directory).boxed());
    let entry = prop_oneof![4 => single(kind().boxed()), 1 => (1..7u64).prop_map(member)];
    (root, prop::collection::vec((path, entry), 0..80)).prop_map(|(root, entries)| grow(root, entries, directory))
}

/// Returns the encoded list of a tree.
pub(crate) fn encoded(tree: &Tree) -> AlignedVec {
    apply(None, &whole(tree, 0)).expect("a tree applies to nothing").list.encode()
}

fn directory() -> Entry {
    Entry { mode: 0o755, mtime: Time { sec: 5, nsec: 0 }, owner: Owner::default(), link: None, kind: Kind::Directory }
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let short = ["a", "b", "a.d", "a-b", "a0", "c", "-", ".h", "a.txt", "z"];
    prop_oneof![
        20 => prop::sample::select(short.to_vec()).prop_map(|name| name.as_bytes().to_vec()),
        2 => prop::collection::vec(prop::sample::select(vec![b'\n', b' ', b'-', b'.', 0xff, b'0']), 3..4),
        1 => Just(vec![b'n'; 255]),
        1 => Just([&[b'n'; 200][..], b"m"].concat()),
    ]
}

fn owner() -> impl Strategy<Value = Owner> {
    let id = prop::sample::select(vec![0, 1, 33, 12345, u32::MAX - 7]);
    (id.clone(), id, any::<bool>()).prop_map(|(uid, gid, named)| Owner {
        uid,
        gid,
        user: if uid == 12345 { Vec::new() } else { format!("user{uid}").into_bytes() },
        group: if named { format!("group{gid}").into_bytes() } else { Vec::new() },
    })
}

fn time() -> impl Strategy<Value = Time> {
    let seconds = prop::sample::select(vec![0, 1, -60, 1_714_885_505, 1_714_885_506, 2_208_988_800, 1 << 40]);
    let nsec = prop::sample::select(vec![0, 0, 1, 999_999_999]);
    (seconds, nsec).prop_map(|(sec, nsec)| Time { sec, nsec })
}

fn single(kind: BoxedStrategy<Kind>) -> impl Strategy<Value = Entry> {
    let mode = prop::sample::select(vec![0o644, 0o755, 0o4755, 0o600]);
    (mode, time(), owner(), kind).prop_map(|(mode, mtime, owner, kind)| Entry { mode, mtime, owner, link: None, kind })
}

/// Returns a name of one of six inodes. The names of one inode have equal attributes.
fn member(group: u64) -> Entry {
    let kind = match group {
        1 => Kind::Symlink { target: b"target".to_vec() },
        2 => Kind::CharDevice(Device { major: 1, minor: 3 }),
        3 => Kind::Fifo,
        _ => file(group * 1000, group as u8),
    };
    Entry {
        mode: 0o640,
        mtime: Time { sec: group as i64, nsec: 7 },
        owner: Owner { uid: group as u32, user: format!("user{group}").into_bytes(), ..Owner::default() },
        link: Some(group),
        kind,
    }
}

fn file(size: u64, byte: u8) -> Kind {
    Kind::File { size, digests: Digests { sha256: Digest([byte; 32]), xxh128: [byte; 16], md5: [byte ^ 1; 16] } }
}

fn kind() -> impl Strategy<Value = Kind> {
    let size = (any::<u64>(), 1..64u32).prop_map(|(size, shift)| size >> shift);
    let device = (any::<bool>(), 0..0x1000u32, 0..0x10_0000u32);
    prop_oneof![
        6 => (size, any::<u8>()).prop_map(|(size, byte)| file(size, byte)),
        4 => Just(Kind::Directory),
        1 => prop::collection::vec(1..=255u8, 1..300).prop_map(|target| Kind::Symlink { target }),
        1 => device.prop_map(|(small, major, minor)| {
            Kind::CharDevice(Device { major, minor: if small { minor & 0xff } else { minor } })
        }),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(major, minor)| {
            Kind::BlockDevice(Device { major: u32::from(major), minor: u32::from(minor) })
        }),
        1 => Just(Kind::Fifo),
        1 => Just(Kind::Socket),
    ]
}

/// Returns an entry with default attributes.
pub(crate) fn plain(is_dir: bool) -> Entry {
    let file = || Kind::File { size: 1, digests: Digests { sha256: Digest([1; 32]), ..Digests::default() } };
    Entry { kind: if is_dir { Kind::Directory } else { file() }, mode: 0o644, ..directory() }
}
