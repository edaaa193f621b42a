//! Pipes that carry pages of files from the page cache to a socket, without a copy of them.
//!
//! A page under way is the file's own: who writes to the file in place meanwhile changes what is sent. So only
//! what its receiver holds against a digest goes this way, and only after the file was found in its indexed
//! state with all of a piece in the pipe.

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

/// Pipes over all sessions: half of the 64 MiB that the kernel lets one user's pipes hold by default.
pub(crate) const PIPES: usize = 32;
/// Descriptors that one takes.
pub(crate) const DESCRIPTORS: usize = 3;
/// Bytes of one, if all its pages are full: as many as an unprivileged user's may have.
const SIZE: usize = 1 << 20;
/// Bytes of words in memory, from where on they are given back.
const WORDS: u64 = 64 << 10;

/// The pipes that no session has in hand. They are made when they are first needed, and then kept.
pub(crate) struct Pipes {
    /// One permit for each that is not in hand.
    permits: Semaphore,
    free: Mutex<Vec<Ends>>,
    /// Somebody went without since one came back.
    is_short: AtomicBool,
}

/// A pipe, and a file in memory out of which words go into it: as pages, like the rest.
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
    /// Pages that it refers to at the most, full ones or not.
    room: u64,
    words: File,
    /// Bytes of words so far. A socket may still hold their pages: none is written twice.
    written: u64,
}

/// A pipe in the hand of a session.
pub(crate) struct Pipe {
    pipes: Arc<Pipes>,
    /// `None` only while dropping.
    ends: Option<Ends>,
    /// Bytes in it.
    held: usize,
}

/// What goes into a pipe next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// A range of the words.
    Words(Range<usize>),
    /// A range of the file.
    Bytes(Range<u64>),
}

impl Pipes {
    /// None yet, and `most` at most.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        let permits = Semaphore::new(most);
        Arc::new(Self { permits, free: Mutex::default(), is_short: AtomicBool::new(false) })
    }

    /// An empty pipe, if there is one. There is none where the system has no more of them either.
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

    /// Whether somebody has to do without one.
    pub(crate) fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }
}

impl Ends {
    fn open() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let room = fcntl_setpipe_size(&write, SIZE)? as u64 / page_size();
        let words = rustix::fs::memfd_create("words", MemfdFlags::CLOEXEC)?.into();
        Ok(Self { read, write, room, words, written: 0 })
    }

    /// Puts words where they can be taken from as pages, and says where.
    fn write(&mut self, words: &[u8]) -> io::Result<u64> {
        if self.written >= WORDS {
            // Pages that are under way live on without the file.
            self.words.set_len(0)?;
            self.written = 0;
        }
        let start = self.written;
        self.words.write_all_at(words, start)?;
        self.written += words.len() as u64;
        Ok(start)
    }
}

impl Pipe {
    /// Whether all of it goes in at once, wherever its words come to lie.
    pub(crate) fn has_room(&self, parts: impl Iterator<Item = Part>) -> bool {
        let page = page_size();
        let pages = |part| match part {
            Part::Words(range) => (range.len() as u64).div_ceil(page) + 1,
            Part::Bytes(range) => range.end.div_ceil(page) - range.start / page,
        };
        self.ends.as_ref().is_some_and(|ends| parts.map(pages).sum::<u64>() <= ends.room)
    }

