//! What a sender can do to a receiver that trusts a key: the attacks that are known of update systems
//! (theupdateframework.io, "Attacks and weaknesses"), each refused before the list is fetched, or before a file is.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use minisign::KeyPair;
use stillmirror_protocol::entry::Time;
use stillmirror_protocol::limits;
use stillmirror_protocol::signature::{PublicKey, SignatureError};
use stillmirror_protocol::wire::{ItemFailure, Reply, Request, frame, kind};
use stillmirror_receiver::{Check, Options, PullError, TrustError};
use stillmirror_store::Store;

use crate::sender::{Behaviour, Sender};
use crate::tree::{Tree, assert_same, noise};
use crate::{Place, run};

const HOUR: i64 = 3600;

fn key() -> KeyPair {
    KeyPair::generate_unencrypted_keypair().unwrap()
}

fn public(key: &KeyPair) -> PublicKey {
    PublicKey::parse(&key.pk.to_base64()).unwrap()
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

fn signature(key: &KeyPair, bytes: &[u8]) -> Vec<u8> {
    minisign::sign(Some(&key.pk), &key.sk, bytes, None, None).unwrap().into_string().into_bytes()
}

impl Sender {
    /// Signs the current generation. It expires `lifetime` seconds from now.
    fn sign(&self, key: &KeyPair, lifetime: i64) {
        self.amend(|last| {
            last.head.expires = Some(Time { sec: now() + lifetime, nsec: 0 });
            last.signature = Some(signature(key, &last.head.encode()));
        });
    }

    fn publish_signed(&self, tree: &Tree, key: &KeyPair) {
        self.publish(tree);
        self.sign(key, HOUR);
    }
}

fn sample() -> Tree {
    Tree::default().file("a", "a").file("dir/b", noise(50_000, 1))
}

fn signed_by(key: &KeyPair) -> Sender {
    let sender = Sender::of(&sample());
    sender.sign(key, HOUR);
    sender
}

fn trusting(place: &Place, sender: &Sender, keys: &[&KeyPair]) -> Options {
    Options { trust: keys.iter().map(|key| public(key)).collect(), ..place.mirror(sender) }
}

/// Asserts that nothing was ever written below the destination.
#[track_caller]
fn assert_untouched(place: &Place) {
    assert_eq!(fs::read_dir(place.dest()).unwrap().count(), 0);
}

/// Asserts that the pull is refused after nothing but the head was requested, and that the tree is still `tree`, or
/// untouched. Returns the reason.
#[track_caller]
fn assert_refused(place: &Place, sender: &Sender, keys: &[&KeyPair], tree: Option<&Tree>) -> TrustError {
    sender.requests();
    let error = run(trusting(place, sender, keys)).unwrap_err();
    let requests = sender.requests();
    assert!(requests.iter().all(|request| matches!(request, Request::Head { .. })), "{requests:?}");
    match tree {
        Some(tree) => assert_same(&place.dest(), tree),
        None => assert_untouched(place),
    }
    match error {
        PullError::Untrusted { reason, .. } => reason,
        error => panic!("{error:?}"),
    }
}

#[test]
fn a_signed_generation_is_pulled_in_one_round_trip_and_published_byte_for_byte() {
    let key = key();
    let (sender, place) = (signed_by(&key), Place::new());
    run(trusting(&place, &sender, &[&key])).unwrap();
    assert_same(&place.dest(), &sample());
    let held = Store::open(&place.store()).unwrap().current().unwrap().unwrap();
    assert_eq!(held.head_bytes(), sender.current().head.encode());
    assert_eq!(held.signature(), sender.current().signature.as_deref());
    let again = run(Options { check: Check::None, ..trusting(&place, &sender, &[&key]) }).unwrap();
    assert!(again.unchanged);
    assert_eq!((again.round_trips, again.published), (1, None));
}

#[test]
fn arbitrary_software_without_a_signature_or_with_a_foreign_one_is_refused() {
    let (key, foreign) = (key(), key());
    let (sender, place) = (Sender::of(&sample()), Place::new());
    assert_eq!(assert_refused(&place, &sender, &[&key], None), TrustError::Unsigned);
    sender.sign(&foreign, HOUR);
    let unknown = SignatureError::UnknownKey(public(&foreign).id());
    assert_eq!(assert_refused(&place, &sender, &[&key], None), TrustError::Signature(unknown));
    // A foreign key with the number of the trusted one.
    sender.amend(|last| {
        let mut bytes = foreign.sk.to_bytes();
        bytes[54..62].copy_from_slice(key.pk.keynum());
        let sk = minisign::SecretKey::from_bytes(&bytes).unwrap();
        let signed = minisign::sign(None, &sk, &last.head.encode()[..], None, None).unwrap();
        last.signature = Some(signed.into_string().into_bytes());
    });
    let wrong = SignatureError::Wrong(public(&key).id());
    assert_eq!(assert_refused(&place, &sender, &[&key], None), TrustError::Signature(wrong));
    sender.amend(|last| last.signature = Some(b"garbage".to_vec()));
    let malformed = TrustError::Signature(SignatureError::Malformed);
    assert_eq!(assert_refused(&place, &sender, &[&key], None), malformed);
    assert!(!place.store().exists(), "a store is made for what is trusted only");
}

#[test]
fn a_signature_of_another_head_is_refused() {
    let key = key();
    let (sender, place) = (signed_by(&key), Place::new());
    run(trusting(&place, &sender, &[&key])).unwrap();
    let old = sender.current().signature.clone();
    sender.publish_signed(&sample().file("new", "new"), &key);
    sender.amend(|last| last.signature = old);
    let wrong = TrustError::Signature(SignatureError::Wrong(public(&key).id()));
    assert_eq!(assert_refused(&place, &sender, &[&key], Some(&sample())), wrong);
}

#[test]
fn a_rollback_to_an_older_generation_is_refused_even_after_a_new_key_was_added() {
    let (key, other) = (key(), key());
    let (sender, place) = (signed_by(&key), Place::new());
    let newer = sample().file("new", "new");
    sender.publish_signed(&newer, &key);
    run(trusting(&place, &sender, &[&key])).unwrap();
    sender.go_back();
    let older = TrustError::Older { found: 1, accepted: 2 };
    assert_eq!(assert_refused(&place, &sender, &[&key], Some(&newer)), older);
    assert_eq!(assert_refused(&place, &sender, &[&other, &key], Some(&newer)), older);
    // Without trusted keys, the sender decides.
    run(Options { allow_older: true, ..place.mirror(&sender) }).unwrap();
    assert_same(&place.dest(), &sample());
    // `allow_older` does not hold for what a key has signed.
    sender.publish_signed(&newer, &key);
    run(trusting(&place, &sender, &[&key])).unwrap();
    sender.go_back();
    let error = run(Options { allow_older: true, ..trusting(&place, &sender, &[&key]) }).unwrap_err();
    assert!(matches!(error, PullError::Untrusted { .. }), "{error:?}");
}

#[test]
fn a_frozen_sender_is_refused_once_its_head_has_expired() {
    let key = key();
    let (sender, place) = (signed_by(&key), Place::new());
    run(trusting(&place, &sender, &[&key])).unwrap();
    sender.sign(&key, -1);
    let refused = assert_refused(&place, &sender, &[&key], Some(&sample()));
    assert!(matches!(refused, TrustError::Expired { .. }), "{refused}");
    // A head without an expiry could be shown forever.
    sender.amend(|last| {
        last.head.expires = None;
        last.signature = Some(signature(&key, &last.head.encode()));
    });
    assert_eq!(assert_refused(&place, &sender, &[&key], Some(&sample())), TrustError::NoExpiry);
}

#[test]
fn a_head_that_expires_during_the_pull_is_accepted() {
    let key = key();
    let (sender, place) = (Sender::of(&sample()), Place::new());
    sender.sign(&key, 2);
    let expires = sender.current().head.expires.unwrap().sec;
    sender.tamper(move |_, request, frames| {
        while matches!(request, Request::Head { .. }) && now() <= expires {
            std::thread::sleep(Duration::from_millis(50));
        }
        frames
    });
    run(trusting(&place, &sender, &[&key])).unwrap();
    assert_same(&place.dest(), &sample());
}

#[test]
fn a_fast_forward_by_a_stolen_key_ends_when_that_key_is_replaced() {
    let (stolen, new) = (key(), key());
    let (sender, place) = (signed_by(&stolen), Place::new());
    sender.amend(|last| last.head.generation = u64::MAX);
    sender.sign(&stolen, HOUR);
    run(trusting(&place, &sender, &[&stolen])).unwrap();
    sender.amend(|last| last.head.generation = 2);
    sender.sign(&stolen, HOUR);
    let older = TrustError::Older { found: 2, accepted: u64::MAX };
    assert_eq!(assert_refused(&place, &sender, &[&stolen], Some(&sample())), older);
    sender.sign(&new, HOUR);
    run(Options { allow_older: true, ..trusting(&place, &sender, &[&new]) }).unwrap();
    // The old key is still remembered, should somebody trust it again.
    sender.sign(&stolen, HOUR);
    assert_eq!(assert_refused(&place, &sender, &[&new, &stolen], Some(&sample())), older);
}

#[test]
fn a_list_of_another_generation_is_refused_before_any_file_is_fetched() {
    let key = key();
    let (sender, place) = (signed_by(&key), Place::new());
    let mixed = Sender::of(&sample().file("dir/b", noise(50_000, 2)));
    let encoded = mixed.current().encoded.clone();
    sender.amend(|last| {
        last.encoded = encoded;
        last.head.list_len = last.encoded.len() as u64;
        last.head.expires = Some(Time { sec: now() + HOUR, nsec: 0 });
        last.signature = Some(signature(&key, &last.head.encode()));
    });
    let error = run(trusting(&place, &sender, &[&key])).unwrap_err();
    assert!(matches!(&error, PullError::Protocol(text) if text.contains("digest in its head")), "{error}");
    assert!(!sender.requests().iter().any(|request| matches!(request, Request::Data { .. })));
    assert_untouched(&place);
}

#[test]
fn the_signed_head_of_another_repository_is_refused() {
    let key = key();
    let (sender, place) = (signed_by(&key), Place::new());
    sender.amend(|last| last.head.repository = "other".to_owned());
    sender.sign(&key, HOUR);
    let error = run(trusting(&place, &sender, &[&key])).unwrap_err();
    assert!(matches!(&error, PullError::Protocol(text) if text.contains("'other' instead of")), "{error}");
    assert_untouched(&place);
}

#[test]
fn endless_data_in_place_of_a_signature_is_refused() {
    let key = key();
    type Tamper = fn(u32, Vec<Vec<u8>>) -> Vec<Vec<u8>>;
    let tampers: [Tamper; 3] = [
        |n, honest| vec![honest[0].clone(), frame(n, kind::SIGNATURE, &vec![b'x'; limits::SIGNATURE + 1])],
        |n, honest| [vec![honest[0].clone()], vec![Reply::Signature(vec![b'x'; 100]).frame(n); 100_000]].concat(),
        |n, honest| vec![Reply::Signature(vec![b'x'; 100]).frame(n), honest[0].clone(), Reply::End.frame(n)],
    ];
    for tamper in tampers {
        let (sender, place) = (signed_by(&key), Place::new());
        sender.tamper(move |n, request, frames| match request {
            Request::Head { .. } => tamper(n, frames),
            _ => frames,
        });
        let error = run(trusting(&place, &sender, &[&key])).unwrap_err();
        assert!(matches!(error, PullError::Protocol(_)), "{error}");
        assert_untouched(&place);
    }
}

#[test]
fn either_of_two_keys_may_sign_so_a_key_can_be_replaced() {
    let (old, new) = (key(), key());
    let (sender, place) = (signed_by(&old), Place::new());
    run(trusting(&place, &sender, &[&old, &new])).unwrap();
    let newer = sample().file("new", "new");
    sender.publish_signed(&newer, &new);
    run(trusting(&place, &sender, &[&old, &new])).unwrap();
    assert_same(&place.dest(), &newer);
    // A receiver that does not trust the stolen key any more refuses it.
    sender.publish_signed(&sample().file("evil", "evil"), &old);
    let unknown = TrustError::Signature(SignatureError::UnknownKey(public(&old).id()));
    assert_eq!(assert_refused(&place, &sender, &[&new], Some(&newer)), unknown);
}

#[test]
fn two_trees_signed_as_one_generation_are_an_error_of_their_own() {
    let key = key();
    let (sender, place) = (signed_by(&key), Place::new());
    run(trusting(&place, &sender, &[&key])).unwrap();
    let accepted = sender.current().head.list_digest;
    sender.publish(&sample().file("other", "other"));
    sender.amend(|last| last.head.generation = 1);
    sender.sign(&key, HOUR);
    let found = sender.current().head.list_digest;
    let equivocation = TrustError::Equivocation { generation: 1, found, accepted };
    assert_eq!(assert_refused(&place, &sender, &[&key], Some(&sample())), equivocation);
}

#[test]
fn files_that_the_signed_list_does_not_name_are_not_brought() {
    let key = key();
    let (sender, place) = (signed_by(&key), Place::new());
    sender.tamper(|n, request, honest| match request {
        Request::Data { .. } => [vec![frame(n, kind::BYTES, b"extraneous")], honest].concat(),
        _ => honest,
    });
    let error = run(trusting(&place, &sender, &[&key])).unwrap_err();
    assert!(matches!(error, PullError::Protocol(_)), "{error}");
    assert!(!place.file("a").exists() && !place.file("dir").exists());
}

#[test]
fn a_renewed_head_is_brought_without_its_list_and_served_on() {
    let key = key();
    for check in [Check::Stat, Check::None] {
        let (sender, place) = (signed_by(&key), Place::new());
        let options = || Options { check, ..trusting(&place, &sender, &[&key]) };
        run(options()).unwrap();
        sender.publish_again();
        sender.sign(&key, 2 * HOUR);
        sender.requests();
        let report = run(options()).unwrap();
        assert!(sender.requests().iter().all(|request| matches!(request, Request::Head { .. })));
        assert_eq!((report.published, report.round_trips), (Some(2), 1));
        let held = Store::open(&place.store()).unwrap().current().unwrap().unwrap();
        assert_eq!(held.head_bytes(), sender.current().head.encode());
        assert_eq!(held.signature(), sender.current().signature.as_deref());
        assert_eq!(
            Store::open(&place.store()).unwrap().generations().unwrap(),
            [2],
            "it replaces the one that it renews"
        );
        assert_eq!(run(options()).unwrap().published, None);
        // The head before the renewal is a rollback, although its list is the same.
        sender.go_back();
        let older = TrustError::Older { found: 1, accepted: 2 };
        assert_eq!(assert_refused(&place, &sender, &[&key], Some(&sample())), older);
    }
}

#[test]
fn a_part_keeps_the_origins_signature_and_is_not_signed_itself() {
    let key = key();
    let (sender, place) = (signed_by(&key), Place::new());
    let part = || Options { path: b"dir".to_vec(), ..trusting(&place, &sender, &[&key]) };
    run(part()).unwrap();
    let held = || Store::open(&place.store()).unwrap().current().unwrap().unwrap();
    assert_eq!((held().signature(), held().head().expires), (None, None));
    assert_eq!(held().origin().unwrap().signature, sender.current().signature.as_deref());
    assert_eq!(fs::read(held().dir().join("origin-head")).unwrap(), sender.current().head.encode());
    assert_eq!(run(part()).unwrap().published, None);
    sender.publish_again();
    sender.sign(&key, 2 * HOUR);
    run(part()).unwrap();
    assert_eq!(held().origin().unwrap().signature, sender.current().signature.as_deref());
    // The rest follows, and then the generation is the origin's, with its signature.
    let (whole, dir) = (Place::new(), sender.current().head.encode());
    run(trusting(&whole, &sender, &[&key])).unwrap();
    let store = Store::open(&whole.store()).unwrap();
    assert_eq!(store.current().unwrap().unwrap().head_bytes(), dir);
}

#[test]
fn a_newer_generation_in_the_middle_of_a_pull_must_be_trusted_too() {
    let (key, foreign) = (key(), key());
    for is_trusted in [true, false] {
        let (sender, place) = (Sender::of(&sample()), Place::new());
        sender.fail(&[("a", ItemFailure::Vanished)]);
        sender.sign(&key, HOUR);
        let newer = sample().file("a", "newer");
        let publisher = sender.clone();
        let (signer, once) = (if is_trusted { key.clone() } else { foreign.clone() }, std::sync::Once::new());
        let tree = newer.clone();
        sender.tamper(move |_, request, frames| {
            if let Request::Data { .. } = request {
                once.call_once(|| publisher.publish_signed(&tree, &signer));
            }
            frames
        });
        let patience = Duration::from_secs(60);
        let result = run(Options { patience, ..trusting(&place, &sender, &[&key]) });
        if is_trusted {
            assert_eq!(result.unwrap().generation, 2);
            assert_same(&place.dest(), &newer);
        } else {
            assert!(matches!(result, Err(PullError::Untrusted { .. })), "{result:?}");
            assert!(!place.file("a").exists());
        }
    }
}

#[test]
fn a_sender_that_knows_no_signatures_is_pulled_from_and_never_trusted() {
    let key = key();
    let (sender, place) = (signed_by(&key), Place::new());
    sender.behave(Behaviour { is_old: true, ..Behaviour::default() });
    assert_eq!(assert_refused(&place, &sender, &[&key], None), TrustError::Unsigned);
    run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &sample());
    // After its upgrade, the signature follows.
    sender.behave(Behaviour::default());
    run(trusting(&place, &sender, &[&key])).unwrap();
    let held = Store::open(&place.store()).unwrap().current().unwrap().unwrap();
    assert_eq!(held.signature(), sender.current().signature.as_deref());
}

