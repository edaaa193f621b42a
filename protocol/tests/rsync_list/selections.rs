//! The entries that a command line selects.

use std::collections::BTreeMap;

use proptest::prelude::*;
use stillmirror_protocol::entry::{Entry, Kind};
use stillmirror_protocol::list;
use stillmirror_protocol::path;
use stillmirror_protocol::rsync::flist::Class;
use stillmirror_protocol::rsync::mux::Severity;
use stillmirror_protocol::rsync::selection::{Everything, Follow, Missing, Selecting, Selection, Wanted, Why};
use stillmirror_protocol::rsync::version::Version;

use crate::decoder::decode;
use crate::trees::{Tree, encoded, tree};
use crate::{Names, names, sort_key, write};

/// A name in the list: the path that it stands for, whether it is a transfer root, whether its contents are listed.
type Listed = (Vec<u8>, Vec<u8>, bool, bool);

/// The marks below one base directory, by name.
#[derive(Default)]
struct View(BTreeMap<Vec<u8>, Mark>);

#[derive(Default, Clone, Copy)]
struct Mark {
    requested: bool,
    implied: bool,
    recurse: bool,
    children: bool,
}

/// A path as a client may request it.
#[derive(Debug, Clone)]
struct Request {
    path: Vec<u8>,
    /// Whether the path ends with a slash.
    contents: bool,
    /// With `-R`: the number of components before `/./`.
    pivot: usize,
    is_dir: bool,
}

fn request(tree: &Tree, (pick, contents, pivot): (prop::sample::Index, bool, usize)) -> Request {
    let paths: Vec<_> = tree.iter().collect();
    let (path, entry) = pick.get(&paths);
    let is_dir = entry.kind.is_dir();
    Request { path: path.to_vec(), contents: contents && is_dir, pivot, is_dir }
}

impl Request {
    fn text(&self, relative: bool) -> Vec<u8> {
        let (base, name) = self.split(relative);
        let mut text = match (relative && !base.is_empty(), name.is_empty()) {
            (true, _) => [&base[..], b"/./", &name].concat(),
            (false, _) if relative => name.clone(),
            _ => self.path.clone(),
        };
        if self.contents && !text.is_empty() && !text.ends_with(b"/") {
            text.push(b'/');
        }
        text
    }

    /// Returns the directory that the name is relative to, and the name, which is empty for `.`.
    fn split(&self, relative: bool) -> (Vec<u8>, Vec<u8>) {
        if relative {
            let elements: Vec<&[u8]> = path::components(&self.path).collect();
            let (base, name) = elements.split_at(self.pivot.min(elements.len() - usize::from(!self.is_dir)));
            return (base.join(&b'/'), name.join(&b'/'));
        }
        if self.contents || self.path.is_empty() {
            return (self.path.clone(), Vec::new());
        }
        let (base, name) = path::split(&self.path);
        (base.to_vec(), name.to_vec())
    }
}

fn expected(tree: &Tree, requests: &[Request], wanted: &Wanted, hides: &Names) -> Vec<Listed> {
    let mut views: Vec<(Vec<u8>, View)> = Vec::new();
    for request in requests {
        let is_dir = tree[&request.path].kind.is_dir();
        let (base, name) = request.split(wanted.relative);
        let hidden = hides.0.contains(path::split(&name).1);
        if hidden || (is_dir && !wanted.recurse && !wanted.dirs && !wanted.files_from) {
            continue;
        }
        // Paths of the command line are kept apart: a name that two of them select is listed twice.
        let is_shared = wanted.relative || wanted.files_from;
        if !is_shared || views.last().is_none_or(|(last, _)| *last != base) {
            views.push((base, View::default()));
        }
        let Some((_, view)) = views.last_mut() else { continue };
        for (at, _) in name.iter().enumerate().filter(|&(_, &byte)| byte == b'/') {
            view.0.entry(name[..at].to_vec()).or_default().implied |= wanted.implied_dirs;
        }
        let contents = request.contents || name.is_empty();
        let mark = view.0.entry(name).or_default();
        mark.requested = true;
        mark.recurse |= is_dir && wanted.recurse;
        mark.children |= is_dir && !wanted.recurse && contents;
    }
    let mut listed = Vec::new();
    for (base, view) in &views {
        if let Some(&mark) = view.0.get(&b""[..]).or(Some(&Mark::default())) {
            if mark.requested {
                listed.push((b".".to_vec(), base.clone(), true, true));
            }
            visit(tree, hides, view, base, b"", mark, &mut listed);
        }
    }
    listed
}

