//! Finds the part of package repositories that belongs to some suites and architectures, from the repositories' own
//! metadata: Debian's `Packages` and `Sources`, rpm's `primary`.
//!
//! A function of a list and of the contents of index files. [`Reading::begin`] selects the index files, which are read in
//! rounds: [`Reading::next`] says which ones are needed, and [`Reading::read`] takes their contents. [`Reading::finish`]
//! returns the rows. Nothing in an index file is trusted: a name counts only if the list has it.

mod compressed;
mod deb822;
mod debian;
mod part;
mod rows;
mod rpm;
mod xml;

use std::collections::BTreeSet;
use std::fmt;
use std::io::BufRead;

use stillmirror_protocol::limits;
use stillmirror_protocol::list::{Dir, ListRef, Row};
use stillmirror_protocol::path;
use thiserror::Error;

use crate::names::Names;

pub use compressed::IndexFault;
pub(crate) use rows::Rows;

use part::Part;

/// What to pull of package repositories. Each empty field stands for everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Slice {
    suites: Vec<String>,
    architectures: Vec<String>,
    components: Vec<String>,
}

/// A name in a slice that no suite, architecture or component has.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{}' cannot be the name of a suite, an architecture or a component", path::Escaped(.0.as_bytes()))]
pub struct SliceNameError(String);

impl Slice {
    /// Creates a slice. Names of suites and components may have slashes (`bookworm/updates`).
    pub fn new(
        suites: Vec<String>,
        architectures: Vec<String>,
        components: Vec<String>,
    ) -> Result<Self, SliceNameError> {
        let is_path = |name: &&String| !name.is_empty() && path::check_relative(name.as_bytes()) == Ok(name.as_bytes());
        let is_name = |name: &&String| path::check_name(name.as_bytes()).is_ok();
        let wrong = suites.iter().chain(&components).find(|name| !is_path(name));
        match wrong.or_else(|| architectures.iter().find(|name| !is_name(name))) {
            Some(wrong) => Err(SliceNameError(wrong.clone())),
            None => Ok(Self { suites, architectures, components }),
        }
    }

    /// Returns whether packages of a Debian architecture are wanted. Those for all architectures belong to each.
    fn takes_debian(&self, architecture: &[u8]) -> bool {
        self.architectures.is_empty()
            || self.architectures.iter().any(|name| match (SOURCE.contains(&name.as_str()), architecture) {
                (true, architecture) => architecture == b"source",
                (false, b"all") => true,
                (false, architecture) => name.as_bytes() == architecture,
            })
    }

    /// Returns whether packages of an rpm architecture are wanted. Those for all architectures belong to each.
    fn takes_rpm(&self, architecture: &str) -> bool {
        let is_source = |name: &str| SOURCE.contains(&name);
        let mut wanted = self.architectures.iter();
        self.architectures.is_empty()
            || wanted.any(|name| match (is_source(name), architecture) {
                (true, architecture) => is_source(architecture),
                (false, "noarch") => true,
                (false, architecture) => name == architecture,
            })
    }

    /// Returns whether a Debian component is wanted. The packages of the installer are so only by name.
    fn takes_component(&self, component: &[u8]) -> bool {
        if self.components.is_empty() {
            return path::split(component).1 != b"debian-installer";
        }
        let is_end =
            |name: &[u8]| component.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with(b"/"));
        self.components.iter().any(|name| is_end(name.as_bytes()))
    }
}

/// Names of the architecture of packages of sources: Debian's, rpm's, and directories of rpm repositories.
const SOURCE: [&str; 4] = ["source", "src", "nosrc", "SRPMS"];

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = [("suite", &self.suites), ("architecture", &self.architectures), ("component", &self.components)];
        for (at, (what, names)) in fields.into_iter().filter(|(_, names)| !names.is_empty()).enumerate() {
            write!(f, "{}{what} {}", if at > 0 { "; " } else { "" }, names.join(" "))?;
        }
        Ok(())
    }
}

/// Why a list has no such slice.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum SliceError {
    #[error("there is no package repository here: neither a directory 'dists' nor a directory 'repodata'")]
    NoRepository,
    #[error("the repository has no {what} '{name}'; it has {}", First(.known))]
    Unknown { what: &'static str, name: String, known: BTreeSet<String> },
}

/// Displays the first of some names.
struct First<'a>(&'a BTreeSet<String>);

