//! Selects the index files of suites of Debian archives: what is below `dists`.

use std::collections::{BTreeSet, HashSet};

use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::list::{Dir, Row};
use stillmirror_protocol::path;

use super::part::Part;
use super::rows::Rows;
use super::{Index, IndexKind, Known, Slice, forms};

/// A directory below `dists` that has a `Release` or `InRelease`.
struct Suite<'a> {
    dir: Dir<'a>,
    /// The root of its archive, the parent of `dists`.
    archive: Vec<u8>,
    /// The components, by their paths below the suite.
    components: BTreeSet<Vec<u8>>,
    /// The architectures that have packages.
    architectures: BTreeSet<Vec<u8>>,
}

/// Architectures that may have index files in a suite without packages for them.
const ARCHITECTURES: [&str; 27] = [
    "all",
    "alpha",
    "amd64",
    "arm64",
    "armel",
    "armhf",
    "hppa",
    "hurd-amd64",
    "hurd-i386",
    "i386",
    "ia64",
    "kfreebsd-amd64",
    "kfreebsd-i386",
    "loong64",
    "m68k",
    "mips",
    "mips64el",
    "mipsel",
    "powerpc",
    "ppc64",
    "ppc64el",
    "riscv64",
    "s390x",
    "sh4",
    "sparc",
    "sparc64",
    "x32",
];

/// Selects the suites of all archives in a part.
pub(super) fn select(part: Part<'_>, slice: &Slice, rows: &mut Rows, known: &mut Known) -> Vec<Index> {
    let mut indices = Vec::new();
    for (dists, at) in part.named(b"dists") {
        known.is_any = true;
        let mut names = BTreeSet::new();
        suites_below(part, dists, b"", &mut names);
        known.suites.extend(names.iter().map(|name| shown(name)));
        let wanted = slice.suites.iter().map(|name| name.as_bytes().to_vec());
        let wanted: Vec<_> = if slice.suites.is_empty() { names.into_iter().collect() } else { wanted.collect() };
        let mut done = HashSet::new();
        for name in wanted {
            let Some(found) = part.find(&path::join(&at, &name)) else { continue };
            let Some(dir) = found.row.dir_number().map(|number| part.list.dir(number)).filter(|dir| is_suite(*dir))
            else {
                continue;
            };
            known.found_suites.insert(shown(&name));
            found.symlinks.iter().for_each(|&row| rows.add(part.list, row));
            rows.add(part.list, dir.row());
            if done.insert(dir.number()) {
                let suite = Suite::new(part, dir, path::split(&at).0.to_vec());
                known.components.extend(suite.components.iter().map(|name| shown(name)));
                known.architectures.extend(suite.architectures.iter().map(|name| shown(name)));
                suite.select(part, slice, rows, &mut indices);
            }
        }
    }
    indices
}

fn shown(name: &[u8]) -> String {
    path::Escaped(name).to_string()
}

/// Adds the names of the suites below a directory.
fn suites_below<'a>(part: Part<'a>, top: Dir<'a>, at: &[u8], names: &mut BTreeSet<Vec<u8>>) {
    let mut dirs = vec![(top, at.to_vec(), false)];
    while let Some((dir, at, is_within)) = dirs.pop() {
        for (name, row) in dir.children() {
            let path = path::join(&at, name);
            let Some(below) = row.dir_number().map(|number| part.list.dir(number)) else {
                // A symlink such as `stable`.
                let leads = part.find_at(dir, row).and_then(|found| found.row.dir_number());
                if !is_within && leads.is_some_and(|number| is_suite(part.list.dir(number))) {
                    names.insert(path);
                }
                continue;
            };
            if if is_within { is_signed(below) } else { is_suite(below) } {
                names.insert(path.clone());
            }
            if !name.starts_with(b"binary-")
                && name != b"source"
                && name != b"by-hash"
                && !name.starts_with(b"installer-")
            {
                dirs.push((below, path, is_within || is_suite(below)));
            }
        }
    }
}

fn is_suite(dir: Dir<'_>) -> bool {
    [&b"Release"[..], b"InRelease"].iter().any(|name| dir.child(name).is_some_and(|row| !row.is_dir()))
}

/// Returns whether a directory below a suite is a suite of its own. Components may have a `Release`, too.
fn is_signed(dir: Dir<'_>) -> bool {
    [&b"InRelease"[..], b"Release.gpg"].iter().any(|name| dir.child(name).is_some())
}

impl<'a> Suite<'a> {
    fn new(part: Part<'a>, dir: Dir<'a>, archive: Vec<u8>) -> Self {
        let mut suite = Self { dir, archive, components: BTreeSet::new(), architectures: BTreeSet::new() };
        let mut dirs = vec![(dir, Vec::new())];
        while let Some((dir, at)) = dirs.pop() {
            for row in dir.subdirs() {
                let name = dir.name_of(row);
                let architecture = if name == b"source" { Some(name) } else { name.strip_prefix(b"binary-") };
                if let Some(architecture) = architecture {
                    suite.architectures.insert(architecture.to_vec());
                    suite.components.insert(at.clone());
                } else if let Some(number) = part.list.row(row).dir_number() {
                    dirs.push((part.list.dir(number), path::join(&at, name)));
                }
            }
        }
        suite
    }

