//! Pins the bytes of a generation: files that an earlier build wrote can be read, and are written byte for
//! byte the same. A change of format needs a new version number, and new golden files beside these.
//! `STILLMIRROR_BLESS=1` writes the golden files.

mod common;

use std::fs;
use std::path::PathBuf;

use common::store;
use stillmirror_protocol::{
    entry::Time,
    head::{Head, SliceMark},
    list, local,
};

#[test]
fn a_generation_is_written_as_by_earlier_builds() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1);
    for name in ["head", "list", "local", "packs", "1.pack"] {
        let parent = if name.ends_with(".pack") { "sums" } else { "generations/1" };
        let written = fs::read(store.dir().join(parent).join(name)).unwrap();
        if std::env::var_os("STILLMIRROR_BLESS").is_some() {
            fs::write(golden(name), &written).unwrap();
        }
        assert!(written == fs::read(golden(name)).unwrap(), "{name} differs from {}", golden(name).display());
    }
}

#[test]
fn a_head_that_expires_is_written_and_read_as_by_earlier_builds() {
    let head = Head::decode(&fs::read(golden("head")).unwrap()).unwrap();
    let expiring = Head { expires: Some(Time { sec: 1_800_000_000, nsec: 0 }), ..head };
    if std::env::var_os("STILLMIRROR_BLESS").is_some() {
        fs::write(golden("head-2"), expiring.encode()).unwrap();
    }
    let written = fs::read(golden("head-2")).unwrap();
    assert_eq!(expiring.encode(), written);
    assert_eq!(Head::decode(&written), Ok(expiring));
}

#[test]
fn the_head_of_a_slice_is_written_and_read_as_by_earlier_builds() {
    let head = Head::decode(&fs::read(golden("head")).unwrap()).unwrap();
    let slice = SliceMark::new(head.previous, "suite stable; architecture amd64");
    for (name, expires) in [("head-3", None), ("head-3-expiring", Some(Time { sec: 1_800_000_000, nsec: 0 }))] {
        let sliced = Head { expires, slice: Some(slice.clone()), ..head.clone() };
        if std::env::var_os("STILLMIRROR_BLESS").is_some() {
            fs::write(golden(name), sliced.encode()).unwrap();
        }
        let written = fs::read(golden(name)).unwrap();
        assert_eq!(sliced.encode(), written);
        assert_eq!(Head::decode(&written), Ok(sliced));
    }
}

#[test]
fn a_generation_of_an_earlier_build_can_be_read() {
    let head = Head::decode(&fs::read(golden("head")).unwrap()).unwrap();
    let encoded = aligned("list");
    let list = list::open(&encoded).unwrap();
    assert_eq!((head.list_digest, head.list_len), (list::digest(&encoded), encoded.len() as u64));
    let linked = list.find(b"pool/b\xff").unwrap();
    assert_eq!(linked.link_leader(), list.find(b"pool/a").map(|row| row.number()));
    assert_eq!(list.find(b"stable").unwrap().target(), Some(&b"pool"[..]));
    assert_eq!(list.find(b"pool/null").unwrap().owner().user, b"mirror");
    for (name, links) in [("local", Some(1)), ("local-3", None)] {
        let facts = aligned(name);
        let version = local::Header::decode(&facts[..local::HEADER_BYTES]).unwrap().version;
        let facts = local::open_body(&facts[local::HEADER_BYTES..], version, list.len(), list.files()).unwrap();
        assert_eq!((facts.identity(2).inode, facts.record(0).unwrap().offset, facts.links(2)), (2, 64, links));
        assert!((0..list.len()).all(|row| facts.identity(row).device == local::RelativeDevice::Roots));
    }
}

fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).join(name)
}

fn aligned(name: &str) -> rkyv::util::AlignedVec {
    let mut bytes = rkyv::util::AlignedVec::new();
    bytes.extend_from_slice(&fs::read(golden(name)).unwrap());
    bytes
}
