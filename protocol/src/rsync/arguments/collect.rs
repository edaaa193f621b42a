//! Argument strings as they come: ended by NUL (a newline before protocol 30), a list of them by an empty one.

use super::{Options, parse};
use crate::limits;
use crate::rsync::fault::Fault;
use crate::rsync::version::Version;

/// Gathers a client's arguments.
#[derive(Debug)]
pub(in crate::rsync) struct Collector {
    end: u8,
    /// Strings of the list under way.
    count: usize,
    /// Where the string under way starts in the input.
    start: usize,
    /// How far the input has been searched.
    searched: usize,
    /// The list that promised another one.
    first: Option<Vec<Vec<u8>>>,
}

impl Collector {
    /// At the first string.
    pub(in crate::rsync) fn new(version: Version) -> Self {
        let end = if version.facts().arguments_end_with_nul { 0 } else { b'\n' };
        Self { end, count: 0, start: 0, searched: 0, first: None }
    }

    /// Takes complete lists off the front of `input`; none while more is to come.
    pub(in crate::rsync) fn take(
        &mut self,
        input: &mut Vec<u8>,
        version: Version,
        module: &[u8],
    ) -> Result<Option<Options>, Fault> {
        while let Some(list) = self.list(input)? {
            if self.first.is_none() && parse::is_secluded(&list) {
                // The second list ends with NULs whatever the version.
                *self = Self { first: Some(list), end: 0, count: 0, start: 0, searched: 0 };
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
        while let Some(at) = input[self.searched..].iter().position(|&byte| byte == self.end) {
            let end = self.searched + at;
            self.searched = end + 1;
            if end == self.start {
                let list = input[..end].split_inclusive(|&byte| byte == self.end);
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
