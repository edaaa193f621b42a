//! Looks again before a difference counts: a tree may change while it is compared.

use std::time::Duration;

use super::difference::{Difference, Seen};
use super::error::ShadowError;

/// What remains after looking again.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    /// Differences that two looks in a row found unchanged.
    pub(super) lasting: Vec<Difference>,
    /// The number of further differences at the last look.
    pub(super) more: u64,
    /// What differed at one look and not at another.
    pub(super) changed: Vec<String>,
    /// Whether the last look still found something new.
    pub(super) is_restless: bool,
}

/// How long to wait before looking again: longer than a daemon takes to notice a new generation.
pub(super) const PAUSE: Duration = Duration::from_secs(2);
/// The maximum number of looks.
const LOOKS: usize = 3;

/// Looks up to [`LOOKS`] times, with `wait` in between, until two looks agree. Differences that are `known` to last are
/// not looked at again.
pub(super) fn settle(
    known: impl Fn(&Difference) -> bool,
    mut wait: impl FnMut() -> Result<(), ShadowError>,
    mut look: impl FnMut() -> Result<Seen, ShadowError>,
) -> Result<Settled, ShadowError> {
    let mut before = look()?;
    if before.differences.iter().all(known) {
        return Ok(Settled { lasting: before.differences, more: before.more, ..Settled::default() });
    }
    let mut settled = Settled::default();
    for number in 2..=LOOKS {
        wait()?;
        let now = look()?;
        let (lasting, fresh): (Vec<_>, Vec<_>) =
            now.differences.iter().cloned().partition(|difference| before.differences.contains(difference));
        let gone = before.differences.iter().filter(|difference| !now.differences.contains(difference));
        settled.changed.extend(gone.chain(&fresh).map(Difference::what));
        settled.is_restless = !fresh.is_empty();
        (settled.lasting, settled.more) = (lasting, now.more);
        if !settled.is_restless || number == LOOKS {
            break;
        }
        before = now;
    }
    // What lasts is reported as a difference.
    let lasts = |what: &String| settled.lasting.iter().any(|difference| difference.what() == *what);
    let mut changed = std::mem::take(&mut settled.changed);
    changed.retain(|what| !lasts(what));
    changed.sort();
    changed.dedup();
    settled.changed = changed;
    Ok(settled)
}

#[cfg(test)]
mod tests {
    use super::super::difference::Aspect;
    use super::*;

    fn sizes(names: &[(&str, &str)]) -> Seen {
        let mut seen = Seen::default();
        names.iter().for_each(|(name, size)| seen.add(Difference::new(*name, Aspect::Size, *size, "0")));
        seen
    }

    /// Returns the names that last and that changed, whether the tree is restless, and the number of looks.
    fn after(looks: &[&[(&str, &str)]]) -> (Vec<String>, Vec<String>, bool, usize) {
        let mut at = 0;
        let settled = settle(
            |_| false,
            || Ok(()),
            || {
                at += 1;
                Ok(sizes(looks[at - 1]))
            },
        )
        .unwrap();
        let lasting = settled.lasting.iter().map(|difference| difference.subject.clone()).collect();
        (lasting, settled.changed, settled.is_restless, at)
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_difference_counts_when_two_looks_agree() {
        assert_eq!(after(&[&[]]), (names(&[]), names(&[]), false, 1));
        assert_eq!(after(&[&[("a", "1")], &[("a", "1")]]), (names(&["a"]), names(&[]), false, 2));
        assert_eq!(after(&[&[("a", "1"), ("b", "1")], &[("a", "1")]]), (names(&["a"]), names(&["b"]), false, 2));
        assert_eq!(after(&[&[("a", "1")], &[("a", "2")], &[("a", "2")]]), (names(&["a"]), names(&[]), false, 3));
        assert_eq!(after(&[&[("a", "1")], &[("a", "2")], &[]]), (names(&[]), names(&["a"]), false, 3));
    }

    #[test]
    fn a_tree_that_never_rests_is_named() {
        let looks: [&[(&str, &str)]; 3] = [&[("a", "1")], &[("a", "2")], &[("a", "3"), ("b", "1")]];
        assert_eq!(after(&looks), (names(&[]), names(&["a", "b"]), true, 3));
    }

    #[test]
    fn known_differences_are_not_looked_at_again() {
        let mut looks = 0;
        let look = || {
            looks += 1;
            Ok(sizes(&[("a", "1")]))
        };
        let settled = settle(|_| true, || Err(ShadowError::Interrupted), look).unwrap();
        assert_eq!((settled.lasting.len(), looks), (1, 1));
    }
}
