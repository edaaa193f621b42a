//! Finds out what the bases ([`crate::roots`]) have at the paths of files that have to be brought.

use std::collections::HashMap;

use rayon::prelude::*;
use stillmirror_protocol::list::FileType;

use super::{Fact, Facts, LocalFile};
use crate::local::Tree;
use crate::roots::{FileAt, Root};
use crate::selection::Selection;

/// A regular file in a basis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BasisFile {
    pub(crate) number: usize,
    pub(crate) file: LocalFile,
}

impl BasisFile {
    /// Returns where the file is.
    pub(crate) fn at(&self) -> FileAt {
        FileAt { root: Root::Basis(self.number), path: self.file.path.clone() }
    }
}

impl Facts {
    /// Adds what the bases have at the paths of files that the local tree does not have, on all threads of the current
    /// rayon pool. What cannot be looked at is left out.
    pub(crate) fn add_elsewhere(&mut self, bases: &[Tree], selection: &Selection<'_>) {
        let is_wrong = |(row, fact): (&u32, &Option<Fact>)| {
            let wanted = selection.list.row(*row).is_file() && fact.is_none_or(|fact| !fact.content_matches);
            wanted.then_some(*row)
        };
        let rows: Vec<u32> = selection.rows.iter().zip(&self.rows).filter_map(is_wrong).collect();
        let look = |&row: &u32| {
            let path = selection.path(row);
            let look_in = |(number, basis): (usize, &Tree)| {
                let stat = basis.stat(&path).ok().flatten().filter(|stat| stat.kind == FileType::File)?;
                let file = LocalFile { path: path.clone(), size: stat.size, mtime: stat.mtime };
                Some(BasisFile { number, file })
            };
            let found: Vec<BasisFile> = bases.iter().enumerate().filter_map(look_in).collect();
            (!found.is_empty()).then_some((row, found))
        };
        let found: Vec<_> = if bases.is_empty() { Vec::new() } else { rows.par_iter().filter_map(look).collect() };
        self.elsewhere = HashMap::from_iter(found);
    }
}
