//! The file `grace` of a store: the names in the local tree that wait for their deletion, each with the time since
//! which the list does not have it.
//!
//! ```text
//! stillmirror grace 1 DEVICE INODE SECONDS NANOSECONDS COUNT OLDEST DIGEST CHECK
//! SINCE PATH
//! …
//! ```
//!
//! The first four fields identify the tree, as in the mark. Times are milliseconds since 1970. DIGEST is the SHA-256 of
//! the lines below; CHECK is the beginning of the SHA-256 of the first line up to it, so that [`peek`] needs only that
//! line. In a path, each byte that is not a printable ASCII character, and each backslash, is `\xNN`. The file is
//! replaced as a whole.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use stillmirror_protocol::list;
use stillmirror_protocol::path;
use stillmirror_store::{Damage, Store, StoreError};

use crate::error::{At as _, PullError};
use crate::local::{self, Tree};
use crate::mark;

/// Milliseconds since 1970.
pub(crate) type Millis = u64;

/// What the first line of a journal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Summary {
    /// The number of names.
    pub(crate) count: u64,
    /// The time of the name that has waited longest. The latest time of all if there is no name.
    pub(crate) oldest: Millis,
}

/// The names that wait.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    names: BTreeMap<Vec<u8>, Since>,
    /// The maximum length of the lines of all names, in bytes.
    bytes: usize,
    /// What the file contains. `None` if there is none.
    on_disk: Option<Vec<u8>>,
    /// Whether the file cannot be used, so that only the tree shows which names there are.
    pub(crate) is_damaged: bool,
}

/// Since when a name waits. `None` for a name that is not in the file yet.
type Since = Option<Millis>;

/// Reads the first line of a store's journal. `None` if it does not describe this tree, or is damaged.
pub(crate) fn peek(store: &Store, tree: &Tree) -> Result<Option<Summary>, PullError> {
    let mut line = Vec::new();
    match File::open(path_in(store.dir())) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Some(Summary { count: 0, oldest: Millis::MAX }));
        }
        Err(_) => return Ok(None),
        Ok(file) => drop(file.take(MAX_HEADER).read_to_end(&mut line).at("read", path_in(store.dir()))?),
    }
    let end = line.iter().position(|&byte| byte == b'\n').unwrap_or(line.len());
    let header = Header::parse(&line[..end]);
    Ok(header.filter(|header| mark::identity(tree).is_ok_and(|tree| tree == header.tree)).map(|header| header.summary))
}

impl Journal {
    /// Reads the journal of a store. Names that another tree's journal has wait since now, and so do those whose time
    /// is in the future. A damaged journal is empty. Fails if the file is of another format version.
    pub(crate) fn load(store: &Store, tree: &Tree, now: Millis) -> Result<Self, PullError> {
        let path = path_in(store.dir());
        let mut bytes = Vec::new();
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            opened => drop(opened.at("open", &path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).at("read", &path)?),
        }
        if bytes.starts_with(FORMATS) && !bytes.starts_with(FORMAT) {
            let remedy = format!("delete {}: what waits to be deleted then waits again", path.display());
            let damage = Damage::Other("the journal has another format version");
            return Err(StoreError::Damaged { path, damage, remedy }.into());
        }
        let Some((found, names)) = parse(&bytes) else {
            let path = path.display();
            tracing::warn!(%path, "the journal is damaged; what waits to be deleted waits again, from now on");
            return Ok(Self { on_disk: Some(bytes), is_damaged: true, ..Self::default() });
        };
        let is_of_tree = mark::identity(tree)? == found;
        let mut journal = Self { on_disk: Some(bytes), ..Self::default() };
        for (name, since) in names {
            journal.insert(name, Some(if is_of_tree { since.min(now) } else { now }));
        }
        Ok(journal)
    }

    /// Returns since when a name waits. `None` if it does not wait.
    pub(crate) fn since(&self, name: &[u8]) -> Option<Millis> {
        self.names.get(name).copied().flatten()
    }

    /// Returns the names, in ascending order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.names.keys().map(Vec::as_slice)
    }

    /// Returns the number of names.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// Adds a name that does not wait yet. Returns false if the journal is full.
    pub(crate) fn add(&mut self, name: &[u8]) -> bool {
        if self.names.contains_key(name) {
            return true;
        }
        let fits = self.names.len() < MAX_NAMES && self.bytes + line_len(name) <= (MAX_BYTES - MAX_HEADER) as usize;
        if fits {
            self.insert(name.to_vec(), None);
        }
        fits
    }

    /// Removes the names for which `keep` returns false.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&[u8]) -> bool) {
        let bytes = &mut self.bytes;
        self.names.retain(|name, _| {
            let kept = keep(name);
            *bytes -= if kept { 0 } else { line_len(name) };
            kept
        });
    }

    fn insert(&mut self, name: Vec<u8>, since: Since) {
        self.bytes += line_len(&name);
        if let Some(_replaced) = self.names.insert(name, since) {
            debug_assert!(false, "a name is inserted once");
        }
    }

    /// Replaces the file, if it would change. Added names wait since `now`.
    pub(crate) fn save(&mut self, store: &Store, tree: &Tree, now: Millis) -> Result<(), PullError> {
        let (path, draft) = (path_in(store.dir()), store.dir().join("grace.tmp"));
        self.names.values_mut().for_each(|since| *since = since.or(Some(now)));
        let encoded = if self.names.is_empty() { None } else { Some(self.encode(&mark::identity(tree)?)) };
        if encoded == self.on_disk {
            return Ok(());
        }
        match &encoded {
            None => local::optional(fs::remove_file(&path)).at("remove", &path).map(drop)?,
            Some(encoded) => {
                let mut file = File::create(&draft).at("create", &draft)?;
                file.write_all(encoded).at("write", &draft)?;
                file.sync_all().at("sync", &draft)?;
                fs::rename(&draft, &path).at("rename", &draft)?;
            }
        }
        File::open(store.dir()).and_then(|dir| dir.sync_all()).at("sync", store.dir())?;
        self.on_disk = encoded;
        Ok(())
    }

    fn encode(&self, tree: &str) -> Vec<u8> {
        let mut lines = Vec::with_capacity(self.bytes);
        let mut oldest = Millis::MAX;
        for (name, since) in &self.names {
            let since = since.unwrap_or_default();
            oldest = oldest.min(since);
            lines.extend_from_slice(format!("{since} ").as_bytes());
            escape(name, &mut lines);
            lines.push(b'\n');
        }
        let digest = list::digest(&lines);
        let header = format!("stillmirror grace 1 {tree} {} {oldest} {digest} ", self.names.len());
        let check = check(header.as_bytes());
        [header.as_bytes(), check.as_bytes(), b"\n", &lines].concat()
    }
}

