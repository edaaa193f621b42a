//! The edition that a session holds from its beginning to its end.

use std::sync::Arc;

use crate::edition::Edition;
use crate::repository::Repository;

/// An edition that a session holds, and its repository.
pub(crate) struct Pinned {
    pub(crate) repository: Arc<Repository>,
    pub(crate) edition: Arc<Edition>,
}

impl Pinned {
    /// Returns whether clients may have the content of the file at `row`, and data derived from it.
    pub(crate) fn may_send(&self, row: u32) -> bool {
        !self.repository.is_public_only || self.edition.generation.list().is_public(row)
    }
}
