//! What the daemon opens: repositories, and files that the configuration names.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use indicatif::HumanDuration;
use rustix::io::Errno;
use stillmirror_daemon::probe::{self, Found, Probe, Reading, Sample};
use stillmirror_daemon::{OpenError, RepositoryConfig, RsyncConfig};
use stillmirror_protocol::entry::Time;
use stillmirror_protocol::head::Head;
use stillmirror_protocol::path::Escaped;
use stillmirror_protocol::wire::ItemFailure;
use stillmirror_store::StoreError;

use super::finding::Report;
use super::indexing::can_write;
use crate::config::Config;
use crate::output::{bytes, count, time};
use crate::serve;

/// How many files of each repository are opened.
const SAMPLE: u32 = 500;
/// A signature that expires within this many seconds is worth a warning.
const SOON: i64 = 24 * 3600;
/// How many seconds a time may be ahead of this host's clock.
const CLOCK_DIFFERENCE: i64 = 120;

pub(super) fn check(config: &Config, report: &mut Report) {
    let resolved = serve::resolve(config.clone());
    report.section("files of the daemon");
    if let Some(motd) = &resolved.rsync.motd {
        match probe::operator_file(motd) {
            Ok(()) => report.ok(format!("the message of the day {} can be read", motd.display())),
            Err(error) => report.warning(
                format!("the message of the day {} cannot be read: {error}", motd.display()),
                "clients get none until that is repaired",
            ),
        }
    }
    if let Some(tls) = &resolved.tls {
        match probe::tls(tls) {
            Ok(()) => report.ok(format!("the certificate {} and its key can be used", tls.certificate.display())),
            Err(error) => report.error(error.to_string(), "without them, the daemon does not start"),
        }
    }
    for (repository, settings) in resolved.repositories.iter().zip(&config.repository) {
        report.section(format!("repository {}", repository.name));
        let is_signed = settings.index.clone().over(&config.index).sign_key.is_some();
        check_repository(repository, resolved.serve_private, is_signed, report);
        lists(repository, &resolved.rsync, report);
    }
}

fn check_repository(config: &RepositoryConfig, serve_private: bool, is_signed: bool, report: &mut Report) {
    let probe = match Probe::new(config, serve_private) {
        Ok(probe) => probe,
        Err(error) => return report.error(error.to_string(), "the daemon does not start until that is repaired"),
    };
    match probe.open() {
        Ok(Some(found)) => {
            let generation = found.generation();
            head(generation.head(), is_signed, generation.signature().is_some(), report);
            parts(&found, report);
            files(&found, report);
        }
        Ok(None) | Err(OpenError::Store(StoreError::Missing(_))) => {
            let remedy = format!("run `stillmirror index` for '{}', or `pull` it", config.name);
            report.warning("it is not indexed yet, and clients are told so", &remedy);
            if let Err(error) = std::fs::read_dir(&config.root) {
                report.error(format!("cannot read the root {}: {error}", config.root.display()), root_remedy(&error));
            }
        }
        Err(OpenError::Root { root, source }) => {
            report.error(format!("cannot open the root {}: {source}", root.display()), root_remedy(&source));
        }
        Err(OpenError::Store(error @ StoreError::Io { .. })) => {
            report.error(error.to_string(), "let the daemon's user read the store and pass the directories above it");
        }
        Err(error) => report.error(error.to_string(), ""),
    }
}

fn root_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "mount its disk, or correct `root`",
        io::ErrorKind::PermissionDenied => "let the daemon's user read it and pass the directories above it",
        _ => "",
    }
}

