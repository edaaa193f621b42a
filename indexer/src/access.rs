//! Determines which files everybody on the host may read.

use stillmirror_protocol::entry::{PASSED_BY_OTHERS, READ_BY_OTHERS};

use crate::tree::Tree;

/// Looks at the permissions of directories. Files of one directory are usually asked for together.
pub(crate) struct Access<'a> {
    tree: &'a Tree,
    /// The last directory that was looked up, and whether everybody may reach it.
    last: Option<(Vec<u8>, bool)>,
}

impl<'a> Access<'a> {
    pub(crate) fn new(tree: &'a Tree) -> Self {
        Self { tree, last: None }
    }

    /// Returns whether everybody may read a file with this mode in a directory of the tree.
    pub(crate) fn is_public(&mut self, dir: &[u8], mode: u16) -> bool {
        mode & READ_BY_OTHERS != 0 && self.is_passed_by_all(dir)
    }

    fn is_passed_by_all(&mut self, dir: &[u8]) -> bool {
        if let Some((_, known)) = self.last.as_ref().filter(|(known, _)| known == dir) {
            return *known;
        }
        let ends = (0..=dir.len()).filter(|&end| end == 0 || end == dir.len() || dir[end] == b'/');
        let is_open = |end: usize| match self.tree.look(&dir[..end]) {
            Ok(Some(facts)) => facts.mode & PASSED_BY_OTHERS != 0,
            Ok(None) | Err(_) => false,
        };
        let passed = ends.into_iter().all(is_open);
        self.last = Some((dir.to_vec(), passed));
        passed
    }
}
