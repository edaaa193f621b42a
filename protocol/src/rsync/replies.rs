//! What goes to the client after the setup: list data, echoes, files, ends of phases, messages.
//!
//! [`Replies`] writes frames into its own buffer, which the caller takes and sends. A file's content never
//! goes through it: [`Replies::literal`] writes what goes before one slice of it, and the caller sends the
//! buffer, then the slice.

mod tokens;

use tokens::Tokens;

use crate::rsync::codec::{
    NDX_DEL_STATS, NDX_DONE, NDX_FLIST_EOF, NdxEncoder, put_i32, put_long30, put_varint, put_vstring,
};
use crate::rsync::exit::Exit;
use crate::rsync::mux::{HEADER, Severity, TEXT, header, put_frame, tag};
use crate::rsync::requests::Request;
use crate::rsync::setup::Setup;
use crate::rsync::version::Version;

/// Bytes of small replies that are gathered in one frame.
const FRAME: usize = 64 << 10;

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
#[derive(Debug, Clone)]
pub struct Replies {
    version: Version,
    ndx: NdxEncoder,
    tokens: Tokens,
    out: Vec<u8>,
    /// Where the header of the data frame under way stands.
    frame: Option<usize>,
}

impl Replies {
    /// After the setup. The list writes its own indices; those of the replies follow upon them.
    pub fn new(setup: &Setup) -> Self {
        let mut ndx = NdxEncoder::new(setup.version);
        if setup.incremental {
            ndx.put(&mut Vec::new(), NDX_FLIST_EOF);
        }
        Self { version: setup.version, ndx, tokens: Tokens::new(setup.compression), out: Vec::new(), frame: None }
    }