fn head(head: &Head, is_signed: bool, has_signature: bool, report: &mut Report) {
    let now = now();
    let (made, size) = (time(head.created), bytes(head.counts.bytes));
    let what = format!("generation {} of {made}: {}, {size}", head.generation, count(head.counts.files, "file"));
    if head.created.sec > now + CLOCK_DIFFERENCE {
        report.warning(
            format!("{what}: that is in the future, and here it is {}", time(Time { sec: now, nsec: 0 })),
            "set the clock of this host, or of the one that made the generation",
        );
    } else {
        report.ok(format!("{what}, {} old", duration(now - head.created.sec)));
    }
    match head.expires.filter(|_| has_signature) {
        Some(expires) if expires.sec <= now => report.error(
            format!("its signature expired at {}: mirrors that check it refuse it", time(expires)),
            "let `index` or `sign` run at the origin, and then pull again; or set the clock of this host",
        ),
        Some(expires) if expires.sec <= now + SOON => report.warning(
            format!("its signature expires in {}", duration(expires.sec - now)),
            "let `index` or `sign` run more often, or give it a longer `sign_expires`",
        ),
        Some(expires) => report.ok(format!("it is signed until {}", time(expires))),
        None if is_signed => {
            report.warning("there is a `sign_key`, but the generation is not signed", "run `stillmirror index`");
        }
        None => {}
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs().cast_signed()
}

fn duration(seconds: i64) -> String {
    HumanDuration(std::time::Duration::from_secs(seconds.max(0).cast_unsigned())).to_string()
}

/// Reports the parts of a generation that are not in its directory.
fn parts(found: &Found, report: &mut Report) {
    for pack in found.generation().missing_packs() {
        report.warning(
            format!("the pack {} is missing or damaged: files are read from the tree instead", pack.display()),
            "run `stillmirror index --verify-store`; for a store that `pull` wrote, remove it and pull again",
        );
    }
    if found.lacks_pool() {
        report.warning(
            "the pool of its contents cannot be opened: clients get no file that is replaced or removed meanwhile",
            "let the daemon's user read the pool, or run `stillmirror index`, which fills it again",
        );
    }
    let list = found.generation().list();
    if !list.has_xxh128() && !list.has_md5() {
        report.note(
            "the index has neither XXH128 nor MD5 digests: for rsync clients they are computed while a file is sent \
             (`xxh128 = true` in [index])",
        );
    }
}

fn files(found: &Found, report: &mut Report) {
    let Sample { opened, faults, reading } = found.sample(SAMPLE);
    match reading {
        Some(Reading::Cached) => report.ok("files are read through the page cache (`direct = \"never\"`)"),
        Some(Reading::Direct(alignment)) => {
            report.ok(format!("files are read past the page cache (O_DIRECT), aligned to {}", bytes(alignment as u64)));
        }
        Some(Reading::Refused) => report.note(
            "the file system refuses direct reads: files are read through the page cache, and dropped from it again",
        ),
        None => {}
    }
    if found.is_public_only() {
        report.note("a daemon that runs as root sends only what everybody on this host may read");
    }
    if faults.is_empty() {
        return report.ok(format!("{} opened: all as indexed", count(opened as u64, "file")));
    }
    let mut fault = |is_it: fn(&ItemFailure) -> bool, what: &str, remedy: &str| {
        let mut paths = faults.iter().filter(|(_, failure)| is_it(failure)).map(|(path, _)| path);
        if let Some(first) = paths.next() {
            let (number, path) = (1 + paths.count(), Escaped(first));
            let text = format!("{number} of {} {what}, such as {path}", count(opened as u64, "sampled file"));
            if number == opened { report.error(text, remedy) } else { report.warning(text, remedy) }
        }
    };
    let is_unreadable = |failure: &ItemFailure| !matches!(failure, ItemFailure::Stale | ItemFailure::Vanished);
    fault(is_unreadable, "cannot be read", "let the daemon's user read them and pass the directories above them");
    fault(|failure| *failure == ItemFailure::Stale, "changed since they were indexed", "run `stillmirror index`");
    fault(|failure| *failure == ItemFailure::Vanished, "are gone since they were indexed", "run `stillmirror index`");
}

/// Reports whether encoded lists can be kept.
fn lists(repository: &RepositoryConfig, rsync: &RsyncConfig, report: &mut Report) {
    if !rsync.enabled || rsync.cached_lists == 0 {
        return;
    }
    let in_store = || repository.store.join("lists");
    let dir = rsync.lists.as_ref().map_or_else(in_store, |lists| lists.join(&repository.name));
    match can_write(&dir) {
        Ok(()) => report.ok(format!("encoded lists for rsync clients are kept in {}", dir.display())),
        Err(error @ (Errno::ACCESS | Errno::ROFS)) => report.warning(
            format!("encoded lists for rsync clients cannot be kept in {}: {error}", dir.display()),
            "set `lists = \"/var/cache/stillmirror\"`, or another directory that the daemon's user can write",
        ),
        Err(error) => report.warning(format!("encoded lists cannot be kept in {}: {error}", dir.display()), ""),
    }
}