fn visit(tree: &Tree, hides: &Names, view: &View, base: &[u8], dir: &[u8], requested: Mark, listed: &mut Vec<Listed>) {
    let full = if base.is_empty() || dir.is_empty() { [base, dir].concat() } else { path::join(base, dir) };
    let children = tree.iter().filter(|(path, _)| !path.is_empty() && path::split(path).0 == full);
    for (path, entry) in children {
        let last = path::split(path).1;
        let name = path::join(dir, last);
        let mark = view.0.get(&name).copied();
        let all = requested.recurse || requested.children;
        if mark.is_none() && (!all || hides.0.contains(last)) {
            continue;
        }
        let mark = mark.unwrap_or_default();
        let below = Mark { recurse: requested.recurse || mark.recurse, ..mark };
        let is_dir = entry.kind.is_dir();
        if all || mark.requested || mark.implied {
            let contents = is_dir && (below.recurse || below.children);
            let top =
                if contents { mark.requested && !requested.recurse } else { mark.implied && !mark.requested && !all };
            listed.push((name.clone(), path.clone(), top, contents));
        }
        if is_dir {
            visit(tree, hides, view, base, &name, below, listed);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn several_paths_become_one_list_in_the_clients_order(
        tree in tree(), picks in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), 0..3usize), 1..6),
        options: [bool; 5], hides in names(), version in 27..33u32,
    ) {
        let bytes = encoded(&tree);
        let list = list::open(&bytes).expect("a built list is valid");
        let [recurse, dirs, relative, implied_dirs, files_from] = options;
        let requests: Vec<_> = picks.into_iter().map(|pick| request(&tree, pick)).collect();
        let texts: Vec<_> = requests.iter().map(|request| request.text(relative)).collect();
        let paths = if files_from { vec![Vec::new()] } else { texts.clone() };
        let wanted = Wanted { paths, recurse, dirs, relative, implied_dirs, files_from, ..Wanted::default() };
        let mut missing = Vec::new();
        let mut selecting = Selecting::new(list, wanted.clone(), &hides, &mut missing);
        if files_from {
            missing.extend(texts.iter().filter_map(|text| selecting.add(list, &hides, text).err()));
        }
        prop_assert!(missing.iter().all(|missing| missing.why == Why::Skipped), "{:?}", missing);
        let class = Class::plain(Version::new(version).expect("a version"));
        let selection = selecting.finish();
        let sent = write(list, class, selection, &hides, 1000);
        let decoded = decode(class, &sent.bytes);
        let is_dir = |entry: &crate::decoder::Entry| entry.mode & 0o170_000 == 0o040_000;
        let entries = &decoded.lists[0].entries;
        let keys: Vec<_> = entries.iter().map(|entry| sort_key(class.version, &entry.name, is_dir(entry))).collect();
        prop_assert!(keys.is_sorted(), "entries out of order");
        let mut read: Vec<Listed> = Vec::new();
        for (ndx, entry) in entries.iter().enumerate() {
            let row = sent.numbers.row(list, ndx as u32).expect("every index has a row");
            let contents = is_dir(entry) && !entry.no_contents;
            read.push((entry.name.clone(), list.path(row), entry.top, contents));
        }
        read.sort();
        let mut expected = expected(&tree, &requests, &wanted, &hides);
        if version < 30 {
            // There is no flag for a directory without contents.
            expected.iter_mut().for_each(|listed| listed.2 &= listed.3);
            read.iter_mut().chain(&mut expected).for_each(|listed| listed.3 = false);
        }
        expected.sort();
        prop_assert_eq!(read, expected);
    }
}

fn small() -> Tree {
    let mut tree = Tree::new();
    for path in ["", "a", "a/f", "a/b", "a/b/g", "a/b/c", "a/b/c/h", "z", "z/q", "top", "-x", ".h", "st*r", "st*r/i"] {
        let is_dir = matches!(path, "" | "a" | "a/b" | "a/b/c" | "z" | "st*r");
        tree.insert(path.as_bytes().to_vec(), crate::trees::plain(is_dir));
    }
    tree
}

/// Returns the names that a command line lists, and the missing paths that are reported.
fn listed(paths: &[&str], options: &str) -> (Vec<String>, Vec<Missing>) {
    listed_in(&small(), paths, options)
}

