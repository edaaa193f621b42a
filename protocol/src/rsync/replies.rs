//! What goes to the client after the setup: list data, echoes, files, ends of phases, messages.
//!
//! [`Replies`] writes frames into its own buffer, which the caller takes and sends. A file's content never goes
//! through it: [`Replies::literal`] writes what goes before one slice of it, and the caller sends the buffer, then the slice.

use crate::rsync::arguments::{Compression, Options};
use crate::rsync::fault::Exit;
use crate::rsync::requests::Request;
use crate::rsync::setup::Setup;
use crate::rsync::version::Version;

/// Bits of an I/O error.
pub mod io_error {
    /// Something could not be read: the client deletes nothing and exits 23.
    pub const GENERAL: i32 = 1;
    /// Files vanished: the client exits 24.
    pub const VANISHED: i32 = 2;
}

/// How grave a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// A word to the user.
    Info,
    /// A warning; no exit code by itself.
    Warning,
    /// An error; no exit code by itself.
    Error,
    /// An error that makes the client exit 23.
    Transfer,
}

/// What the client prints with `--stats`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Bytes received.
    pub read: u64,
    /// Bytes sent.
    pub written: u64,
    /// Bytes of all files in the list.
    pub total: u64,
    /// Milliseconds to make the list.
    pub list_made_ms: u64,
    /// Milliseconds to send the list.
    pub list_sent_ms: u64,
}

/// Writes a sender's half of a session.
#[derive(Debug)]
pub struct Replies {
    out: Vec<u8>,
}

impl Replies {
    /// After the setup.
    pub fn new(setup: &Setup, options: &Options) -> Self {
        unreachable!("{setup:?}{options:?}")
    }
    /// Takes the bytes to send.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }
    /// The bytes to send, for a caller that writes them and then clears them.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Bytes of the list.
    pub fn list(&mut self, bytes: &[u8]) {
        unreachable!("{bytes:?}")
    }
    /// The head of a data frame whose `len` bytes (at most [`super::mux::PAYLOAD`]) the caller sends itself.
    pub fn data_head(&mut self, len: usize) {
        unreachable!("{len}")
    }

    /// Answers a request that wants no content.
    pub fn echo(&mut self, request: &Request) {
        unreachable!("{request:?}")
    }
    /// Begins the file that a request asked for. Literal slices follow, then [`Replies::end`].
    pub fn file(&mut self, request: &Request) {
        unreachable!("{request:?}")
    }
    /// The most bytes of one literal slice.
    pub fn slice(&self) -> usize {
        unreachable!()
    }
    /// What goes before the next `len` bytes of the file, 1 to [`Replies::slice`].
    pub fn literal(&mut self, len: usize) {
        unreachable!("{len}")
    }
    /// What goes behind the last byte, with the file's digest.
    pub fn end(&mut self, digest: &[u8]) {
        unreachable!("{digest:?}")
    }
    /// A file that a request asked for will not come. Before protocol 30 nothing is said: a message must do.
    pub fn no_send(&mut self, ndx: i32) {
        unreachable!("{ndx}")
    }

    /// Answers a `done`.
    pub fn done(&mut self) {}
    /// The statistics, behind that `done` which asks for them.
    pub fn statistics(&mut self, statistics: &Statistics) {
        unreachable!("{statistics:?}")
    }
    /// Echoes what the client deleted.
    pub fn deleted(&mut self, counts: &[i32; 5]) {
        unreachable!("{counts:?}")
    }
    /// Files could not be sent, see [`io_error`]; nothing before protocol 30.
    pub fn io_error(&mut self, bits: i32) {
        unreachable!("{bits}")
    }
    /// A line of text, without its end.
    pub fn message(&mut self, severity: Severity, text: &str) {
        unreachable!("{severity:?}{text}")
    }
    /// A sign of life.
    pub fn keep_alive(&mut self) {}
    /// Answers the client's own exit; nothing before protocol 31.
    pub fn exit_seen(&mut self) {}
    /// The end because of an error: the text, and the exit code for clients that can take it.
    pub fn fatal(&mut self, text: &str, exit: Exit) {
        fatal(&mut self.out, Version::NEWEST, text, exit);
    }
}

/// As [`Replies::fatal`], for a session whose setup failed after its setup block was sent.
pub fn fatal(out: &mut Vec<u8>, version: Version, text: &str, exit: Exit) {
    unreachable!("{out:?}{version}{text}{exit:?}{:?}", Compression::None)
}
