//! A sender may send anything. The pull then ends with a message that names the violation, and the tree is
//! unchanged.

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

/// Returns all violations: what the sender does, how, and a part of the message.
fn violations() -> Vec<(&'static str, Tamper, &'static str)> {
    let end = |number| Reply::End.frame(number);
    vec![
        (
            "an invalid head",
            on(kind::HEAD, move |n, _| vec![Reply::Pinned { handle: 3, head: vec![7; 99] }.frame(n), end(n)]),
            "generation's head",
        ),
        ("two heads", on(kind::HEAD, |_, honest| [vec![honest[0].clone()], honest].concat()), "more than a head"),
        ("no head", on(kind::HEAD, move |n, _| vec![end(n)]), "is not a head"),
        (
            "a reply to a request that was not made",
            on(kind::HEAD, |n, honest| [vec![Reply::End.frame(n + 77)], honest].concat()),
            "not in flight",
        ),
        (
            "bytes for a request that is already answered",
            on(kind::HEAD, |n, honest| [honest, in_frames(n, b"more")].concat()),
            "not in flight",
        ),
        (
            "a frame of four gigabytes",
            on(kind::LIST, |n, _| vec![FrameHeader { len: u32::MAX, request: n, kind: kind::BYTES }.encode().to_vec()]),
            "4294967295",
        ),
        ("a frame of unknown kind", on(kind::LIST, |n, _| vec![frame(n, 99, b"")]), "unknown kind 99"),
        (
            "reserved bytes that are set",
            on(kind::LIST, |n, _| {
                vec![[&FrameHeader { len: 0, request: n, kind: kind::END }.encode()[..9], b"abc"].concat()]
            }),
            "reserved",
        ),
        ("bytes before the list's form", on(kind::LIST, |n, _| in_frames(n, b"list")), "more bytes than requested"),
        (
            "a list that is claimed to be unchanged",
            on(kind::LIST, move |n, _| vec![Reply::ListForm(ListForm::Unchanged).frame(n), end(n)]),
            "does not fit",
        ),
        (
            "list deltas for a receiver without a list",
            on(kind::LIST, move |n, _| vec![Reply::ListForm(ListForm::Deltas(vec![9])).frame(n), end(n)]),
            "does not fit",
        ),
        (
            "a list of another length",
            on(kind::LIST, move |n, _| vec![Reply::ListForm(ListForm::Whole { list_len: 1 << 40 }).frame(n), end(n)]),
            "list length",
        ),
        ("a truncated list", on(kind::LIST, |n, honest| vec![honest[0].clone(), Reply::End.frame(n)]), "digest"),
        (
            "garbage instead of a list",
            on(kind::LIST, |n, honest| {
                [vec![honest[0].clone()], in_frames(n, &[9; 500]), vec![Reply::End.frame(n)]].concat()
            }),
            "file list",
        ),
        (
            "a list that decompresses to far more",
            on(kind::LIST, |n, honest| {
                let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
                [vec![honest[0].clone()], in_frames(n, &bomb), vec![Reply::End.frame(n)]].concat()
            }),
            "decompresses to more",
        ),
        (
            "an endless list",
            on(kind::LIST, |n, honest| {
                // zstd reads skippable frames without any output.
                let skip = [&0x184D_2A50u32.to_le_bytes()[..], &8u32.to_le_bytes(), &[0; 8]].concat();
                [vec![honest[0].clone()], in_frames(n, &skip.repeat(100_000))].concat()
            }),
            "more bytes than requested",
        ),
        (
            "data that was not requested",
            on(kind::DATA, |n, honest| [in_frames(n, b"extra"), honest].concat()),
            "more bytes than requested",
        ),
        ("data that ends too soon", on(kind::DATA, move |n, _| vec![end(n)]), "ends before"),
        (
            "the failure of an item that is not the current one",
            on(kind::DATA, move |n, _| {
                vec![Reply::ItemFailed { item: 900, reason: ItemFailure::Stale }.frame(n), end(n)]
            }),
            "not the current one",
        ),
        (
            "a list in answer to a data request",
            on(kind::DATA, |n, _| vec![Reply::ListForm(ListForm::Unchanged).frame(n)]),
            "a reply of kind",
        ),
        ("a queue after the first answer", on(kind::DATA, |_, _| vec![Reply::Queued { place: 1 }.frame(0)]), "queue"),
        (
            "an endless queue",
            on(kind::HEAD, |_, _| vec![Reply::Queued { place: 1 }.frame(0).repeat(110_000)]),
            "the wait in its queue exceeds the limit",
        ),
        ("bytes for request 0", on(kind::HEAD, |_, _| in_frames(0, b"hello")), "request 0"),
        ("an error with an unknown code", on(kind::HEAD, |n, _| vec![frame(n, kind::ERROR, &[200, 0])]), "code"),
    ]
}