fn listed_in(tree: &Tree, paths: &[&str], options: &str) -> (Vec<String>, Vec<Missing>) {
    let bytes = encoded(tree);
    let list = list::open(&bytes).expect("a built list is valid");
    let has = |option| options.contains(option);
    let wanted = Wanted {
        paths: paths.iter().map(|path| path.as_bytes().to_vec()).collect(),
        recurse: has('r'),
        dirs: has('d'),
        relative: has('R'),
        implied_dirs: !has('I'),
        delete_missing: has('D'),
        files_from: false,
        follow: Follow { all: has('L'), dirs: has('k'), leaving: has('u') },
    };
    let (selection, missing) = Selection::resolve(list, wanted, &Everything);
    let class = Class::plain(Version::NEWEST);
    let sent = write(list, class, selection, &Names::default(), 1 << 20);
    let decoded = decode(class, &sent.bytes);
    let names = decoded.lists[0].entries.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned());
    (names.collect(), missing)
}

#[test]
fn wildcards_are_expanded_as_in_stock_rsync() {
    let cases: [(&[&str], &str, &[&str]); 16] = [
        (&["*"], "", &["-x", ".h", "top"]),
        (&[".*"], "", &[".h"]),
        (&["?/"], "r", &[".", ".", "f", "q", "b", "b/g", "b/c", "b/c/h"]),
        (&["?/*"], "r", &["f", "q", "b", "b/g", "b/c", "b/c/h"]),
        (&["?/*"], "rR", &["a", "a/f", "a/b", "a/b/g", "a/b/c", "a/b/c/h", "z", "z/q"]),
        (&["*/[!f]"], "r", &["i", "q", "b", "b/g", "b/c", "b/c/h"]),
        (&["[az]/./*"], "R", &["f", "q"]),
        (&["st*r/i"], "", &["i"]),
        (&["st\\*r/i"], "", &["i"]),
        (&["st\\*r/*"], "", &["i"]),
        (&["a/../t?p"], "", &["top"]),
        (&["t?p", "top"], "", &["top", "top"]),
        (&["t?p", "top"], "R", &["top"]),
        (&["*/q"], "", &["q"]),
        (&["no*"], "", &[]),
        (&["[x"], "", &[]),
    ];
    for (paths, options, expected) in cases {
        let (names, missing) = listed(paths, options);
        let skipped = |missing: &Missing| missing.why == Why::Skipped;
        assert_eq!(names, expected, "{paths:?} {options}");
        let is_seen = paths != ["*/q"];
        assert_eq!(
            missing.iter().any(|missing| !skipped(missing)),
            expected.is_empty() || !is_seen,
            "{paths:?} {missing:?}"
        );
    }
}

#[test]
fn a_path_may_lead_through_symlinks_within_the_repository() {
    let mut tree = small();
    for (path, target) in [
        ("to", "a/b"),
        ("a/up", "../to/./c/"),
        ("out", "../elsewhere"),
        ("a/far", "../../a"),
        ("absolute", "/a"),
        ("loop", "loop"),
        ("file", "top"),
    ] {
        let kind = Kind::Symlink { target: target.into() };
        tree.insert(path.into(), Entry { kind, ..crate::trees::plain(false) });
    }
    for (path, expected) in [("to/", &[".", "g", "c", "c/h"][..]), ("a/up/", &[".", "h"]), ("to/c", &["c", "c/h"])] {
        let (names, missing) = listed_in(&tree, &[path], "r");
        assert_eq!((names, missing.len()), (expected.iter().map(|&name| name.to_owned()).collect(), 0), "{path}");
    }
    // The repository counts as the root of the file system.
    for (path, expected) in [("a/far/", "f"), ("absolute/b/", "g"), ("absolute/b/c", "c")] {
        let (names, missing) = listed_in(&tree, &[path], "r");
        assert_eq!((names.iter().any(|name| name == expected), missing.len()), (true, 0), "{path}: {names:?}");
    }
    for path in ["out/", "loop/", "file/"] {
        let (names, missing) = listed_in(&tree, &[path], "r");
        assert_eq!((names.len(), missing.len()), (0, 1), "{path}");
    }
}

