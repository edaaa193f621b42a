//! Measures the speed of writing file lists for stock clients.
//!
//! `cargo bench -p stillmirror-protocol --bench rsync_list [-- ENTRIES]` generates a repository of a million files, with
//! about 29 files per directory, 60 bytes per path, and one hard link in a hundred files. It prints the milliseconds for
//! a whole list on one core, written in pieces of 256 KiB, as the best of five runs.

use std::time::{Duration, Instant};

use stillmirror_protocol::changes::{Changes, Put, apply};
use stillmirror_protocol::entry::{Digest, Digests, Entry, Kind, Owner, Time};
use stillmirror_protocol::list::{self, ListRef};
use stillmirror_protocol::rsync::flist::{Class, ListWriter};
use stillmirror_protocol::rsync::selection::{Everything, Hides, Selecting, Selection, Wanted};
use stillmirror_protocol::rsync::version::Version;

const RUNS: usize = 5;
const PIECE: usize = 256 << 10;

fn main() {
    let count = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000);
    let encoded = repository(count).encode();
    let list = list::open(&encoded).expect("a built list is valid");
    println!("{} entries, {} directories", list.len(), list.directories());
    let version = |number| Version::new(number).expect("a version");
    let options = |class: Class, links, owner| Class { links: true, hard_links: links, owner, group: owner, ..class };
    let varint = Class { varint_flags: true, id0_names: true, ..Class::plain(version(31)) };
    let incremental = Class { incremental: true, ..varint };
    report("lH, one list, protocol 31", list, options(varint, true, false), &Everything);
    report("log, one list, protocol 31", list, options(varint, false, true), &Everything);
    report("log, incremental, protocol 31", list, options(incremental, false, true), &Everything);
    report("lH, incremental, a filter, protocol 31", list, options(incremental, true, false), &Nothing);
    report("lHog, one list, protocol 29", list, options(Class::plain(version(29)), true, true), &Everything);
    report("lHog, one list, protocol 27", list, options(Class::plain(version(27)), true, true), &Everything);
    report_names(list);
}

/// Selects every file by its name, as `--files-from` does.
fn report_names(list: ListRef<'_>) {
    let files = (0..list.len()).filter(|&row| list.row(row).is_file());
    let mut names: Vec<_> = files.map(|row| list.path(row)).collect();
    for order in ["sorted", "in random order"] {
        let start = Instant::now();
        let wanted = Wanted { relative: true, implied_dirs: true, files_from: true, ..Wanted::default() };
        let mut selecting = Selecting::new(list, wanted, &Everything, &mut Vec::new());
        let found = names.iter().filter(|name| selecting.add(list, &Everything, name).is_ok()).count();
        std::hint::black_box(selecting.finish());
        println!("{found} names from a client, {order}: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
        names.sort_by_cached_key(|name| xxh(name));
    }
}

fn xxh(name: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(name)
}

/// A filter that hides nothing. It shows the cost of calling a filter.
struct Nothing;

impl Hides for Nothing {
    fn hides(&self, path: &[u8], name: usize, _: bool) -> bool {
        path.len() < name
    }

    fn module_hides(&self, _: &[u8], _: bool) -> bool {
        false
    }
}

fn report(what: &str, list: ListRef<'_>, class: Class, hides: &impl Hides) {
    let mut bytes = 0;
    let mut run = || {
        let start = Instant::now();
        bytes = write(list, class, hides);
        start.elapsed()
    };
    let best = (0..RUNS).map(|_| run()).min().unwrap_or(Duration::MAX);
    let millions = f64::from(list.len()) / 1e6 / best.as_secs_f64();
    println!("{what}: {:.1} ms, {millions:.1} M entries/s, {bytes} bytes", best.as_secs_f64() * 1e3);
}

fn write(list: ListRef<'_>, class: Class, hides: &impl Hides) -> usize {
    let wanted = Wanted { paths: vec![Vec::new()], recurse: true, ..Wanted::default() };
    let (selection, _) = Selection::resolve(list, wanted, hides);
    let mut writer = ListWriter::new(list, class, selection, hides);
    let (mut out, mut rows, mut bytes) = (Vec::with_capacity(2 * PIECE), Vec::new(), 0);
    loop {
        out.clear();
        let done = writer.write(list, hides, &mut out, &mut rows, PIECE).done;
        bytes += std::hint::black_box(&out).len();
        if done {
            return bytes;
        }
    }
}

fn repository(count: u32) -> list::FileList {
    let put = |entry| Put { entry, tag: 0 };
    let owner = Owner { user: b"root".to_vec(), group: b"root".to_vec(), ..Owner::default() };
    let entry = |at: u32, kind| Entry {
        mode: if matches!(kind, Kind::Directory) { 0o755 } else { 0o644 },
        mtime: Time { sec: 1_700_000_000 + i64::from(at.wrapping_mul(2_654_435_761) >> 8), nsec: 0 },
        owner: owner.clone(),
        link: None,
        kind,
    };
    let mut changes = Changes { root: Some(put(entry(0, Kind::Directory))), ..Changes::default() };
    let (mut last_dir, mut last_section) = (Vec::new(), Vec::new());
    for at in 0..count {
        let section = format!("pool/section{}", at / 29_000).into_bytes();
        let dir = format!("package-{}", at / 29).into_bytes();
        if section != last_section {
            changes.put(b"pool", section.strip_prefix(b"pool/").unwrap_or_default(), entry(at, Kind::Directory), 0);
        }
        let path = [&section[..], b"/", &dir].concat();
        if path != last_dir {
            changes.put(&section, &dir, entry(at, Kind::Directory), 0);
        }
        let name = format!("package-{}_{}.{}-1_amd64.deb", at / 29, at % 29, at % 7);
        let digests = Digests { sha256: Digest([at as u8; 32]), ..Digests::default() };
        let link = (at % 200 < 2).then_some(u64::from(at / 200));
        let size = u64::from(at.wrapping_mul(40_503));
        let size = if link.is_some() { 7 } else { size };
        let digests = if link.is_some() { Digests { sha256: Digest([1; 32]), ..digests } } else { digests };
        changes.put(&path, name.as_bytes(), Entry { link, ..entry(at, Kind::File { size, digests }) }, 0);
        (last_dir, last_section) = (path, section);
    }
    changes.put(b"", b"pool", entry(0, Kind::Directory), 0);
    apply(None, &changes).expect("the changes make a tree").list
}