#[test]
fn every_violation_is_named_and_nothing_changes() {
    let tree = Tree::default().file("a", "new a").file("dir/b", noise(200_000, 4));
    for (violation, tamper, words) in violations() {
        let (sender, place) = (Sender::of(&tree), Place::new());
        std::fs::write(place.file("a"), "old and good").unwrap();
        sender.behave(Behaviour { tamper: Some(tamper), ..Behaviour::default() });
        let error = run(place.mirror(&sender)).expect_err(violation);
        assert!(matches!(error, PullError::Protocol(_)), "{violation}: {error:?}");
        assert!(error.to_string().contains(words), "{violation}: {error}");
        assert_eq!(std::fs::read(place.file("a")).unwrap(), b"old and good", "{violation}");
        assert!(!place.file("dir").exists(), "{violation}");
        // The next pull from an honest sender succeeds.
        sender.behave(Behaviour::default());
        run(place.mirror(&sender)).unwrap();
        assert_same(&place.dest(), &tree);
    }
}

/// Returns a list with these names in its root. An honest indexer never writes one.
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
fn names_that_lead_out_of_the_tree_are_refused() {
    for name in [&b".."[..], b".", b"", b"../escape", b"/etc/passwd", b"a\0b", &[b'n'; 256]] {
        let (sender, place) = (Sender::of(&Tree::default()), Place::new());
        sender.publish_encoded(list_of(&[name]), &Tree::default());
        let error = run(place.mirror(&sender)).unwrap_err();
        assert!(matches!(&error, PullError::Protocol(text) if text.contains("name")), "{name:?}: {error}");
        assert_eq!(std::fs::read_dir(place.dest()).unwrap().count(), 0);
    }
}

#[test]
fn a_list_with_any_wrong_bit_is_refused() {
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
fn a_delta_to_a_list_other_than_that_of_the_head_is_refused() {
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
fn a_peer_of_another_protocol_is_recognized_by_its_first_bytes() {
    for hello in [&b"@RSYNCD: 31.0 sha512 sha256\n"[..], b"SSH-2.0\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"] {
        let (sender, place) = (Sender::of(&Tree::default()), Place::new());
        sender.behave(Behaviour { hello: Some(hello.to_vec()), ..Behaviour::default() });
        let error = run(place.options(&sender)).unwrap_err();
        assert!(matches!(error, PullError::Handshake { .. }), "{error:?}");
    }
}

#[test]
fn a_greeting_for_rsync_clients_before_the_hello_is_skipped() {
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
fn a_silent_sender_causes_a_timeout() {
    let (sender, place) = (Sender::of(&Tree::default()), Place::new());
    sender.behave(Behaviour { mute: true, ..Behaviour::default() });
    let error = run(Options { timeout: Duration::from_millis(200), ..place.options(&sender) }).unwrap_err();
    assert!(matches!(error, PullError::Timeout { .. }), "{error:?}");
}

#[test]
fn an_unknown_repository_is_refused() {
    let (sender, place) = (Sender::of(&Tree::default()), Place::new());
    let error = run(Options { repository: "other".to_owned(), ..place.options(&sender) }).unwrap_err();
    assert!(matches!(&error, PullError::Refused { message, .. } if message == "there is none"), "{error:?}");
}

#[test]
fn a_port_without_a_listener_is_a_failed_connection() {
    let place = Place::new();
    let error = run(Options::new("127.0.0.1:1", "demo", place.dest())).unwrap_err();
    assert!(matches!(error, PullError::Connect { .. }), "{error:?}");
}

#[test]
fn a_reply_above_the_payload_limit_is_refused() {
    let (sender, place) = (Sender::of(&Tree::default().file("a", noise(9, 9))), Place::new());
    sender.tamper(|number, request, frames| match request {
        Request::Data { .. } => vec![frame(number, kind::BYTES, &vec![0; limits::REPLY_PAYLOAD + 1])],
        _ => frames,
    });
    let error = run(place.options(&sender)).unwrap_err();
    assert!(matches!(&error, PullError::Protocol(text) if text.contains("1048577")), "{error}");
}