    /// Puts words and ranges of the file into it, in this order. Whatever the error, it is of no use any more.
    pub(crate) fn fill(&mut self, words: &[u8], file: impl AsFd, parts: impl Iterator<Item = Part>) -> io::Result<()> {
        let Some(ends) = &mut self.ends else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let base = ends.write(words)?;
        for part in parts {
            let (from, mut range) = match part {
                Part::Words(range) => (ends.words.as_fd(), base + range.start as u64..base + range.end as u64),
                Part::Bytes(range) => (file.as_fd(), range),
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

    /// Bytes in it.
    pub(crate) fn len(&self) -> usize {
        self.held
    }

    /// Moves at most `most` bytes on, and says how many.
    pub(crate) fn pour(&mut self, socket: impl AsFd, most: usize) -> io::Result<usize> {
        let Some(ends) = &self.ends else { return Err(io::ErrorKind::BrokenPipe.into()) };
        match splice(&ends.read, None, socket, None, most.min(self.held), SpliceFlags::empty())? {
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
        // What is left in one would be in the next session's way.
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

    /// A file of so many bytes, and these.
    fn file(len: usize) -> (File, Vec<u8>) {
        let bytes: Vec<u8> = (0..len as u32).map(|at| (at ^ at >> 8 ^ at >> 13) as u8).collect();
        let file: File = rustix::fs::memfd_create("file", MemfdFlags::CLOEXEC).unwrap().into();
        file.write_all_at(&bytes, 0).unwrap();
        (file, bytes)
    }

    #[test]
    fn words_and_pages_come_out_as_they_went_in_however_little_goes_out_at_once() {
        let (file, bytes) = file(300_000);
        let (socket, mut peer) = UnixStream::pair().unwrap();
        let reader = std::thread::spawn(move || {
            let mut received = Vec::new();
            peer.read_to_end(&mut received).map(|_| received)
        });
        let pipes = Pipes::new(1);
        let mut expected = Vec::new();
        // So often that words are given back, while some of them lie in the socket.
        for round in 0..40 {
            let words: Vec<u8> = (0..4000).map(|at| (at * 7 + round * 31) as u8).collect();
            let from = round * 3000 + 17;
            let parts = [
                Part::Words(0..100),
                Part::Bytes(from as u64..from as u64 + 100_000),
                Part::Words(100..4000),
                Part::Bytes(0..1),
            ];
            for part in &parts {
                expected.extend_from_slice(match part {
                    Part::Words(range) => &words[range.clone()],
                    Part::Bytes(range) => &bytes[range.start as usize..range.end as usize],
                });
            }
            let mut pipe = pipes.take().expect("the only one is back");
            assert!(pipe.has_room(parts.iter().cloned()));
            pipe.fill(&words, &file, parts.into_iter()).unwrap();
            assert_eq!(pipe.len(), 104_001);
            while pipe.len() > 0 {
                assert!(pipe.pour(&socket, 1 + round * 1777).unwrap() <= 1 + round * 1777);
            }
        }
        drop(socket);
        assert!(reader.join().unwrap().unwrap() == expected);
    }

    #[test]
    fn what_is_left_in_a_pipe_is_not_in_the_next_sessions_way() {
        let (file, bytes) = file(50_000);
        let pipes = Pipes::new(2);
        let (mut left, other) = (pipes.take().unwrap(), pipes.take().unwrap());
        left.fill(b"", &file, [Part::Bytes(0..50_000)].into_iter()).unwrap();
        assert!(pipes.take().is_none() && pipes.is_short(), "both are in hand");
        drop((left, other));
        assert!(!pipes.is_short());
        let (socket, mut peer) = UnixStream::pair().unwrap();
        let (mut one, mut next) = (pipes.take().unwrap(), pipes.take().unwrap());
        for (pipe, from) in [(&mut one, 1), (&mut next, 2)] {
            pipe.fill(b"", &file, [Part::Bytes(from..from + 100)].into_iter()).unwrap();
            assert_eq!(pipe.pour(&socket, usize::MAX).unwrap(), 100);
            let mut received = [0; 100];
            peer.read_exact(&mut received).unwrap();
            assert_eq!(received, bytes[from as usize..from as usize + 100]);
        }
    }

    #[test]
    fn a_pipe_takes_no_more_than_it_has_room_for_nor_what_a_file_does_not_have() {
        let (file, _) = file(50_000);
        let pipes = Pipes::new(1);
        let mut pipe = pipes.take().unwrap();
        let pages = |count: u64| (0..count).map(|at| Part::Bytes(at..at + 1));
        let room = SIZE as u64 / page_size();
        assert!(pipe.has_room(pages(room)) && !pipe.has_room(pages(room + 1)));
        assert!(!pipe.has_room(pages(room).chain([Part::Words(0..1)])));
        pipe.fill(b"", &file, pages(room)).unwrap();
        assert!(pipe.fill(b"", &file, pages(1)).is_err());
        drop(pipe);
        let mut pipe = pipes.take().unwrap();
        let error = pipe.fill(b"", &file, [Part::Bytes(49_999..50_001)].into_iter()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