struct Header<'a> {
    tree: &'a str,
    summary: Summary,
    digest: &'a str,
}

impl<'a> Header<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let (checked, sum) = line.split_at_checked(line.rfind(' ')? + 1)?;
        let fields = checked.strip_prefix("stillmirror grace 1 ")?.strip_suffix(' ')?;
        if check(checked.as_bytes()) != sum {
            return None;
        }
        let mut ends = fields.match_indices(' ').map(|(at, _)| at);
        let (tree, rest) = fields.split_at_checked(ends.nth(3)?)?;
        let mut rest = rest.strip_prefix(' ')?.split(' ');
        let summary = Summary { count: rest.next()?.parse().ok()?, oldest: rest.next()?.parse().ok()? };
        Some(Self { tree, summary, digest: rest.next()? })
    }
}

/// Returns the tree's identity and the names. `None` if anything is wrong with a journal's bytes.
fn parse(bytes: &[u8]) -> Option<(&str, BTreeMap<Vec<u8>, Millis>)> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    let (header, lines) = (Header::parse(&bytes[..end])?, &bytes[end + 1..]);
    if bytes.len() as u64 > MAX_BYTES || list::digest(lines).to_string() != header.digest {
        return None;
    }
    let mut names = BTreeMap::new();
    for line in lines.split_inclusive(|&byte| byte == b'\n') {
        let line = line.strip_suffix(b"\n")?;
        let space = line.iter().position(|&byte| byte == b' ')?;
        let since = std::str::from_utf8(&line[..space]).ok()?.parse().ok()?;
        let name = unescape(&line[space + 1..])?;
        let is_checked = !name.is_empty() && path::check_relative(&name) == Ok(&name[..]);
        if !is_checked || names.insert(name, since).is_some() {
            return None;
        }
    }
    (names.len() as u64 == header.summary.count && names.len() <= MAX_NAMES).then_some((header.tree, names))
}

fn check(line: &[u8]) -> String {
    list::digest(line).to_string()[..16].to_owned()
}

fn escape(name: &[u8], out: &mut Vec<u8>) {
    for &byte in name {
        match byte {
            b'\\' => out.extend_from_slice(b"\\x5c"),
            byte if byte.is_ascii_graphic() => out.push(byte),
            byte => out.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
        }
    }
}

fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut name = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = match after.split_at_checked(3) {
            Some((code, after)) if byte == b'\\' => {
                let code = std::str::from_utf8(code.strip_prefix(b"x")?).ok()?;
                name.push(u8::from_str_radix(code, 16).ok()?);
                after
            }
            _ if byte.is_ascii_graphic() && byte != b'\\' => {
                name.push(byte);
                after
            }
            _ => return None,
        };
    }
    Some(name)
}

/// The maximum length of a name's line.
fn line_len(name: &[u8]) -> usize {
    let escaped = name.iter().filter(|byte| !byte.is_ascii_graphic() || **byte == b'\\').count();
    name.len() + 3 * escaped + 22
}