    /// The bytes to send. The caller sends them all, and clears them before it has more written.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        self.close(0);
        &mut self.out
    }

    /// Takes the bytes to send.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.buffer())
    }

    /// Bytes of the list.
    pub fn list(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(FRAME) {
            self.data(|out, _| out.extend_from_slice(piece));
        }
    }

    /// `len` bytes of the list, at most [`super::mux::PAYLOAD`], that the caller sends behind the buffer.
    pub fn list_head(&mut self, len: usize) {
        self.close(0);
        self.frame = Some(self.out.len());
        self.out.extend_from_slice(&[0; HEADER]);
        self.close(len);
    }

    /// Answers a request that wants no content.
    pub fn echo(&mut self, request: &Request) {
        let item_flags = self.version.facts().item_flags;
        self.data(|out, ndx| {
            ndx.put(out, request.ndx);
            if item_flags {
                out.extend_from_slice(&request.flags.to_le_bytes());
            }
            out.extend(request.basis);
            if let Some(name) = &request.name {
                put_vstring(out, name);
            }
            if request.xattrs {
                out.push(0);
            }
        });
    }

    /// Begins the file that a request asked for. Slices of it follow, then [`Replies::end`].
    pub fn file(&mut self, request: &Request) {
        self.echo(request);
        let sums = request.sums.unwrap_or_default();
        self.data(|out, _| {
            for field in [sums.count, sums.block_len, sums.strong_len, sums.remainder] {
                put_i32(out, field);
            }
        });
    }

    /// The most bytes of one slice of a file.
    pub fn slice(&self) -> usize {
        self.tokens.slice()
    }

    /// The next `len` bytes of the file, 1 to [`Replies::slice`], which the caller sends behind the buffer. Or later,
    /// with other slices in one vectored write: then at the place in the buffer that is given back.
    pub fn literal(&mut self, len: usize) -> usize {
        let mut tokens = self.tokens;
        self.data(|out, _| tokens.literal(out, len));
        self.tokens = tokens;
        self.close(len);
        self.out.len()
    }

    /// Ends a file with its digest.
    pub fn end(&mut self, digest: &[u8]) {
        let mut tokens = self.tokens;
        self.data(|out, _| {
            tokens.end(out);
            out.extend_from_slice(digest);
        });
        self.tokens = tokens;
    }

    /// A file that was asked for will not come. Before protocol 30 nothing is said: a message must do.
    pub fn no_send(&mut self, ndx: i32) {
        if self.version.facts().graded_messages {
            self.frame(tag::NO_SEND, &ndx.to_le_bytes());
        }
    }

    /// Answers a `done`.
    pub fn done(&mut self) {
        self.data(|out, ndx| ndx.put(out, NDX_DONE));
    }

    /// The statistics, behind that `done` which asks for them.
    pub fn statistics(&mut self, statistics: &Statistics) {
        let Statistics { read, written, total, list_made_ms, list_sent_ms } = *statistics;
        let version = self.version;
        let values = [read, written, total, list_made_ms, list_sent_ms];
        let values = if version.facts().list_times { &values[..] } else { &values[..3] };
        self.data(|out, _| {
            for &value in values {
                put_long30(out, version, i64::try_from(value).unwrap_or(i64::MAX));
            }
        });
    }

    /// Echoes what the client deleted.
    pub fn deleted(&mut self, counts: &[i32; 5]) {
        self.data(|out, ndx| {
            ndx.put(out, NDX_DEL_STATS);
            counts.iter().for_each(|&count| put_varint(out, count));
        });
    }

    /// Files could not be sent, see [`io_error`]; nothing before protocol 30.
    pub fn io_error(&mut self, bits: i32) {
        if self.version.facts().graded_messages {
            self.frame(tag::IO_ERROR, &bits.to_le_bytes());
        }
    }

    /// A line of text, with its end or without.
    pub fn message(&mut self, severity: Severity, text: impl AsRef<[u8]>) {
        self.close(0);
        put_message(&mut self.out, self.version, severity, text.as_ref());
    }

    /// A sign of life.
    pub fn keep_alive(&mut self) {
        self.frame(tag::DATA, &[]);
    }

    /// Answers the client's own exit; nothing before protocol 31.
    pub fn exit_seen(&mut self) {
        if self.version.facts().exit_messages {
            self.frame(tag::ERROR_EXIT, &[]);
        }
    }

    /// The end because of an error: the text, and the exit code for clients that can take it.
    pub fn fatal(&mut self, text: impl AsRef<[u8]>, exit: Exit) {
        self.close(0);
        fatal(&mut self.out, self.version, text, exit);
    }

    fn frame(&mut self, tag: u8, payload: &[u8]) {
        self.close(0);
        put_frame(&mut self.out, tag, payload);
    }

    /// Appends to the data stream.
    fn data(&mut self, write: impl FnOnce(&mut Vec<u8>, &mut NdxEncoder)) {
        if self.frame.is_some_and(|at| self.out.len() - at > FRAME) {
            self.close(0);
        }
        if self.frame.is_none() {
            self.frame = Some(self.out.len());
            self.out.extend_from_slice(&[0; HEADER]);
        }
        write(&mut self.out, &mut self.ndx);
    }

    /// Ends the data frame under way, whose last `beyond` bytes the caller sends itself.
    fn close(&mut self, beyond: usize) {
        if let Some(at) = self.frame.take() {
            let header = header(tag::DATA, self.out.len() - at - HEADER + beyond);
            self.out[at..at + HEADER].copy_from_slice(&header);
        }
    }
}

/// As [`Replies::fatal`], for a session that has no more than its setup block out.
pub fn fatal(out: &mut Vec<u8>, version: Version, text: impl AsRef<[u8]>, exit: Exit) {
    put_message(out, version, Severity::Error, text.as_ref());
    if version.facts().exit_messages {
        put_frame(out, tag::ERROR_EXIT, &i32::from(exit as u8).to_le_bytes());
    }
}

fn put_message(out: &mut Vec<u8>, version: Version, severity: Severity, text: &[u8]) {
    let graded = version.facts().graded_messages;
    let tag = match severity {
        Severity::Warning if graded => tag::WARNING,
        Severity::Error if graded => tag::ERROR,
        Severity::Info | Severity::Warning => tag::INFO,
        Severity::Error | Severity::Transfer => tag::ERROR_XFER,
    };
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let text = &text[..text.len().min(TEXT)];
    put_frame(out, tag, &[text, b"\n"].concat());
}

#[cfg(test)]
mod tests;
