//! Looking at what a sender offers without pulling: repositories, heads, directories and whole lists.

use rkyv::util::AlignedVec;
use stillmirror_protocol::entry::{Digest, Entry};
use stillmirror_protocol::wire::{self, Repository, Request};

use crate::error::PullError;
use crate::listing;
use crate::source::{self, NativeSource, Pinned, Source};

impl NativeSource {
    /// Returns the repositories that the sender announces.
    pub async fn list_repositories(&self) -> Result<Vec<Repository>, PullError> {
        Ok(Repository::decode_all(&self.ask(Request::Repositories)?.bytes().await?)?)
    }

    /// Returns a repository's head, and pins its generation for this session.
    pub async fn head(&self, repository: &str) -> Result<Pinned, PullError> {
        source::head(self, repository).await
    }

    /// Returns the children of a directory, or a single file as its own only child.
    pub async fn list_dir(&self, handle: u32, path: &[u8]) -> Result<Vec<(Vec<u8>, Entry)>, PullError> {
        let answer = self.ask(Request::Dir { handle, path: path.to_vec() })?;
        Ok(wire::decode_dir(&answer.bytes().await?)?)
    }

    /// Returns the whole encoded list of a pinned generation. Fails if its digest is not the one in the head.
    pub async fn whole_list(&self, pinned: &Pinned) -> Result<AlignedVec, PullError> {
        let answer = self.ask(Request::List { handle: pinned.handle, have: Digest::NONE })?;
        listing::whole(answer, &pinned.head).await
    }
}