impl fmt::Display for First<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, name) in self.0.iter().take(SHOWN).enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(f, "{comma}{}", if name.is_empty() { "." } else { name })?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 if self.0.is_empty() => write!(f, "none"),
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// What the repositories have.
#[derive(Default)]
struct Known {
    is_any: bool,
    has_rpm: bool,
    suites: BTreeSet<String>,
    found_suites: BTreeSet<String>,
    architectures: BTreeSet<String>,
    components: BTreeSet<String>,
}

impl Known {
    /// Adds an architecture that an index names.
    fn add_architecture(&mut self, name: &str) {
        if self.architectures.len() < ARCHITECTURES && !self.architectures.contains(name) {
            self.architectures.insert(name.to_owned());
        }
    }
}

/// An index file that has to be read.
#[derive(Debug)]
pub(crate) struct Index {
    kind: IndexKind,
    /// The directory that its names are relative to.
    base: Vec<u8>,
    /// Its path, without the extension of a compressed form.
    pub(crate) path: Vec<u8>,
    /// The rows of files that have its content, each compressed in another way. The smallest is first.
    pub(crate) forms: Vec<u32>,
}

/// The kind of an index file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexKind {
    /// Debian's list of binary packages.
    Packages,
    /// Debian's list of source packages.
    Sources,
    /// What an rpm repository begins with.
    Repomd,
    /// An rpm repository's list of packages.
    Primary,
}

/// Calls `each` with every name in an index file. The file may be compressed. Nothing in it is trusted.
pub fn read_index(kind: IndexKind, input: impl BufRead, each: &mut dyn FnMut(&[u8])) -> Result<(), IndexFault> {
    match kind {
        IndexKind::Packages => deb822::packages(input, each),
        IndexKind::Sources => deb822::sources(input, each),
        IndexKind::Repomd => xml::repomd(input).map(|name| each(name.as_bytes())),
        IndexKind::Primary => xml::primary(input, &mut |_, name| each(name.as_bytes())),
    }
}

/// Names that index files have, and the list does not.
#[derive(Debug, Default)]
pub(crate) struct Missing {
    pub(crate) count: u64,
    pub(crate) first: BTreeSet<Vec<u8>>,
}

impl Missing {
    fn add(&mut self, name: &[u8]) {
        if self.first.contains(name) {
            return;
        }
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.insert(name[..name.len().min(limits::PATH)].to_vec());
        }
    }
}

/// The rows of a slice.
pub(crate) struct Sliced {
    pub(crate) rows: Rows,
    pub(crate) missing: Missing,
}

/// A slice that is being found.
pub(crate) struct Reading<'a> {
    part: Part<'a>,
    slice: &'a Slice,
    known: Known,
    rows: Rows,
    missing: Missing,
    pending: Vec<Index>,
}

impl<'a> Reading<'a> {
    /// Selects the index files of a slice of what is below `root`, and what is at and below `names` in addition. Fails if
    /// there is no such suite, component or architecture.
    pub(crate) fn begin(
        list: ListRef<'a>,
        root: Dir<'a>,
        slice: &'a Slice,
        names: Option<&Names>,
    ) -> Result<Self, SliceError> {
        let part = Part { list, root };
        let (mut rows, mut known, mut missing) = (Rows::new(list), Known::default(), Missing::default());
        rows.add(list, root.row());
        for name in names.into_iter().flat_map(Names::iter) {
            match part.find(name) {
                Some(found) => {
                    found.symlinks.iter().for_each(|&row| rows.add(list, row));
                    match found.row.dir_number() {
                        Some(number) => rows.add_below(list, list.dir(number)),
                        None => rows.add(list, found.row.number()),
                    }
                }
                None => missing.add(name),
            }
        }
        let mut pending = debian::select(part, slice, &mut rows, &mut known);
        pending.extend(rpm::select(part, slice, &mut rows, &mut known));
        let reading = Self { part, slice, known, rows, missing, pending };
        reading.refuse_unknown()?;
        Ok(reading)
    }

