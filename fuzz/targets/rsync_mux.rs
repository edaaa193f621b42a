//! Arbitrary bytes as multiplexed frames of a client. Every byte ends up in the data stream or in a message, in order.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stillmirror_protocol::rsync::mux::{CLIENT_MESSAGE, Demux, Part, put_frame, tag};

fuzz_target!(|data: &[u8]| {
    let [piece, data @ ..] = data else { return };
    let (whole, messages) = run(data, usize::MAX);
    assert_eq!((whole.clone(), messages.clone()), run(data, usize::from(*piece) + 1));
    let mut again = Vec::new();
    for (tag, payload) in &messages {
        assert!(payload.len() <= CLIENT_MESSAGE);
        put_frame(&mut again, *tag, payload);
    }
    if !whole.is_empty() {
        put_frame(&mut again, tag::DATA, &whole);
    }
    assert_eq!(run(&again, usize::MAX), (whole, messages));
});

/// Returns the data stream and the messages.
fn run(data: &[u8], piece: usize) -> (Vec<u8>, Vec<(u8, Vec<u8>)>) {
    let mut demux = Demux::new(true);
    let (mut stream, mut messages, mut held) = (Vec::new(), Vec::new(), Vec::new());
    for piece in data.chunks(piece) {
        held.extend_from_slice(piece);
        let mut rest = &held[..];
        loop {
            match demux.next(&mut rest) {
                Ok(Some(Part::Data(bytes))) => stream.extend_from_slice(bytes),
                Ok(Some(Part::Message { tag, payload })) => messages.push((tag, payload.to_vec())),
                Ok(None) => break,
                Err(_) => return (stream, messages),
            }
        }
        held = rest.to_vec();
    }
    (stream, messages)
}
