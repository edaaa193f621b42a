use std::os::unix::fs::symlink;

use stillmirror_daemon::Port;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::lists::encoded;
use super::support::{Entry, assert_same, begin, dest, index_aged, rsync, rsync_with, tree};
use crate::support::{Fixture, Server, noise, soon};

/// Creates a tree with files of every size class, hard links, a symlink, and an empty directory.
fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fixture.write("large", &noise(3_500_000));
    fixture.write("dir/middle", &noise(200_000));
    fixture.write("dir/empty", b"");
    for number in 0..300 {
        fixture.write(&format!("many/{}/file-{number}", number % 7), format!("content {number}").as_bytes());
    }
    std::fs::hard_link(fixture.root().join("dir/middle"), fixture.root().join("many/link")).unwrap();
    symlink("../large", fixture.root().join("dir/symlink")).unwrap();
    std::fs::create_dir(fixture.root().join("nothing")).unwrap();
    index_aged(&fixture);
    fixture
}

#[tokio::test]
async fn every_protocol_version_transfers_the_whole_tree() {
    let fixture = fixture();
    let server = fixture.serve().await;
    for protocol in 27..=32 {
        let (version, dest) = (format!("--protocol={protocol}"), fixture.dir.path().join(protocol.to_string()));
        rsync(&server, &["-aH", &version], "repo/", Some(&dest)).await.exits(0);
        let (mut ours, mut theirs) = (tree(&fixture.root()), tree(&dest));
        if protocol < 31 {
            // Older protocols transfer no nanoseconds.
            ours.values_mut().chain(theirs.values_mut()).for_each(Entry::without_nanoseconds);
        }
        assert_eq!(ours, theirs, "protocol {protocol}");
    }
}

#[tokio::test]
async fn options_that_change_the_encoding_transfer_the_same_tree() {
    let fixture = fixture();
    let server = fixture.serve().await;
    let choices: [&[&str]; 12] = [
        &["--no-inc-recursive"],
        &["-c"],
        &["-z"],
        &["--compress-choice=lz4"],
        &["-z", "--old-compress"],
        &["--checksum-choice=md5"],
        &["--checksum-choice=xxh64"],
        &["--checksum-choice=sha1"],
        &["--checksum-choice=none"],
        &["--delete", "--stats"],
        &["--delay-updates", "--delete-delay"],
        &["-AX"],
    ];
    for options in choices {
        let dest = dest(&fixture);
        std::fs::create_dir_all(dest.join("many/not-there")).unwrap();
        rsync(&server, &[&["-aH", "--delete"], options].concat(), "repo/", Some(&dest)).await.exits(0);
        assert_same(&fixture.root(), &dest);
        std::fs::remove_dir_all(dest).unwrap();
    }
}

#[tokio::test]
async fn a_second_pull_transfers_nothing_and_one_after_changes_transfers_them() {
    let fixture = fixture();
    let server = fixture.serve().await;
    let dest = dest(&fixture);
    for _ in 0..2 {
        rsync(&server, &["-aH"], "repo/", Some(&dest)).await.exits(0);
    }
    let idle = rsync(&server, &["-aHi", "--delete"], "repo/", Some(&dest)).await;
    assert_eq!(idle.exits(0).out, "");
    fixture.write("dir/middle", &noise(300_000)[1..]);
    std::fs::remove_file(fixture.root().join("many/3/file-3")).unwrap();
    index_aged(&fixture);
    server.reload.reload();
    soon(async {
        while dest.join("many/3/file-3").exists() {
            rsync(&server, &["-aH", "--delete"], "repo/", Some(&dest)).await;
        }
    })
    .await;
    assert_same(&fixture.root(), &dest);
}

#[tokio::test]
async fn a_partial_file_is_completed() {
    let fixture = fixture();
    let server = fixture.serve().await;
    let whole = std::fs::read(fixture.root().join("large")).unwrap();
    for option in ["--append", "--append-verify", "--inplace"] {
        for protocol in ["--protocol=29", "--protocol=30", "--protocol=32"] {
            let dest = dest(&fixture);
            std::fs::create_dir_all(&dest).unwrap();
            std::fs::write(dest.join("large"), &whole[..1_234_567]).unwrap();
            rsync(&server, &["-a", option, protocol], "repo/", Some(&dest)).await.exits(0);
            assert!(std::fs::read(dest.join("large")).unwrap() == whole, "{option} {protocol}");
            std::fs::remove_dir_all(dest).unwrap();
        }
    }
}

