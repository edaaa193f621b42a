//! Many direct reads with one system call: the block layer sees them as a whole, joins neighbours on the
//! disk and rings the device's bell once. Where the kernel has no `io_uring`, or does not let this process
//! use it, they are read one after the other.

use std::cell::{LazyCell, RefCell};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::{IoUring, opcode, types};
use rustix::io::Errno;

/// Reads under way at once on a thread.
const DEPTH: usize = 128;

/// A read as of `pread(2)`. For a file that is open for direct reads the offset and the memory are aligned.
pub(crate) struct Read<'a> {
    pub(crate) file: BorrowedFd<'a>,
    pub(crate) offset: u64,
    pub(crate) room: &'a mut [u8],
}

/// Carries out all reads, and says of each how many bytes came, in order.
pub(crate) fn read_all(reads: &mut [Read<'_>]) -> Vec<Result<usize, Errno>> {
    thread_local! {
        /// Made when a thread has something for it to do; `None` where there can be none.
        static RING: RefCell<LazyCell<Option<IoUring>>> =
            const { RefCell::new(LazyCell::new(|| IoUring::new(DEPTH as u32).ok())) };
    }
    if reads.len() < 2 {
        return reads.iter_mut().map(Read::carry_out).collect();
    }
    RING.with_borrow_mut(|ring| reads.chunks_mut(DEPTH).flat_map(|some| read_through(ring, some)).collect())
}

/// Reads through the ring, if there is one, and takes it away if the kernel does not take what is in it.
fn read_through(ring: &mut Option<IoUring>, reads: &mut [Read<'_>]) -> Vec<Result<usize, Errno>> {
    let mut results = vec![None; reads.len()];
    if ring.as_mut().is_some_and(|ring| submit(ring, reads, &mut results).is_err()) {
        *ring = None;
    }
    // What found no place, or was interrupted, is read here.
    let ended = |(result, read): (Option<_>, &mut Read<'_>)| match result {
        None | Some(Err(Errno::INTR | Errno::AGAIN)) => read.carry_out(),
        Some(result) => result,
    };
    results.into_iter().zip(reads).map(ended).collect()
}

impl Read<'_> {
    fn carry_out(&mut self) -> Result<usize, Errno> {
        loop {
            match rustix::io::pread(self.file, &mut *self.room, self.offset) {
                Err(Errno::INTR) => {}
                result => return result,
            }
        }
    }
}

/// Puts reads into an empty ring. When this returns, none of them is under way; after an error the ring
/// still holds what the kernel has not taken, and is of no more use.
fn submit(
    ring: &mut IoUring,
    reads: &mut [Read<'_>],
    results: &mut [Option<Result<usize, Errno>>],
) -> Result<(), Errno> {
    let mut queue = ring.submission();
    let mut under_way = 0;
    for (at, read) in reads.iter_mut().enumerate() {
        let len = u32::try_from(read.room.len()).unwrap_or(u32::MAX);
        let entry = opcode::Read::new(types::Fd(read.file.as_raw_fd()), read.room.as_mut_ptr(), len)
            .offset(read.offset)
            .build()
            .user_data(at as u64);
        // SAFETY: the descriptor and the memory are borrowed, the memory for this alone, until this function
        // returns. It does not return before every entry that the kernel has taken has completed; and if the
        // kernel has not taken all, the caller drops the ring, so that it never will.
        if unsafe { queue.push(&entry) }.is_err() {
            break;
        }
        under_way += 1;
    }
    drop(queue);
    let mut refused = None;
    while under_way > 0 {
        let waited = if refused.is_none() { ring.submit_and_wait(1) } else { Ok(0) };
        match waited.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)) {
            Ok(_) if refused.is_none() => {}
            // Short of something, or nothing to do but to look for what completes.
            Ok(_) | Err(Errno::INTR | Errno::AGAIN | Errno::BUSY) => std::thread::sleep(Duration::from_micros(100)),
            Err(errno) => {
                refused = Some(errno);
                under_way -= ring.submission().len();
            }
        }
        for done in ring.completion() {
            let result = match done.result() {
                error @ ..0 => Err(Errno::from_raw_os_error(-error)),
                bytes => Ok(bytes.cast_unsigned() as usize),
            };
            if let Some(place) = results.get_mut(done.user_data() as usize) {
                *place = Some(result);
            }
            under_way -= 1;
        }
    }
    refused.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_batch_of_reads_gives_what_single_reads_give_failures_included() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..100_000_u32).map(|at| at as u8 ^ (at >> 8) as u8).collect();
        file.write_all(&content).unwrap();
        let (_reader, unreadable) = std::io::pipe().unwrap();
        for count in [0, 1, 2, DEPTH, 3 * DEPTH + 1] {
            let mut memory = vec![0; count * 500];
            let mut reads: Vec<Read<'_>> = memory
                .chunks_mut(500)
                .enumerate()
                .map(|(at, room)| {
                    let file = if at % 7 == 5 { unreadable.as_fd() } else { file.as_fd() };
                    Read { file, offset: at as u64 * 331, room }
                })
                .collect();
            let results = read_all(&mut reads);
            assert_eq!(results.len(), count);
            for (at, (result, bytes)) in results.into_iter().zip(memory.chunks(500)).enumerate() {
                let expected = &content[(at * 331).min(content.len())..(at * 331 + 500).min(content.len())];
                match result {
                    Ok(read) => assert_eq!((at % 7 == 5, &bytes[..read]), (false, expected)),
                    Err(_) => assert_eq!(at % 7, 5),
                }
            }
        }
    }

    #[test]
    fn where_the_kernel_takes_nothing_from_a_ring_reads_are_made_without_it() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"some bytes").unwrap();
        // A ring that is made disabled refuses every submission.
        let Ok(disabled) = IoUring::builder().setup_r_disabled().build(8) else { return };
        let (mut ring, mut rooms) = (Some(disabled), [[0; 4]; 2]);
        let mut reads: Vec<Read<'_>> =
            (5..).zip(&mut rooms).map(|(offset, room)| Read { file: file.as_fd(), offset, room }).collect();
        assert_eq!(read_through(&mut ring, &mut reads), [Ok(4), Ok(4)]);
        assert!(ring.is_none());
        assert_eq!(rooms, [*b"byte", *b"ytes"]);
    }
}
