//! Filter rules hide the same names as in a stock daemon. The real rsync is the reference.

mod generator;
mod stock_daemon;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use generator::{Random, Tree};
use rkyv::util::AlignedVec;
use stillmirror_protocol::changes::{Changes, Put, apply};
use stillmirror_protocol::entry::{Digests, Entry, Kind, Owner, Time};
use stillmirror_protocol::list;
use stillmirror_protocol::rsync::rules::{ModuleRules, ModuleTexts, Rules};
use stillmirror_protocol::rsync::selection::Hides as _;
use stillmirror_protocol::rsync::version::Version;
use stock_daemon::{Module, Query, StockDaemon};

/// Number of rule sets sent to the daemon, each with its own rules, path and protocol.
const SETS: usize = 500;
const MODULES: usize = 24;

#[test]
fn random_rules_hide_the_same_names_here_and_in_the_stock_daemon() {
    let tree = generator::tree(&mut Random::new(1), 300);
    let daemon = StockDaemon::serve(&tree, &[("m".into(), Vec::new())]);
    let places = Places::of(&tree);
    let (hiding, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    on_two_threads(SETS, |seed| {
        let mut random = Random::new(1000 + seed as u64);
        let protocol = random.pick(&[29, 29, 29, 29, 28, 27]);
        let make = if protocol < 29 { generator::old_rules } else { generator::rules };
        let path = &places.pick(&mut random);
        let rules = make(&mut random, &seen(&tree, path));
        let query = Query { module: "m", protocol, path, cvs_exclude: random.chance(10), rules: &rules };
        let ours = kept(&tree, &query, &ModuleRules::default());
        let theirs = daemon.names(&query);
        assert_eq!(escaped(&theirs), escaped(&ours), "{}", describe(&query));
        refused.fetch_add(usize::from(ours.is_none()), Ordering::Relaxed);
        let all = kept(&tree, &Query { rules: &[], cvs_exclude: false, ..query }, &ModuleRules::default());
        hiding.fetch_add(usize::from(ours.is_some_and(|ours| Some(ours) != all)), Ordering::Relaxed);
    });
    // If this fails, the generator makes rules without effect.
    assert!(hiding.load(Ordering::Relaxed) > SETS / 2, "{hiding:?} sets hide something");
    assert!((1..SETS / 10).contains(&refused.load(Ordering::Relaxed)), "{refused:?} sets are refused");
}

#[test]
fn a_modules_own_rules_hide_the_same_names_here_and_in_the_stock_daemon() {
    let mut random = Random::new(2);
    let tree = generator::tree(&mut random, 200);
    let values: Vec<[Vec<u8>; 3]> = (0..MODULES)
        .map(|_| {
            let filter = generator::filter_value(&mut random, &tree);
            [filter, generator::patterns_value(&mut random, &tree), generator::patterns_value(&mut random, &tree)]
        })
        .collect();
    let module = |(number, [filter, include, exclude]): (usize, &[Vec<u8>; 3])| -> Module {
        let lines = [b"filter = ", &filter[..], b"\ninclude = ", include, b"\nexclude = ", exclude, b"\n"].concat();
        (format!("m{number}"), lines)
    };
    let modules: Vec<Module> = values.iter().enumerate().map(module).collect();
    let daemon = StockDaemon::serve(&tree, &modules);
    let places = Places::of(&tree);
    on_two_threads(MODULES * 4, |seed| {
        let mut random = Random::new(5000 + seed as u64);
        let number = seed % MODULES;
        let [filter, include, exclude] = &values[number];
        // Releases differ: 3.2 refuses the whole module, later ones ignore what follows the `!`.
        if filter.split(|&byte| byte == b' ').any(|word| word.len() > 1 && word[0] == b'!') {
            return;
        }
        let rules = if random.chance(50) { generator::rules(&mut random, &tree) } else { Vec::new() };
        let path = &if seed < MODULES { Vec::new() } else { places.pick(&mut random) };
        let query = Query { module: &modules[number].0, protocol: 29, path, cvs_exclude: false, rules: &rules };
        let ours = ModuleRules::parse(&ModuleTexts { filter, include, exclude, ..ModuleTexts::default() })
            .ok()
            .and_then(|module| kept(&tree, &query, &module));
        let theirs = daemon.names(&query);
        assert_eq!(
            escaped(&theirs),
            escaped(&ours),
            "{}{}",
            String::from_utf8_lossy(&modules[number].1),
            describe(&query)
        );
    });
}

#[test]
fn a_stock_client_lists_what_the_same_rules_keep_here() {
    let tree = generator::tree(&mut Random::new(3), 120);
    let daemon = StockDaemon::serve(&tree, &[("m".into(), Vec::new())]);
    on_two_threads(40, |seed| {
        let mut random = Random::new(9000 + seed as u64);
        let mut patterns: Vec<(bool, Vec<u8>)> = Vec::new();
        while patterns.len() < 4 {
            let pattern = generator::pattern(&mut random, &tree);
            // In these options the client interprets a prefix and a lone `!`, and an empty argument is impossible.
            let odd = pattern.starts_with(b"- ") || pattern.starts_with(b"+ ") || pattern == b"!" || pattern.is_empty();
            if !odd {
                patterns.push((random.chance(40), pattern));
            }
        }
        let mut client = Command::new("rsync");
        client.args(["-r", "--list-only", "--no-motd"]).env("HOME", "/nonexistent").env("LC_ALL", "C");
        for (include, pattern) in &patterns {
            use std::os::unix::ffi::OsStrExt as _;
            client.arg(if *include { "--include" } else { "--exclude" });
            client.arg(std::ffi::OsStr::from_bytes(pattern));
        }
        let output = client.arg(format!("rsync://127.0.0.1:{}/m/", daemon.port)).output().expect("rsync runs");
        assert!(output.status.success(), "{}: {patterns:?}", String::from_utf8_lossy(&output.stderr));
        let rules: Vec<Vec<u8>> = patterns
            .iter()
            .map(|(include, pattern)| [if *include { b"+ " } else { b"- " }, &pattern[..]].concat())
            .collect();
        let query = Query { module: "m", protocol: 29, path: b"", cvs_exclude: false, rules: &rules };
        let ours = kept(&tree, &query, &ModuleRules::default());
        assert_eq!(escaped(&Some(listed(&output.stdout))), escaped(&ours), "{}", describe(&query));
    });
}

#[test]
fn rules_are_void_exactly_if_they_hide_nothing() {
    let tree = generator::tree(&mut Random::new(4), 60);
    let bytes = encoded(&tree);
    let list = list::open(&bytes).expect("a built list is valid");
    let (places, mut void) = (Places::of(&tree), 0);
    for seed in 0..4000 {
        let mut random = Random::new(seed);
        let path = &places.pick(&mut random);
        let mut rules = generator::rules(&mut random, &seen(&tree, path));
        rules.truncate(2);
        let query = Query { module: "m", protocol: 29, path, cvs_exclude: false, rules: &rules };
        let Ok(parsed) = Rules::parse(rules.iter().map(Vec::as_slice), Version::NEWEST, false) else { continue };
        let (dir, name) = root_of(path);
        let all = kept(&tree, &Query { rules: &[], ..query.clone() }, &ModuleRules::default());
        let hides_nothing = kept(&tree, &query, &ModuleRules::default()) == all;
        assert_eq!(parsed.is_void_below(list, dir, name, || true), Some(hides_nothing), "{}", describe(&query));
        void += usize::from(hides_nothing);
    }
    assert!((400..3600).contains(&void), "{void} sets are void");
}

/// The paths to request: the whole tree, the contents of a directory, a directory by name.
struct Places(Vec<Vec<u8>>);

impl Places {
    fn of(tree: &Tree) -> Self {
        Self(generator::plain_directories(tree))
    }

    fn pick(&self, random: &mut Random) -> Vec<u8> {
        let dir = &self.0[random.below(self.0.len())];
        match random.below(4) {
            0 | 1 => Vec::new(),
            2 => dir.clone(),
            _ => [dir, &b"/"[..]].concat(),
        }
    }
}

/// Returns the directory that a path requests, and the offset at which listed names begin in paths.
fn root_of(path: &[u8]) -> (&[u8], usize) {
    match path.strip_suffix(b"/") {
        Some(dir) => (dir, path.len()),
        None => (path, path.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1)),
    }
}

