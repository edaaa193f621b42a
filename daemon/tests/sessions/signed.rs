//! Signed heads, and clients that do not read them.

use stillmirror_protocol::entry::{Digest, Time};
use stillmirror_protocol::head::{Head, SliceMark};
use stillmirror_protocol::wire::{ClientHello, Repository, Request, SIGNED_HEADS};
use stillmirror_store::Store;

use crate::support::*;

/// Signs the current generation: publishes its list with a head that expires. Nobody verifies the signature here.
pub(crate) fn sign(fixture: &Fixture, signature: &[u8]) -> Vec<u8> {
    let store = Store::open(&fixture.store()).unwrap();
    let (lock, current) = (store.lock().unwrap(), store.current().unwrap().unwrap());
    let draft = store.begin(&lock).unwrap();
    draft.link_all(&current).unwrap();
    let expires = Some(Time { sec: 4_000_000_000, nsec: 0 });
    let head = Head { generation: draft.number(), expires, ..current.head().clone() }.encode();
    draft.write_head(&head).unwrap();
    draft.write_signature(signature).unwrap();
    draft.publish().unwrap();
    head
}

#[tokio::test]
async fn a_client_gets_the_signature_with_the_head_as_they_are_stored() {
    let fixture = Fixture::with(&[("a", b"content")]);
    fixture.index();
    let head = sign(&fixture, b"a signature");
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let answer = soon(client.ask(&Request::Head { repository: "repo".to_owned() })).await;
    let (handle, bytes) = answer.pinned.unwrap();
    assert_eq!((bytes, answer.signature.as_deref()), (head.clone(), Some(&b"a signature"[..])));
    assert_eq!(soon(client.data(handle, vec![fixture.whole("a")])).await.bytes, b"content");
    let announced = soon(client.ask(&Request::Repositories)).await.bytes;
    assert_eq!(Repository::decode_all(&announced).unwrap()[0].head, head);
}

#[tokio::test]
async fn an_older_client_gets_a_head_that_it_reads_and_no_signature() {
    let fixture = Fixture::with(&[("a", b"content")]);
    fixture.index();
    sign(&fixture, b"a signature");
    let server = fixture.serve().await;
    let older = ClientHello { capabilities: 0, ..ClientHello::OURS };
    let mut client = Client::connect_as(server.addr, older).await;
    let answer = soon(client.ask(&Request::Head { repository: "repo".to_owned() })).await;
    assert_eq!(answer.signature, None);
    let (handle, bytes) = answer.pinned.unwrap();
    let expected = Head { expires: None, ..fixture.current().head().clone() };
    assert_eq!((bytes[8], Head::decode(&bytes).unwrap()), (1, expected), "format 1");
    assert_eq!(soon(client.data(handle, vec![fixture.whole("a")])).await.bytes, b"content");
    let announced = soon(client.ask(&Request::Repositories)).await.bytes;
    assert_eq!(Repository::decode_all(&announced).unwrap()[0].head, bytes);
}

#[tokio::test]
async fn an_older_client_gets_the_head_of_a_slice_as_if_it_were_whole() {
    let fixture = Fixture::with(&[("a", b"content")]);
    fixture.index();
    let store = Store::open(&fixture.store()).unwrap();
    let current = store.current().unwrap().unwrap();
    let lock = store.lock().unwrap();
    let draft = store.begin(&lock).unwrap();
    draft.link_all(&current).unwrap();
    let slice = Some(SliceMark::new(Digest([7; 32]), "suite stable"));
    let head = Head { generation: draft.number(), slice, ..current.head().clone() };
    draft.write_head(&head.encode()).unwrap();
    draft.publish().unwrap();
    drop(lock);
    let server = fixture.serve().await;
    let ours = ClientHello::OURS.capabilities;
    for (capabilities, format, slice) in [(ours, 3, head.slice.clone()), (SIGNED_HEADS, 1, None), (0, 1, None)] {
        let hello = ClientHello { capabilities, ..ClientHello::OURS };
        let mut client = Client::connect_as(server.addr, hello).await;
        let (_, bytes) = soon(client.ask(&Request::Head { repository: "repo".to_owned() })).await.pinned.unwrap();
        assert_eq!((bytes[8], Head::decode(&bytes).unwrap()), (format, Head { slice, ..head.clone() }));
        let announced = soon(client.ask(&Request::Repositories)).await.bytes;
        assert_eq!(Repository::decode_all(&announced).unwrap()[0].head, bytes);
    }
}

#[tokio::test]
async fn a_new_signature_reaches_sessions_that_begin_later() {
    let fixture = Fixture::with(&[("a", b"content")]);
    fixture.index();
    sign(&fixture, b"first");
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let ask = Request::Head { repository: "repo".to_owned() };
    assert_eq!(soon(client.ask(&ask)).await.signature.unwrap(), b"first");
    sign(&fixture, b"second");
    let renewed = async {
        while soon(server.client().await.ask(&ask)).await.signature.unwrap() != b"second" {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    soon(renewed).await;
}
