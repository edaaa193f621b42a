use proptest::prelude::*;

use super::*;
use crate::rsync::arguments::Compression;
use crate::rsync::codec::{Cursor, NDX_DONE, NdxDecoder};
use crate::rsync::digest::Algorithm;
use crate::rsync::exit::io_error;
use crate::rsync::requests::{SumHead, item};

fn version(number: u32) -> Version {
    Version::new(number).expect("a version")
}

fn replies(number: u32, compression: Compression, incremental: bool) -> Replies {
    Replies::new(&Setup {
        version: version(number),
        transfer: Algorithm::Md5,
        list: Algorithm::Md5,
        compression,
        seed: 0,
        incremental,
        safe_list: true,
        varint_flags: true,
        id0_names: true,
        timeout: None,
    })
}

fn request(ndx: i32, flags: u16) -> Request {
    let sums = (flags & item::TRANSFER != 0).then(SumHead::default);
    Request { ndx, flags, basis: None, name: None, xattrs: false, sums, from: 0 }
}

/// Splits bytes into frames of (tag, payload).
fn frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() {
        let word = u32::from_le_bytes(*header);
        let (payload, rest) = rest.split_at((word & 0xff_ffff) as usize);
        frames.push(((word >> 24) as u8 - 7, payload.to_vec()));
        bytes = rest;
    }
    assert_eq!(bytes, b"");
    frames
}

/// Returns all bytes that are sent for one file.
fn send(replies: &mut Replies, request: &Request, content: &[u8], digest: &[u8]) -> Vec<u8> {
    replies.file(request);
    let mut sent = Vec::new();
    for slice in content.chunks(replies.slice()) {
        replies.literal(slice.len());
        sent.append(&mut replies.take());
        sent.extend_from_slice(slice);
    }
    replies.end(digest);
    sent.append(&mut replies.take());
    sent
}

fn stream(bytes: &[u8]) -> Vec<u8> {
    frames(bytes).into_iter().filter(|(tag, _)| *tag == tag::DATA).flat_map(|(_, payload)| payload).collect()
}

#[test]
fn a_small_file_is_one_frame_that_ends_with_its_content_and_one_frame_after_it() {
    let mut replies = replies(32, Compression::None, false);
    let sent = send(&mut replies, &request(3, 0xa000), b"abc", &[9; 16]);
    let head = [&[4, 0x00, 0xa0][..], &[0; 16], &[3, 0, 0, 0], b"abc"].concat();
    let end = [&[0; 4][..], &[9; 16]].concat();
    assert_eq!(frames(&sent), [(tag::DATA, head), (tag::DATA, end)]);
}

#[test]
fn slices_belong_at_the_returned_offsets() {
    let content: Vec<u8> = (0..100_000).map(|at| at as u8).collect();
    for compression in Compression::NAMED {
        let expected = send(&mut replies(32, compression, false), &request(0, item::TRANSFER), &content, &[1; 16]);
        let mut replies = replies(32, compression, false);
        replies.file(&request(0, item::TRANSFER));
        let slices: Vec<&[u8]> = content.chunks(replies.slice()).collect();
        let places: Vec<usize> = slices.iter().map(|slice| replies.literal(slice.len())).collect();
        replies.end(&[1; 16]);
        let heads = replies.take();
        let mut sent = Vec::new();
        let mut from = 0;
        for (place, slice) in places.into_iter().zip(slices) {
            sent.extend_from_slice(&heads[from..place]);
            sent.extend_from_slice(slice);
            from = place;
        }
        sent.extend_from_slice(&heads[from..]);
        assert!(sent == expected, "{compression}");
    }
}

#[test]
fn replies_without_content_share_a_frame() {
    let mut replies = replies(32, Compression::None, false);
    replies.echo(&request(0, 0x6000));
    let named = Request { basis: Some(0x83), name: Some((*b"old").into()), xattrs: true, ..request(1, 0x1800) };
    replies.echo(&named);
    replies.done();
    let payload = [&[1, 0x00, 0x60][..], &[1, 0x00, 0x18, 0x83, 3], b"old", &[0, 0]].concat();
    assert_eq!(frames(&replies.take()), [(tag::DATA, payload)]);
}

