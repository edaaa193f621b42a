//! Determines which names must be put again because their link groups changed.
//!
//! When changes are applied to a list, a group whose names all stay is carried over. In all other cases, all
//! names of an inode are put with one group number.

use std::collections::HashMap;

use stillmirror_protocol::entry::Kind;

/// A name of an inode that has or had several names, as found by a walk.
#[derive(Debug)]
pub(crate) struct Member {
    /// Device, inode, and what was found there. Names with equal keys are one inode with one content.
    pub(crate) key: (u64, u64, Kind),
    /// Set if the name's row stays as it is, unless its group changes. `None` if the name is put in any case.
    pub(crate) stays: Option<Stays>,
}

/// A name whose row stays as it is, unless its group changes. `old_leader` is the leader of its old group, if
/// it had one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stays {
    pub(crate) old_leader: Option<u32>,
}

/// Returns the indices of the members that must be put, with the number of their group. The number is `None`
/// for a name that is no longer in a group.
///
/// `all_seen` tells whether every name in the old list was looked at or is gone. If it is false, other names
/// of the same group may be left. A single name is then put without a group rather than left to lose its
/// group by itself.
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
    // Go in the members' order, so that the same tree produces the same delta.
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
    fn an_unchanged_group_is_not_put() {
        assert_eq!(regrouped(&[stays(1, Some(7)), stays(1, Some(7))], true), []);
    }

    #[test]
    fn a_new_name_puts_the_whole_group() {
        let members = [stays(1, Some(7)), put(1), stays(1, Some(7))];
        assert_eq!(regrouped(&members, true), [(0, Some(0)), (1, Some(0)), (2, Some(0))]);
    }

    #[test]
    fn two_groups_that_merge_are_put() {
        let members = [stays(1, Some(7)), stays(1, Some(7)), stays(1, Some(9)), stays(1, Some(9))];
        assert_eq!(regrouped(&members, true).len(), 4);
    }

    #[test]
    fn names_of_a_group_that_split_up_are_put_without_a_group() {
        assert_eq!(regrouped(&[stays(1, Some(7)), stays(2, Some(7))], true), [(0, None), (1, None)]);
    }

    #[test]
    fn the_last_name_of_a_group_is_only_put_if_others_may_be_unseen() {
        assert_eq!(regrouped(&[stays(1, Some(7))], true), []);
        assert_eq!(regrouped(&[stays(1, Some(7))], false), [(0, None)]);
    }

    #[test]
    fn when_a_name_leaves_a_group_the_rest_is_put() {
        let members = [stays(1, Some(7)), stays(1, Some(7)), stays(2, Some(7))];
        assert_eq!(regrouped(&members, true), [(0, Some(0)), (1, Some(0))]);
    }
}
