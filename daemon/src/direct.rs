//! System interfaces for direct I/O: aligned memory, batches of reads, and which pages of a file are in the
//! page cache.
//!
//! This is the one module of the crate with `unsafe`. Each use states its contract.
#![allow(unsafe_code)]

pub(crate) mod batch;

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The alignment of every buffer, in bytes: a page. No file system needs more.
pub(crate) const ALIGNMENT: usize = 4096;

/// Size of a slab, in bytes: one huge page. The kernel pins, maps and copies one huge page for a fraction of
/// what hundreds of small pages cost, and it does so at every read and every send.
const SLAB: usize = 2 << 20;

/// A fixed piece of memory whose start is aligned to [`ALIGNMENT`].
pub(crate) struct AlignedBytes {
    start: NonNull<u8>,
    len: usize,
    /// Keeps the memory alive.
    _slab: Arc<Slab>,
}

// SAFETY: the bytes belong to this value alone, as a boxed slice's would.
unsafe impl Send for AlignedBytes {}
// SAFETY: a shared reference gives only shared access to the bytes.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    /// Allocates a slab and splits it into pieces of `len` zero bytes. `len` must be a multiple of
    /// [`ALIGNMENT`], and at most the size of a slab.
    pub(crate) fn slab(len: usize) -> Vec<Self> {
        assert!(len > 0 && len <= SLAB && len.is_multiple_of(ALIGNMENT), "a piece of {len} bytes");
        let slab = Arc::new(Slab::new());
        // SAFETY: every piece ends within the slab.
        let piece = |at: usize| Self { start: unsafe { slab.start.add(at * len) }, len, _slab: Arc::clone(&slab) };
        (0..SLAB / len).map(piece).collect()
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the piece is `len` initialised bytes of a slab that lives as long as `self`, no other
        // piece overlaps it, and the shared borrow of `self` keeps writers away.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the exclusive borrow of `self` keeps everyone else away.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

/// [`SLAB`] bytes of memory, aligned to their size.
struct Slab {
    start: NonNull<u8>,
}

// SAFETY: a slab is an address and its deallocation; its bytes are reached through pieces alone.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

impl Slab {
    const LAYOUT: Layout = match Layout::from_size_align(SLAB, SLAB) {
        Ok(layout) => layout,
        Err(_) => panic!("the slab layout is invalid"),
    };

    fn new() -> Self {
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc(Self::LAYOUT) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(Self::LAYOUT));
        // SAFETY: the range is the allocation's own. The advice changes no content; if the kernel refuses it,
        // the slab has small pages. It must be given before the bytes are touched for the first time.
        unsafe {
            libc::madvise(start.as_ptr().cast(), SLAB, libc::MADV_HUGEPAGE);
            start.write_bytes(0, SLAB);
        }
        Self { start }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc` with this very layout, and the last piece is gone.
        unsafe { dealloc(self.start.as_ptr(), Self::LAYOUT) }
    }
}

/// Returns whether every page of the file's range is in the page cache. Also `false` if the kernel does not
/// tell: before Linux 6.5, or if this process neither owns the file nor may write it.
pub(crate) fn is_cached(file: impl AsFd, offset: u64, len: u64) -> bool {
    /// `cachestat(2)`, the same number on every architecture.
    const SYS_CACHESTAT: libc::c_long = 451;
    /// Set once the kernel turned out not to have the system call.
    static UNKNOWN: AtomicBool = AtomicBool::new(false);
    #[repr(C)]
    struct Range {
        offset: u64,
        len: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Counts {
        cached: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }

    if len == 0 || UNKNOWN.load(Ordering::Relaxed) {
        return false;
    }
    let (range, mut counts) = (Range { offset, len }, Counts::default());
    // SAFETY: the descriptor is open for the call; the kernel reads `range` and writes `counts`, both of
    // the layout that it defines, and keeps neither.
    let result = unsafe {
        libc::syscall(SYS_CACHESTAT, file.as_fd().as_raw_fd(), &raw const range, &raw mut counts, 0 as libc::c_uint)
    };
    if result != 0 {
        if std::io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS) {
            UNKNOWN.store(true, Ordering::Relaxed);
        }
        return false;
    }
    counts.cached >= pages(offset, len, page_size())
}

/// Returns the size of a page of memory and of the page cache, in bytes.
pub(crate) fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

/// Returns how many pages a range of a file touches.
fn pages(offset: u64, len: u64, page: u64) -> u64 {
    (offset + len).div_ceil(page) - offset / page
}

/// Returns how many bytes were written to a socket that its peer has not acknowledged yet, or `None` if the
/// kernel does not tell.
pub(crate) fn unacknowledged(socket: impl AsFd) -> Option<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open for the call; TIOCOUTQ writes one `int`.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 { u64::try_from(bytes).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_in_the_system_page_size() {
        assert!(page_size().is_power_of_two() && page_size() >= 4096);
        for (page, expected) in [(4096, 17), (16_384, 5), (65_536, 2)] {
            assert_eq!(pages(65_535, 65_537, page), expected);
        }
    }

    #[test]
    fn pieces_of_a_slab_are_aligned_zeroed_and_disjoint() {
        for len in [4096, SLAB / 2, SLAB] {
            let mut pieces = AlignedBytes::slab(len);
            assert_eq!(pieces.len(), SLAB / len);
            for (at, piece) in (1..).zip(&mut pieces) {
                assert_eq!((piece.len(), piece.as_ptr() as usize % ALIGNMENT), (len, 0));
                assert!(piece.iter().all(|&byte| byte == 0));
                piece.fill(at as u8);
            }
            let last = pieces.pop().expect("at least one");
            drop(pieces);
            assert!(last.iter().all(|&byte| byte == (SLAB / len) as u8));
        }
    }
}
