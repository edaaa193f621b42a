use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::mount::UnmountFlags;
use stillmirror_daemon::RepositoryConfig;
use stillmirror_protocol::wire::{ErrorCode, Item, Request};
use stillmirror_store::Store;

use crate::support::{Client, Fixture, Server, index, index_as, soon};

/// Makes the daemon check for new generations until `is_there` returns true.
async fn reload_until(server: &Server, mut is_there: impl AsyncFnMut() -> bool) {
    soon(async {
        while !is_there().await {
            server.reload.reload();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Returns a whole file, as a new client gets it. `None` if the daemon does not serve the store's current generation, or
/// the file fails.
async fn pull(server: &Server, store: &Path, name: &str) -> Option<Vec<u8>> {
    let generation = Store::open(store).unwrap().current().unwrap().unwrap();
    let row = generation.list().find(name.as_bytes())?;
    let item = Item { row: row.number(), offset: 0, len: row.size() };
    let mut client = server.client().await;
    let answer = client.ask(&Request::Head { repository: "repo".to_owned() }).await;
    let (handle, head) = answer.pinned?;
    if head != generation.head_bytes() {
        return None;
    }
    let answer = client.data(handle, vec![item]).await;
    answer.failures.is_empty().then_some(answer.bytes)
}

async fn error(client: &mut Client, repository: &str) -> Option<(ErrorCode, String)> {
    soon(client.ask(&Request::Head { repository: repository.to_owned() })).await.error
}

#[tokio::test]
async fn a_root_that_is_missing_at_startup_makes_only_its_repository_unavailable_until_it_appears() {
    let (late, there) = (Fixture::with(&[("a", b"late")]), Fixture::with(&[("a", b"there")]));
    let away = late.dir.path().join("away");
    fs::rename(late.root(), &away).unwrap();
    let other = RepositoryConfig::new("other", there.root(), there.dir.path().join("other"));
    index_as("other", &other.root, &other.store, 0, |content| content);
    let server = Server::start(late.config(|config| config.repositories.push(other))).await;
    let mut client = server.client().await;
    let (code, text) = error(&mut client, "repo").await.unwrap();
    assert_eq!(code, ErrorCode::NotIndexed);
    assert!(text.contains("unavailable"), "{text}");
    assert_eq!(error(&mut client, "other").await, None);
    // The empty directory on which a disk will be mounted is not what was indexed.
    fs::create_dir(late.root()).unwrap();
    server.reload.reload();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(error(&mut client, "repo").await.is_some());
    fs::remove_dir(late.root()).unwrap();
    fs::rename(&away, late.root()).unwrap();
    reload_until(&server, async || pull(&server, &late.store(), "a").await.as_deref() == Some(b"late")).await;
}

#[tokio::test]
async fn a_root_that_is_switched_is_served_from_the_new_directory_once_that_is_indexed() {
    let fixture = Fixture::new();
    let at = |name: &str| fixture.dir.path().join(name);
    fs::remove_dir(fixture.root()).unwrap();
    for (tree, content) in [("one", "first"), ("two", "second"), ("three", "third")] {
        fs::create_dir(at(tree)).unwrap();
        fs::write(at(tree).join("a"), content).unwrap();
    }
    symlink("one", fixture.root()).unwrap();
    fixture.index();
    let server = fixture.serve().await;
    assert_eq!(pull(&server, &fixture.store(), "a").await.as_deref(), Some(&b"first"[..]));
    // Switched by a symlink. The old tree is served until the new one is indexed.
    symlink("two", at("next")).unwrap();
    fs::rename(at("next"), fixture.root()).unwrap();
    server.reload.reload();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(pull(&server, &fixture.store(), "a").await.as_deref(), Some(&b"first"[..]));
    fixture.index();
    reload_until(&server, async || pull(&server, &fixture.store(), "a").await.as_deref() == Some(b"second")).await;
    // Switched by a rename.
    fs::remove_file(fixture.root()).unwrap();
    fs::rename(at("three"), fixture.root()).unwrap();
    fixture.index();
    reload_until(&server, async || pull(&server, &fixture.store(), "a").await.as_deref() == Some(b"third")).await;
    // Replaced by a directory that is never indexed. The indexed one, which is still open, remains in service.
    fs::rename(fixture.root(), at("moved")).unwrap();
    fs::create_dir(fixture.root()).unwrap();
    server.reload.reload();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(pull(&server, &fixture.store(), "a").await.as_deref(), Some(&b"third"[..]));
}

#[tokio::test]
async fn a_deleted_root_is_unavailable_rather_than_served_empty() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = fixture.serve().await;
    let mut client = server.client().await;
    assert_eq!(error(&mut client, "repo").await, None);
    fs::remove_dir_all(fixture.root()).unwrap();
    reload_until(&server, async || error(&mut client, "repo").await.is_some()).await;
}

/// A directory that is bind-mounted over another one until this is dropped.
struct Bound(PathBuf);

impl Bound {
    /// Mounts `from` over `to`. `None` without the right to mount.
    fn new(from: &Path, to: &Path) -> Option<Self> {
        rustix::mount::mount_bind(from, to).ok().map(|()| Self(to.to_owned()))
    }

    /// Returns the number of open files of this process in the mount `id`.
    fn open_files(id: u64) -> usize {
        let infos = fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
        let texts = infos.filter_map(|info| fs::read_to_string(info.path()).ok());
        texts.filter(|text| text.lines().any(|line| line == format!("mnt_id:\t{id}"))).count()
    }

    fn id(&self) -> u64 {
        rustix::fs::statx(CWD, &self.0, AtFlags::empty(), StatxFlags::MNT_ID).unwrap().stx_mnt_id
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn an_unmounted_disk_is_released_after_the_last_session_and_served_when_it_is_mounted_again() {
    let fixture = Fixture::with(&[("a", b"x"), ("large", &vec![7; 3 << 20])]);
    let disk = fixture.dir.path().join("disk");
    fs::rename(fixture.root(), &disk).unwrap();
    fs::create_dir(fixture.root()).unwrap();
    let Some(mounted) = Bound::new(&disk, &fixture.root()) else { return };
    let id = mounted.id();
    fixture.index();
    let server = fixture.serve().await;
    let mut session = server.client().await;
    let handle = session.pin().await.0;
    assert!(pull(&server, &fixture.store(), "large").await.is_some());
    drop(mounted);
    let mut client = server.client().await;
    reload_until(&server, async || error(&mut client, "repo").await.is_some()).await;
    // A session that began before still gets everything.
    let answer = session.data(handle, vec![fixture.whole("a")]).await;
    assert_eq!((answer.bytes, answer.failures.len()), (b"x".to_vec(), 0));
    drop((session, client));
    soon(async {
        while Bound::open_files(id) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let _mounted = Bound::new(&disk, &fixture.root()).unwrap();
    reload_until(&server, async || pull(&server, &fixture.store(), "a").await.as_deref() == Some(b"x")).await;
}

#[tokio::test]
async fn a_generation_that_could_not_be_read_for_a_while_is_served_without_a_reload() {
    let fixture = Fixture::with(&[("a", b"old")]);
    // This test requests no reload.
    let server = fixture.serve().await;
    let first = soon(server.client().await.pin()).await;
    fixture.write("a", b"new");
    // Prepared in a copy of the store, so that the daemon's first check finds no `local`.
    let copy = fixture.dir.path().join("copy");
    assert!(Command::new("cp").arg("-a").args([fixture.store(), copy.clone()]).status().unwrap().success());
    let number = index(&fixture.root(), &copy, 0);
    let (made, place) =
        (copy.join(format!("generations/{number}")), fixture.store().join(format!("generations/{number}")));
    let local = fixture.dir.path().join("local");
    fs::rename(made.join("local"), &local).unwrap();
    fs::rename(made, &place).unwrap();
    for pack in fs::read_dir(copy.join("sums")).unwrap() {
        let pack = pack.unwrap();
        fs::rename(pack.path(), fixture.store().join("sums").join(pack.file_name())).unwrap();
    }
    fs::rename(copy.join("current"), fixture.store().join("current")).unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(soon(server.client().await.pin()).await, first);
    fs::rename(&local, place.join("local")).unwrap();
    soon(async {
        while pull(&server, &fixture.store(), "a").await.as_deref() != Some(b"new") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_recreated_store_is_noticed_although_its_numbers_begin_again() {
    let fixture = Fixture::with(&[("a", b"old")]);
    let server = fixture.serve().await;
    assert_eq!(pull(&server, &fixture.store(), "a").await.as_deref(), Some(&b"old"[..]));
    fixture.write("a", b"new");
    fs::remove_dir_all(fixture.store()).unwrap();
    assert_eq!(fixture.index(), 1);
    reload_until(&server, async || pull(&server, &fixture.store(), "a").await.as_deref() == Some(b"new")).await;
}
