//! Checks the states of files without opening them. Their content comes from the store, and is sent only
//! while the files in the tree are still the indexed ones.

use std::convert::Infallible;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;
use stillmirror_protocol::list::Dir;
use stillmirror_protocol::wire::ItemFailure;
use stillmirror_store::{Generation, open_beneath, open_beneath_at_once};

use super::{Comparison, Tree, is_shortage, wait_for_descriptor};

/// With `PATH`, a descriptor stands for a file but gives no access to its content.
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);
const FILE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW);

/// For each file, `Ok` if it is in its indexed state.
type States = Vec<Result<(), ItemFailure>>;

impl Tree {
    /// Checks the states of the regular files at `rows` of a generation. Consecutive rows in the same
    /// directory cost only one lookup of that directory.
    pub(crate) fn look(&self, generation: &Generation, rows: &[u32]) -> States {
        let open = |path: &[u8]| Ok(wait_for_descriptor(|| open_beneath(&self.root, path, DIRECTORY)));
        let Ok(states) = self.look_by::<Infallible>(generation, rows, open, |_, _| Ok(()));
        states
    }

    /// Like [`Self::look`], but `None` if that might wait for the disk or for a descriptor. Only the first of
    /// neighbouring files is tested for that, because the kernel caches and evicts their inodes together.
    pub(crate) fn look_at_once(&self, generation: &Generation, rows: &[u32]) -> Option<States> {
        if !self.is_local {
            return None;
        }
        let at_once = |opened: Result<OwnedFd, Errno>| match opened {
            Err(errno) if errno == Errno::AGAIN || is_shortage(errno) => Err(errno),
            result => Ok(result),
        };
        let open = |path: &[u8]| at_once(open_beneath_at_once(&self.root, path, DIRECTORY));
        let first = |dir: &OwnedFd, name: &[u8]| at_once(open_beneath_at_once(dir, name, FILE)).map(drop);
        self.look_by(generation, rows, open, first).ok()
    }

    /// `open` opens a directory. `first` is called before the first file in it is checked.
    fn look_by<E>(
        &self,
        generation: &Generation,
        rows: &[u32],
        open: impl Fn(&[u8]) -> Result<Result<OwnedFd, Errno>, E>,
        first: impl Fn(&OwnedFd, &[u8]) -> Result<(), E>,
    ) -> Result<States, E> {
        let list = generation.list();
        let mut states = States::with_capacity(rows.len());
        while let Some(&row) = rows.get(states.len()) {
            let dir = list.parent_of(row);
            let files = dir.files();
            let neighbours = rows[states.len()..].iter().take_while(|row| files.contains(row));
            match open(&dir.path())? {
                Ok(opened) => {
                    first(&opened, dir.name_of(row))?;
                    states.extend(neighbours.map(|&row| self.state(generation, dir, &opened, row)));
                }
                Err(errno) => states.extend(neighbours.map(|&row| Err(self.failure(&list.path(row), errno)))),
            }
        }
        Ok(states)
    }

    fn state(&self, generation: &Generation, dir: Dir<'_>, opened: &OwnedFd, row: u32) -> Result<(), ItemFailure> {
        match rustix::fs::statat(opened, dir.name_of(row), AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT) {
            Ok(stat) => match self.compare(&stat, self.indexed(generation, row)) {
                // A touched file is fine, because the content comes from the store, which has its digest.
                Comparison::Same | Comparison::Touched(_) => Ok(()),
                Comparison::Other => Err(ItemFailure::Stale),
            },
            Err(errno) => Err(self.failure(&generation.list().path(row), errno)),
        }
    }
}
