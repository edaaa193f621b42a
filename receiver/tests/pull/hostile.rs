//! A sender may send anything. The pull ends with the offence named, and the tree is as it was.

use std::sync::Arc;
use std::time::Duration;

use stillmirror_protocol::changes::{Changes, Put, apply};
use stillmirror_protocol::entry::{Digest, Digests, Entry, Kind, Owner, Time};
use stillmirror_protocol::limits;
use stillmirror_protocol::wire::{FrameHeader, ItemFailure, ListForm, Reply, Request, ServerHello, frame, kind};
use stillmirror_receiver::{Options, PullError};

use crate::sender::{Behaviour, Sender, Tamper, in_frames};
use crate::tree::{Tree, assert_same, noise};
use crate::{Place, run};

fn tamper(change: impl Fn(u32, &Request, Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> + Send + Sync + 'static) -> Tamper {
    Arc::new(move |number, request, frames| change(number, request, frames.clone()).unwrap_or(frames))
}

/// Replaces the answers to one kind of request.
fn on(asked: u8, frames: impl Fn(u32, Vec<Vec<u8>>) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Tamper {
    tamper(move |number, request, honest| (request.kind() == asked).then(|| frames(number, honest)))
}

/// Every offence: what the sender does, and words of the message.
fn offences() -> Vec<(&'static str, Tamper, &'static str)> {
    let end = |number| Reply::End.frame(number);
    vec![
        (
            "a head that is none",
            on(kind::HEAD, move |n, _| vec![Reply::Pinned { handle: 3, head: vec![7; 99] }.frame(n), end(n)]),
            "generation's head",
        ),
        ("a head twice", on(kind::HEAD, |_, honest| [vec![honest[0].clone()], honest].concat()), "too many replies"),
        ("no head at all", on(kind::HEAD, move |n, _| vec![end(n)]), "no head"),
        (
            "a reply to what was not asked",
            on(kind::HEAD, |n, honest| [vec![Reply::End.frame(n + 77)], honest].concat()),
            "not under way",
        ),
        (
            "bytes for a request that is over",
            on(kind::HEAD, |n, honest| [honest, in_frames(n, b"more")].concat()),
            "not under way",
        ),
        (
            "a frame of four gigabytes",
            on(kind::LIST, |n, _| vec![FrameHeader { len: u32::MAX, request: n, kind: kind::BYTES }.encode().to_vec()]),
            "frame of 4294967295 bytes",
        ),
        ("a frame of no known kind", on(kind::LIST, |n, _| vec![frame(n, 99, b"")]), "unknown kind 99"),
        (
            "reserved bytes that are set",
            on(kind::LIST, |n, _| {
                vec![[&FrameHeader { len: 0, request: n, kind: kind::END }.encode()[..9], b"abc"].concat()]
            }),
            "reserved",
        ),
        (
            "bytes before the list's form",
            on(kind::LIST, |n, _| in_frames(n, b"list")),
            "more bytes than were asked for",
        ),
        (
            "a list that is said to be unchanged",
            on(kind::LIST, move |n, _| vec![Reply::ListForm(ListForm::Unchanged).frame(n), end(n)]),
            "what it cannot be",
        ),
        (
            "a list by deltas to nothing",
            on(kind::LIST, move |n, _| vec![Reply::ListForm(ListForm::Deltas(vec![9])).frame(n), end(n)]),
            "what it cannot be",
        ),
        (
            "a list of another length",
            on(kind::LIST, move |n, _| vec![Reply::ListForm(ListForm::Whole { list_len: 1 << 40 }).frame(n), end(n)]),
            "list length",
        ),
        ("a list cut short", on(kind::LIST, |n, honest| vec![honest[0].clone(), Reply::End.frame(n)]), "digest"),
        (
            "garbage for a list",
            on(kind::LIST, |n, honest| {
                [vec![honest[0].clone()], in_frames(n, &[9; 500]), vec![Reply::End.frame(n)]].concat()
            }),
            "file list",
        ),
        (
            "a list that unpacks to far more",
            on(kind::LIST, |n, honest| {
                let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
                [vec![honest[0].clone()], in_frames(n, &bomb), vec![Reply::End.frame(n)]].concat()
            }),
            "decompresses to more",
        ),
        (
            "an endless list",
            on(kind::LIST, |n, honest| {
                // Skippable frames: zstd reads them and gives nothing.
                let skip = [&0x184D_2A50u32.to_le_bytes()[..], &8u32.to_le_bytes(), &[0; 8]].concat();
                [vec![honest[0].clone()], in_frames(n, &skip.repeat(100_000))].concat()
            }),
            "more bytes than were asked for",
        ),
        (
            "data that nobody asked for",
            on(kind::DATA, |n, honest| [in_frames(n, b"extra"), honest].concat()),
            "more bytes than were asked for",
        ),
        ("data that end too soon", on(kind::DATA, move |n, _| vec![end(n)]), "ends before"),
        (
            "data with one bit wrong",
            on(kind::DATA, |_, mut honest| {
                honest[0][13] ^= 1;
                honest
            }),
            "do not have the digest",
        ),
        (
            "the failure of an item that is not due",
            on(kind::DATA, move |n, _| {
                vec![Reply::ItemFailed { item: 900, reason: ItemFailure::Stale }.frame(n), end(n)]
            }),
            "which is not due",
        ),
        (
            "a list in answer to a request for data",
            on(kind::DATA, |n, _| vec![Reply::ListForm(ListForm::Unchanged).frame(n)]),
            "a reply of kind",
        ),
        ("a queue after the first answer", on(kind::DATA, |_, _| vec![Reply::Queued { place: 1 }.frame(0)]), "queue"),
        (
            "an endless queue",
            on(kind::HEAD, |_, _| vec![Reply::Queued { place: 1 }.frame(0).repeat(110_000)]),
            "endless queue",
        ),
        ("bytes of no request", on(kind::HEAD, |_, _| in_frames(0, b"hello")), "belong to no request"),
        ("an error of no known code", on(kind::HEAD, |n, _| vec![frame(n, kind::ERROR, &[200, 0])]), "code"),
    ]
}

#[test]
fn every_offence_is_named_and_nothing_changes() {
    let tree = Tree::default().file("a", "new a").file("dir/b", noise(200_000, 4));
    for (offence, tamper, words) in offences() {
        let (sender, place) = (Sender::of(&tree), Place::new());
        std::fs::write(place.file("a"), "old and good").unwrap();
        sender.behave(Behaviour { tamper: Some(tamper), ..Behaviour::default() });
        let error = run(place.mirror(&sender)).expect_err(offence);
        assert!(matches!(error, PullError::Protocol(_)), "{offence}: {error:?}");
        assert!(error.to_string().contains(words), "{offence}: {error}");
        assert_eq!(std::fs::read(place.file("a")).unwrap(), b"old and good", "{offence}");
        assert!(!place.file("dir").exists(), "{offence}");
        // An honest sender brings it to its end.
        sender.behave(Behaviour::default());
        run(place.mirror(&sender)).unwrap();
        assert_same(&place.dest(), &tree);
    }
}

/// A list with these names in its root, as no honest indexer writes it.
fn list_of(names: &[&[u8]]) -> rkyv::util::AlignedVec {
    let entry = |kind| Entry { mode: 0o644, mtime: Time::default(), owner: Owner::default(), link: None, kind };
    let mut changes = Changes { root: Some(Put { entry: entry(Kind::Directory), tag: 0 }), ..Changes::default() };
    for name in names {
        let digests = Digests { sha256: Digest([1; 32]), ..Digests::default() };
        changes.put(b"", name, entry(Kind::File { size: 1, digests }), 0);
    }
    apply(None, &changes).unwrap().list.encode()
}

#[test]
fn names_that_would_leave_the_tree_are_refused() {
    for name in [&b".."[..], b".", b"", b"../escape", b"/etc/passwd", b"a\0b", &[b'n'; 256]] {
        let (sender, place) = (Sender::of(&Tree::default()), Place::new());
        sender.publish_encoded(list_of(&[name]), &Tree::default());
        let error = run(place.mirror(&sender)).unwrap_err();
        assert!(matches!(&error, PullError::Protocol(text) if text.contains("name")), "{name:?}: {error}");
        assert_eq!(std::fs::read_dir(place.dest()).unwrap().count(), 0);
    }
}

#[test]
fn a_list_with_any_bit_wrong_is_refused() {
    let tree = Tree::default().file("a", "a").dir("d");
    let honest = tree.encode();
    for at in (0..honest.len()).step_by(7) {
        let mut encoded = honest.clone();
        encoded[at] ^= 0x10;
        let (sender, place) = (Sender::of(&tree), Place::new());
        sender.publish_encoded(encoded, &tree);
        let error = run(place.options(&sender)).unwrap_err();
        assert!(matches!(error, PullError::Protocol(_)), "byte {at}: {error:?}");
    }
}

#[test]
fn a_delta_to_another_list_than_the_head_names_is_refused() {
    let tree = Tree::default().file("a", "a");
    let (sender, place) = (Sender::of(&tree), Place::new());
    run(place.mirror(&sender)).unwrap();
    sender.publish(&tree.clone().file("b", "b"));
    let wrong = Changes::default()
        .encode(stillmirror_protocol::list::digest(&tree.encode()), sender.current().head.list_digest);
    sender.tamper(move |number, request, frames| match request {
        Request::List { .. } => [
            vec![Reply::ListForm(ListForm::Deltas(vec![wrong.len() as u64])).frame(number)],
            in_frames(number, &wrong),
            vec![Reply::End.frame(number)],
        ]
        .concat(),
        _ => frames,
    });
    let error = run(place.mirror(&sender)).unwrap_err();
    assert!(matches!(&error, PullError::Protocol(text) if text.contains("digest")), "{error}");
    assert_same(&place.dest(), &tree);
}

#[test]
fn a_stranger_is_known_by_its_first_bytes() {
    for hello in [&b"@RSYNCD: 31.0 sha512 sha256\n"[..], b"SSH-2.0\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"] {
        let (sender, place) = (Sender::of(&Tree::default()), Place::new());
        sender.behave(Behaviour { hello: Some(hello.to_vec()), ..Behaviour::default() });
        let error = run(place.options(&sender)).unwrap_err();
        assert!(matches!(error, PullError::Handshake { .. }), "{error:?}");
    }
}

#[test]
fn the_greeting_for_rsync_clients_before_the_hello_is_skipped() {
    let tree = Tree::default().file("a", b"content");
    let (sender, place) = (Sender::of(&tree), Place::new());
    let hello = ServerHello { version: 1, requests: 16, capabilities: 0, reply_payload: 1 << 20 }.encode();
    let greeted = [&b"@RSYNCD: 32.0 sha512 sha256 sha1 md5 md4\n"[..], &hello].concat();
    sender.behave(Behaviour { hello: Some(greeted), ..Behaviour::default() });
    run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &tree);
    let endless = [&b"@RSYNCD: "[..], &[b'x'; 20_000]].concat();
    sender.behave(Behaviour { hello: Some(endless), ..Behaviour::default() });
    let error = run(place.options(&sender)).unwrap_err();
    assert!(matches!(error, PullError::Handshake { .. }), "{error:?}");
}

#[test]
fn a_silent_sender_is_left() {
    let (sender, place) = (Sender::of(&Tree::default()), Place::new());
    sender.behave(Behaviour { mute: true, ..Behaviour::default() });
    let error = run(Options { timeout: Duration::from_millis(200), ..place.options(&sender) }).unwrap_err();
    assert!(matches!(error, PullError::Timeout { .. }), "{error:?}");
}

#[test]
fn an_unknown_repository_is_a_refusal() {
    let (sender, place) = (Sender::of(&Tree::default()), Place::new());
    let error = run(Options { repository: "other".to_owned(), ..place.options(&sender) }).unwrap_err();
    assert!(matches!(&error, PullError::Refused { message, .. } if message == "there is none"), "{error:?}");
}

#[test]
fn nobody_listening_is_a_failed_connection() {
    let place = Place::new();
    let error = run(Options::new("127.0.0.1:1", "demo", place.dest())).unwrap_err();
    assert!(matches!(error, PullError::Connect { .. }), "{error:?}");
}

#[test]
fn replies_have_no_more_payload_than_the_limit() {
    let (sender, place) = (Sender::of(&Tree::default().file("a", noise(9, 9))), Place::new());
    sender.tamper(|number, request, frames| match request {
        Request::Data { .. } => vec![frame(number, kind::BYTES, &vec![0; limits::REPLY_PAYLOAD + 1])],
        _ => frames,
    });
    let error = run(place.options(&sender)).unwrap_err();
    assert!(matches!(&error, PullError::Protocol(text) if text.contains("1048577")), "{error}");
}