#[tokio::test]
async fn a_file_that_fails_append_verify_is_sent_whole() {
    let fixture = fixture();
    let server = fixture.serve().await;
    let dest = dest(&fixture);
    std::fs::create_dir_all(&dest).unwrap();
    std::fs::write(dest.join("large"), vec![b'x'; 100_000]).unwrap();
    rsync(&server, &["-aH", "--append-verify"], "repo/", Some(&dest)).await.exits(0);
    assert_same(&fixture.root(), &dest);
}

#[tokio::test]
async fn paths_names_and_filters_select_what_is_sent() {
    let fixture = fixture();
    let server = fixture.serve().await;
    let names = fixture.dir.path().join("names");
    std::fs::write(&names, "dir/empty\nmany/3/\n").unwrap();
    let from = format!("--files-from={}", names.display());
    for (arguments, path, there, not_there) in [
        (&["-a"][..], "repo/dir", "dir/middle", "large"),
        (&["-a"], "repo/dir/", "middle", "large"),
        (&["-aR"], "repo/many/./3/file-3", "3/file-3", "3/file-10"),
        (&["-a"], "repo/many/[34]", "4/file-4", "5"),
        (&["-a", &from], "repo/", "dir/empty", "dir/middle"),
        (&["-ar", &from], "repo/", "many/3/file-3", "many/4"),
        (&["-a", "--exclude=file-*", "--include=*"], "repo/many/", "3", "3/file-3"),
        (&["-a", "--exclude=/large"], "repo/", "dir/middle", "large"),
    ] {
        for protocol in ["--protocol=28", "--protocol=30", "--protocol=31"] {
            let dest = dest(&fixture);
            rsync(&server, &[arguments, &[protocol]].concat(), path, Some(&dest)).await.exits(0);
            let has = |name: &str| dest.join(name).symlink_metadata().is_ok();
            assert!(has(there) && !has(not_there), "{arguments:?} {path} {protocol}");
            std::fs::remove_dir_all(dest).unwrap();
        }
    }
}

#[tokio::test]
async fn names_can_come_from_a_file_in_the_repository() {
    let fixture = fixture();
    let missing: String = (0..10_000).map(|number| format!("not-here-{number}\n")).collect();
    let names = format!("# a comment\ndir/empty\r\n{missing}\nmany/3/file-3");
    fixture.write("names", names.as_bytes());
    fixture.write("long", &[&b"dir/empty\n"[..], &[b'x'; 200_000]].concat());
    index_aged(&fixture);
    let server = fixture.serve().await;
    let dest = dest(&fixture);
    let ran = rsync(&server, &["-a", "--files-from=:names"], "repo/", Some(&dest)).await;
    ran.exits(23).says("not-here-0").says("not-here-9999");
    assert!(dest.join("dir/empty").exists() && dest.join("many/3/file-3").exists() && !dest.join("large").exists());
    rsync(&server, &["-a", "--files-from=:long"], "repo/", Some(&dest)).await.exits(12).says("--files-from");
    rsync(&server, &["-a", "--files-from=:none"], "repo/", Some(&dest)).await.exits(5).says("files-from file none");
}

#[tokio::test]
async fn a_missing_path_is_reported_and_the_others_are_sent() {
    let fixture = fixture();
    let server = fixture.serve().await;
    let dest = dest(&fixture);
    let other = format!("rsync://{}/repo/dir", server.addr);
    let ran = rsync(&server, &["-a", &other], "repo/not-here", Some(&dest)).await;
    ran.exits(23).says("not-here");
    assert!(dest.join("dir/middle").exists());
}

