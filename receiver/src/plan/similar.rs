//! Finds the local files that are likely earlier versions of new ones, by their names.
//!
//! Two names in the same directory are *similar* if they are alike up to the first digit and, for files, have the
//! same suffix. For a new file there are two candidates:
//!
//! - A file with a similar name in the same directory.
//! - If its directory is new: the file at the same relative path below a directory with a similar name, or a file with
//!   a similar name there. `foo-1.3/src/a.c` is compared with `foo-1.2/src/a.c`.
//!
//! The work for one name is a binary search among the similar ones, however many a directory has.

use std::collections::{HashMap, HashSet};

use stillmirror_protocol::list::FileType;
use stillmirror_protocol::path;

use super::Inputs;
use crate::local::self_and_ancestors;

/// Local files and directories, by the names that are searched for.
pub(super) struct Similar {
    /// For each wanted path, the paths at which earlier versions are looked for.
    homes: HashMap<Vec<u8>, Vec<u8>>,
    files: HashMap<Vec<u8>, Family>,
    /// Those of the paths in `homes` that are local files.
    present: HashSet<Vec<u8>>,
}

/// The names that are similar to each other, in ascending order.
#[derive(Debug, Default)]
struct Family(Vec<Member>);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Member {
    path: Vec<u8>,
    /// Whether the list does not have the name. It is then most likely an earlier version.
    is_extra: bool,
}

impl Similar {
    /// Prepares to answer for the files at the `wanted` paths. Reads the facts once.
    pub(super) fn new(inputs: &Inputs<'_>, wanted: &[Vec<u8>]) -> Self {
        let homes = homes(inputs, wanted);
        let keys: HashSet<Vec<u8>> = homes.values().filter_map(|home| family(home)).collect();
        let places: HashSet<&[u8]> = homes.values().map(Vec::as_slice).collect();
        let mut similar = Self { files: HashMap::new(), present: HashSet::new(), homes: HashMap::new() };
        for (path, size, is_extra) in files(inputs) {
            if size > 0 && places.contains(&path[..]) {
                similar.present.insert(path.clone());
            }
            if let Some(key) = family(&path).filter(|key| size >= MIN_SIMILAR && keys.contains(key)) {
                similar.files.entry(key).or_default().0.push(Member { path, is_extra });
            }
        }
        similar.files.values_mut().for_each(Family::sort);
        similar.homes = homes;
        similar
    }

    /// Returns the likely earlier versions of a wanted file, the likeliest first. Its own path is not among them.
    pub(super) fn to(&self, wanted: &[u8]) -> Vec<Vec<u8>> {
        let Some(home) = self.homes.get(wanted) else { return Vec::new() };
        if home != wanted && self.present.contains(home) {
            return vec![home.clone()];
        }
        let key = family(home);
        let family = key.and_then(|key| self.files.get(&key));
        family.and_then(|family| family.most_like(home)).map(<[u8]>::to_vec).into_iter().collect()
    }
}

impl Family {
    fn sort(&mut self) {
        self.0.sort_unstable();
    }

    /// Returns the member that shares the longest beginning and end with `path`, among those next to it in order.
    /// The longest beginning is always among them.
    fn most_like(&self, path: &[u8]) -> Option<&[u8]> {
        let at = self.0.partition_point(|member| member.path[..] < *path);
        let near = &self.0[at.saturating_sub(NEAR)..(at + NEAR).min(self.0.len())];
        let others = near.iter().filter(|member| member.path != path);
        others.max_by_key(|member| (shared(path, &member.path), member.is_extra)).map(|member| &member.path[..])
    }
}

/// Returns the local files, each with its size and whether the list does not have it.
fn files<'a>(inputs: &'a Inputs<'_>) -> impl Iterator<Item = (Vec<u8>, u64, bool)> + 'a {
    let facts = inputs.facts;
    let extra = facts.extra.iter().filter_map(|extra| Some((extra.path.clone(), extra.file?.0, true)));
    let below = facts.below.iter().map(|file| (file.path.clone(), file.size, true));
    let rows = inputs.selection.rows.iter().zip(&facts.rows).filter_map(|(&row, fact)| {
        let fact = fact.filter(|fact| fact.kind == FileType::File && fact.size > 0)?;
        Some((inputs.selection.path(row), fact.size, false))
    });
    extra.chain(below).chain(rows)
}

