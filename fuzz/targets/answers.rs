//! Arbitrary block checksums, heads, repositories and directories, as a receiver gets them from a sender. They are
//! refused, or they decode and encode to the same value.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stillmirror_protocol::changes::EntryEncoder;
use stillmirror_protocol::head::Head;
use stillmirror_protocol::sums::SumsRef;
use stillmirror_protocol::wire::{Repository, decode_dir, encode_child};
use twox_hash::XxHash3_128;

fuzz_target!(|data: &[u8]| {
    let [what, data @ ..] = data else { return };
    match what % 5 {
        0 => sums(data),
        1 => head(data),
        // A fuzzer cannot guess a checksum, so append the right one.
        2 => head(&[data, &XxHash3_128::oneshot(data).to_le_bytes()].concat()),
        3 => repositories(data),
        _ => directory(data),
    }
});

fn sums(bytes: &[u8]) {
    let Ok(sums) = SumsRef::parse(bytes) else { return };
    let layout = sums.layout();
    assert_eq!(layout.record_len(), bytes.len() as u64);
    for (number, level) in layout.levels().iter().enumerate() {
        let blocks = layout.blocks(number).expect("a level");
        let items = sums.range(number, 0, blocks).expect("all of a level");
        assert_eq!(items.len() as u64, blocks * level.item_len() as u64);
        assert!(sums.range(number, blocks, 1).is_none() && sums.range(number, 1, u64::MAX).is_none());
        assert_eq!(layout.block_range(number, blocks - 1).map(|last| last.end), Some(sums.size()));
    }
    assert!(sums.range(layout.levels().len(), 0, 1).is_none());
}

fn head(bytes: &[u8]) {
    let Ok(head) = Head::decode(bytes) else { return };
    assert_eq!(head.encode(), bytes);
}

fn repositories(bytes: &[u8]) {
    let Ok(repositories) = Repository::decode_all(bytes) else { return };
    repositories.iter().for_each(|repository| head(&repository.head));
    assert_eq!(Repository::encode_all(&repositories), bytes);
}

fn directory(bytes: &[u8]) {
    let Ok(children) = decode_dir(bytes) else { return };
    let (mut again, mut encoder) = (Vec::new(), EntryEncoder::default());
    children.iter().for_each(|(name, entry)| encode_child(&mut again, &mut encoder, name, entry));
    assert_eq!(decode_dir(&again).expect("what was decoded encodes"), children);
}
