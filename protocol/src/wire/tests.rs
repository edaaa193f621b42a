//! Round trips of requests and replies, and arbitrary payloads.

use proptest::prelude::*;

use super::reply::{ERROR_CODES, ITEM_FAILURES};
use super::*;
use crate::entry::Digest;
use crate::limits;

fn item() -> impl Strategy<Value = Item> {
    (any::<u32>(), 0..=limits::FILE_SIZE / 2, 0..=limits::FILE_SIZE / 2).prop_map(|(row, offset, len)| Item {
        row,
        offset,
        len,
    })
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        Just(Request::Repositories),
        "[a-z]{1,20}".prop_map(|repository| Request::Head { repository }),
        (any::<u32>(), any::<[u8; 32]>()).prop_map(|(handle, have)| Request::List { handle, have: Digest(have) }),
        (any::<u32>(), "[a-z]{1,9}(/[a-z]{1,9}){0,3}")
            .prop_map(|(handle, path)| Request::Dir { handle, path: path.into_bytes() }),
        (any::<u32>(), prop::collection::vec(item(), 0..50))
            .prop_map(|(handle, items)| Request::Sums { handle, items }),
        (any::<u32>(), prop::collection::vec(item(), 0..50))
            .prop_map(|(handle, items)| Request::Data { handle, items }),
        ("[a-z]{1,20}", any::<[u8; 32]>())
            .prop_map(|(repository, known)| Request::Follow { repository, known: Digest(known) }),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        any::<u64>().prop_map(|place| Reply::Queued { place }),
        (any::<u32>(), prop::collection::vec(any::<u8>(), 0..limits::HEAD))
            .prop_map(|(handle, head)| Reply::Pinned { handle, head }),
        (any::<u32>(), prop::collection::vec(any::<u8>(), 0..limits::HEAD))
            .prop_map(|(spread, head)| Reply::News { spread, head }),
        prop::collection::vec(any::<u8>(), 0..=limits::SIGNATURE).prop_map(Reply::Signature),
        Just(Reply::ListForm(ListForm::Unchanged)),
        prop::collection::vec(0..limits::DELTA_BYTES, 0..limits::DELTAS)
            .prop_map(|lens| Reply::ListForm(ListForm::Deltas(lens))),
        (0..limits::LIST_BYTES).prop_map(|list_len| Reply::ListForm(ListForm::Whole { list_len })),
        (any::<u32>(), 0..ITEM_FAILURES.len())
            .prop_map(|(item, reason)| Reply::ItemFailed { item, reason: ITEM_FAILURES[reason] }),
        Just(Reply::End),
        (0..ERROR_CODES.len(), "\\PC{0,40}")
            .prop_map(|(code, message)| Reply::Error { code: ERROR_CODES[code], message }),
    ]
}

proptest! {
    #[test]
    fn requests_survive_a_round_trip(request in request()) {
        prop_assert_eq!(Request::decode(request.kind(), &request.encode()), Ok(request));
    }

    #[test]
    fn replies_survive_a_round_trip(reply in reply()) {
        prop_assert_eq!(Reply::decode(reply.kind(), &reply.encode()), Ok(reply));
    }

    #[test]
    fn any_payload_is_decoded_or_refused(kind: u8, payload in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Request::decode(kind, &payload);
        let _ = Reply::decode(kind, &payload);
        let _ = Repository::decode_all(&payload);
        let _ = decode_dir(&payload);
    }
}

#[test]
fn a_request_full_of_the_largest_items_fits_into_its_frame() {
    let largest = Item { row: u32::MAX, offset: limits::FILE_SIZE, len: 0 };
    let request = Request::Data { handle: u32::MAX, items: vec![largest; items_that_fit()] };
    assert!(request.encode().len() <= limits::REQUEST_PAYLOAD);
}

#[test]
fn a_head_or_signature_above_its_limit_is_refused() {
    let with_number = limits::HEAD + 1;
    for (kind, limit) in [(kind::PINNED, with_number), (kind::NEWS, with_number), (kind::SIGNATURE, limits::SIGNATURE)]
    {
        assert!(Reply::decode(kind, &vec![1; limit]).is_ok());
        assert!(matches!(Reply::decode(kind, &vec![1; limit + 1]), Err(WireError::Decode(DecodeError::Trailing(_)))));
    }
}

#[test]
fn a_peer_with_another_version_is_distinguished_from_another_protocol() {
    let newer = ClientHello { min_version: 2, max_version: 9, capabilities: 0 };
    let decoded = ClientHello::decode(&newer.encode()).and_then(|hello| hello.negotiate());
    assert_eq!(decoded, Err(WireError::Version { min: 2, max: 9 }));
    assert_eq!(ClientHello::decode(b"@RSYNCD: 31.0 sha512 sha"), Err(WireError::Magic));
}

#[test]
fn a_head_that_is_only_signed_again_has_another_fingerprint() {
    let unsigned = fingerprint(b"head", None);
    assert_eq!(unsigned, fingerprint(b"head", None));
    assert_ne!(unsigned, fingerprint(b"head", Some(b"one")));
    assert_ne!(fingerprint(b"head", Some(b"one")), fingerprint(b"head", Some(b"two")));
}

#[test]
fn the_bytes_of_following_are_those_of_the_document() {
    let hello = ClientHello::FOLLOWER.encode();
    assert_eq!((&hello[..8], &hello[8..16]), (&MAGIC[..], &[1, 0, 1, 0, 7, 0, 0, 0][..]));
    let request = Request::Follow { repository: "debian".to_owned(), known: Digest([7; 32]) };
    let encoded = [&b"\x06debian"[..], &[7; 32]].concat();
    assert_eq!((request.kind(), request.encode()), (7, encoded));
    let longest = Request::Follow { repository: "a".repeat(limits::REPOSITORY_NAME), known: Digest::NONE };
    assert_eq!(longest.encode().len(), limits::FOLLOW_PAYLOAD);
    let news = Reply::News { spread: 300, head: b"head".to_vec() };
    assert_eq!(news.frame(5), *b"\x06\0\0\0\x05\0\0\0\x88\0\0\0\xac\x02head");
}