/// Returns where earlier versions of each wanted file are looked for: at its own path if its directory exists, and
/// otherwise at the path that results if each directory that does not exist is replaced by a similar one.
fn homes(inputs: &Inputs<'_>, wanted: &[Vec<u8>]) -> HashMap<Vec<u8>, Vec<u8>> {
    let is_local = |path: &[u8]| {
        let row = inputs.selection.find(path);
        let fact = row.and_then(|row| inputs.facts.rows[inputs.selection.index(row.number())?]);
        fact.is_some_and(|fact| fact.kind == FileType::Directory)
    };
    let dirs: HashSet<&[u8]> = wanted.iter().map(|path| path::split(path).0).collect();
    let is_new = |dir: &&[u8]| !dir.is_empty() && !is_local(dir);
    let new: HashSet<&[u8]> = dirs.into_iter().filter(is_new).collect();
    let dirs = if new.is_empty() { Dirs::default() } else { Dirs::of(inputs) };
    let similar: HashMap<&[u8], Option<Vec<u8>>> =
        new.into_iter().map(|dir| (dir, dirs.most_like(dir, &is_local))).collect();
    let home = |wanted: &Vec<u8>| {
        let (dir, name) = path::split(wanted);
        Some((wanted.clone(), path::join(similar.get(dir).map_or(Some(dir), |home| home.as_deref())?, name)))
    };
    wanted.iter().filter_map(home).collect()
}

/// The local directories.
#[derive(Default)]
struct Dirs {
    /// Those that the list does not have.
    extra: HashSet<Vec<u8>>,
    families: HashMap<Vec<u8>, Family>,
}

impl Dirs {
    fn of(inputs: &Inputs<'_>) -> Self {
        let facts = inputs.facts;
        let mut dirs = Self::default();
        dirs.extra.extend(facts.extra.iter().filter(|extra| extra.is_dir).map(|extra| extra.path.clone()));
        for file in &facts.below {
            // Files of one directory follow each other, so most of these are known.
            let dir = path::split(&file.path).0;
            if !dirs.extra.contains(dir) {
                dirs.extra.extend(self_and_ancestors(dir).map(<[u8]>::to_vec));
            }
        }
        let rows = inputs.selection.rows.iter().zip(&facts.rows);
        let rows = rows.filter(|(_, fact)| fact.is_some_and(|fact| fact.kind == FileType::Directory));
        let listed = rows.map(|(&row, _)| Member { path: inputs.selection.path(row), is_extra: false });
        let extra = dirs.extra.iter().map(|path| Member { path: path.clone(), is_extra: true });
        for member in listed.chain(extra) {
            if let Some(key) = family_of_dir(&member.path) {
                dirs.families.entry(key).or_default().0.push(member);
            }
        }
        dirs.families.values_mut().for_each(Family::sort);
        dirs
    }

    /// Replaces each component that does not exist by the most similar one. `None` if there is none.
    fn most_like(&self, dir: &[u8], is_local: &dyn Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let mut home = Vec::new();
        for name in path::components(dir) {
            let at = path::join(&home, name);
            home = if is_local(&at) || self.extra.contains(&at) {
                at
            } else {
                self.families.get(&family_of_dir(&at)?)?.most_like(&at)?.to_vec()
            };
        }
        Some(home)
    }
}

/// Returns what similar files have in common: the directory, the name up to the first digit, and the suffix.
fn family(file: &[u8]) -> Option<Vec<u8>> {
    let (_, name) = path::split(file);
    let stem = name.iter().position(u8::is_ascii_digit)?;
    // In `foo-1.2`, the last part of the version is not a suffix.
    let is_suffix = |dot: &usize| *dot > stem && name.get(dot + 1).is_some_and(u8::is_ascii_alphabetic);
    let suffix = name.iter().rposition(|&byte| byte == b'.').filter(is_suffix).unwrap_or(name.len());
    let beginning = &file[..file.len() - name.len() + stem];
    (stem >= MIN_STEM).then(|| [beginning, b"/", &name[suffix..]].concat())
}

