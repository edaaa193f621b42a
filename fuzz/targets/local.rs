//! Local facts from a modified store. They are refused, or every row and file can be read without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rkyv::util::AlignedVec;
use stillmirror_protocol::entry::{Digest, Time};
use stillmirror_protocol::local::{self, Header, Identity, LocalTable, RecordAt, RelativeDevice};

fuzz_target!(|data: &[u8]| {
    let [what, entries, files, data @ ..] = data else { return };
    let (entries, files) = (u32::from(*entries), u32::from(*files));
    if what % 2 == 0 {
        let version = u16::from(what / 2 % 8);
        let mut aligned: AlignedVec = AlignedVec::new();
        aligned.extend_from_slice(data);
        read(&aligned, version, entries, files);
        let _ = Header::decode(data);
    } else {
        read_edited(data, entries, files);
    }
});

fn read(body: &[u8], version: u16, entries: u32, files: u32) {
    let Ok(table) = local::open_body(body, version, entries, files) else { return };
    for row in 0..=entries {
        let _ = (table.identity(row).inode_key(), table.links(row));
    }
    for file in 0..=files {
        let at = table.record(file);
        assert!(at.is_none_or(|at| at.len() >= at.content_start() && at.pack != 0));
    }
    assert_eq!(table.record(files), None);
}

/// Reads a valid table with some of its bytes changed.
fn read_edited(data: &[u8], entries: u32, files: u32) {
    let (entries, files) = (entries % 40, files % 40);
    let mut table = LocalTable::default();
    for row in 0..entries.max(files) {
        let identity =
            Identity { device: RelativeDevice::Roots, inode: row.into(), ctime: Time { sec: row.into(), nsec: row } };
        table.push(identity, Some(row), (row < files).then_some(RecordAt { pack: row, ..RecordAt::default() }));
    }
    let mut encoded = table.encode(Digest([1; 32]));
    for edit in data.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % encoded.len();
        encoded[at] = edit[2];
    }
    let version = Header::decode(&encoded);
    let version = version.map_or(0, |header| header.version);
    read(&encoded[local::HEADER_BYTES..], version, entries.max(files), files);
}
