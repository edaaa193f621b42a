//! A list's body from a hostile sender. It is refused, or every accessor can read it without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rkyv::util::AlignedVec;
use stillmirror_protocol::changes::{apply, diff};
use stillmirror_protocol::list;

fuzz_target!(|bytes: &[u8]| {
    let _ = list::open(bytes);
    let mut aligned: AlignedVec = AlignedVec::new();
    aligned.extend_from_slice(bytes);
    let Ok(list) = list::open_body(&aligned) else { return };
    for row in 0..list.len() {
        let path = list.path(row);
        assert_eq!(list.find(&path).map(|row| row.number()), Some(row));
        let _ = list.row(row).to_entry();
    }
    let changes = diff(list, list);
    assert!(changes.is_empty());
    let _ = apply(Some(list), &changes);
});
