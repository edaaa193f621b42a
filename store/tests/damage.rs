//! Flips any byte of a store and truncates any file. The result is an error that names the file and says what
//! to do, or no error if the file is only a hint. There is never a panic, a wrong content, or a write.

mod common;

use std::fs;
use std::path::Path;

use common::{content, files, store};
use stillmirror_protocol::changes::Changes;
use stillmirror_store::{Record, Store, StoreError};

/// Returns whether a file is only a hint: receivers check it by themselves, and can do without it.
fn is_hint(path: &Path) -> bool {
    matches!(path.file_name().and_then(|name| name.to_str()), Some("list.zst" | "delta"))
        || path.extension().is_some_and(|extension| extension == "pack")
}

fn check(store: &Store, path: &Path, whole: &impl Fn(&Store) -> Result<bool, StoreError>, what: &str) {
    let shown = path.display();
    match whole(store) {
        Ok(same) => assert!(same || is_hint(path), "{what} {shown}: read as if it were right"),
        Err(error) => {
            let text = error.to_string();
            assert!(!is_hint(path), "{what} {shown}: {text}");
            let named = text.contains(path.to_str().unwrap()) || matches!(error, StoreError::OtherRepository { .. });
            assert!(named, "{what} {shown}: {text}");
            let remedy = ["delete", "store of its own"].iter().any(|remedy| text.contains(remedy));
            assert!(remedy, "{what} {shown}: {text}");
        }
    }
}

#[test]
fn flipped_bytes_and_truncated_files_are_never_read_as_valid() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 2);
    let good = content(&store.current().unwrap().unwrap());
    let current = store.current().unwrap().unwrap();
    let copied = |record: Record<'_>| (record.sums.to_vec(), record.content.to_vec());
    let records: Vec<_> = (0..current.list().files()).map(|file| current.record(file).unwrap().map(copied)).collect();
    let changes = Changes::decode(current.delta().unwrap().bytes()).unwrap();
    let whole = |store: &Store| {
        let store = Store::open(store.dir())?;
        let generation = store.current()?.expect("a generation");
        // Whatever a hint contains, every access stays within bounds, and no wrong content is accepted.
        let found = content(&generation);
        for (file, good) in (0..).zip(&records) {
            match generation.record(file) {
                Ok(record) => assert_eq!(record.map(|record| (record.sums.to_vec(), record.content.to_vec())), *good),
                Err(error) => assert!(error.to_string().contains("sums/"), "{error}"),
            }
        }
        if generation.list_zst_is_right() {
            assert!(zstd::decode_all(generation.list_zst()).unwrap() == generation.list_bytes());
        }
        if let Some(delta) = generation.delta().filter(|delta| delta.is_right()) {
            assert!(Changes::decode(delta.bytes()).is_ok_and(|delta| delta == changes));
        }
        Ok(found.0 == good.0 && found.4 == good.4)
    };
    assert!(whole(&store).unwrap());
    for path in files(&store) {
        let bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            rewrite(&path, &damaged);
            // Reserved bytes may be flipped without an error, but then the content is the same.
            check(&store, &path, &whole, &format!("byte {at} of"));
        }
        for len in (0..bytes.len()).step_by(1 + bytes.len() / 64) {
            rewrite(&path, &bytes[..len]);
            check(&store, &path, &whole, &format!("truncated to {len} bytes:"));
        }
        rewrite(&path, &[&bytes[..], b"x"].concat());
        check(&store, &path, &whole, "with a byte appended:");
        rewrite(&path, &bytes);
    }
    assert!(whole(&store).unwrap());
}

/// Replaces a file by one with a new inode, like a restored backup, because a mapped file is never written to.
fn rewrite(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_missing_file_is_an_error_unless_it_is_optional() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 2);
    for path in files(&store).into_iter().filter(|path| !path.ends_with("repository")) {
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        match store.current() {
            Ok(_) => assert!(is_hint(&path) && !path.ends_with("list.zst"), "{}", path.display()),
            Err(error) => assert!(error.to_string().contains(path.to_str().unwrap()), "{error}"),
        }
        fs::write(&path, bytes).unwrap();
    }
}

#[test]
fn the_error_for_a_dangling_current_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 2);
    fs::remove_dir_all(store.dir().join("generations/2")).unwrap();
    let error = store.current().err().unwrap().to_string();
    assert!(error.contains("generations/2") && error.contains("delete") && error.contains("current"), "{error}");
    for target in ["generations/0", "generations/x", "../elsewhere", "generations/02"] {
        fs::remove_file(store.dir().join("current")).unwrap();
        std::os::unix::fs::symlink(target, store.dir().join("current")).unwrap();
        assert!(matches!(store.current(), Err(StoreError::Damaged { .. })), "{target}");
    }
}

#[test]
fn a_newer_format_is_distinguished_from_damage() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1);
    for (name, version, what) in [
        ("list", 2, "format 2"),
        ("head", 4, "format 4"),
        ("local", 2, "format 4"),
        ("packs", 2, "another format version"),
    ] {
        let path = store.dir().join("generations/1").join(name);
        let bytes = fs::read(&path).unwrap();
        let mut newer = bytes.clone();
        newer[8] = version;
        rewrite(&path, &newer);
        let error = store.current().err().unwrap().to_string();
        assert!(error.contains(what), "{name}: {error}");
        rewrite(&path, &bytes);
    }
}
