//! Generates random trees and filter rules. A seed always gives the same ones.
//!
//! Rules are made to match. A pattern is a name of the tree with some part replaced, and only sometimes
//! entirely random. The whole grammar is covered, and so are texts that are not rules.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// Paths without the root. The value tells whether the path is a directory.
pub(crate) type Tree = BTreeMap<Vec<u8>, bool>;

/// A pseudo-random number generator.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

/// Names that are difficult for patterns.
const NAMES: [&[u8]; 30] = [
    b"a",
    b"b",
    b"ab",
    b"a.b",
    b"foo",
    b"foo.o",
    b"bar",
    b"core",
    b"x[y",
    b"b\\c",
    b".git",
    b"by-hash",
    b"Packages",
    b"Packages.gz",
    b"i18n",
    b"*",
    b"a b",
    b"[a]",
    b"\xc3\xa9",
    b"~",
    b"x~",
    b"-",
    b"!",
    b"CVS",
    b"A",
    b"9",
    b"a\nb",
    b" ",
    b"#x",
    b"?",
];

/// Names of directories that a client can request without quoting.
const DIRECTORIES: [&[u8]; 8] = [b"a", b"b", b"foo", b"bar", b".git", b"by-hash", b"i18n", b"CVS"];

/// Text with a meaning in a pattern.
const PIECES: [&[u8]; 36] = [
    b"*",
    b"**",
    b"***",
    b"?",
    b"/",
    b"/**",
    b"/***",
    b"/*/",
    b"**/",
    b"/**/",
    b"[a-c]",
    b"[!a]",
    b"[^a-f]",
    b"[]a]",
    b"[a-]",
    b"[z-a]",
    b"[\\]a]",
    b"[a\\-z]",
    b"[[:alpha:]]",
    b"[[:digit:][:punct:]]",
    b"[![:upper:]]",
    b"[[:foo:]]",
    b"[[:a]",
    b"[",
    b"]",
    b"[!",
    b"\\",
    b"\\*",
    b"\\\\",
    b"\\[",
    b"\\a",
    b"a",
    b"b",
    b".",
    b"foo",
    b"//",
];

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        ((self.next() >> 32) as usize) % limit.max(1)
    }

    /// Returns true with a probability of `percent` percent.
    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Generates a tree of about `entries` entries.
pub(crate) fn tree(random: &mut Random, entries: usize) -> Tree {
    let mut tree = Tree::new();
    let mut dirs: Vec<Vec<u8>> = vec![Vec::new()];
    for _ in 0..entries {
        let parent = dirs[random.below(dirs.len())].clone();
        let deep = parent.iter().filter(|&&byte| byte == b'/').count() > 3;
        let is_dir = !deep && random.chance(40);
        let name = if is_dir && random.chance(80) { random.pick(&DIRECTORIES) } else { random.pick(&NAMES) };
        let path = if parent.is_empty() { name.to_vec() } else { [&parent, &b"/"[..], name].concat() };
        if let Entry::Vacant(free) = tree.entry(path) {
            if is_dir {
                dirs.push(free.key().clone());
            }
            free.insert(is_dir);
        }
    }
    tree
}

/// Returns the directories of the tree whose names need no quoting anywhere.
pub(crate) fn plain_directories(tree: &Tree) -> Vec<Vec<u8>> {
    let plain = |path: &[u8]| path.split(|&byte| byte == b'/').all(|name| DIRECTORIES.contains(&name));
    tree.iter().filter(|&(path, &is_dir)| is_dir && plain(path)).map(|(path, _)| path.clone()).collect()
}

/// Generates rules as a client of protocol 29 or later sends them.
pub(crate) fn rules(random: &mut Random, tree: &Tree) -> Vec<Vec<u8>> {
    let count = 1 + random.below(8);
    (0..count).map(|_| rule(random, tree)).collect()
}

/// Generates rules as older clients send them.
pub(crate) fn old_rules(random: &mut Random, tree: &Tree) -> Vec<Vec<u8>> {
    let count = 1 + random.below(8);
    (0..count).map(|_| old_rule(random, tree)).collect()
}

/// Generates a value for rsyncd.conf's `filter`.
pub(crate) fn filter_value(random: &mut Random, tree: &Tree) -> Vec<u8> {
    let count = random.below(4);
    config_value((0..count).map(|_| rule(random, tree)).collect())
}

/// Generates a value for rsyncd.conf's `include` or `exclude`.
pub(crate) fn patterns_value(random: &mut Random, tree: &Tree) -> Vec<u8> {
    let count = random.below(3);
    config_value((0..count).map(|_| old_rule(random, tree)).collect())
}