/// Returns the tree with the names that a client sees, or the whole tree if there is nothing below the path.
fn seen(tree: &Tree, path: &[u8]) -> Tree {
    let root = root_of(path).1;
    let below: Tree = tree
        .iter()
        .filter(|(name, _)| name.starts_with(path))
        .filter_map(|(name, &is_dir)| Some((name.get(root..).filter(|name| !name.is_empty())?.to_vec(), is_dir)))
        .collect();
    if below.is_empty() { tree.clone() } else { below }
}

/// Returns the names that our rules keep, in the form of [`StockDaemon::names`]. `None` if a rule is refused.
fn kept(tree: &Tree, query: &Query<'_>, module: &ModuleRules) -> Option<BTreeSet<Vec<u8>>> {
    let version = Version::new(query.protocol).expect("a version");
    let rules = Rules::parse(query.rules.iter().map(Vec::as_slice), version, query.cvs_exclude).ok()?;
    let rules = rules.within(Arc::new(module.clone()));
    let (dir, root) = root_of(query.path);
    let above = ancestors(dir).chain((!dir.is_empty()).then_some(dir));
    let mut names = BTreeSet::new();
    if above.into_iter().any(|dir| rules.module_hides(dir, true)) {
        return Some(names);
    }
    let listed_itself = !dir.is_empty() && root < dir.len();
    if listed_itself {
        if rules.hides(dir, root, true) {
            return Some(names);
        }
        names.insert([&dir[root..], b"/"].concat());
    } else {
        names.insert(b"./".to_vec());
    }
    let mut hidden: BTreeMap<&[u8], bool> = BTreeMap::new();
    for (path, &is_dir) in tree {
        let below = dir.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'));
        if !below {
            continue;
        }
        let parent = stillmirror_protocol::path::split(path).0;
        let hides = hidden.get(parent).copied().unwrap_or(false) || rules.hides(path, root, is_dir);
        hidden.insert(path, hides);
        if !hides {
            names.insert([&path[root..], if is_dir { b"/" } else { b"" }].concat());
        }
    }
    Some(names)
}

fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(at, _)| &path[..at])
}

/// Parses the names in the output of `--list-only`: `drwxr-xr-x  4,096 2026/01/01 00:00:00 name`.
fn listed(output: &[u8]) -> BTreeSet<Vec<u8>> {
    let name = |line: &[u8]| {
        let at = line.windows(2).position(|pair| pair[0] == b':' && pair[1].is_ascii_digit()).expect("a time") + 7;
        let name = unescaped(&line[at..]);
        if line[0] == b'd' { [&name[..], b"/"].concat() } else { name }
    };
    output.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).map(name).collect()
}

/// Decodes `\#ooo`.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let [byte, after @ ..] = rest {
        let digits =
            rest.strip_prefix(b"\\#").and_then(|rest| rest.get(..3)).and_then(|text| std::str::from_utf8(text).ok());
        if let Some(escaped) = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            out.push(escaped);
            rest = &rest[5..];
        } else {
            out.push(*byte);
            rest = after;
        }
    }
    out
}

/// Returns the encoded list of the tree.
fn encoded(tree: &Tree) -> AlignedVec {
    let entry = |kind| Entry { mode: 0o755, mtime: Time::default(), owner: Owner::default(), link: None, kind };
    let put = |kind| Put { entry: entry(kind), tag: 0 };
    let mut changes = Changes { root: Some(put(Kind::Directory)), ..Changes::default() };
    for (path, &is_dir) in tree {
        let (dir, name) = stillmirror_protocol::path::split(path);
        let file = Kind::File { size: 1, digests: Digests::default() };
        changes.put(dir, name, entry(if is_dir { Kind::Directory } else { file }), 0);
    }
    apply(None, &changes).expect("a tree applies to nothing").list.encode()
}

/// Runs `step` for every number below `count`. Two threads help because most of the time is spent in the daemon.
fn on_two_threads(count: usize, step: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    step(number);
                }
            });
        }
    });
}

fn escaped(names: &Option<BTreeSet<Vec<u8>>>) -> Option<Vec<String>> {
    names.as_ref().map(|names| names.iter().map(|name| name.escape_ascii().to_string()).collect())
}

fn describe(query: &Query<'_>) -> String {
    let rules: Vec<String> = query.rules.iter().map(|rule| rule.escape_ascii().to_string()).collect();
    let path = query.path.escape_ascii();
    format!("protocol {}, path '{path}', C {}, rules {rules:#?}", query.protocol, query.cvs_exclude)
}