/// Returns what similar directories have in common: the parent directory, and the name up to the first digit. That may
/// be nothing (`1.2/`, `1.3/`), because files below must also have the same relative path.
fn family_of_dir(dir: &[u8]) -> Option<Vec<u8>> {
    let (_, name) = path::split(dir);
    let stem = name.iter().position(u8::is_ascii_digit)?;
    Some(dir[..dir.len() - name.len() + stem].to_vec())
}

fn shared(a: &[u8], b: &[u8]) -> usize {
    let beginning = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let end = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    beginning + end
}

/// Number of members of a family, on each side of a name in order, that are compared with it.
const NEAR: usize = 32;
/// Minimum number of characters before the first digit that names of similar files share.
const MIN_STEM: usize = 3;
/// Minimum size in bytes of a similar file that is worth searching.
const MIN_SIMILAR: u64 = 16 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn family_with(paths: &[String]) -> Family {
        let mut family =
            Family(paths.iter().map(|path| Member { path: path.as_bytes().to_vec(), is_extra: false }).collect());
        family.sort();
        family
    }

    #[test]
    fn versions_of_a_file_are_in_one_family() {
        let family = |path: &str| family(path.as_bytes());
        assert_eq!(family("pool/foo_1.2-1.deb"), family("pool/foo_1.2-2.deb"));
        assert_eq!(family("pool/foo_1.2-1.deb"), family("pool/foo_10.deb"));
        assert_eq!(family("lib/libfoo.so.1.2"), family("lib/libfoo.so.1.3"));
        assert_ne!(family("pool/foo_1.deb"), family("other/foo_1.deb"));
        assert_ne!(family("pool/foo_1.deb"), family("pool/foo_1.dsc"));
        assert_eq!(family("by-hash/0123abcd"), None, "a hash is no version");
        assert_eq!(family("pool/README"), None);
    }

    #[test]
    fn versions_of_a_directory_are_in_one_family() {
        let family = |path: &str| family_of_dir(path.as_bytes());
        assert_eq!(family("src/foo-1.2"), family("src/foo-1.3"));
        assert_eq!(family("releases/9.4"), family("releases/10"));
        assert_ne!(family("src/foo-1.2"), family("src/bar-1.2"));
        assert_ne!(family("src/foo-1.2"), family("foo-1.2"));
        assert_eq!(family("src/foo"), None);
    }

    #[test]
    fn the_closest_name_of_a_family_is_chosen() {
        let family = family_with(&["p/linux-5.10.tar", "p/linux-6.1.2.tar", "p/linux-6.0.tar"].map(str::to_owned));
        assert_eq!(family.most_like(b"p/linux-6.1.3.tar"), Some(&b"p/linux-6.1.2.tar"[..]));
        assert_eq!(Family::default().most_like(b"p/linux-6.1.3.tar"), None);
    }

    #[test]
    fn of_equally_close_names_the_one_that_disappears_is_chosen() {
        let member = |path: &str, is_extra| Member { path: path.as_bytes().to_vec(), is_extra };
        let family = Family(vec![member("foo-1", true), member("foo-3", false)]);
        assert_eq!(family.most_like(b"foo-2"), Some(&b"foo-1"[..]));
    }

    proptest! {
        #[test]
        fn in_a_family_that_is_searched_whole_no_name_is_closer_than_the_chosen_one(
            versions in prop::collection::hash_set("[0-9]{1,2}(\\.[0-9]){0,2}", 0..NEAR),
            wanted in "[0-9]{1,2}(\\.[0-9]){0,2}",
        ) {
            let paths: Vec<String> = versions.iter().map(|version| format!("p/foo-{version}.tar")).collect();
            let wanted = format!("p/foo-{wanted}.tar").into_bytes();
            let best = paths.iter().map(String::as_bytes).filter(|path| *path != wanted).map(|path| shared(&wanted, path)).max();
            let family = family_with(&paths);
            let chosen = family.most_like(&wanted);
            prop_assert_eq!(chosen.map(|path| shared(&wanted, path)), best);
            let reversed: Vec<String> = paths.into_iter().rev().collect();
            let reversed = family_with(&reversed);
            prop_assert_eq!(reversed.most_like(&wanted), chosen, "the order of the facts does not matter");
        }
    }
}
