//! Batches of direct reads in one system call. The block layer sees the batch as a whole, merges neighbours
//! on the disk and rings the device's doorbell once. If the kernel has no `io_uring`, or does not let this
//! process use it, the reads are made one after the other.

use std::cell::{LazyCell, RefCell};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::{IoUring, opcode, types};
use rustix::io::Errno;

/// Maximum number of reads in flight on a thread.
const DEPTH: usize = 128;

/// The arguments of one `pread(2)`. For a file that is open for direct reads, the offset and the memory must
/// be aligned.
pub(crate) struct Read<'a> {
    pub(crate) file: BorrowedFd<'a>,
    pub(crate) offset: u64,
    pub(crate) room: &'a mut [u8],
}

/// Fails if the kernel does not let this process have a ring.
pub(crate) fn is_available() -> std::io::Result<()> {
    IoUring::new(DEPTH as u32).map(drop)
}

/// Carries out all reads. Returns the number of bytes of each read, in order.
pub(crate) fn read_all(reads: &mut [Read<'_>]) -> Vec<Result<usize, Errno>> {
    thread_local! {
        /// Created when a thread needs it first; `None` if it cannot be created.
        static RING: RefCell<LazyCell<Option<IoUring>>> =
            const { RefCell::new(LazyCell::new(|| IoUring::new(DEPTH as u32).ok())) };
    }
    if reads.len() < 2 {
        return reads.iter_mut().map(Read::carry_out).collect();
    }
    RING.with_borrow_mut(|ring| reads.chunks_mut(DEPTH).flat_map(|some| read_through(ring, some)).collect())
}

/// Reads through the ring, if there is one. Drops the ring if the kernel does not accept its entries.
fn read_through(ring: &mut Option<IoUring>, reads: &mut [Read<'_>]) -> Vec<Result<usize, Errno>> {
    let mut results = vec![None; reads.len()];
    if ring.as_mut().is_some_and(|ring| submit(ring, reads, &mut results).is_err()) {
        *ring = None;
    }
    // Reads that did not fit, or were interrupted, are made here.
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

/// Submits reads to an empty ring and waits for them. When this returns, none of them is in flight. After an
/// error, the ring still holds the entries that the kernel has not accepted, and must be dropped.
fn submit(
    ring: &mut IoUring,
    reads: &mut [Read<'_>],
    results: &mut [Option<Result<usize, Errno>>],
) -> Result<(), Errno> {
    let mut queue = ring.submission();
    let mut in_flight = 0;
    for (at, read) in reads.iter_mut().enumerate() {
        let len = u32::try_from(read.room.len()).unwrap_or(u32::MAX);
        let entry = opcode::Read::new(types::Fd(read.file.as_raw_fd()), read.room.as_mut_ptr(), len)
            .offset(read.offset)
            .build()
            .user_data(at as u64);
        // SAFETY: the descriptor and the memory are borrowed until this function returns, the memory
        // exclusively. The function does not return before every entry that the kernel has accepted has
        // completed. If the kernel has not accepted all, the caller drops the ring, so that it never will.
        if unsafe { queue.push(&entry) }.is_err() {
            break;
        }
        in_flight += 1;
    }
    drop(queue);
    let mut refused = None;
    while in_flight > 0 {
        let waited = if refused.is_none() { ring.submit_and_wait(1) } else { Ok(0) };
        match waited.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)) {
            Ok(_) if refused.is_none() => {}
            // The kernel is short of resources, or all that remains is to poll for completions.
            Ok(_) | Err(Errno::INTR | Errno::AGAIN | Errno::BUSY) => std::thread::sleep(Duration::from_micros(100)),
            Err(errno) => {
                refused = Some(errno);
                in_flight -= ring.submission().len();
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
            in_flight -= 1;
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
    fn a_batch_returns_what_single_reads_return_including_failures() {
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
    fn if_the_kernel_refuses_the_ring_reads_are_made_without_it() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"some bytes").unwrap();
        // A ring that is created disabled refuses every submission.
        let Ok(disabled) = IoUring::builder().setup_r_disabled().build(8) else { return };
        let (mut ring, mut rooms) = (Some(disabled), [[0; 4]; 2]);
        let mut reads: Vec<Read<'_>> =
            (5..).zip(&mut rooms).map(|(offset, room)| Read { file: file.as_fd(), offset, room }).collect();
        assert_eq!(read_through(&mut ring, &mut reads), [Ok(4), Ok(4)]);
        assert!(ring.is_none());
        assert_eq!(rooms, [*b"byte", *b"ytes"]);
    }
}
