//! Collects argument strings. Each ends with a NUL (before protocol 30, a newline), and an empty string ends
//! the list.

use super::{Options, parse};
use crate::limits;
use crate::rsync::fault::Fault;
use crate::rsync::version::Version;

/// Collects a client's arguments.
#[derive(Debug)]
pub(in crate::rsync) struct Collector {
    /// The byte that ends a string.
    terminator: u8,
    /// The number of strings so far in the current list.
    count: usize,
    /// The offset in the input at which the current string starts.
    start: usize,
    /// The offset up to which the input has been searched.
    searched: usize,
    /// The first list, if it announced a second one.
    first: Option<Vec<Vec<u8>>>,
}

impl Collector {
    /// Creates a collector for the start of the first list.
    pub(in crate::rsync) fn new(version: Version) -> Self {
        let terminator = if version.facts().arguments_end_with_nul { 0 } else { b'\n' };
        Self { terminator, count: 0, start: 0, searched: 0, first: None }
    }

    /// Takes complete lists off the front of `input`. `None` if more input is needed.
    pub(in crate::rsync) fn take(
        &mut self,
        input: &mut Vec<u8>,
        version: Version,
        module: &[u8],
    ) -> Result<Option<Options>, Fault> {
        while let Some(list) = self.list(input)? {
            if self.first.is_none() && parse::is_secluded(&list) {
                // The second list ends with NULs in every version.
                *self = Self { first: Some(list), terminator: 0, count: 0, start: 0, searched: 0 };
            } else {
                let (first, second) = match self.first.take() {
                    Some(first) => (first, Some(list)),
                    None => (list, None),
                };
                return Ok(Some(parse::options(version, module, &first, second.as_deref())));
            }
        }
        Ok(None)
    }

    fn list(&mut self, input: &mut Vec<u8>) -> Result<Option<Vec<Vec<u8>>>, Fault> {
        while let Some(at) = input[self.searched..].iter().position(|&byte| byte == self.terminator) {
            let end = self.searched + at;
            self.searched = end + 1;
            if end == self.start {
                let list = input[..end].split_inclusive(|&byte| byte == self.terminator);
                let list = list.map(|string| string[..string.len() - 1].to_vec()).collect();
                input.drain(..=end);
                return Ok(Some(list));
            }
            self.start = end + 1;
            self.count += 1;
            if self.count > limits::ARGUMENTS || end > limits::ARGUMENT_BYTES {
                return Err(Fault::ArgumentsTooLong);
            }
        }
        self.searched = input.len();
        if self.searched > limits::ARGUMENT_BYTES { Err(Fault::ArgumentsTooLong) } else { Ok(None) }
    }
}
