//! Reports of pulls, as text and as JSON.

use serde_json::json;
use stillmirror_protocol::path::Escaped;
use stillmirror_receiver::{Action, Failure, Report, Served};

use super::arguments::Arguments;
use crate::exit::Exit;
use crate::output::{bytes, count, line};

/// Prints the report. Returns the exit code.
pub(super) fn print(report: &Report, arguments: &Arguments) -> Exit {
    for failed in &report.failed {
        let why = match failed.why {
            Failure::Stale => "changed at the sender after it was indexed",
            Failure::Missing => "is not in the repository",
            Failure::Vanished => "vanished at the sender",
            Failure::Unreadable => "cannot be read at the sender",
            Failure::InTheWay => "a directory with local files is in the way",
            Failure::Refused => "cannot be created on this host",
            Failure::Damaged => "does not match its digest at the sender",
            Failure::Stuck => "cannot be changed on this host",
            Failure::Held => "waits for the files that it refers to",
        };
        eprintln!("stillmirror: {}: {why}", Escaped(&failed.path));
    }
    let named = report.failed.iter().filter(|failed| failed.why == Failure::Missing).count() as u64;
    if report.unlisted > named {
        eprintln!("stillmirror: {} of the slice are not in the repository", count(report.unlisted, "name"));
    }
    if report.deletes_held > 0 && !report.failed.is_empty() {
        let held = count(report.deletes_held, "deletion");
        eprintln!("stillmirror: not everything could be fetched: {held} held back until a pull fetches everything");
    }
    if arguments.switch && !arguments.dry_run && !report.switched && !report.failed.is_empty() {
        eprintln!("stillmirror: readers keep the current snapshot; the next pull goes on with the new one");
    }
    if !report.unchanged && report.devices_skipped > 0 {
        let skipped = count(report.devices_skipped, "device file");
        eprintln!("stillmirror: {skipped} skipped; --devices creates them");
    }
    if !report.unchanged && report.setid_cleared > 0 {
        let cleared = count(report.setid_cleared, "file");
        eprintln!("stillmirror: {cleared} without the setuid and setgid bits of the origin; --setid keeps them");
    }
    if report.links_copied > 0 {
        let copied = count(report.links_copied, "name");
        eprintln!("stillmirror: this file system takes no further hard links: {copied} copied instead");
    }
    let output = &arguments.output;
    if output.json {
        line!("{}", to_json(report));
    } else if arguments.dry_run && output.text() {
        print_plan(report);
    } else if !arguments.dry_run && output.summary() {
        print_summary(report);
    }
    // A held file does not count: the files that it waits for are in the list, too.
    let is_transient = |why| matches!(why, Failure::Stale | Failure::Vanished | Failure::Held);
    match report.failed.iter().map(|failed| failed.why).find(|&why| !is_transient(why)) {
        Some(_) => Exit::Partial,
        None if report.failed.is_empty() => Exit::Done,
        None => Exit::Vanished,
    }
}

fn print_summary(report: &Report) {
    if report.unchanged {
        line!("generation {}: nothing is new", report.generation);
        return print_waiting(report);
    }
    line!(
        "generation {}: {} updated, {} reused, {} linked, {} deleted",
        report.generation,
        count(report.files_updated, "file"),
        report.files_reused,
        report.files_linked,
        report.files_deleted
    );
    line!(
        "received {} in {:.1} s ({} of data, {} of block checksums, {} of lists); {} were there already",
        bytes(report.bytes_received),
        report.seconds,
        bytes(report.bytes_literal),
        bytes(report.bytes_checksums),
        bytes(report.bytes_list),
        bytes(report.bytes_matched)
    );
    for Served { address, received, failure, .. } in &report.senders {
        let failure = failure.as_ref().map_or(String::new(), |why| format!("; it failed: {why}"));
        line!("{address} sent {}{failure}", bytes(*received));
    }
    print_waiting(report);
}

fn print_waiting(report: &Report) {
    if report.deletes_waiting > 0 {
        line!("{} left for a later pull", count(report.deletes_waiting, "deletion"));
    }
}

fn print_plan(report: &Report) {
    for (action, path) in &report.planned {
        let shown: &[u8] = if path.is_empty() { b"." } else { path };
        line!("{:<14} {}", verb(*action), Escaped(shown));
    }
    line!("generation {}: at most {} of data would be fetched", report.generation, bytes(report.planned_bytes));
    print_waiting(report);
}

fn verb(action: Action) -> &'static str {
    match action {
        Action::MakeDirectory => "make directory",
        Action::Fetch => "fetch",
        Action::Reuse => "reuse",
        Action::Link => "link",
        Action::Symlink => "symlink",
        Action::Special => "special",
        Action::Metadata => "metadata",
        Action::Delete => "delete",
    }
}

/// Returns the report as scripts read it.
pub(super) fn to_json(report: &Report) -> serde_json::Value {
    let failed: Vec<_> = report
        .failed
        .iter()
        .map(|failed| json!({ "path": Escaped(&failed.path).to_string(), "why": format!("{:?}", failed.why).to_lowercase() }))
        .collect();
    let planned: Vec<_> = report
        .planned
        .iter()
        .map(|(action, path)| json!({ "action": verb(*action), "path": Escaped(path).to_string() }))
        .collect();
    let senders: Vec<_> = report
        .senders
        .iter()
        .map(|Served { address, received, generation, failure }| {
            json!({ "address": address, "generation": generation, "bytes_received": received, "failure": failure })
        })
        .collect();
    json!({
        "generation": report.generation,
        "unchanged": report.unchanged,
        "files_updated": report.files_updated,
        "files_reused": report.files_reused,
        "files_deleted": report.files_deleted,
        "deletes_held": report.deletes_held,
        "deletes_waiting": report.deletes_waiting,
        "files_linked": report.files_linked,
        "unlisted": report.unlisted,
        "links_copied": report.links_copied,
        "devices_skipped": report.devices_skipped,
        "setid_cleared": report.setid_cleared,
        "directories_made": report.directories_made,
        "others_made": report.others_made,
        "metadata_changed": report.metadata_changed,
        "bytes_literal": report.bytes_literal,
        "bytes_matched": report.bytes_matched,
        "bytes_checksums": report.bytes_checksums,
        "bytes_list": report.bytes_list,
        "bytes_received": report.bytes_received,
        "bytes_sent": report.bytes_sent,
        "round_trips": report.round_trips,
        "seconds": report.seconds,
        "failed": failed,
        "planned": planned,
        "planned_bytes": report.planned_bytes,
        "store_generation": report.published,
        "switched": report.switched,
        "senders": senders,
    })
}
