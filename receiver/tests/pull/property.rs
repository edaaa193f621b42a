use proptest::prelude::*;
use stillmirror_receiver::{Check, Options};

use crate::sender::Sender;
use crate::tree::{Tree, assert_same, noise};
use crate::{Place, run};

/// A step in building a tree.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    File(String, u8),
    Linked(String, u8),
    Dir(String),
    Symlink(String, u8),
    Fifo(String),
    LinkedSymlink(String, u8),
    LinkedFifo(String, u8),
    Remove(String),
    Rename(String, String),
    Mode(String, u16),
}

pub(crate) fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "foo_1.tar", "foo_2.tar", "dists", "Release"]), 1..4)
        .prop_map(|names| names.join("/"))
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (path(), 0..6u8).prop_map(|(path, content)| Step::File(path, content)),
        3 => (path(), 0..3u8).prop_map(|(path, group)| Step::Linked(path, group)),
        2 => path().prop_map(Step::Dir),
        1 => (path(), any::<u8>()).prop_map(|(path, target)| Step::Symlink(path, target)),
        1 => path().prop_map(Step::Fifo),
        1 => (path(), 3..5u8).prop_map(|(path, group)| Step::LinkedSymlink(path, group)),
        1 => (path(), 5..7u8).prop_map(|(path, group)| Step::LinkedFifo(path, group)),
        2 => path().prop_map(Step::Remove),
        2 => (path(), path()).prop_map(|(from, to)| Step::Rename(from, to)),
        1 => (path(), prop::sample::select(vec![0o755, 0o700, 0o775])).prop_map(|(path, mode)| Step::Mode(path, mode)),
    ]
}

/// Applies a step. Removes whatever is in its place first.
pub(crate) fn build(tree: Tree, step: &Step) -> Tree {
    let clear = |tree: Tree, path: &str| {
        let tree = path.match_indices('/').fold(tree, |tree, (end, _)| {
            let is_dir = tree.0.get(&path.as_bytes()[..end]).is_none_or(|at| at.node == crate::tree::Node::Dir);
            if is_dir { tree } else { tree.without(&path[..end]) }
        });
        tree.without(path)
    };
    match step {
        Step::File(path, content) => clear(tree, path).file(path, content_of(*content)),
        Step::Linked(path, group) => clear(tree, path).linked(path, content_of(10 + group), u64::from(*group)),
        Step::Dir(path) => clear(tree, path).dir(path),
        Step::Symlink(path, target) => clear(tree, path).symlink(path, &format!("t{target}")),
        Step::Fifo(path) => clear(tree, path).fifo(path),
        Step::LinkedSymlink(path, group) => {
            clear(tree, path).symlink(path, &format!("linked{group}")).in_group(path, u64::from(*group))
        }
        Step::LinkedFifo(path, group) => {
            let mut tree = clear(tree, path).fifo(path).in_group(path, u64::from(*group));
            // Names that do not differ may stay linked, so these differ from those of other inodes.
            tree.0.get_mut(path.as_bytes()).unwrap().mtime.sec += i64::from(*group);
            tree
        }
        Step::Remove(path) => tree.without(path),
        Step::Rename(from, to) => {
            let within = to.starts_with(&format!("{from}/")) || from.starts_with(&format!("{to}/")) || from == to;
            let there = tree.0.contains_key(from.as_bytes());
            if within || !there {
                return tree;
            }
            let moved = clear(tree, to);
            // The parent of the new path must be a directory.
            let parent = to.rsplit_once('/').map(|(dir, _)| dir.to_owned());
            let moved = match parent {
                Some(dir) if !moved.0.contains_key(dir.as_bytes()) => moved.dir(&dir),
                _ => moved,
            };
            if moved.0.contains_key(from.as_bytes()) { moved.renamed(from, to) } else { moved }
        }
        Step::Mode(path, mode)
            if tree.0.get(path.as_bytes()).is_some_and(|at| !matches!(at.node, crate::tree::Node::Symlink(_))) =>
        {
            // All names of an inode have the same mode.
            if tree.0[path.as_bytes()].link.is_some() { tree } else { tree.mode(path, *mode) }
        }
        Step::Mode(..) => tree,
    }
}

/// Returns one of a few contents. Some are versions of each other.
fn content_of(kind: u8) -> Vec<u8> {
    match kind {
        0 => Vec::new(),
        1 => b"small".to_vec(),
        2..=4 => {
            let mut content = noise(60_000, 77);
            content[usize::from(kind) * 10_000] ^= kind;
            content
        }
        other => noise(3_000 * usize::from(other), other.into()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn after_any_change_a_pull_makes_the_local_tree_equal_to_the_senders(
        rounds in prop::collection::vec(prop::collection::vec(step(), 0..14), 1..4),
        checks in prop::collection::vec(prop::sample::select(vec![Check::Stat, Check::Hash, Check::None]), 4),
        with_store: bool,
    ) {
        let mut tree = Tree::default();
        let (sender, place) = (Sender::of(&tree), Place::new());
        for (steps, check) in rounds.iter().zip(checks) {
            tree = steps.iter().fold(tree, build);
            sender.publish(&tree);
            let options = if with_store { place.mirror(&sender) } else { place.options(&sender) };
            let report = run(Options { check, ..options.clone() }).unwrap();
            prop_assert!(report.failed.is_empty());
            assert_same(&place.dest(), &tree);
            let again = run(Options { check, ..options }).unwrap();
            prop_assert!(again.unchanged, "{again:?}");
            prop_assert_eq!(again.bytes_literal, 0);
        }
    }
}