    /// Adds the wanted rows, and the indices that name packages.
    fn select(&self, part: Part<'a>, slice: &Slice, rows: &mut Rows, indices: &mut Vec<Index>) {
        let mut places = vec![Place { dir: self.dir, at: Vec::new(), is_specific: false }];
        while let Some(place) = places.pop() {
            let is_wanted = self.is_component_wanted(slice, &place.at);
            let (mut wanted, mut all) = (Vec::new(), true);
            for (name, row) in place.dir.children() {
                let architecture = self.architecture_of(name);
                let is_ours = architecture.is_none_or(|one| slice.takes_debian(one));
                let Some(number) = row.dir_number() else {
                    match is_wanted && is_ours {
                        true => wanted.push((name, row)),
                        false => all = false,
                    }
                    continue;
                };
                let below = part.list.dir(number);
                if name == b"by-hash" || !is_ours || name.starts_with(b"installer-") || is_signed(below) {
                    continue;
                }
                let is_specific = place.is_specific || architecture.is_some();
                places.push(Place { dir: below, at: path::join(&place.at, name), is_specific });
            }
            for (_, row) in &wanted {
                add(part, place.dir, *row, rows);
            }
            if is_wanted {
                self.add_by_hash(part, &place, &wanted, all, rows);
                indices.extend(self.index(part, &place, &wanted));
            }
        }
    }

    /// Adds the names by digest beside other names. Some directories have them for several architectures, of which the old
    /// ones cannot be told apart.
    fn add_by_hash(&self, part: Part<'a>, place: &Place<'a>, wanted: &[(&[u8], Row<'a>)], all: bool, rows: &mut Rows) {
        let by_hash = place.dir.child(b"by-hash").and_then(|row| row.dir_number()).map(|number| part.list.dir(number));
        let Some(by_hash) = by_hash else { return };
        if place.is_specific || all {
            return rows.add_below(part.list, by_hash);
        }
        let digest = |row: Row<'a>, dir| Some(part.find_at(dir, row)?.row).filter(Row::is_file).map(|row| row.sha256());
        let contents: HashSet<Digest> = wanted.iter().filter_map(|(_, row)| digest(*row, place.dir)).collect();
        for algorithm in by_hash.subdirs().filter_map(|row| part.list.row(row).dir_number()) {
            let dir = part.list.dir(algorithm);
            for (_, row) in dir.children() {
                if digest(row, dir).is_some_and(|digest| contents.contains(&digest)) {
                    add(part, dir, row, rows);
                }
            }
        }
    }

    /// Returns the index in a directory that names packages.
    fn index(&self, part: Part<'a>, place: &Place<'a>, wanted: &[(&[u8], Row<'a>)]) -> Option<Index> {
        let (_, name) = path::split(&place.at);
        let (kind, stem): (_, &[u8]) = match name {
            b"source" => (IndexKind::Sources, b"Sources"),
            name if name.starts_with(b"binary-") => (IndexKind::Packages, b"Packages"),
            _ => return None,
        };
        let is_form =
            |name: &[u8]| name.strip_prefix(stem).is_some_and(|rest| matches!(rest.first(), None | Some(b'.')));
        let named = wanted.iter().filter(|(name, row)| is_form(name) && !row.is_dir()).map(|(name, _)| *name);
        let named: Vec<_> = named.collect();
        if named.is_empty() {
            return None;
        }
        let forms = forms(part, place.dir, stem);
        Some(Index { kind, base: self.archive.clone(), path: path::join(&part.path_of(place.dir)?, stem), forms })
    }

    /// Returns whether the files in a directory belong to a wanted component, or to none.
    fn is_component_wanted(&self, slice: &Slice, at: &[u8]) -> bool {
        let is_in = |component: &[u8]| {
            component.is_empty()
                || at == component
                || at.strip_prefix(component).is_some_and(|rest| rest.starts_with(b"/"))
        };
        let component =
            self.components.iter().filter(|component| is_in(component)).max_by_key(|component| component.len());
        component.is_none_or(|component| slice.takes_component(component))
    }

    /// Returns the architecture in a name: `binary-amd64`, `Contents-udeb-arm64.gz`, `source`.
    fn architecture_of<'n>(&'n self, name: &'n [u8]) -> Option<&'n [u8]> {
        let stem = name.split(|&byte| byte == b'.').next().unwrap_or_default();
        if stem == b"source" || stem.ends_with(b"-source") {
            return Some(b"source");
        }
        if let Some(architecture) = stem.strip_prefix(b"binary-") {
            return Some(architecture);
        }
        let is_of = |one: &&[u8]| stem.strip_suffix(*one).is_some_and(|rest| rest.ends_with(b"-"));
        let usual = ARCHITECTURES.iter().map(|name| name.as_bytes());
        let known = self.architectures.iter().map(Vec::as_slice).chain(usual);
        known.filter(is_of).max_by_key(|one| one.len())
    }
}

/// A directory to look at.
struct Place<'a> {
    dir: Dir<'a>,
    /// Its path below the suite.
    at: Vec<u8>,
    /// Whether everything in it belongs to one architecture.
    is_specific: bool,
}

/// Adds a row, and what it leads to if it is a symlink.
fn add<'a>(part: Part<'a>, dir: Dir<'a>, row: Row<'a>, rows: &mut Rows) {
    rows.add(part.list, row.number());
    if let Some(found) = part.find_at(dir, row).filter(|found| !found.symlinks.is_empty() && !found.row.is_dir()) {
        found.symlinks.iter().chain([&found.row.number()]).for_each(|&row| rows.add(part.list, row));
    }
}
