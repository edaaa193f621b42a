//! What a pull can reach once it talks to strangers.

use stillmirror_receiver::Options;

use super::Arguments;
use crate::sandbox::{self, Enforcement, Reach};

/// Enters the sandbox, unless the operator's commands would be in it, too.
pub(super) fn enter_sandbox(arguments: &Arguments, options: &Options) {
    if arguments.no_sandbox || arguments.hooks.any() {
        return;
    }
    let sandbox = sandbox::enter(&reach(arguments, options));
    for (what, enforcement) in [("Landlock", sandbox.landlock), ("seccomp", sandbox.seccomp)] {
        if let Enforcement::Missing(reason) = enforcement
            && arguments.output.summary()
        {
            eprintln!("stillmirror: the pull is not restricted by {what}: {reason}");
        }
    }
}

fn reach(arguments: &Arguments, options: &Options) -> Reach {
    let mut reach = Reach::of_client();
    let dest = &options.dest;
    match dest.parent() {
        // Snapshots are beside DEST. While `pull` follows, a disk may be mounted on DEST.
        Some(parent) if arguments.switch || arguments.follow => reach.may_write(parent),
        _ => reach.may_write(dest),
    }
    options.store.iter().for_each(|store| reach.may_write(store));
    arguments.tls.ca_file.iter().for_each(|file| reach.may_read(file));
    options.bases.iter().for_each(|basis| reach.may_read(basis));
    reach
}
