//! What the daemon can reach once it talks to strangers.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::sandbox::{self, Enforcement, Reach, Sandbox};

/// Where programs and their loaders are: an upgrade starts the new version.
const PROGRAMS: [&str; 4] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"];

/// Enters the sandbox, unless the operator has turned it off, and logs what of it the kernel cannot do. Returns what the
/// daemon can still reach. `None` if there is no limit.
pub(super) fn enter_sandbox(config: &Config, file: Option<&Path>) -> Option<Reach> {
    if !config.daemon.sandbox {
        return None;
    }
    let reach = reach(config, file);
    let Sandbox { landlock, seccomp } = sandbox::enter(&reach);
    if let Enforcement::Missing(reason) = &seccomp {
        tracing::warn!(reason, "system calls are not restricted by seccomp");
    }
    match landlock {
        Enforcement::Full => {}
        Enforcement::Partial => tracing::info!("this kernel knows only a part of the Landlock restrictions"),
        Enforcement::Missing(reason) => {
            tracing::warn!(reason, "paths are not restricted by Landlock");
            return None;
        }
    }
    Some(reach)
}

/// Returns what the daemon needs for a configuration.
pub(super) fn reach(config: &Config, file: Option<&Path>) -> Reach {
    let mut reach = Reach::of_server();
    let settings = &config.daemon;
    // Files may be replaced, which their directories must allow.
    let mut files: Vec<&Path> = Vec::new();
    files.extend(file);
    let named = [&settings.motd_file, &settings.tls_certificate, &settings.tls_key];
    files.extend(named.into_iter().filter_map(Option::as_deref));
    for repository in &config.repository {
        // A root may be missing now, be a symlink that is switched, or have a disk mounted on it.
        reach.may_read_beside(&repository.root);
        reach.may_read_beside(&repository.store);
        let named = [&repository.pool, &repository.secrets_file, &repository.include_from, &repository.exclude_from];
        files.extend(named.into_iter().filter_map(Option::as_deref));
        if settings.lists.is_none() {
            let lists = repository.store.join("lists");
            let _ = std::fs::create_dir(&lists);
            if lists.is_dir() {
                reach.may_write(lists);
            }
        }
    }
    if let Some(socket) = &settings.status_socket {
        // A new version replaces the socket.
        reach.may_write(socket.parent().unwrap_or(socket));
    }
    files.into_iter().for_each(|file| reach.may_read_beside(file));
    settings.lists.iter().for_each(|lists| reach.may_write(lists));
    let program = std::env::current_exe().ok().and_then(|file| file.parent().map(Path::to_owned));
    PROGRAMS.iter().map(PathBuf::from).chain(program).for_each(|dir| reach.may_execute(dir));
    reach
}
