use stillmirror_protocol::changes::{self, Changes};
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::list;
use stillmirror_protocol::wire::{self, ErrorCode, Item, ListForm, Repository, Request};

use crate::support::{Answer, Fixture, noise, soon};

#[tokio::test]
async fn a_whole_file_and_ranges_of_it_are_sent_as_they_are_on_disk() {
    let content = noise(3_000_001);
    let fixture = Fixture::with(&[("big", &content), ("dir/small", b"hello"), ("empty", b"")]);
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    let row = fixture.row("big");
    let mut items = vec![fixture.whole("big"), fixture.whole("empty"), fixture.whole("dir/small")];
    let mut expected = [content.as_slice(), b"hello"].concat();
    for (offset, len) in [(0, 1), (4095, 2), (262_143, 262_146), (2_999_999, 2), (3_000_001, 0), (70_000, 700_000)] {
        items.push(Item { row, offset, len });
        expected.extend_from_slice(&content[offset as usize..(offset + len) as usize]);
    }
    let answer = soon(client.data(handle, items)).await;
    assert_eq!((answer.error, answer.failures), (None, Vec::new()));
    assert!(answer.bytes == expected);
}

#[tokio::test]
async fn thousands_of_small_files_are_sent_in_request_order() {
    let fixture = Fixture::new();
    for n in 0..2000 {
        fixture.write(&format!("d{}/f{n}", n % 7), format!("content of {n}").as_bytes());
    }
    fixture.index();
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    let generation = fixture.current();
    let items = |range: std::ops::Range<u32>| -> Vec<Item> {
        let row = |n: u32| generation.list().find(format!("d{}/f{n}", n % 7).as_bytes()).unwrap();
        range.rev().map(|n| Item { row: row(n).number(), offset: 0, len: row(n).size() }).collect()
    };
    let first = client.send(&Request::Data { handle, items: items(0..1000) }).await;
    let second = client.send(&Request::Data { handle, items: items(1000..2000) }).await;
    for (number, range) in [(first, 0..1000), (second, 1000..2000)] {
        let expected: String = range.rev().map(|n| format!("content of {n}")).collect();
        let answer = soon(client.answer(number)).await;
        assert_eq!(String::from_utf8(answer.bytes).unwrap(), expected);
    }
}

#[tokio::test]
async fn a_head_does_not_wait_behind_files_requested_before_it() {
    let content = noise(40 << 20);
    let fixture = Fixture::with(&[("big", &content)]);
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    let data = client.send(&Request::Data { handle, items: vec![fixture.whole("big")] }).await;
    let head = client.send(&Request::Head { repository: "repo".to_owned() }).await;
    let mut after_head = 0;
    let mut has_head = false;
    loop {
        let (header, payload) = soon(client.frame()).await.unwrap();
        has_head |= header.request == head;
        if has_head && header.request == data {
            after_head += payload.len();
        }
        if header.request == data && header.kind == wire::kind::END {
            break;
        }
    }
    assert!(after_head > 0, "the head was sent only after the whole file");
}

#[tokio::test]
async fn a_request_without_items_gets_an_empty_answer() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    assert_eq!(soon(client.data(handle, Vec::new())).await, Answer::default());
    assert_eq!(soon(client.ask(&Request::Sums { handle, items: Vec::new() })).await, Answer::default());
}

#[tokio::test]
async fn repositories_are_announced_with_their_heads() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = fixture.serve().await;
    let answer = soon(server.client().await.ask(&Request::Repositories)).await;
    let head = fixture.current().head_bytes().to_vec();
    let expected = Repository { name: "repo".to_owned(), comment: "a test".to_owned(), head };
    assert_eq!(Repository::decode_all(&answer.bytes), Ok(vec![expected]));
}

#[tokio::test]
async fn a_list_is_sent_whole_or_as_deltas_or_not_at_all() {
    let fixture = Fixture::new();
    for n in 0..300 {
        fixture.write(&format!("f{n}"), &noise(n));
    }
    fixture.index();
    let first = fixture.current();
    fixture.write("f7", b"changed");
    fixture.index();
    let second = fixture.current();
    fixture.write("new", b"new");
    fixture.index();
    let third = fixture.current();

    // Heads and deltas of older generations are enough.
    for generation in [first.dir(), second.dir()] {
        for name in ["list", "list.zst", "local", "packs"] {
            std::fs::remove_file(generation.join(name)).unwrap();
        }
    }
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, head) = client.pin().await;
    assert_eq!(head, *third.head());

    let answer = soon(client.ask(&Request::List { handle, have: head.list_digest })).await;
    assert_eq!((answer.form, answer.bytes.len()), (Some(ListForm::Unchanged), 0));

    for older in [&first, &second] {
        let answer = soon(client.ask(&Request::List { handle, have: older.head().list_digest })).await;
        let Some(ListForm::Deltas(lens)) = answer.form else { panic!("{:?}", answer.form) };
        let mut encoded = older.list_bytes().to_vec();
        let mut rest = answer.bytes.as_slice();
        for len in lens {
            let (delta, after) = rest.split_at(len as usize);
            let (from, _, changes) = Changes::decode(delta).unwrap();
            assert_eq!(from, list::digest(&encoded));
            let mut aligned = rkyv_aligned(&encoded);
            aligned = changes::apply(Some(list::open(&aligned).unwrap()), &changes).unwrap().list.encode();
            encoded = aligned.to_vec();
            rest = after;
        }
        assert_eq!((list::digest(&encoded), rest.len()), (head.list_digest, 0));
    }

    for unknown in [Digest::NONE, Digest([9; 32])] {
        let answer = soon(client.ask(&Request::List { handle, have: unknown })).await;
        assert_eq!(answer.form, Some(ListForm::Whole { list_len: head.list_len }));
        assert!(answer.bytes == third.list_zst());
    }
}

