//! Listings as text and as JSON.

use std::io::{self, BufWriter, Write};

use serde_json::json;
use stillmirror_protocol::entry::{Entry, Kind};
use stillmirror_protocol::head::Head;
use stillmirror_protocol::path::Escaped;
use stillmirror_protocol::wire::Repository;

use super::summary;
use crate::output::{bytes, count, grouped, line, time};

/// Prints the repositories of a sender.
pub(super) fn repositories(repositories: &[Repository], as_json: bool) {
    if as_json {
        let all: Vec<_> = repositories
            .iter()
            .map(|repository| {
                let mut fields = Head::decode(&repository.head).map(|head| summary(&head)).unwrap_or_default();
                fields.insert("name".to_owned(), repository.name.clone().into());
                fields.insert("comment".to_owned(), repository.comment.clone().into());
                fields
            })
            .collect();
        line!("{}", json!({ "repositories": all }));
        return;
    }
    for repository in repositories {
        let state = match Head::decode(&repository.head) {
            Ok(head) => format!(
                "generation {} of {}, {}, {}{}",
                head.generation,
                time(head.created),
                count(head.counts.files, "file"),
                bytes(head.counts.bytes),
                slice(&head)
            ),
            Err(_) => "not indexed yet, or not available to this client".to_owned(),
        };
        let comment = Escaped(repository.comment.as_bytes()).to_string();
        line!("{}", format!("{:<20} {state}  {comment}", repository.name).trim_end());
    }
}

/// Says that a generation is a slice.
fn slice(head: &Head) -> String {
    head.slice.as_ref().map_or(String::new(), |slice| format!(", only a slice: {}", slice.selected))
}

/// Prints entries of a generation in the given order, without collecting them first.
pub(super) fn entries(head: &Head, entries: impl Iterator<Item = (Vec<u8>, Entry)>, as_json: bool) {
    let mut out = BufWriter::new(io::stdout().lock());
    // A reader that is gone (`| head`) is not an error.
    let _ = if as_json { entries_json(&mut out, head, entries) } else { entries_text(&mut out, entries) };
    if let (false, Some(slice)) = (as_json, &head.slice) {
        eprintln!("stillmirror: '{}' is only a slice here: {}", head.repository, slice.selected);
    }
    let _ = out.flush();
}

fn entries_text(out: &mut impl Write, entries: impl Iterator<Item = (Vec<u8>, Entry)>) -> io::Result<()> {
    for (path, entry) in entries {
        let size = if let Kind::File { size, .. } = entry.kind { grouped(size) } else { String::new() };
        write!(out, "{} {size:>15} {} {}", mode(&entry), time(entry.mtime), Escaped(&path))?;
        if let Kind::Symlink { target } = &entry.kind {
            write!(out, " -> {}", Escaped(target))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn entries_json(out: &mut impl Write, head: &Head, entries: impl Iterator<Item = (Vec<u8>, Entry)>) -> io::Result<()> {
    let fields = serde_json::Value::Object(summary(head)).to_string();
    write!(out, "{},\"entries\":[", fields.trim_end_matches('}'))?;
    for (at, (path, entry)) in entries.enumerate() {
        write!(out, "{}\n{}", if at == 0 { "" } else { "," }, entry_json(&path, &entry))?;
    }
    writeln!(out, "\n]}}")
}

/// Returns an entry as JSON. Names are bytes and JSON is text: a byte that is not UTF-8 is written as `\xNN`, a
/// backslash as `\\`.
fn entry_json(path: &[u8], entry: &Entry) -> serde_json::Value {
    let mut fields = json!({
        "path": Escaped(path).to_string(),
        "type": type_name(&entry.kind),
        "mode": format!("{:04o}", entry.mode),
        "mtime": entry.mtime.sec,
        "mtime_nsec": entry.mtime.nsec,
        "uid": entry.owner.uid,
        "gid": entry.owner.gid,
    });
    if entry.link.is_some() {
        fields["hard_linked"] = true.into();
    }
    match &entry.kind {
        Kind::File { size, digests } => {
            fields["size"] = (*size).into();
            fields["sha256"] = digests.sha256.to_string().into();
        }
        Kind::Symlink { target } => fields["target"] = Escaped(target).to_string().into(),
        Kind::CharDevice(device) | Kind::BlockDevice(device) => {
            fields["device"] = format!("{}:{}", device.major, device.minor).into();
        }
        Kind::Directory | Kind::Fifo | Kind::Socket => {}
    }
    fields
}

fn type_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::File { .. } => "file",
        Kind::Directory => "directory",
        Kind::Symlink { .. } => "symlink",
        Kind::CharDevice(_) => "char device",
        Kind::BlockDevice(_) => "block device",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
    }
}

/// Formats type and mode as `ls -l` does: `-rwsr-xr-t`.
fn mode(entry: &Entry) -> String {
    let kind = match entry.kind {
        Kind::File { .. } => '-',
        Kind::Directory => 'd',
        Kind::Symlink { .. } => 'l',
        Kind::CharDevice(_) => 'c',
        Kind::BlockDevice(_) => 'b',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
    };
    let class = |shift: u16, special: bool, mark: char| {
        let bits = entry.mode >> shift;
        let execute = match (special, bits & 1 != 0) {
            (false, false) => '-',
            (false, true) => 'x',
            (true, true) => mark,
            (true, false) => mark.to_ascii_uppercase(),
        };
        [if bits & 4 != 0 { 'r' } else { '-' }, if bits & 2 != 0 { 'w' } else { '-' }, execute]
    };
    let classes = [
        class(6, entry.mode & 0o4000 != 0, 's'),
        class(3, entry.mode & 0o2000 != 0, 's'),
        class(0, entry.mode & 0o1000 != 0, 't'),
    ];
    std::iter::once(kind).chain(classes.into_iter().flatten()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_shown_as_ls_shows_them() {
        for (bits, shown) in
            [(0o755, "-rwxr-xr-x"), (0o4755, "-rwsr-xr-x"), (0o2640, "-rw-r-S---"), (0o1777, "-rwxrwxrwt")]
        {
            let kind = Kind::File { size: 0, digests: Default::default() };
            let entry = Entry { mode: bits, mtime: Default::default(), owner: Default::default(), link: None, kind };
            assert_eq!(mode(&entry), shown);
        }
    }
}
