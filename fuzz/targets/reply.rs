//! The bytes that a receiver reads from a hostile sender: hello, frames, and answers that span frames.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stillmirror_protocol::head::Head;
use stillmirror_protocol::limits;
use stillmirror_protocol::wire::{
    FRAME_HEADER_BYTES, FrameHeader, HELLO_BYTES, Reply, Repository, ServerHello, decode_dir,
};

fuzz_target!(|bytes: &[u8]| {
    let Some((hello, mut rest)) = bytes.split_first_chunk::<HELLO_BYTES>() else { return };
    let _ = ServerHello::decode(hello);
    while let Some((header, after)) = rest.split_first_chunk::<FRAME_HEADER_BYTES>() {
        let Ok(header) = FrameHeader::decode(header, limits::REPLY_PAYLOAD) else { return };
        let Some((payload, after)) = after.split_at_checked(header.len as usize) else { return };
        if let Ok(Reply::Pinned { head, .. } | Reply::News { head, .. }) = Reply::decode(header.kind, payload) {
            let _ = Head::decode(&head);
        }
        let _ = Repository::decode_all(payload);
        let _ = decode_dir(payload);
        rest = after;
    }
});