#[tokio::test]
async fn listings_and_dry_runs_change_nothing() {
    let fixture = fixture();
    let server = fixture.serve().await;
    let listed = rsync(&server, &["-r", "--list-only"], "repo/", None).await;
    listed.exits(0).says("many/3/file-3").says("large");
    let dest = dest(&fixture);
    rsync(&server, &["-anv"], "repo/", Some(&dest)).await.exits(0).says("dir/middle");
    assert!(!dest.exists());
}

#[tokio::test]
async fn every_entry_can_be_requested_in_a_tree_larger_than_the_window() {
    let fixture = Fixture::new();
    fixture.write("first", b"x");
    // A directory that is larger than the window, and a hundred small ones.
    for number in 0..44_000 {
        // Hard links are faster to make than files. The client does not ask for hard link groups.
        let dir = if number < 36_000 { "wide".to_owned() } else { format!("wide/{}", number % 100 + 100_000) };
        if number == 0 || (36_000..36_100).contains(&number) {
            std::fs::create_dir_all(fixture.root().join(&dir)).unwrap();
        }
        let name = fixture.root().join(dir).join(number.to_string());
        std::fs::hard_link(fixture.root().join("first"), name).unwrap();
    }
    fixture.index();
    let server = fixture.serve().await;
    let ask = async || rsync(&server, &["-rn", "--out-format=%n"], "repo/wide/", Some(&dest(&fixture))).await;
    let streamed = ask().await;
    assert_eq!(ask().await.exits(0).out, streamed.out);
    let files = streamed.exits(0).out.lines().filter(|name| !name.ends_with('/')).count();
    assert_eq!(files, 44_000);
    // The second client's request had the list encoded for those that follow.
    encoded(&fixture.store().join("lists"), 1).await;
    let sorted = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<String>>();
    assert_eq!(sorted(&ask().await.exits(0).out), sorted(&streamed.out));
}

#[tokio::test]
async fn changed_files_are_reported_as_vanished() {
    let fixture = fixture();
    let server = fixture.serve().await;
    fixture.write("many/3/file-3", b"other");
    std::fs::remove_file(fixture.root().join("large")).unwrap();
    for (protocol, code) in [("--protocol=29", 23), ("--protocol=30", 24), ("--protocol=32", 24)] {
        let dest = dest(&fixture);
        rsync(&server, &["-a", protocol], "repo/", Some(&dest)).await.exits(code).says("file has vanished: \"/large\"");
        assert!(!dest.join("many/3/file-3").exists() && dest.join("many/3/file-10").exists());
        std::fs::remove_dir_all(dest).unwrap();
    }
}

#[tokio::test]
async fn a_separate_rsync_port_serves_clients_that_wait_for_the_greeting() {
    let fixture = fixture();
    let server = Server::start_on(fixture.config(|_| {}), &[Port::All, Port::Rsync]).await;
    let dest = dest(&fixture);
    rsync_with(&server, &["-aH"], "repo/", Some(&dest), |_| {}).await.exits(0);
    let mut socket = tokio::net::TcpStream::connect(server.addrs[1]).await.unwrap();
    let mut greeting = [0; 8];
    soon(tokio::io::AsyncReadExt::read_exact(&mut socket, &mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"@RSYNCD:");
}

#[tokio::test]
async fn after_an_empty_list_the_daemon_closes_without_waiting_for_the_client() {
    let fixture = fixture();
    let server = fixture.serve().await;
    for protocol in 27..=32 {
        for (options, path) in [("-logDtpr", "repo/nosuch"), ("-logDtp", "repo/")] {
            let mut socket = TcpStream::connect(server.addr).await.unwrap();
            socket.write_all(&begin(protocol, options, path)).await.unwrap();
            let mut answer = Vec::new();
            soon(socket.read_to_end(&mut answer)).await.unwrap();
            // The end of the list, the ends of the user and group names, and the error or the end of all lists.
            let end: &[u8] = match (protocol, options) {
                (..30, _) => &[13, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                (_, "-logDtpr") => &[3, 0, 0, 7, 0, 0xff, 1],
                _ => &[3, 0, 0, 7, 0, 0, 0],
            };
            assert!(answer.ends_with(end), "{protocol} {options}: {}", answer.escape_ascii());
        }
    }
}