#[test]
fn an_echo_before_29_is_only_an_index() {
    let mut replies = replies(28, Compression::None, false);
    replies.echo(&request(7, item::TRANSFER));
    assert_eq!(stream(&replies.take()), [7, 0, 0, 0]);
}

#[test]
fn deletion_counts_continue_the_lists_indices() {
    for (incremental, expected) in [(false, [0xff, 2, 1, 2, 3, 4, 5]), (true, [0xff, 1, 1, 2, 3, 4, 5])] {
        let mut replies = replies(31, Compression::None, incremental);
        replies.deleted(&[1, 2, 3, 4, 5]);
        assert_eq!(stream(&replies.take()), expected);
    }
}

#[test]
fn statistics_have_the_fields_of_their_version() {
    let statistics = Statistics { read: 17, written: 346_760, total: 1 << 32, list_made_ms: 1, list_sent_ms: 2 };
    let bytes = |number| {
        let mut replies = replies(number, Compression::None, false);
        replies.statistics(&statistics);
        stream(&replies.take())
    };
    assert_eq!(
        bytes(28),
        [&[17, 0, 0, 0, 0x88, 0x4a, 5, 0, 0xff, 0xff, 0xff, 0xff][..], &(1u64 << 32).to_le_bytes()].concat()
    );
    assert_eq!(bytes(29).len(), bytes(28).len() + 8);
    assert_eq!(bytes(30), [0, 17, 0, 5, 0x88, 0x4a, 0xc1, 0, 0, 0, 0, 0, 1, 0, 0, 2, 0]);
}

#[test]
fn messages_stand_between_data_frames_with_the_tags_of_their_version() {
    let tags = |number| {
        let mut replies = replies(number, Compression::None, false);
        replies.done();
        for severity in [Severity::Info, Severity::Warning, Severity::Error, Severity::Transfer] {
            replies.message(severity, "x\n");
        }
        replies.done();
        let frames = frames(&replies.take());
        assert!(frames[1..5].iter().all(|(_, text)| text == b"x\n"));
        frames.into_iter().map(|(tag, _)| tag).collect::<Vec<_>>()
    };
    assert_eq!(tags(29), [0, tag::INFO, tag::INFO, tag::ERROR_XFER, tag::ERROR_XFER, 0]);
    assert_eq!(tags(30), [0, tag::INFO, tag::WARNING, tag::ERROR, tag::ERROR_XFER, 0]);
}

#[test]
fn long_text_is_truncated() {
    let mut replies = replies(32, Compression::None, false);
    replies.message(Severity::Info, [b'x'; 5000]);
    assert_eq!(frames(&replies.take())[0].1.len(), TEXT + 1);
}

#[test]
fn a_fatal_error_is_text_followed_by_a_code_if_the_version_has_one() {
    let end = |number| {
        let mut out = Vec::new();
        fatal(&mut out, version(number), "no", Exit::Unsupported);
        frames(&out)
    };
    assert_eq!(end(31), [(tag::ERROR, b"no\n".to_vec()), (tag::ERROR_EXIT, vec![4, 0, 0, 0])]);
    assert_eq!(end(30), [(tag::ERROR, b"no\n".to_vec())]);
    assert_eq!(end(29), [(tag::ERROR_XFER, b"no\n".to_vec())]);
}

#[test]
fn old_clients_do_not_receive_messages_that_they_do_not_know() {
    let bytes = |number| {
        let mut replies = replies(number, Compression::None, false);
        replies.no_send(5);
        replies.io_error(io_error::VANISHED);
        replies.exit_seen();
        frames(&replies.take()).into_iter().map(|(tag, _)| tag).collect::<Vec<_>>()
    };
    assert_eq!(bytes(29), []);
    assert_eq!(bytes(30), [tag::NO_SEND, tag::IO_ERROR]);
    assert_eq!(bytes(31), [tag::NO_SEND, tag::IO_ERROR, tag::ERROR_EXIT]);
}

#[test]
fn list_bytes_may_be_framed_by_the_caller_or_by_replies() {
    let mut replies = replies(32, Compression::None, true);
    replies.list_head(5);
    let mut sent = replies.take();
    sent.extend_from_slice(b"whole");
    replies.list(&vec![1; 3 * FRAME]);
    replies.keep_alive();
    sent.append(&mut replies.take());
    let frames = frames(&sent);
    assert_eq!(frames[0], (tag::DATA, b"whole".to_vec()));
    assert_eq!(frames.last(), Some(&(tag::DATA, Vec::new())));
    assert_eq!(stream(&sent).len(), 5 + 3 * FRAME);
    assert!(frames.iter().all(|(_, payload)| payload.len() < 3 * FRAME));
}

