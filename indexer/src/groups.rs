//! Link groups: which names must be told anew because the inodes behind them changed.
//!
//! A list carries a group along by itself as long as its names stay. Whatever else happens to the names
//! of an inode, all of them are put with one number.

use std::collections::HashMap;

use stillmirror_protocol::entry::Kind;

/// One name of an inode that a walk has looked at, and that has several names or had.
#[derive(Debug)]
pub(crate) struct Member {
    /// Device and inode, and what was found there: names with equal keys are one inode, of one content.
    pub(crate) key: (u64, u64, Kind),
    /// The leader of its old group, when its row stays as it is. None: it is put in any case.
    pub(crate) stays: Option<Stays>,
}

/// A name whose row stays as it is, unless its group changes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stays {
    pub(crate) old_leader: Option<u32>,
}

/// The members that must be put, with their group's number. None: a single name now.
///
/// `all_seen` says whether every name of the old list was looked at or is gone. If one may be left that
/// was not, a name is never trusted to have lost its group by being the only one left.
pub(crate) fn regroup(members: &[&Member], all_seen: bool) -> Vec<(usize, Option<u64>)> {
    let mut groups: HashMap<&(u64, u64, Kind), Vec<usize>> = HashMap::new();
    let mut staying: HashMap<u32, Vec<usize>> = HashMap::new();
    for (at, member) in members.iter().enumerate() {
        groups.entry(&member.key).or_default().push(at);
        if let Some(Stays { old_leader: Some(leader) }) = member.stays {
            staying.entry(leader).or_default().push(at);
        }
    }
    let old_leader = |at: usize| members[at].stays.and_then(|stays| stays.old_leader);
    // In the members' order, so that the same tree gives the same delta.
    let mut puts = Vec::new();
    let mut number = 0;
    for (at, member) in members.iter().enumerate() {
        let group = &groups[&member.key];
        if group.len() > 1 && group[0] == at {
            let leader = old_leader(at);
            let carried = leader.is_some_and(|leader| {
                group.iter().all(|&at| old_leader(at) == Some(leader)) && staying[&leader].len() == group.len()
            });
            if !carried {
                puts.extend(group.iter().map(|&at| (at, Some(number))));
                number += 1;
            }
        } else if group.len() == 1 {
            let left = |leader: u32| staying[&leader].iter().filter(|&&at| groups[&members[at].key].len() == 1).count();
            let would_be_grouped = old_leader(at).is_some_and(|leader| left(leader) > 1 || !all_seen);
            if would_be_grouped {
                puts.push((at, None));
            }
        }
    }
    puts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stays(inode: u64, old_leader: Option<u32>) -> Member {
        Member { key: (1, inode, Kind::Fifo), stays: Some(Stays { old_leader }) }
    }

    fn put(inode: u64) -> Member {
        Member { key: (1, inode, Kind::Fifo), stays: None }
    }

    fn regrouped(members: &[Member], all_seen: bool) -> Vec<(usize, Option<u64>)> {
        regroup(&members.iter().collect::<Vec<_>>(), all_seen)
    }

    #[test]
    fn a_group_that_stays_is_not_told() {
        assert_eq!(regrouped(&[stays(1, Some(7)), stays(1, Some(7))], true), []);
    }

    #[test]
    fn a_new_name_puts_the_whole_group() {
        let members = [stays(1, Some(7)), put(1), stays(1, Some(7))];
        assert_eq!(regrouped(&members, true), [(0, Some(0)), (1, Some(0)), (2, Some(0))]);
    }

    #[test]
    fn two_groups_that_become_one_are_put() {
        let members = [stays(1, Some(7)), stays(1, Some(7)), stays(1, Some(9)), stays(1, Some(9))];
        assert_eq!(regrouped(&members, true).len(), 4);
    }

    #[test]
    fn names_that_fell_apart_are_put_as_single_ones() {
        assert_eq!(regrouped(&[stays(1, Some(7)), stays(2, Some(7))], true), [(0, None), (1, None)]);
    }

    #[test]
    fn the_last_name_of_a_group_needs_no_telling_unless_others_were_not_seen() {
        assert_eq!(regrouped(&[stays(1, Some(7))], true), []);
        assert_eq!(regrouped(&[stays(1, Some(7))], false), [(0, None)]);
    }

    #[test]
    fn a_name_that_leaves_a_group_splits_it() {
        let members = [stays(1, Some(7)), stays(1, Some(7)), stays(2, Some(7))];
        assert_eq!(regrouped(&members, true), [(0, Some(0)), (1, Some(0))]);
    }
}
