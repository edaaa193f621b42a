//! What clients ask for and get.

use stillmirror_protocol::wire::Item;

use crate::support::{Fixture, soon};

#[tokio::test]
async fn a_whole_file_and_ranges_of_it_come_as_they_are_on_disk() {
    let content: Vec<u8> = (0..3_000_001u32).map(|n| (n * 7 + (n >> 8)) as u8).collect();
    let fixture = Fixture::with(&[("big", &content), ("dir/small", b"hello"), ("empty", b"")]);
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    let row = fixture.row("big");
    let mut items = vec![fixture.whole("big"), fixture.whole("empty"), fixture.whole("dir/small")];
    let mut expected = [content.as_slice(), b"hello"].concat();
    for (offset, len) in [(0, 1), (4095, 2), (262_143, 262_146), (2_999_999, 2), (3_000_001, 0), (70_000, 130_000)] {
        items.push(Item { row, offset, len });
        expected.extend_from_slice(&content[offset as usize..(offset + len) as usize]);
    }
    let answer = soon(client.data(handle, items)).await;
    assert_eq!((answer.error, answer.failures), (None, Vec::new()));
    assert!(answer.bytes == expected);
}

#[tokio::test]
async fn a_request_for_nothing_is_answered_with_nothing() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    assert_eq!(soon(client.data(handle, Vec::new())).await, Default::default());
}
