//! Measures the speed of filter rules on the names of a large mirror, on one thread.
//!
//! `cargo bench -p stillmirror-protocol --bench rules` generates names for 1 M files in 34,000 directories. For each set of
//! rules it prints the seconds for all names, as the best of five runs, and the number of hidden names.

use std::time::{Duration, Instant};

use stillmirror_protocol::changes::{Changes, Put, apply};
use stillmirror_protocol::entry::{Digests, Entry, Kind, Owner, Time};
use stillmirror_protocol::list::{self, ListRef};
use stillmirror_protocol::rsync::rules::Rules;
use stillmirror_protocol::rsync::selection::Hides as _;
use stillmirror_protocol::rsync::version::Version;

const DIRECTORIES: usize = 34_000;
const FILES_EACH: usize = 30;
const RUNS: usize = 5;

/// The rules of the first stage of Debian's mirror script, and typical additions by clients.
const STAGE_ONE: &[&str] = &[
    "- Packages*",
    "- Sources*",
    "- Release*",
    "- InRelease",
    "- i18n/*",
    "- by-hash/**",
    "- /.~tmp~/",
    "- /indices/",
    "- ls-lR*",
    "- dep11/*",
    "- installer-*/current",
    "- Contents-*",
    "- /project/trace/mirror.example.org",
    "- .~tmp~/",
    "- Archive-Update-in-Progress-*",
    "- Archive-Update-Required-*",
    "+ /dists/**/Release.gpg",
    "- *.new",
    "- /pool/**/[a-c]*.orig",
    "- core.[0-9]",
];

fn main() {
    let bytes = encoded();
    let list = list::open(&bytes).expect("a built list is valid");
    println!("{} entries in {} directories", list.len(), list.directories());
    report("no rules", list, &[]);
    report("-p .~tmp~/", list, &["-p .~tmp~/"]);
    report("20 rules of a mirror script", list, STAGE_ONE);
    report("20 suffixes that occur", list, &["+ *.deb", "- *.dsc", "- *0.deb"].repeat(7)[..20]);
    report("20 patterns with ** that do not occur", list, &["- pool/**/source/**.asc"; 20]);
    report("20 patterns with ** that nearly match", list, &["- pool/**/source-*/**.ddeb"; 20]);
    report("4,000 patterns with text that does not occur", list, &["- **nowhere[0-9]**"; 4000]);
    report("one hostile pattern", list, &[&format!("- {}", "*[!~]".repeat(800))]);
}

fn report(what: &str, list: ListRef<'_>, texts: &[&str]) {
    let texts = || texts.iter().map(|text| text.as_bytes());
    let rules = || Rules::parse(texts(), Version::NEWEST, false).expect("rules");
    let (walk, (hidden, is_cut)) = best(|| {
        let rules = rules();
        (hidden(list, &rules), rules.exhausted())
    });
    let (void, is_void) = best(|| rules().is_void_for(list));
    let spent = if is_cut { ", cut short" } else { "" };
    println!("{walk:7.3} s all names, {void:7.4} s void? {is_void:5}, {hidden:8} hidden{spent}: {what}");
}

/// Returns the number of entries that the rules hide, without those that are only below hidden directories.
fn hidden(list: ListRef<'_>, rules: &Rules) -> usize {
    let mut path = Vec::new();
    let mut hidden = 0;
    for dir in list.dirs() {
        path.clear();
        path.extend_from_slice(&dir.path());
        if !path.is_empty() {
            path.push(b'/');
        }
        let len = path.len();
        for (name, row) in dir.children() {
            path.truncate(len);
            path.extend_from_slice(name);
            hidden += usize::from(rules.hides(&path, 0, row.is_dir()));
        }
    }
    hidden
}

fn best<T>(work: impl Fn() -> T) -> (f64, T) {
    let timed = || {
        let start = Instant::now();
        let value = std::hint::black_box(work());
        (start.elapsed(), value)
    };
    let mut fastest = (Duration::MAX, None);
    for _ in 0..RUNS {
        let (time, value) = timed();
        fastest = (fastest.0.min(time), Some(value));
    }
    (fastest.0.as_secs_f64(), fastest.1.expect("some run"))
}

fn encoded() -> rkyv::util::AlignedVec {
    let entry = |kind| Entry { mode: 0o644, mtime: Time::default(), owner: Owner::default(), link: None, kind };
    let mut changes = Changes { root: Some(Put { entry: entry(Kind::Directory), tag: 0 }), ..Changes::default() };
    let parent = |number: usize| format!("pool/main/{}/source-{number}", number % 100);
    changes.put(b"", b"pool", entry(Kind::Directory), 0);
    changes.put(b"pool", b"main", entry(Kind::Directory), 0);
    (0..100).for_each(|letter| changes.put(b"pool/main", letter.to_string().as_bytes(), entry(Kind::Directory), 0));
    for number in 0..DIRECTORIES {
        let dir = parent(number);
        let (above, name) = dir.rsplit_once('/').expect("a slash");
        changes.put(above.as_bytes(), name.as_bytes(), entry(Kind::Directory), 0);
        for file in 0..FILES_EACH {
            let name = format!("lib{number}-tool_{file}.1-{}_amd64.{}", number % 9, ["deb", "dsc", "tar.xz"][file % 3]);
            let kind = Kind::File { size: 1000, digests: Digests::default() };
            changes.put(dir.as_bytes(), name.as_bytes(), entry(kind), 0);
        }
    }
    apply(None, &changes).expect("a tree applies to nothing").list.encode()
}
