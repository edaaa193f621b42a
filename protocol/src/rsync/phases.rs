//! The replies to a client's `done`s, which end lists and phases.
//!
//! A client sends `done` once for every list or sub-list, then once for each phase that its version has after
//! the lists. [`super::version::Facts::closing`] holds the replies to the latter.

use crate::rsync::fault::Fault;
use crate::rsync::version::{Closing, Version};

/// Counts the lists and `done`s of one session.
#[derive(Debug, Clone)]
pub struct Phases {
    closing: &'static [Closing],
    /// The number of lists that were begun and that the client has not ended.
    open: u64,
    /// Whether all lists have been sent.
    lists_ended: bool,
}

impl Phases {
    /// Starts with no list sent.
    pub fn new(version: Version) -> Self {
        Self { closing: version.facts().closing, open: 0, lists_ended: false }
    }

    /// Records that `lists` more lists or sub-lists are being sent.
    pub fn lists_begun(&mut self, lists: u64) {
        self.open = self.open.saturating_add(lists);
    }

    /// Records that all lists have been sent, including the end mark of an incremental list.
    pub fn lists_ended(&mut self) {
        self.lists_ended = true;
    }

    /// Returns the reply to the client's next `done`. Fails if the client ends a list that was not begun.
    pub fn done(&mut self) -> Result<Closing, Fault> {
        if self.open > 0 {
            self.open -= 1;
            return Ok(Closing::Done);
        }
        match self.closing {
            [answer, rest @ ..] if self.lists_ended => {
                self.closing = rest;
                Ok(*answer)
            }
            _ => Err(Fault::Phases),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(version: u32, lists: u64) -> Vec<Closing> {
        let mut phases = Phases::new(Version::new(version).expect("a version"));
        phases.lists_begun(lists);
        phases.lists_ended();
        std::iter::from_fn(|| phases.done().ok()).collect()
    }

    #[test]
    fn every_version_has_its_number_of_phases() {
        use Closing::{Done, DoneAndStatistics, End};
        for version in [27, 28] {
            assert_eq!(answers(version, 1), [Done, DoneAndStatistics, End]);
        }
        for version in [29, 30] {
            assert_eq!(answers(version, 1), [Done, Done, DoneAndStatistics, End]);
        }
        for version in [31, 32] {
            assert_eq!(answers(version, 1), [Done, Done, DoneAndStatistics, Done, End]);
        }
        assert_eq!(answers(32, 13).len(), 17);
    }

    #[test]
    fn a_list_cannot_be_ended_before_it_is_begun() {
        let mut phases = Phases::new(Version::NEWEST);
        assert_eq!(phases.done(), Err(Fault::Phases));
        phases.lists_begun(1);
        assert_eq!(phases.done(), Ok(Closing::Done));
        assert_eq!(phases.done(), Err(Fault::Phases));
        phases.lists_ended();
        assert_eq!(phases.done(), Ok(Closing::Done));
    }
}