#[test]
fn a_dry_run_checks_the_head_and_remembers_nothing() {
    let (key, foreign) = (key(), key());
    let (sender, place) = (signed_by(&key), Place::new());
    let dry = |key: &KeyPair| run(Options { dry_run: true, ..trusting(&place, &sender, &[key]) });
    assert!(matches!(dry(&foreign), Err(PullError::Untrusted { .. })));
    dry(&key).unwrap();
    assert!(!place.store().exists());
}

#[test]
fn a_damaged_memory_of_accepted_generations_is_not_taken_for_an_empty_one() {
    let key = key();
    let (sender, place) = (signed_by(&key), Place::new());
    run(trusting(&place, &sender, &[&key])).unwrap();
    let path = place.store().join("trust");
    let mut text = fs::read(&path).unwrap();
    text.pop();
    fs::write(&path, text).unwrap();
    let error = run(trusting(&place, &sender, &[&key])).unwrap_err();
    assert!(matches!(&error, PullError::TrustFile(named) if *named == path), "{error:?}");
    fs::remove_file(&path).unwrap();
    run(trusting(&place, &sender, &[&key])).unwrap();
}

#[test]
fn trusted_keys_without_a_store_are_refused() {
    let key = key();
    let (sender, place) = (signed_by(&key), Place::new());
    let error = run(Options { store: None, ..trusting(&place, &sender, &[&key]) }).unwrap_err();
    assert!(matches!(error, PullError::Usage(_)), "{error:?}");
    assert_untouched(&place);
}

#[test]
fn of_several_senders_the_newest_head_that_is_trusted_wins() {
    let (honest, forger, place) = (key(), key(), Place::new());
    let newer = sample().file("c", "c");
    let forged = signed_by(&honest);
    forged.publish_signed(&newer.clone().file("evil", "evil"), &forger);
    forged.publish_signed(&newer.clone().file("evil", "more"), &forger);
    let expired = signed_by(&honest);
    expired.publish(&newer);
    expired.sign(&honest, -HOUR);
    let (old, newest) = (signed_by(&honest), signed_by(&honest));
    newest.publish_signed(&newer, &honest);
    let alternatives = [&expired, &old, &newest].map(|sender| sender.address.clone().into()).to_vec();
    let report = run(Options { alternatives, ..trusting(&place, &forged, &[&honest]) }).unwrap();
    assert_same(&place.dest(), &newer);
    assert_eq!(report.generation, 2);
    for bad in [&forged, &expired] {
        let served = report.senders.iter().find(|served| served.address == bad.address).unwrap();
        assert!(served.failure.is_some(), "{:?}", report.senders);
    }
}
