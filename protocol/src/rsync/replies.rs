//! Writes what the client receives after the setup: list data, echoes, files, ends of phases, messages.
//!
//! [`Replies`] writes frames into its own buffer, which the caller takes and sends. The content of a file
//! never passes through it: [`Replies::literal`] writes only what precedes one slice of the content. The
//! caller sends the buffer, then the slice.

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

/// Target length of a frame that collects small replies, in bytes.
const FRAME: usize = 64 << 10;

/// The statistics that a client prints with `--stats`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Bytes received.
    pub read: u64,
    /// Bytes sent.
    pub written: u64,
    /// Total size of all files in the list, in bytes.
    pub total: u64,
    /// Time to build the list, in milliseconds.
    pub list_made_ms: u64,
    /// Time to send the list, in milliseconds.
    pub list_sent_ms: u64,
}

/// Writes the sender's side of a session.
#[derive(Debug, Clone)]
pub struct Replies {
    version: Version,
    /// The length of the digest behind each file, in bytes.
    digest_len: i32,
    ndx: NdxEncoder,
    tokens: Tokens,
    out: Vec<u8>,
    /// The offset of the current data frame's header in `out`. `None` if no data frame is open.
    frame: Option<usize>,
}

impl Replies {
    /// Starts after the setup. The list writes its own indices, and the indices of the replies continue from them.
    pub fn new(setup: &Setup) -> Self {
        let mut ndx = NdxEncoder::new(setup.version);
        if setup.incremental {
            ndx.put(&mut Vec::new(), NDX_FLIST_EOF);
        }
        Self {
            version: setup.version,
            digest_len: setup.transfer.bytes() as i32,
            ndx,
            tokens: Tokens::new(setup.compression),
            out: Vec::new(),
            frame: None,
        }
    }

    /// Returns the buffer of bytes to send. The caller must send and clear all of it before more is written.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        self.close(0);
        &mut self.out
    }

    /// Takes the bytes to send.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.buffer())
    }

    /// Appends bytes of the list.
    pub fn list(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(FRAME) {
            self.data(|out, _| out.extend_from_slice(piece));
        }
    }

    /// Appends the header for `len` bytes of the list, at most [`super::mux::PAYLOAD`], which the caller
    /// sends after the buffer.
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

    /// Begins the file of this request. Slices follow with [`Replies::literal`], then [`Replies::end`].
    pub fn file(&mut self, request: &Request) {
        self.echo(request);
        let sums = request.sums.unwrap_or_default();
        // Clients of 3.2 ask for 16 bytes when they request a file again, whatever the digest, and some of them refuse
        // an echo that is longer than the digest.
        let strong_len = sums.strong_len.min(self.digest_len);
        self.data(|out, _| {
            for field in [sums.count, sums.block_len, strong_len, sums.remainder] {
                put_i32(out, field);
            }
        });
    }

    /// Returns the maximum length of one slice of a file, in bytes.
    pub fn slice(&self) -> usize {
        self.tokens.slice()
    }

    /// Appends what precedes the next `len` bytes of the file, 1 to [`Replies::slice`]. The caller sends
    /// those bytes after the buffer. Alternatively it can send several slices in one vectored write: each
    /// slice belongs at the offset in the buffer that this function returns.
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

    /// Announces that a requested file will not be sent. Before protocol 30 this writes nothing, and only a
    /// message can tell the client.
    pub fn no_send(&mut self, ndx: i32) {
        if self.version.facts().graded_messages {
            self.frame(tag::NO_SEND, &ndx.to_le_bytes());
        }
    }

    /// Answers a `done`.
    pub fn done(&mut self) {
        self.data(|out, ndx| ndx.put(out, NDX_DONE));
    }

    /// Appends the statistics. They follow the reply to the `done` that asks for them.
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

    /// Echoes the client's deletion counts.
    pub fn deleted(&mut self, counts: &[i32; 5]) {
        self.data(|out, ndx| {
            ndx.put(out, NDX_DEL_STATS);
            counts.iter().for_each(|&count| put_varint(out, count));
        });
    }

    /// Reports that files could not be sent, see [`crate::rsync::exit::io_error`]. Writes nothing before protocol 30.
    pub fn io_error(&mut self, bits: i32) {
        if self.version.facts().graded_messages {
            self.frame(tag::IO_ERROR, &bits.to_le_bytes());
        }
    }

    /// Appends a line of text. It may end with a newline or not.
    pub fn message(&mut self, severity: Severity, text: impl AsRef<[u8]>) {
        self.close(0);
        put_message(&mut self.out, self.version, severity, text.as_ref());
    }

    /// Appends a keep-alive.
    pub fn keep_alive(&mut self) {
        self.frame(tag::DATA, &[]);
    }

    /// Acknowledges the client's exit. Writes nothing before protocol 31.
    pub fn exit_seen(&mut self) {
        if self.version.facts().exit_messages {
            self.frame(tag::ERROR_EXIT, &[]);
        }
    }

    /// Ends the session with an error: the text, and the exit code for clients that understand it.
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

    /// Ends the current data frame. The caller sends the frame's last `beyond` bytes itself.
    fn close(&mut self, beyond: usize) {
        if let Some(at) = self.frame.take() {
            let header = header(tag::DATA, self.out.len() - at - HEADER + beyond);
            self.out[at..at + HEADER].copy_from_slice(&header);
        }
    }
}

/// Like [`Replies::fatal`], for a session that has sent nothing after its setup block.
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
