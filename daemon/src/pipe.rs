//! Pipes that carry pages of files from the page cache to a socket without copying them.
//!
//! A page in flight belongs to the file: a process that writes to the file in place meanwhile changes what is
//! sent. So only data that the receiver compares with a digest goes this way. It is sent only if the file is
//! still in its indexed state when the whole piece is in the pipe.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::sync::Semaphore;

use crate::direct::page_size;

/// Maximum number of pipes over all sessions: half of the 64 MiB that the kernel lets one user's pipes hold
/// by default.
pub(crate) const PIPES: usize = 32;
/// Descriptors that one pipe takes.
pub(crate) const DESCRIPTORS: usize = 3;
/// Capacity of a pipe in bytes, if all its pages are full: the kernel's default limit for unprivileged users.
const SIZE: usize = 1 << 20;
/// The in-memory file of protocol bytes is truncated when it has reached this size, to free its memory.
const PROTOCOL_FILE_BYTES: u64 = 64 << 10;

/// The pool of pipes. They are created when they are first needed, and then kept.
pub(crate) struct Pipes {
    limit: usize,
    /// One permit for each pipe that no session holds.
    permits: Semaphore,
    free: Mutex<Vec<Ends>>,
    /// Whether a session found no pipe since one was last returned.
    is_short: AtomicBool,
}

/// A pipe, and an in-memory file from which protocol bytes go into it, as pages like everything else.
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
    /// Capacity of the pipe in pages, whether they are full or not.
    room: u64,
    protocol: File,
    /// Protocol bytes written so far. A socket may still hold their pages, so no byte is written twice.
    written: u64,
}

/// A pipe that a session holds.
pub(crate) struct Pipe {
    pipes: Arc<Pipes>,
    /// `None` only while dropping.
    ends: Option<Ends>,
    /// The number of bytes in the pipe.
    held: usize,
}

/// A piece of what goes into a pipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// A range of the protocol bytes.
    Protocol(Range<usize>),
    /// A range of the file.
    File(Range<u64>),
}

impl Pipes {
    /// Creates an empty pool of up to `limit` pipes.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        let permits = Semaphore::new(limit);
        Arc::new(Self { limit, permits, free: Mutex::default(), is_short: AtomicBool::new(false) })
    }

    /// Takes an empty pipe. `None` if all are in use, or the system cannot create more.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Pipe> {
        let Ok(permit) = self.permits.try_acquire() else {
            self.is_short.store(true, Ordering::Relaxed);
            return None;
        };
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let ends = free.map_or_else(Ends::open, Ok).ok()?;
        permit.forget();
        Some(Pipe { pipes: Arc::clone(self), ends: Some(ends), held: 0 })
    }

    /// Returns the number of pipes that sessions hold.
    pub(crate) fn used(&self) -> usize {
        self.limit.saturating_sub(self.permits.available_permits())
    }

    /// Returns whether a session needs a pipe and found none.
    pub(crate) fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }
}

impl Ends {
    fn open() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let room = fcntl_setpipe_size(&write, SIZE)? as u64 / page_size();
        let protocol = rustix::fs::memfd_create("protocol", MemfdFlags::CLOEXEC)?.into();
        Ok(Self { read, write, room, protocol, written: 0 })
    }

    /// Writes protocol bytes to the in-memory file, and returns their offset there.
    fn write(&mut self, protocol: &[u8]) -> io::Result<u64> {
        if self.written >= PROTOCOL_FILE_BYTES {
            // Pages in flight live on without the file.
            self.protocol.set_len(0)?;
            self.written = 0;
        }
        let start = self.written;
        self.protocol.write_all_at(protocol, start)?;
        self.written += protocol.len() as u64;
        Ok(start)
    }
}

impl Pipe {
    /// Returns whether all parts fit into an empty pipe, at whatever offset the protocol bytes are written.
    pub(crate) fn has_room(&self, parts: impl Iterator<Item = Part>) -> bool {
        let page = page_size();
        let pages = |part| match part {
            Part::Protocol(range) => (range.len() as u64).div_ceil(page) + 1,
            Part::File(range) => range.end.div_ceil(page) - range.start / page,
        };
        self.ends.as_ref().is_some_and(|ends| parts.map(pages).sum::<u64>() <= ends.room)
    }