    fn refuse_unknown(&self) -> Result<(), SliceError> {
        let Known { is_any, has_rpm, suites, found_suites, architectures, components } = &self.known;
        if !is_any {
            return Err(SliceError::NoRepository);
        }
        let unknown = |what, wanted: &[String], known: &BTreeSet<String>, found: &dyn Fn(&str) -> bool| {
            let name = wanted.iter().find(|name| !found(name));
            name.map_or(Ok(()), |name| Err(SliceError::Unknown { what, name: name.clone(), known: known.clone() }))
        };
        unknown("suite", &self.slice.suites, suites, &|name| found_suites.contains(name))?;
        if !components.is_empty() || !has_rpm {
            unknown("component", &self.slice.components, components, &|name| {
                components.iter().any(|known| known == name || known.ends_with(&format!("/{name}")))
            })?;
        }
        // The architectures of rpm repositories are known once their indices are read. If there is no package, none is.
        let is_known = self.pending.is_empty() || !has_rpm;
        if !is_known || (*has_rpm && architectures.is_empty()) {
            return Ok(());
        }
        unknown("architecture", &self.slice.architectures, architectures, &|name| {
            let is_source = SOURCE.contains(&name);
            architectures.iter().any(|known| known == name || (is_source && SOURCE.contains(&known.as_str())))
        })
    }

    /// Returns the index files that have to be read next. After an empty answer, all have been read.
    pub(crate) fn next(&mut self) -> Vec<Index> {
        std::mem::take(&mut self.pending)
    }

    /// The rows that are known to belong to the slice.
    pub(crate) fn rows(&self) -> &Rows {
        &self.rows
    }

    /// Reads an index file.
    pub(crate) fn read(&mut self, index: &Index, input: impl BufRead) -> Result<(), IndexFault> {
        let Self { part, rows, missing, known, slice, pending } = self;
        let mut wanted = |name: &[u8]| want(*part, &index.base, name, rows, missing);
        match index.kind {
            IndexKind::Packages | IndexKind::Sources => read_index(index.kind, input, &mut wanted),
            IndexKind::Primary => xml::primary(input, &mut |architecture, name| {
                known.add_architecture(architecture);
                if slice.takes_rpm(architecture) {
                    wanted(name.as_bytes());
                }
            }),
            IndexKind::Repomd => {
                let primary = xml::repomd(input)?;
                let path = path::join(&index.base, primary.as_bytes());
                let found = part.find(&path).filter(|found| found.row.is_file());
                let found = found.ok_or(IndexFault::NoForm(primary))?;
                found.symlinks.iter().for_each(|&row| rows.add(part.list, row));
                rows.add(part.list, found.row.number());
                let forms = vec![found.row.number()];
                pending.push(Index { kind: IndexKind::Primary, base: index.base.clone(), path, forms });
                Ok(())
            }
        }
    }

    /// Returns the rows of the slice. Fails if there is no such architecture.
    pub(crate) fn finish(self) -> Result<Sliced, SliceError> {
        self.refuse_unknown()?;
        Ok(Sliced { rows: self.rows, missing: self.missing })
    }
}

/// Adds a file that an index names, relative to `base`.
fn want(part: Part<'_>, base: &[u8], name: &[u8], rows: &mut Rows, missing: &mut Missing) {
    let name = name.strip_prefix(b"./").unwrap_or(name);
    let find = |name: &[u8]| {
        let is_path = !name.is_empty() && path::check_relative(name) == Ok(name);
        part.find(&path::join(base, name)).filter(|found| is_path && !found.row.is_dir())
    };
    match find(name).or_else(|| find(&decoded(name))) {
        Some(found) => found.symlinks.iter().chain([&found.row.number()]).for_each(|&row| rows.add(part.list, row)),
        None => missing.add(&path::join(base, name)),
    }
}

/// Returns a name without the escapes of a URL, which some programs write.
fn decoded(name: &[u8]) -> Vec<u8> {
    let digit = |at: usize| name.get(at).and_then(|&byte| char::from(byte).to_digit(16));
    let (mut out, mut at) = (Vec::with_capacity(name.len()), 0);
    while let Some(&byte) = name.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

/// Returns the files in a directory that have a name, or the name with the extension of a form that can be read, the
/// smallest first.
fn forms<'a>(part: Part<'a>, dir: Dir<'a>, stem: &[u8]) -> Vec<u32> {
    let names = compressed::EXTENSIONS.iter().map(|extension| [stem, extension].concat());
    let found = names.filter_map(|name| Some(part.find_at(dir, dir.child(&name)?)?.row).filter(Row::is_file));
    let mut found: Vec<_> = found.map(|row| (row.size(), row.number())).collect();
    found.sort_unstable();
    found.into_iter().map(|(_, row)| row).collect()
}

/// Maximum number of missing names that are named.
const NAMED: usize = 20;
/// Maximum number of names in a message.
const SHOWN: usize = 50;
/// Maximum number of architectures that are remembered of index files.
const ARCHITECTURES: usize = 100;

#[cfg(test)]
mod tests;
