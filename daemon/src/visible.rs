//! The repositories as a client sees them: which are announced, which it may access, and what it is told
//! about the rest.

use std::net::IpAddr;
use std::sync::Arc;

use stillmirror_protocol::limits;
use stillmirror_protocol::wire::{self, ErrorCode};

use crate::registry::Registry;
use crate::repository::Repository;

/// The repositories as a client at one address sees them.
pub(crate) struct Visible<'a> {
    registry: &'a Registry,
    address: IpAddr,
}

/// The reason why a client may not access a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unavailable {
    /// There is no repository with that name, or this client must not know that there is.
    Unknown,
    /// It is only for other clients.
    Denied,
    /// Its module hides names, which the native protocol cannot do.
    HidesNames,
}

impl Unavailable {
    /// Returns what a native client is told.
    pub(crate) fn refusal(self, name: &str) -> (ErrorCode, String) {
        match self {
            Self::Unknown => (ErrorCode::UnknownRepository, format!("there is no repository '{name}' here")),
            Self::Denied => (ErrorCode::Refused, format!("access to the repository '{name}' is denied")),
            Self::HidesNames => {
                let why = "hides names by rules that only apply to rsync clients: use rsync:// for it";
                (ErrorCode::Refused, format!("the repository '{name}' {why}"))
            }
        }
    }
}

impl<'a> Visible<'a> {
    pub(crate) fn new(registry: &'a Registry, address: IpAddr) -> Self {
        Self { registry, address: address.to_canonical() }
    }

    /// Returns the listed repositories for a native client with these capabilities. Heads are included only for
    /// repositories that the client may access.
    pub(crate) fn announcement(&self, capabilities: wire::Capabilities) -> Vec<wire::Repository> {
        let head = |repository: &Repository| {
            let edition = repository.current().filter(|_| self.may_have_natively(repository));
            edition.map(|edition| edition.head_for(capabilities)).unwrap_or_default()
        };
        let announce = |repository: &Arc<Repository>| wire::Repository {
            name: repository.name.clone(),
            comment: repository.comment.clone(),
            head: head(repository),
        };
        let listed = self.registry.listed().filter(|repository| repository.is_native);
        listed.take(limits::REPOSITORIES).map(announce).collect()
    }

    /// Returns the repository with this name for a native client, which cannot log in.
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

    /// Returns the repository with this name for a stock client, which may still have to log in.
    pub(crate) fn find_module(&self, name: &[u8]) -> Result<&'a Arc<Repository>, Unavailable> {
        let repository = std::str::from_utf8(name).ok().and_then(|name| self.registry.find(name));
        let repository = repository.ok_or(Unavailable::Unknown)?;
        if repository.hosts.admit(self.address) {
            Ok(repository)
        } else {
            Err(unavailable(repository, Unavailable::Denied))
        }
    }

    /// Returns a repository that is not listed and requires a login. If there is one, a client that names an
    /// unknown repository has to log in too, so that it does not learn from the challenge which ones exist.
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

/// Returns what a client is told. For an unlisted repository, that is the same as for an unknown one.
fn unavailable(repository: &Repository, why: Unavailable) -> Unavailable {
    if repository.is_listed { why } else { Unavailable::Unknown }
}
