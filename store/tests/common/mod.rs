//! Creates a small store for the tests.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use stillmirror_protocol::changes::{Changes, apply};
use stillmirror_protocol::entry::{Device, Digest, Digests, Entry, Kind, Owner, Time};
use stillmirror_protocol::head::{Counts, Head};
use stillmirror_protocol::list::{self, FileType};
use stillmirror_protocol::local::{Identity, LocalTable, RelativeDevice};
use stillmirror_store::{Draft, Generation, Record, Store, StoreError};

/// The repository of every test store.
pub(crate) const NAME: &str = "debian";

/// A stand-in for block checksums, whose content the store does not look at.
pub(crate) fn record(generation: u64) -> Vec<u8> {
    (0..100 + generation as u8).collect()
}

/// A stand-in for the content of every file.
pub(crate) const CONTENT: &[u8] = b"content";

/// Publishes the next generation: a fixed small tree with one file whose size is the generation's number.
pub(crate) fn publish(store: &Store) -> Result<u64, StoreError> {
    let lock = store.lock()?;
    let before = store.current()?;
    let draft = store.begin(&lock)?;
    fill(&draft, before.as_ref())?;
    draft.publish()
}

/// Writes all files of a generation of the fixed small tree.
pub(crate) fn fill(draft: &Draft, before: Option<&Generation>) -> Result<(), StoreError> {
    fill_with(draft, before, &tree(draft.number()))
}

/// Writes all files of a generation whose tree is `changes`.
pub(crate) fn fill_with(draft: &Draft, before: Option<&Generation>, changes: &Changes) -> Result<(), StoreError> {
    let number = draft.number();
    let applied = apply(None, changes).expect("a fixed tree");
    let encoded = applied.list.encode();
    let digest = list::digest(&encoded);
    draft.write_list(&encoded)?;
    let list = list::open(&encoded).expect("a list just built");
    let mut records = HashMap::new();
    let mut local = LocalTable::default();
    for row in 0..list.len() {
        let identity =
            Identity { device: RelativeDevice::Roots, inode: u64::from(row), ctime: Time { sec: 7, nsec: 8 } };
        let file = list.row(row).sha256();
        if list.row(row).is_file() && !records.contains_key(&file) {
            records.insert(file, draft.append(file, Record { sums: &record(number), content: CONTENT })?);
        }
        local.push(identity, Some(1), records.get(&file).copied());
    }
    draft.write_local(&local.encode(digest))?;
    let previous = before.map_or(Digest::NONE, |before| before.head().list_digest);
    if before.is_some() {
        draft.write_delta(&changes.encode(previous, digest))?;
    }
    let of_type = |wanted| (0..list.len()).filter(|&row| list.row(row).file_type() == wanted).count() as u64;
    let counts = Counts {
        files: u64::from(list.files()),
        directories: of_type(FileType::Directory),
        symlinks: of_type(FileType::Symlink),
        specials: of_type(FileType::CharDevice),
        bytes: number,
    };
    let head = Head {
        repository: NAME.to_owned(),
        generation: number,
        created: Time { sec: 1_700_000_000, nsec: 0 },
        list_digest: digest,
        list_len: encoded.len() as u64,
        previous,
        counts,
        expires: None,
        slice: None,
    };
    draft.write_head(&head.encode())
}

/// The tree of generation `number`.
pub(crate) fn tree(number: u64) -> Changes {
    let owner = |uid, user: &str| Owner { uid, gid: uid, user: user.into(), group: user.into() };
    let entry = |mode, kind| Entry {
        mode,
        mtime: Time { sec: 1_600_000_000, nsec: 123_456_789 },
        owner: owner(0, "root"),
        link: None,
        kind,
    };
    let file = |size| {
        let digests = Digests { sha256: Digest([size as u8; 32]), ..Digests::default() };
        entry(0o644, Kind::File { size, digests })
    };
    let mut changes = Changes::default();
    changes.root = Some(stillmirror_protocol::changes::Put { entry: entry(0o755, Kind::Directory), tag: 0 });
    changes.put(b"", b"README", file(number), 1);
    changes.put(b"", b"pool", entry(0o2775, Kind::Directory), 2);
    changes.put(b"", b"stable", entry(0o777, Kind::Symlink { target: b"pool".to_vec() }), 3);
    changes.put(b"pool", b"a", Entry { link: Some(5), ..file(77) }, 4);
    changes.put(b"pool", b"b\xff", Entry { link: Some(5), ..file(77) }, 5);
    let null = Kind::CharDevice(Device { major: 1, minor: 3 });
    changes.put(b"pool", b"null", Entry { owner: owner(1000, "mirror"), ..entry(0o666, null) }, 6);
    changes
}

/// Creates a store with this many generations.
pub(crate) fn store(dir: &Path, generations: u64) -> Store {
    let store = Store::create(&dir.join("store"), NAME).expect("a new store");
    for _ in 0..generations {
        publish(&store).expect("a generation");
    }
    store
}

/// Returns the paths of the current generation's files, of all packs, and of the file `repository`.
pub(crate) fn files(store: &Store) -> Vec<PathBuf> {
    let generation = store.current().expect("a store").expect("a generation");
    let mut files: Vec<PathBuf> = [generation.dir(), &store.dir().join("sums")]
        .iter()
        .flat_map(|dir| fs::read_dir(dir).expect("a directory"))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.push(store.dir().join("repository"));
    files.sort();
    files
}

/// A copy of a generation's content: head and list, compressed list, delta, block checksums, identities.
pub(crate) type Content = (Vec<u8>, Vec<u8>, Option<Vec<u8>>, Vec<Option<Vec<u8>>>, Vec<Identity>);

/// Copies the content of a generation, so that two states can be compared.
pub(crate) fn content(generation: &Generation) -> Content {
    let list = generation.list();
    let sums = (0..list.files()).map(|file| generation.sums(file).map(<[u8]>::to_vec)).collect();
    let identities = (0..list.len()).map(|row| generation.local().identity(row)).collect();
    let head_and_list = [generation.head_bytes(), generation.list_bytes()].concat();
    let delta = generation.delta().map(|delta| delta.bytes().to_vec());
    (head_and_list, generation.list_zst().to_vec(), delta, sums, identities)
}