#[test]
fn missing_paths_are_reported_in_stock_rsyncs_words() {
    let cases = [
        ("nope", "r", "rsync: [sender] link_stat \"/nope\" (in m) failed: No such file or directory (2)\n", 0),
        ("a/nope", "r", "rsync: [sender] link_stat \"/a/nope\" (in m) failed: No such file or directory (2)\n", 0),
        ("nope/x", "r", "rsync: [sender] change_dir \"/nope\" (in m) failed: No such file or directory (2)\n", 1),
        ("nope/", "r", "rsync: [sender] change_dir \"/nope\" (in m) failed: No such file or directory (2)\n", 1),
        ("top/", "r", "rsync: [sender] change_dir \"/top\" (in m) failed: Not a directory (20)\n", 1),
        ("nope/x", "rR", "rsync: [sender] link_stat \"/nope/x\" (in m) failed: No such file or directory (2)\n", 0),
        ("top/x", "rR", "rsync: [sender] link_stat \"/top/x\" (in m) failed: Not a directory (20)\n", 1),
        ("no*", "r", "rsync: [sender] link_stat \"/no*\" (in m) failed: No such file or directory (2)\n", 0),
        ("a", "", "skipping directory a\n", 0),
        ("", "", "skipping directory .\n", 0),
    ];
    let bytes = encoded(&small());
    let list = list::open(&bytes).expect("a built list is valid");
    for (path, options, text, io_error) in cases {
        let (names, missing) = listed(&[path], options);
        assert!(names.is_empty(), "{path}: {names:?}");
        let [missing] = &missing[..] else { panic!("{path}: {missing:?}") };
        assert_eq!(String::from_utf8_lossy(&missing.messages("m").concat()), text);
        assert_eq!(missing.severity(Version::NEWEST) == Severity::Info, text.starts_with("skipping"));
        let wanted = Wanted {
            paths: vec![path.into()],
            recurse: options.contains('r'),
            relative: options.contains('R'),
            ..Wanted::default()
        };
        assert_eq!(Selection::resolve(list, wanted, &Everything).0.io_error(), io_error, "{path}");
    }
}

#[test]
fn missing_names_are_listed_in_their_place_if_they_are_to_be_deleted() {
    let bytes = encoded(&small());
    let list = list::open(&bytes).expect("a built list is valid");
    let deleted: Vec<_> = ["0", "~", "no/where/deep"].into_iter().map(str::as_bytes).collect();
    for version in Version::all() {
        let wanted =
            Wanted { recurse: true, relative: true, implied_dirs: true, files_from: true, ..Wanted::default() };
        let wanted = Wanted { delete_missing: true, ..wanted };
        let mut selecting = Selecting::new(list, wanted, &Everything, &mut Vec::new());
        assert_eq!(selecting.add(list, &Everything, b""), Ok(()));
        let reported: Vec<_> = deleted.iter().filter_map(|name| selecting.add(list, &Everything, name).err()).collect();
        let [vanished] = &reported[..] else { panic!("{reported:?}") };
        assert_eq!(
            vanished.messages("m").concat(),
            b"file has vanished: \"/no\" (in m)\nfile has vanished: \"/no/where\" (in m)\n"
        );
        let selection = selecting.finish();
        assert_eq!((selection.io_error(), selection.key()), (2, None));

        let class = Class { owner: true, group: true, atimes: version.number() >= 30, ..Class::plain(version) };
        let sent = write(list, class, selection, &Names::default(), 1 << 20);
        let part = &decode(class, &sent.bytes).lists[0];
        assert_eq!(part.entries.len(), list.len() as usize + deleted.len());
        let is_dir = |mode| mode & 0o170_000 == 0o040_000;
        assert!(part.entries.iter().map(|entry| sort_key(version, &entry.name, is_dir(entry.mode))).is_sorted());
        for (at, entry) in (0..).zip(&part.entries) {
            let row = sent.numbers.row(list, part.start as u32 + at);
            assert_eq!(row.is_none(), deleted.contains(&&entry.name[..]), "{:?}", entry.name);
            let zeros = (entry.mode, entry.mtime, entry.len, entry.uid, entry.gid) == (0, 0, 0, 0, 0);
            assert_eq!(row.is_none(), zeros, "{:?}", entry.name);
        }
    }
}

#[test]
fn many_wildcards_cost_no_more_than_a_few_walks() {
    let bytes = encoded(&small());
    let list = list::open(&bytes).expect("a built list is valid");
    let deep = "*/".repeat(100_000);
    let wanted = Wanted { paths: vec![deep.into_bytes(); 3], recurse: true, ..Wanted::default() };
    let (selection, missing) = Selection::resolve(list, wanted, &Everything);
    assert!(selection.is_empty());
    assert_eq!(missing.len(), 3);
}

#[test]
fn an_incompletely_expanded_wildcard_is_reported() {
    let mut tree = small();
    tree.insert(vec![b'a'; 255], crate::trees::plain(false));
    let hostile = "*[!~]".repeat(800);
    let mut paths = vec![hostile.as_str(); 10_000];
    paths.push("to*");
    let (_, missing) = listed_in(&tree, &paths, "r");
    assert_eq!(missing.last().map(|missing| &missing.path[..]), Some(&b"/to*"[..]));
}
