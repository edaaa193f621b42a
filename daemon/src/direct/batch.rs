//! Many direct reads with one system call: the block layer sees them as a whole, joins neighbours on the
//! disk and rings the device's bell once. Where the kernel has no `io_uring`, or does not let this process
//! use it, they are read one after the other.

use std::cell::{OnceCell, RefCell};
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
        static RING: OnceCell<Option<RefCell<IoUring>>> = const { OnceCell::new() };
    }
    let mut results = Vec::with_capacity(reads.len());
    RING.with(|ring| {
        let ring = (reads.len() > 1).then(|| ring.get_or_init(|| IoUring::new(DEPTH as u32).ok().map(RefCell::new)));
        for some in reads.chunks_mut(DEPTH) {
            match ring.and_then(Option::as_ref) {
                Some(ring) => results.extend(submit(&mut ring.borrow_mut(), some)),
                None => results.extend(some.iter_mut().map(Read::carry_out)),
            }
        }
    });
    results
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

/// At most [`DEPTH`] reads through an empty ring, which is empty again afterwards.
fn submit(ring: &mut IoUring, reads: &mut [Read<'_>]) -> Vec<Result<usize, Errno>> {
    let mut results = vec![None; reads.len()];
    let mut queue = ring.submission();
    let mut queued = 0;
    for (at, read) in reads.iter_mut().enumerate() {
        let len = u32::try_from(read.room.len()).unwrap_or(u32::MAX);
        let entry = opcode::Read::new(types::Fd(read.file.as_raw_fd()), read.room.as_mut_ptr(), len)
            .offset(read.offset)
            .build()
            .user_data(at as u64);
        // SAFETY: the descriptor and the memory are borrowed, the memory for this alone, until this function
        // returns; and it does not return before every entry that was queued has completed.
        if unsafe { queue.push(&entry) }.is_err() {
            break;
        }
        queued += 1;
    }
    drop(queue);
    while queued > 0 {
        // Whatever the call says (interrupted, short of memory), what was queued is still to complete.
        if ring.submit_and_wait(1).is_err() {
            std::thread::sleep(Duration::from_micros(100));
        }
        for done in ring.completion() {
            let result = match done.result() {
                error @ ..0 => Err(Errno::from_raw_os_error(-error)),
                bytes => Ok(bytes.cast_unsigned() as usize),
            };
            if let Some(place) = results.get_mut(done.user_data() as usize) {
                *place = Some(result);
            }
            queued -= 1;
        }
    }
    let results = results.into_iter().zip(reads);
    // What found no place in the queue, or was interrupted, is read here.
    let ended = |(result, read): (Option<_>, &mut Read<'_>)| match result {
        None | Some(Err(Errno::INTR | Errno::AGAIN)) => read.carry_out(),
        Some(result) => result,
    };
    results.map(ended).collect()
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
}
