//! A list delta from a hostile sender. It is refused, or it decodes and applies without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stillmirror_protocol::changes::{Changes, apply};
use stillmirror_protocol::list;

fuzz_target!(|bytes: &[u8]| {
    let Ok((from, to, changes)) = Changes::decode(bytes) else { return };
    let again = Changes::decode(&changes.encode(from, to)).expect("what was decoded encodes");
    assert_eq!(again, (from, to, changes.clone()));
    if let Ok(applied) = apply(None, &changes) {
        // The list is valid or refused, but never panics.
        let _ = list::open(&applied.list.encode());
    }
});