fn rkyv_aligned(bytes: &[u8]) -> rkyv::util::AlignedVec {
    let mut aligned = rkyv::util::AlignedVec::new();
    aligned.extend_from_slice(bytes);
    aligned
}

#[tokio::test]
async fn a_directory_is_sent_with_all_children_and_a_file_as_its_own_only_child() {
    let fixture = Fixture::new();
    for n in 0..3000 {
        fixture.write(&format!("dir/a-name-of-some-length-{n:05}"), b"");
    }
    fixture.write("dir/below/x", b"xyz");
    fixture.index();
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    let generation = fixture.current();
    let dir = generation.list().find(b"dir").unwrap().dir_number().unwrap();
    let expected: Vec<_> =
        generation.list().dir(dir).children().map(|(name, row)| (name.to_vec(), row.to_entry())).collect();
    let answer = soon(client.ask(&Request::Dir { handle, path: b"dir".to_vec() })).await;
    assert!(wire::decode_dir(&answer.bytes).unwrap() == expected);

    let answer = soon(client.ask(&Request::Dir { handle, path: b"dir/below/x".to_vec() })).await;
    let children = wire::decode_dir(&answer.bytes).unwrap();
    assert_eq!((children.len(), children[0].0.as_slice()), (1, &b"x"[..]));

    let answer = soon(client.ask(&Request::Dir { handle, path: b"dir/nothing".to_vec() })).await;
    assert_eq!(answer.error.unwrap().0, ErrorCode::NotThere);
}

#[tokio::test]
async fn block_checksums_are_cut_at_the_end_of_the_record() {
    let fixture = Fixture::with(&[("a-file", b"x"), ("dir/other", b"y")]);
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    let (a, other) = (fixture.row("a-file"), fixture.row("dir/other"));
    let items = vec![
        Item { row: a, offset: 0, len: 1000 },
        Item { row: other, offset: 4, len: 3 },
        Item { row: other, offset: 1000, len: 1 },
    ];
    let answer = soon(client.ask(&Request::Sums { handle, items })).await;
    assert_eq!(answer.bytes, b"\x06\0\0\0a-file\x03\0\0\0oth\0\0\0\0");
}

#[tokio::test]
async fn a_request_for_something_missing_fails_but_the_session_goes_on() {
    let fixture = Fixture::with(&[("a", b"twelve bytes")]);
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    let row = fixture.row("a");
    let item = |row, offset, len| vec![Item { row, offset, len }];
    for items in [item(row, 0, 13), item(row, 13, 0), item(99, 0, 0), item(0, 0, 0)] {
        let answer = soon(client.data(handle, items)).await;
        assert_eq!(answer.error.unwrap().0, ErrorCode::NotThere);
    }
    let answer = soon(client.ask(&Request::Sums { handle, items: item(99, 0, 1) })).await;
    assert_eq!(answer.error.unwrap().0, ErrorCode::NotThere);
    let answer = soon(client.data(handle + 1, item(row, 0, 1))).await;
    assert_eq!(answer.error.unwrap().0, ErrorCode::NotThere);
    let answer = soon(client.ask(&Request::Head { repository: "other".to_owned() })).await;
    assert_eq!(answer.error.unwrap().0, ErrorCode::UnknownRepository);
    assert_eq!(soon(client.data(handle, item(row, 7, 5))).await.bytes, b"bytes");
}

#[tokio::test]
async fn many_clients_get_bits_of_many_files_while_another_gets_a_whole_file() {
    let files: Vec<(String, Vec<u8>)> =
        (0..60).map(|at| (format!("file{at:02}"), noise(if at % 3 == 0 { 300_000 } else { 5_000 + at }))).collect();
    let named: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (&**name, &**bytes)).collect();
    let fixture = Fixture::with(&named);
    let server = fixture.serve().await;
    let bits = |client: usize| {
        let item = |at: usize| {
            let (name, bytes) = &files[(at * 7 + client) % files.len()];
            let offset = (at * 31) % (bytes.len() - 3);
            (Item { offset: offset as u64, len: 3, ..fixture.whole(name) }, &bytes[offset..offset + 3])
        };
        (0..2_000).map(item).unzip::<_, _, Vec<_>, Vec<_>>()
    };
    let mut clients = Vec::new();
    for client in 0..8 {
        let (items, expected) = bits(client);
        let mut connection = server.client().await;
        let (handle, _) = soon(connection.pin()).await;
        let request = connection.send(&Request::Data { handle, items }).await;
        clients.push((connection, request, expected.concat()));
    }
    let mut honest = server.client().await;
    let (handle, _) = soon(honest.pin()).await;
    let answer = soon(honest.data(handle, vec![fixture.whole("file00")])).await;
    assert!(answer.bytes == files[0].1);
    for (mut connection, request, expected) in clients {
        assert!(soon(connection.answer(request)).await.bytes == expected);
    }
}
