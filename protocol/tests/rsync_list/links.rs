//! Following symlinks for a client, compared with a model that works on paths only.

use std::collections::BTreeMap;

use proptest::prelude::*;
use stillmirror_protocol::entry::{Entry, Kind};
use stillmirror_protocol::list;
use stillmirror_protocol::path;
use stillmirror_protocol::rsync::flist::Class;
use stillmirror_protocol::rsync::selection::{Follow, Selection, Wanted, Why};
use stillmirror_protocol::rsync::version::Version;

use crate::decoder::decode;
use crate::trees::{Tree, encoded, plain};
use crate::{Names, names, sort_key, write};

/// Maximum number of entries that are expanded, because symlink loops multiply them.
const ENTRIES: usize = 3000;
/// Maximum number of symlinks on one path.
const LINKS: usize = 40;

fn tree() -> impl Strategy<Value = Tree> {
    let element = || prop::sample::select(vec!["a", "a-b", "b", "c", "a.txt"]);
    let path = prop::collection::vec(element(), 1..4).prop_map(|elements| elements.join("/"));
    let target = prop::sample::select(vec![
        "a",
        "b",
        "../a",
        "../b/c",
        "/a/b",
        "../../../b",
        ".",
        "a/..",
        "nowhere",
        "b/a.txt/x",
        "c",
        "../../a-b",
        "/",
        "a-b//c/",
    ]);
    let kind = prop_oneof![
        3 => Just(None),
        2 => target.prop_map(|target| Some(Kind::Symlink { target: target.into() })),
    ];
    prop::collection::vec((path, kind), 1..14).prop_map(|entries| {
        let mut tree = Tree::from([(Vec::new(), plain(true))]);
        for (path, kind) in entries {
            let above =
                path.bytes().enumerate().filter(|&(_, byte)| byte == b'/').map(|(at, _)| &path.as_bytes()[..at]);
            let above: Vec<_> = above.collect();
            let is_free = above.iter().all(|dir| tree.get(*dir).is_none_or(|entry| entry.kind.is_dir()));
            if tree.contains_key(path.as_bytes()) || !is_free {
                continue;
            }
            for dir in above {
                tree.entry(dir.to_vec()).or_insert_with(|| plain(true));
            }
            let entry = plain(false);
            tree.insert(path.into_bytes(), Entry { kind: kind.unwrap_or(entry.kind.clone()), ..entry });
        }
        tree
    })
}

/// Resolves a path to a real path. Also returns the number of symlinks on the way.
fn resolve(tree: &Tree, from: &[u8], path: &[u8], links: usize) -> Result<(Vec<u8>, usize), Why> {
    let (mut at, mut links) = (if path.starts_with(b"/") { Vec::new() } else { from.to_vec() }, links);
    let elements: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
    for element in elements {
        if !tree[&at].kind.is_dir() {
            return Err(Why::NoReferentOnTheWay);
        }
        match element {
            b"" | b"." => continue,
            b".." => at = path::split(&at).0.to_vec(),
            name => {
                let next = path::join(&at, name);
                let entry = tree.get(&next).ok_or(Why::NoReferent)?;
                if let Kind::Symlink { target } = &entry.kind {
                    if links == LINKS {
                        return Err(Why::NoReferentBehindLinks);
                    }
                    (at, links) = resolve(tree, &at, target, links + 1)?;
                } else {
                    at = next;
                }
            }
        }
    }
    Ok((at, links))
}

struct Model<'a> {
    tree: &'a Tree,
    follow: Follow,
    hides: &'a Names,
    /// The real path of each listed name.
    listed: BTreeMap<Vec<u8>, Vec<u8>>,
    unresolved: Vec<Why>,
}

impl Model<'_> {
    /// Lists the contents of a directory. Returns false if there are too many entries.
    fn expand(&mut self, real: &[u8], name: &[u8], links: usize) -> bool {
        let children: Vec<Vec<u8>> =
            self.tree.keys().filter(|path| !path.is_empty() && path::split(path).0 == real).cloned().collect();
        for child in children {
            let last = path::split(&child).1;
            if self.hides.0.contains(last) {
                continue;
            }
            let name = path::join(name, last);
            let mut found = (child.clone(), links);
            if let Kind::Symlink { .. } = self.tree[&child].kind
                && (self.follow.all || self.follow.dirs)
            {
                match resolve(self.tree, real, last, 0) {
                    Ok((target, own)) if self.follow.all || self.tree[&target].kind.is_dir() => {
                        found = (target, links + own);
                    }
                    Err(why) if self.follow.all => {
                        self.unresolved.push(why);
                        continue;
                    }
                    _ => {}
                }
            }
            self.listed.insert(name.clone(), found.0.clone());
            let is_dir = self.tree[&found.0].kind.is_dir();
            if is_dir && found.1 > LINKS {
                self.unresolved.push(Why::Unopened);
            } else if self.listed.len() > ENTRIES || is_dir && !self.expand(&found.0, &name, found.1) {
                return false;
            }
        }
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn targets_of_symlinks_are_listed_in_their_place(
        tree in tree(), all: bool, hides in names(), version in 27..33u32, piece in 1..2000usize,
    ) {
        let bytes = encoded(&tree);
        let list = list::open(&bytes).expect("a built list is valid");
        let follow = Follow { all, dirs: !all, leaving: false };
        let wanted = Wanted { paths: vec![Vec::new()], recurse: true, follow, ..Wanted::default() };
        prop_assert!(!wanted.may_be_incremental());
        let mut model = Model { tree: &tree, follow, hides: &hides, listed: BTreeMap::new(), unresolved: Vec::new() };
        model.listed.insert(b".".to_vec(), Vec::new());
        prop_assume!(model.expand(b"", b"", 0));
        let (selection, missing) = Selection::resolve(list, wanted, &hides);
        prop_assert!(missing.is_empty());
        let class = Class { links: true, ..Class::plain(Version::new(version).expect("a version")) };
        let sent = write(list, class, selection, &hides, piece);
        let decoded = decode(class, &sent.bytes);
        let entries = &decoded.lists[0].entries;
        let is_dir = |entry: &crate::decoder::Entry| entry.mode & 0o170_000 == 0o040_000;
        let keys: Vec<_> = entries.iter().map(|entry| sort_key(class.version, &entry.name, is_dir(entry))).collect();
        prop_assert!(keys.is_sorted(), "entries out of order");
        let row = |ndx: usize| sent.numbers.row(list, ndx as u32).expect("every index has a row");
        let read: BTreeMap<_, _> =
            entries.iter().enumerate().map(|(ndx, entry)| (entry.name.clone(), list.path(row(ndx)))).collect();
        prop_assert_eq!(read.len(), entries.len());
        prop_assert_eq!(&read, &model.listed);
        let mut unresolved: Vec<_> = sent.unresolved.iter().map(|missing| missing.why).collect();
        unresolved.sort_by_key(|why| format!("{why:?}"));
        model.unresolved.sort_by_key(|why| format!("{why:?}"));
        prop_assert_eq!(unresolved, model.unresolved);
        prop_assert_eq!(decoded.io_error != 0, !sent.unresolved.is_empty() && class.carries_errors());
    }
}