/// Reads one file's tokens as a client does. Returns the content and the rest of the stream.
fn receive(compression: Compression, mut stream: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut content = Vec::new();
    if compression == Compression::None {
        loop {
            let (len, rest) = stream.split_first_chunk::<4>().expect("a token");
            let (slice, rest) = rest.split_at(u32::from_le_bytes(*len) as usize);
            stream = rest;
            if slice.is_empty() {
                return (content, stream.to_vec());
            }
            assert!(slice.len() <= 32 << 10);
            content.extend_from_slice(slice);
        }
    }
    let mut wrapped = Vec::new();
    while stream[0] != 0 {
        let head = u16::from_be_bytes([stream[0], stream[1]]);
        assert_eq!(head & 0xc000, 0x4000);
        let (token, rest) = stream[2..].split_at(usize::from(head & 0x3fff));
        match compression {
            Compression::Lz4 => content.append(&mut lz4_literals(token)),
            _ => wrapped.extend_from_slice(token),
        }
        stream = rest;
    }
    match compression {
        Compression::Zlib | Compression::Zlibx if !wrapped.is_empty() => {
            wrapped.extend_from_slice(&[0, 0, 0xff, 0xff]);
            content = stored(&wrapped);
        }
        Compression::Zstd if !wrapped.is_empty() => content = zstd::decode_all(&wrapped[..]).expect("a frame"),
        _ => {}
    }
    (content, stream[1..].to_vec())
}

/// Decodes a deflate stream of stored blocks.
fn stored(mut deflate: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    while let [0, a, b, c, d, rest @ ..] = deflate {
        let len = u16::from_le_bytes([*a, *b]);
        assert_eq!(len, !u16::from_le_bytes([*c, *d]));
        let (block, rest) = rest.split_at(usize::from(len));
        content.extend_from_slice(block);
        deflate = rest;
    }
    assert_eq!(deflate, b"");
    content
}

fn lz4_literals(block: &[u8]) -> Vec<u8> {
    let mut len = usize::from(block[0] >> 4);
    assert_eq!(block[0] & 15, 0);
    let mut at = 1;
    if len == 15 {
        loop {
            len += usize::from(block[at]);
            at += 1;
            if block[at - 1] != 255 {
                break;
            }
        }
    }
    assert_eq!(block.len() - at, len);
    block[at..].to_vec()
}

proptest! {
    #[test]
    fn every_compression_returns_the_files_content(
        number in 27u32..=32,
        compression in proptest::sample::select(&Compression::NAMED[..]),
        lengths in proptest::collection::vec(prop_oneof![0usize..600, 14usize..17, 16_200usize..16_300, 0usize..100_000], 1..4),
    ) {
        let mut replies = replies(number, compression, false);
        let mut sent = Vec::new();
        let content = |at: usize| -> Vec<u8> { (0..lengths[at]).map(|byte| (byte * 7 + at) as u8).collect() };
        for at in 0..lengths.len() {
            sent.append(&mut send(&mut replies, &request(at as i32, item::TRANSFER), &content(at), &[at as u8; 16]));
        }
        replies.done();
        sent.append(&mut replies.take());
        let mut stream = stream(&sent);
        let mut ndx = NdxDecoder::new(version(number));
        for (at, len) in lengths.iter().enumerate() {
            let mut cursor = Cursor::new(&stream);
            prop_assert_eq!(ndx.get("ndx", &mut cursor), Ok(at as i32));
            let head = cursor.position() + if number >= 29 { 2 } else { 0 } + 16;
            let (received, rest) = receive(compression, &stream[head..]);
            prop_assert!(received == content(at), "file {} of {}", at, len);
            prop_assert_eq!(&rest[..16], &[at as u8; 16]);
            stream = rest[16..].to_vec();
        }
        prop_assert_eq!(ndx.get("ndx", &mut Cursor::new(&stream)), Ok(NDX_DONE));
    }
}
