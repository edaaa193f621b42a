//! Signs what is published already.

use std::path::Path;

use stillmirror_protocol::head::Head;
use stillmirror_store::Store;

use crate::error::IndexError;
use crate::publish::renew;
use crate::signer::{SignError, Signer};

/// Signs the current generation of a store again, so that it expires later, or for the first time. Publishes a
/// generation with the same list and the next number, and returns its head.
pub fn sign(dir: &Path, signer: &Signer) -> Result<Head, IndexError> {
    let store = Store::open(dir)?;
    let lock = store.lock()?;
    let current = store.current()?.ok_or_else(|| SignError::NoGeneration(dir.to_owned()))?;
    // A pull keeps the origin's numbers, and notes which tree it pulled into.
    if current.origin().is_some() || current.number() != current.head().generation || dir.join("tree").exists() {
        return Err(SignError::Pulled(dir.to_owned()).into());
    }
    renew(&store, &lock, &current, signer)
}