fn path_in(store: &Path) -> PathBuf {
    store.join("grace")
}

const FORMATS: &[u8] = b"stillmirror grace ";
const FORMAT: &[u8] = b"stillmirror grace 1 ";
/// Maximum length of a journal, in bytes.
const MAX_BYTES: u64 = 64 << 20;
/// Maximum length of its first line, in bytes.
const MAX_HEADER: u64 = 512;
/// Maximum number of names in a journal.
const MAX_NAMES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place() -> (tempfile::TempDir, Store, Tree) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("tree")).unwrap();
        let store = Store::create(&dir.path().join("store"), "name").unwrap();
        let tree = Tree::open(&dir.path().join("tree")).unwrap();
        (dir, store, tree)
    }

    fn saved(store: &Store, tree: &Tree, names: &[&[u8]], now: Millis) {
        let mut journal = Journal::load(store, tree, now).unwrap();
        names.iter().for_each(|name| assert!(journal.add(name)));
        journal.save(store, tree, now).unwrap();
    }

    #[test]
    fn a_name_waits_since_it_was_added_first() {
        let (_dir, store, tree) = place();
        assert_eq!(peek(&store, &tree).unwrap().unwrap().count, 0);
        saved(&store, &tree, &[b"a", b"d/b c\n\\\xff"], 100);
        saved(&store, &tree, &[b"a", b"z"], 200);
        let mut journal = Journal::load(&store, &tree, 300).unwrap();
        let since = [&b"a"[..], b"d/b c\n\\\xff", b"z", b"d"].map(|name| journal.since(name));
        assert_eq!(since, [Some(100), Some(100), Some(200), None]);
        assert_eq!(peek(&store, &tree).unwrap(), Some(Summary { count: 3, oldest: 100 }));
        journal.retain(|name| name == b"z");
        journal.save(&store, &tree, 300).unwrap();
        assert_eq!(peek(&store, &tree).unwrap(), Some(Summary { count: 1, oldest: 200 }));
        journal.retain(|_| false);
        journal.save(&store, &tree, 300).unwrap();
        assert!(!path_in(store.dir()).exists());
    }

    #[test]
    fn a_time_in_the_future_and_a_journal_of_another_tree_count_as_now() {
        let (dir, store, tree) = place();
        saved(&store, &tree, &[b"a"], 1000);
        assert_eq!(Journal::load(&store, &tree, 10).unwrap().since(b"a"), Some(10));
        fs::create_dir(dir.path().join("other")).unwrap();
        let other = Tree::open(&dir.path().join("other")).unwrap();
        assert_eq!(peek(&store, &other).unwrap(), None);
        assert_eq!(Journal::load(&store, &other, 5000).unwrap().since(b"a"), Some(5000));
        assert_eq!(Journal::load(&store, &tree, 5000).unwrap().since(b"a"), Some(1000));
    }

    #[test]
    fn a_full_journal_takes_no_more() {
        let mut journal = Journal::default();
        assert!(journal.add(b"a"));
        journal.bytes = MAX_BYTES as usize;
        assert!(!journal.add(b"b"));
    }

    #[test]
    fn another_format_version_is_refused_with_a_remedy() {
        let (_dir, store, tree) = place();
        fs::write(path_in(store.dir()), "stillmirror grace 2 whatever\n").unwrap();
        let error = Journal::load(&store, &tree, 0).unwrap_err().to_string();
        assert!(error.contains("grace") && error.contains("delete"), "{error}");
        assert_eq!(peek(&store, &tree).unwrap(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn names_survive_and_damage_is_noticed(
            names in prop::collection::btree_set("[a-z\\\\ \n\u{0}-\u{ff}]{1,8}", 1..6),
            at: prop::sample::Index,
            flip in 1..=255u8,
        ) {
            let names: Vec<Vec<u8>> = names.into_iter().map(String::into_bytes).collect();
            prop_assume!(names.iter().all(|name| path::check_relative(name) == Ok(&name[..])));
            let (_dir, store, tree) = place();
            saved(&store, &tree, &names.iter().map(Vec::as_slice).collect::<Vec<_>>(), 7);
            let journal = Journal::load(&store, &tree, 8).unwrap();
            prop_assert!(journal.names().eq(names.iter().map(Vec::as_slice)));
            let file = path_in(store.dir());
            let mut bytes = fs::read(&file).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            fs::write(&file, &bytes).unwrap();
            if let Ok(journal) = Journal::load(&store, &tree, 8) {
                prop_assert!(journal.is_damaged && journal.names().count() == 0);
            }
            bytes[at] ^= flip;
            fs::write(&file, &bytes[..at]).unwrap();
            if let Ok(journal) = Journal::load(&store, &tree, 8) {
                prop_assert!(journal.is_damaged);
            }
        }
    }
}
