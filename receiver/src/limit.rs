//! Limits that an operator sets for a pull.

use std::fmt;

/// How many names a pull may delete. If it would delete more, it deletes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum MaxDelete {
    /// Any number.
    #[default]
    Any,
    /// This many names.
    Names(u64),
    /// This share, in percent, of the names that the tree has where the pull may delete.
    Percent(f64),
    /// The limit for operators who set none: [`USUAL_PERCENT`] percent, if that many names are worth a question. A
    /// repository without any name is never taken for right.
    Usual,
}

impl MaxDelete {
    /// Returns whether a pull may delete `wanted` of `total` names. `is_empty`: whether the sender has no name at all.
    pub(crate) fn allows(self, wanted: u64, total: u64, is_empty: bool) -> bool {
        match self {
            Self::Any => true,
            Self::Names(names) => wanted <= names,
            Self::Percent(percent) => is_within(wanted, percent, total),
            Self::Usual => {
                wanted == 0 || !is_empty && (wanted < USUAL_LEAST || is_within(wanted, USUAL_PERCENT, total))
            }
        }
    }
}

/// How much space must remain free, as `df` shows it, on each file system that a pull writes to.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum MinFree {
    /// What is brought must fit.
    #[default]
    Fit,
    /// This many bytes.
    Bytes(u64),
    /// This share of the file system, in percent.
    Percent(f64),
    /// Nothing is checked.
    Unchecked,
}

impl MinFree {
    /// Returns the number of bytes that must remain of a file system of `total` bytes.
    pub(crate) fn bytes(self, total: u64) -> u64 {
        match self {
            Self::Fit | Self::Unchecked => 0,
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => (total as f64 * percent / 100.0) as u64,
        }
    }
}

fn is_within(part: u64, percent: f64, total: u64) -> bool {
    part as f64 <= total as f64 * percent / 100.0
}

impl fmt::Display for MaxDelete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any number"),
            Self::Names(names) => write!(f, "{names}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Usual => write!(f, "{USUAL_PERCENT}% where it is not given"),
        }
    }
}

/// The share of [`MaxDelete::Usual`]. Below a half, so that a repository of which one of two disks is missing is noticed;
/// above a third, so that the end of an old release is none.
pub const USUAL_PERCENT: f64 = 40.0;
/// Number of names from which [`MaxDelete::Usual`] applies. Fewer are soon fetched again.
pub const USUAL_LEAST: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_inclusive_and_a_share_is_of_the_total() {
        for (limit, most, total) in [
            (MaxDelete::Names(0), 0, 10),
            (MaxDelete::Names(3), 3, 4),
            (MaxDelete::Percent(10.0), 10, 100),
            (MaxDelete::Percent(0.5), 5, 1000),
            (MaxDelete::Percent(0.0), 0, 1000),
            (MaxDelete::Usual, 400, 1000),
            (MaxDelete::Usual, 99, 100),
        ] {
            assert!(limit.allows(most, total, false), "{limit:?}");
            assert!(!limit.allows(most + 1, total, false), "{limit:?}");
        }
        assert!(MaxDelete::Percent(100.0).allows(7, 7, true) && MaxDelete::Any.allows(7, 7, true));
    }

    #[test]
    fn the_usual_limit_never_lets_an_empty_repository_pass() {
        assert!(!MaxDelete::Usual.allows(1, 1, true));
        assert!(MaxDelete::Usual.allows(0, 0, true), "nothing was there");
    }
}
