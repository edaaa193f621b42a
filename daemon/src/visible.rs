//! What a client sees of the repositories: those that are announced, those that it gets, and what it hears of the rest.

use std::net::IpAddr;
use std::sync::Arc;

use stillmirror_protocol::limits;
use stillmirror_protocol::wire;

use crate::registry::Registry;
use crate::repository::Repository;

/// The repositories as a client at one address sees them.
pub(crate) struct Visible<'a> {
    registry: &'a Registry,
    address: IpAddr,
}

/// Why a client does not get a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unavailable {
    /// There is none of that name, or it is not for this client to know.
    Unknown,
    /// It is there for others.
    Denied,
    /// Its module hides names, which the native protocol cannot.
    HidesNames,
}

impl<'a> Visible<'a> {
    pub(crate) fn new(registry: &'a Registry, address: IpAddr) -> Self {
        Self { registry, address: address.to_canonical() }
    }

    /// What a native client is told that there is. The head is for those who may have the repository.
    pub(crate) fn announcement(&self) -> Vec<wire::Repository> {
        let head = |repository: &Repository| {
            let edition = repository.current().filter(|_| self.may_have_natively(repository));
            edition.map(|edition| edition.generation.head_bytes().to_vec()).unwrap_or_default()
        };
        let announce = |repository: &Arc<Repository>| wire::Repository {
            name: repository.name.clone(),
            comment: repository.comment.clone(),
            head: head(repository),
        };
        let listed = self.registry.listed().filter(|repository| repository.is_native);
        listed.take(limits::REPOSITORIES).map(announce).collect()
    }

    /// The repository of that name for a native client, which cannot say who its user is.
    pub(crate) fn find_native(&self, name: &str) -> Result<&'a Arc<Repository>, Unavailable> {
        let repository = self.registry.find(name).ok_or(Unavailable::Unknown)?;
        if !self.may_have_natively(repository) {
            return Err(unavailable(repository, Unavailable::Denied));
        }
        if !repository.is_native {
            return Err(unavailable(repository, Unavailable::HidesNames));
        }
        Ok(repository)
    }

    /// The repository of that name for a stock client, whose user may still have to be asked for.
    pub(crate) fn find_module(&self, name: &[u8]) -> Result<&'a Arc<Repository>, Unavailable> {
        let repository = std::str::from_utf8(name).ok().and_then(|name| self.registry.find(name));
        let repository = repository.ok_or(Unavailable::Unknown)?;
        if repository.hosts.admit(self.address) {
            Ok(repository)
        } else {
            Err(unavailable(repository, Unavailable::Denied))
        }
    }

    /// A repository that is not listed and asks for users: a client that names one that is not there is asked too, and
    /// learns nothing from the question.
    pub(crate) fn unlisted_with_users(&self) -> Option<&'a Arc<Repository>> {
        let asks = |repository: &&Arc<Repository>| {
            !repository.is_listed && !repository.users.is_everybody() && repository.hosts.admit(self.address)
        };
        self.registry.all().iter().find(asks)
    }

    fn may_have_natively(&self, repository: &Repository) -> bool {
        repository.hosts.admit(self.address) && repository.users.is_everybody()
    }
}

/// What a client hears: of a repository that is not listed, what it hears of one that is not there.
fn unavailable(repository: &Repository, why: Unavailable) -> Unavailable {
    if repository.is_listed { why } else { Unavailable::Unknown }
}
