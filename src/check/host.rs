//! The kernel and its limits.

use rustix::process::{Resource, getrlimit};
use stillmirror_daemon::{self as daemon, probe};

use super::finding::Report;
use crate::output::grouped;
use crate::sandbox;

/// The oldest kernel that is supported.
const OLDEST: (u32, u32) = (5, 10);

pub(super) fn check(config: &daemon::Config, report: &mut Report) {
    report.section("host");
    kernel(report);
    match probe::io_uring() {
        Ok(()) => report.ok("io_uring is allowed: small files are read many at once"),
        Err(error) => report.note(format!(
            "io_uring is refused ({error}): small files are read one after the other, at more CPU from a cold disk"
        )),
    }
    match sandbox::landlock_version() {
        0 => report
            .note("this kernel has no Landlock, or it is not enabled: the paths of `serve` are not restricted by it"),
        version => report.ok(format!("Landlock, version {version}: `serve` can reach only the paths that it needs")),
    }
    open_files(config, report);
}

fn kernel(report: &mut Report) {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= OLDEST {
        report.ok(format!("Linux {release}"));
    } else {
        let (major, minor) = OLDEST;
        report.error(format!("Linux {release} is older than {major}.{minor}, the oldest that works"), "");
    }
}

/// The daemon raises its limit as far as it may, so the hard limit counts.
fn open_files(config: &daemon::Config, report: &mut Report) {
    let wanted = probe::open_files(&config.limits, config.repositories.len());
    let settings = format!(
        "{} connections, {} in the queue and {} followers",
        grouped(config.limits.connections as u64),
        grouped(config.limits.queue as u64),
        grouped(config.limits.followers as u64),
    );
    let wanted_text = format!("{settings} want {} open files", grouped(wanted));
    match getrlimit(Resource::Nofile).maximum {
        Some(limit) if limit < wanted => report.warning(
            format!("{wanted_text}, and this process may have {}: fewer are accepted at once", grouped(limit)),
            "raise LimitNOFILE in the unit (the packaged one has its own) or `ulimit -Hn`, or lower these keys",
        ),
        Some(limit) => report.ok(format!("{wanted_text}; this process may have {}", grouped(limit))),
        None => report.ok(format!("{wanted_text}; there is no limit")),
    }
}
