//! Removes old generations, and the packs that no remaining generation uses.

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, SystemTime};

use crate::content_pool::{ContentPool, PoolName};
use crate::dropped;
use crate::error::{At, StoreError};
use crate::generation::read_uses;
use crate::kill_point;
use crate::layout::{names, sync_dir};
use crate::packs;
use crate::store::{Store, StoreLock};

/// How many generations are kept, and for how long. The current one is always kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The maximum number of generations, including the current one.
    pub count: u32,
    /// The maximum time since publication. Older generations are removed even if `count` would keep them.
    /// `None` for no limit.
    pub age: Option<Duration>,
}

/// What [`Store::retain`] has removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retained {
    /// Numbers of the removed generations.
    pub generations: Vec<u64>,
    /// Numbers of the removed packs.
    pub packs: Vec<u32>,
    /// What of a pool may no longer be needed: what the removed generations and the oldest one left have dropped.
    pub dropped: Vec<PoolName>,
    /// Whether it is not known what that is, because a table is damaged.
    pub is_damaged: bool,
}

impl Store {
    /// Removes the generations that `keep` does not keep, then the packs that no remaining generation refers
    /// to. Processes that have a removed generation open can still read it.
    pub fn retain(&self, lock: &StoreLock, keep: Retention) -> Result<Retained, StoreError> {
        self.retain_with(lock, keep, None)
    }

    /// Like [`Self::retain`], and notes in the pool before the first removal that it may have superfluous contents.
    pub fn retain_with(
        &self,
        _lock: &StoreLock,
        keep: Retention,
        pool: Option<&ContentPool>,
    ) -> Result<Retained, StoreError> {
        kill_point("before-retention");
        let kept = self.generations()?;
        let Some((current, older)) = kept.split_last() else { return Ok(Retained::default()) };
        let mut removed = Retained::default();
        let mut uses: HashSet<u32> = self.packs_of(*current)?;
        for (newer, &number) in older.iter().rev().enumerate() {
            if newer as u64 + 2 > u64::from(keep.count) || self.is_older(number, keep.age)? {
                pool.map_or(Ok(()), ContentPool::mark)?;
                self.note_dropped(number, &mut removed);
                self.remove_generation(number)?;
                removed.generations.push(number);
            } else {
                uses.extend(self.packs_of(number)?);
            }
        }
        if !removed.generations.is_empty() {
            let oldest = kept.iter().find(|number| !removed.generations.contains(number));
            oldest.iter().for_each(|&&number| self.note_dropped(number, &mut removed));
            sync_dir(&self.layout.generations_dir())?;
        }
        for name in names(&self.layout.sums_dir())? {
            if let Some(pack) = packs::number_of(&name).filter(|pack| !uses.contains(pack)) {
                let path = self.layout.sums_dir().join(name);
                fs::remove_file(&path).at("remove", &path)?;
                removed.packs.push(pack);
            }
        }
        removed.generations.sort_unstable();
        removed.packs.sort_unstable();
        kill_point("after-retention");
        Ok(removed)
    }

    fn note_dropped(&self, number: u64, removed: &mut Retained) {
        match dropped::read(&self.layout.generation_dir(number)) {
            Ok(names) => removed.dropped.extend(names.into_iter().flatten()),
            Err(_) => removed.is_damaged = true,
        }
    }

    fn packs_of(&self, number: u64) -> Result<HashSet<u32>, StoreError> {
        Ok(read_uses(&self.layout.generation_dir(number))?.iter().map(|uses| uses.pack).collect())
    }

    /// Returns whether a generation was published longer than `age` ago, by its directory's modification time.
    fn is_older(&self, number: u64, age: Option<Duration>) -> Result<bool, StoreError> {
        let Some(age) = age else { return Ok(false) };
        let dir = self.layout.generation_dir(number);
        let published = fs::metadata(&dir).and_then(|facts| facts.modified()).at("stat", &dir)?;
        Ok(SystemTime::now().duration_since(published).is_ok_and(|since| since > age))
    }
}
