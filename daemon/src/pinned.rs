//! What a session holds on to.

use std::sync::Arc;

use crate::edition::Edition;
use crate::repository::Repository;

/// An edition that a session holds on to.
pub(crate) struct Pinned {
    pub(crate) repository: Arc<Repository>,
    pub(crate) edition: Arc<Edition>,
}

impl Pinned {
    /// Whether the content of the file at `row`, and what follows from it, is for clients.
    pub(crate) fn may_send(&self, row: u32) -> bool {
        !self.repository.is_public_only || self.edition.generation.list().is_public(row)
    }
}
