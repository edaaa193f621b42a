//! A daemon that runs as root: files that are not readable for everybody are not sent to native clients, neither from
//! the tree nor from the store.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use stillmirror_protocol::wire::{Item, ItemFailure, Request};

use crate::support::{Fixture, Server, noise, soon};

#[tokio::test]
async fn neither_contents_nor_block_checksums_of_private_files_are_sent() {
    let fixture = Fixture::new();
    let large = noise(3_000_000);
    for (name, content) in
        [("all", &b"for all"[..]), ("own", b"root's own"), ("dir/in", b"in a closed directory"), ("large", &large)]
    {
        fixture.write(name, content);
    }
    // The content of this file is in the store, and it has a second name outside of the closed directory.
    std::fs::hard_link(fixture.root().join("dir/in"), fixture.root().join("out")).unwrap();
    for (name, mode) in [("own", 0o600), ("dir", 0o700), ("large", 0o640)] {
        std::fs::set_permissions(fixture.root().join(name), Permissions::from_mode(mode)).unwrap();
    }
    fixture.index_with_contents();
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let names = ["all", "own", "dir/in", "out", "large", "all"];
    let items: Vec<Item> = names.iter().map(|name| fixture.whole(name)).collect();
    let sums = |handle| Request::Sums { handle, items: items.clone() };
    let records = |is_sent: &dyn Fn(&str) -> bool| -> Vec<u8> {
        let record = |name: &&str| {
            let part = &name.as_bytes()[..name.len().min(fixture.whole(name).len as usize)];
            let sent = if is_sent(name) { part } else { &[] };
            [&(sent.len() as u32).to_le_bytes(), sent].concat()
        };
        names.iter().flat_map(record).collect()
    };
    for serves_private in [false, true] {
        let server = Server::start(fixture.config(|config| config.serve_private = serves_private)).await;
        let mut client = server.client().await;
        let (handle, _) = soon(client.pin()).await;
        let data = soon(client.data(handle, items.clone())).await;
        let checksums = soon(client.ask(&sums(handle))).await;
        if serves_private {
            assert!(data.failures.is_empty() && data.bytes.ends_with(b"for all"));
            assert_eq!(checksums.bytes, records(&|_| true));
            continue;
        }
        assert_eq!(data.bytes, b"for allin a closed directoryfor all");
        let failed: Vec<_> = data.failures.iter().map(|&(_, item, reason)| (item, reason)).collect();
        assert_eq!(failed, [1, 2, 4].map(|item| (item, ItemFailure::Unreadable)));
        assert_eq!(checksums.bytes, records(&|name| matches!(name, "all" | "out")));
    }
}