fn config_value(words: Vec<Vec<u8>>) -> Vec<u8> {
    // Removes what the syntax of the file itself would interpret: line ends, a backslash before one, variables.
    let clean = |mut word: Vec<u8>| {
        word.retain(|byte| !b"\n%".contains(byte));
        while word.last() == Some(&b'\\') {
            word.pop();
        }
        word
    };
    words.into_iter().map(clean).collect::<Vec<_>>().join(&b' ').trim_ascii().to_vec()
}

fn old_rule(random: &mut Random, tree: &Tree) -> Vec<u8> {
    let prefix = random.pick(&[&b"- "[..], b"- ", b"+ ", b"", b"", b"-", b"! "]);
    if random.chance(4) {
        return b"!".to_vec();
    }
    [prefix, &pattern(random, tree)].concat()
}

fn rule(random: &mut Random, tree: &Tree) -> Vec<u8> {
    const ODD: [&[u8]; 22] = [
        b"!",
        b"!",
        b"!,",
        b"clear",
        b"-C",
        b"+C",
        b"-sC",
        b"-!C",
        b":C",
        b":n- .none",
        b": /.none",
        b"dir-merge,e a.b",
        b":e foo.o",
        b"-x *",
        b"+x *",
        b"foo",
        b"- ",
        b"-n x",
        b"! ",
        b"Hs x",
        b"# x",
        b"-, x",
    ];
    if random.chance(8) {
        // Half of these end the session, so they are rare.
        let limit = if random.chance(25) { ODD.len() } else { ODD.len() - 7 };
        return ODD[random.below(limit)].to_vec();
    }
    let prefix: &[u8] = match random.below(10) {
        0..=3 => b"- ",
        4 | 5 => b"+ ",
        _ => return [&modified(random)[..], &pattern(random, tree)].concat(),
    };
    [prefix, &pattern(random, tree)].concat()
}

/// Generates a prefix with modifiers.
fn modified(random: &mut Random) -> Vec<u8> {
    let prefix = random.pick(&[
        &b"-"[..],
        b"-",
        b"-",
        b"+",
        b"+",
        b"H",
        b"S",
        b"P",
        b"R",
        b"hide",
        b"show",
        b"exclude",
        b"include",
        b"protect",
        b"risk",
    ]);
    let sided = !prefix.starts_with(b"-") && !prefix.starts_with(b"+") && !prefix.ends_with(b"clude");
    let allowed: &[u8] = if sided { b"/!p" } else { b"/!psr" };
    let mut text = prefix.to_vec();
    let modifiers: Vec<u8> = allowed.iter().copied().filter(|_| random.chance(30)).collect();
    if !modifiers.is_empty() && (prefix.len() > 1 || random.chance(30)) {
        text.push(b',');
    }
    text.extend(modifiers);
    text.push(random.pick(b"  _"));
    text
}

/// Generates a pattern that resembles a path of the tree.
pub(crate) fn pattern(random: &mut Random, tree: &Tree) -> Vec<u8> {
    let mut pattern = if random.chance(90) { part_of_a_path(random, tree) } else { Vec::new() };
    let edits = random.pick(&[0, 0, 0, 1, 1, 2]) + if pattern.is_empty() { 2 } else { 0 };
    for _ in 0..edits {
        let from = random.below(pattern.len() + 1);
        let to = (from + random.pick(&[0, 0, 1, 1, 2, 4])).min(pattern.len());
        let piece = random.pick(&PIECES);
        pattern.splice(from..to, piece.iter().copied());
    }
    if random.chance(5) {
        pattern.insert(0, b'/');
    }
    if random.chance(15) {
        pattern.extend_from_slice(random.pick(&[&b"/"[..], b"/", b"/**", b"/***", b"*", b"***"]));
    }
    if random.chance(5) {
        pattern.splice(0..0, *b"**/");
    }
    pattern
}

/// Returns the last names of a path, or its first names with an anchor.
fn part_of_a_path(random: &mut Random, tree: &Tree) -> Vec<u8> {
    let Some(path) = tree.keys().nth(random.below(tree.len())) else { return Vec::new() };
    let names: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
    let taken = random.pick(&[1, 1, 1, 2, 2, 3, names.len()]).min(names.len());
    if random.chance(15) {
        return [b"/", &names[..taken].join(&b'/')[..]].concat();
    }
    names[names.len() - taken..].join(&b'/')
}
