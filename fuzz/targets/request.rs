//! The bytes that a daemon reads from an unknown receiver: hello and request frames.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stillmirror_protocol::limits;
use stillmirror_protocol::wire::{ClientHello, FRAME_HEADER_BYTES, FrameHeader, HELLO_BYTES, Request};

fuzz_target!(|bytes: &[u8]| {
    let Some((hello, mut rest)) = bytes.split_first_chunk::<HELLO_BYTES>() else { return };
    let _ = ClientHello::decode(hello).and_then(|hello| hello.negotiate());
    while let Some((header, after)) = rest.split_first_chunk::<FRAME_HEADER_BYTES>() {
        let Ok(header) = FrameHeader::decode(header, limits::REQUEST_PAYLOAD) else { return };
        let Some((payload, after)) = after.split_at_checked(header.len as usize) else { return };
        if let Ok(request) = Request::decode(header.kind, payload) {
            // Varints must be in their shortest form, so a request has only one encoding.
            assert_eq!(Request::decode(request.kind(), &request.encode()), Ok(request));
        }
        rest = after;
    }
});
