//! What answers a client's ends of lists and phases.

use crate::rsync::fault::Fault;
use crate::rsync::version::Version;

/// The answer to one `done`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Echo it.
    Done,
    /// Echo it; before that an `IO_ERROR` if files could not be sent, behind it the statistics.
    DoneAndStatistics,
    /// The session is over: flush and close.
    End,
}

/// Counts lists and `done`s of one session.
#[derive(Debug, Clone)]
pub struct Phases {
    _todo: (),
}

impl Phases {
    /// At the start; no list is sent yet.
    pub fn new(version: Version) -> Self {
        unreachable!("{version}")
    }
    /// One more list (or sub-list) goes out.
    pub fn list_begun(&mut self) {}
    /// All lists are out (the end mark of an incremental list included).
    pub fn lists_ended(&mut self) {}
    /// The answer to the client's next `done`. A client that ends what was not begun is at fault.
    pub fn done(&mut self) -> Result<Answer, Fault> {
        unreachable!()
    }
}
