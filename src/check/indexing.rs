//! What `stillmirror index` needs, checked as the user who runs this.

use std::path::Path;

use rustix::fs::{Access, access};
use rustix::io::Errno;

use super::finding::Report;
use crate::config::{Config, Repository};
use crate::sign::load_key;

pub(super) fn check(config: &Config, report: &mut Report) {
    for repository in &config.repository {
        report.section(format!("repository {}", repository.name));
        store(repository, report);
        key(config, repository, report);
    }
}

fn store(repository: &Repository, report: &mut Report) {
    let (store, root) = (&repository.store, &repository.root);
    if store.starts_with(root) || root.starts_with(store) {
        report.warning(
            format!("the store {} and the root {} are not beside each other", store.display(), root.display()),
            "give `store` a directory outside the tree",
        );
    }
    match can_write(store) {
        Ok(()) => report.ok("this user can write the store: `index` works"),
        Err(Errno::ACCESS) => report.note(format!("this user cannot write the store {}", store.display())),
        Err(error) => report.error(format!("nobody can write the store {}: {error}", store.display()), ""),
    }
}

/// Checks that this process can write to a directory, or create it.
pub(super) fn can_write(dir: &Path) -> Result<(), Errno> {
    let mut there = dir.ancestors().filter(|dir| !dir.as_os_str().is_empty());
    let there = there.find(|dir| dir.exists()).unwrap_or(Path::new("."));
    access(there, Access::WRITE_OK | Access::EXEC_OK)
}

fn key(config: &Config, repository: &Repository, report: &mut Report) {
    let settings = repository.index.clone().over(&config.index);
    let Some(key) = &settings.sign_key else { return };
    match load_key(key, settings.sign_expires) {
        Ok(_) => report.ok(format!("`index` signs with {}", key.display())),
        Err(error) => report.error(format!("`index` cannot sign: {error:#}"), ""),
    }
}