    /// Puts protocol bytes and ranges of the file into the pipe, in the order of `parts`. After an error, the
    /// pipe must be dropped.
    pub(crate) fn fill(
        &mut self,
        protocol: &[u8],
        file: impl AsFd,
        parts: impl Iterator<Item = Part>,
    ) -> io::Result<()> {
        let Some(ends) = &mut self.ends else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let base = ends.write(protocol)?;
        for part in parts {
            let (from, mut range) = match part {
                Part::Protocol(range) => (ends.protocol.as_fd(), base + range.start as u64..base + range.end as u64),
                Part::File(range) => (file.as_fd(), range),
            };
            while !range.is_empty() {
                let len = (range.end - range.start) as usize;
                match splice(from, Some(&mut range.start), &ends.write, None, len, SpliceFlags::empty()) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(moved) => self.held += moved,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        Ok(())
    }

    /// Returns the number of bytes in the pipe.
    pub(crate) fn len(&self) -> usize {
        self.held
    }

    /// Moves up to `limit` bytes to the socket, and returns how many.
    pub(crate) fn pour(&mut self, socket: impl AsFd, limit: usize) -> io::Result<usize> {
        let Some(ends) = &self.ends else { return Err(io::ErrorKind::BrokenPipe.into()) };
        match splice(&ends.read, None, socket, None, limit.min(self.held), SpliceFlags::empty())? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            moved => {
                self.held -= moved;
                Ok(moved)
            }
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // A pipe that still holds bytes is not reused: the next session would send them.
        if let Some(ends) = self.ends.take().filter(|_| self.held == 0) {
            self.pipes.free.lock().unwrap_or_else(PoisonError::into_inner).push(ends);
        }
        self.pipes.is_short.store(false, Ordering::Relaxed);
        self.pipes.permits.add_permits(1);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Creates a file of `len` bytes, and returns its content too.
    fn file(len: usize) -> (File, Vec<u8>) {
        let bytes: Vec<u8> = (0..len as u32).map(|at| (at ^ at >> 8 ^ at >> 13) as u8).collect();
        let file: File = rustix::fs::memfd_create("file", MemfdFlags::CLOEXEC).unwrap().into();
        file.write_all_at(&bytes, 0).unwrap();
        (file, bytes)
    }

    #[test]
    fn protocol_bytes_and_pages_come_out_in_order_whatever_the_size_of_the_writes() {
        let (file, bytes) = file(300_000);
        let (socket, mut peer) = UnixStream::pair().unwrap();
        let reader = std::thread::spawn(move || {
            let mut received = Vec::new();
            peer.read_to_end(&mut received).map(|_| received)
        });
        let pipes = Pipes::new(1);
        let mut expected = Vec::new();
        // Enough rounds that the file of protocol bytes is truncated while the socket still holds some of
        // them.
        for round in 0..40 {
            let protocol: Vec<u8> = (0..4000).map(|at| (at * 7 + round * 31) as u8).collect();
            let from = round * 3000 + 17;
            let parts = [
                Part::Protocol(0..100),
                Part::File(from as u64..from as u64 + 100_000),
                Part::Protocol(100..4000),
                Part::File(0..1),
            ];
            for part in &parts {
                expected.extend_from_slice(match part {
                    Part::Protocol(range) => &protocol[range.clone()],
                    Part::File(range) => &bytes[range.start as usize..range.end as usize],
                });
            }
            let mut pipe = pipes.take().expect("the only pipe was returned");
            assert!(pipe.has_room(parts.iter().cloned()));
            pipe.fill(&protocol, &file, parts.into_iter()).unwrap();
            assert_eq!(pipe.len(), 104_001);
            while pipe.len() > 0 {
                assert!(pipe.pour(&socket, 1 + round * 1777).unwrap() <= 1 + round * 1777);
            }
        }
        drop(socket);
        assert!(reader.join().unwrap().unwrap() == expected);
    }

    #[test]
    fn a_pipe_with_bytes_left_is_not_reused() {
        let (file, bytes) = file(50_000);
        let pipes = Pipes::new(2);
        let (mut left, other) = (pipes.take().unwrap(), pipes.take().unwrap());
        left.fill(b"", &file, [Part::File(0..50_000)].into_iter()).unwrap();
        assert!(pipes.take().is_none() && pipes.is_short(), "both are in use");
        drop((left, other));
        assert!(!pipes.is_short());
        let (socket, mut peer) = UnixStream::pair().unwrap();
        let (mut one, mut next) = (pipes.take().unwrap(), pipes.take().unwrap());
        for (pipe, from) in [(&mut one, 1), (&mut next, 2)] {
            pipe.fill(b"", &file, [Part::File(from..from + 100)].into_iter()).unwrap();
            assert_eq!(pipe.pour(&socket, usize::MAX).unwrap(), 100);
            let mut received = [0; 100];
            peer.read_exact(&mut received).unwrap();
            assert_eq!(received, bytes[from as usize..from as usize + 100]);
        }
    }

    #[test]
    fn filling_fails_if_the_pipe_is_full_or_the_file_ends() {
        let (file, _) = file(50_000);
        let pipes = Pipes::new(1);
        let mut pipe = pipes.take().unwrap();
        let pages = |count: u64| (0..count).map(|at| Part::File(at..at + 1));
        let room = SIZE as u64 / page_size();
        assert!(pipe.has_room(pages(room)) && !pipe.has_room(pages(room + 1)));
        assert!(!pipe.has_room(pages(room).chain([Part::Protocol(0..1)])));
        pipe.fill(b"", &file, pages(room)).unwrap();
        assert!(pipe.fill(b"", &file, pages(1)).is_err());
        drop(pipe);
        let mut pipe = pipes.take().unwrap();
        let error = pipe.fill(b"", &file, [Part::File(49_999..50_001)].into_iter()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
