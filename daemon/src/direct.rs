//! What direct I/O needs from the system: aligned memory, and what the page cache holds of a file.
//!
//! The one module of this crate with `unsafe`; each use states its contract.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

/// The alignment of every buffer (bytes): a page, which no file system exceeds.
pub(crate) const ALIGNMENT: usize = 4096;

/// A fixed piece of memory whose start is aligned to [`ALIGNMENT`].
pub(crate) struct AlignedBytes {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory belongs to this value alone, as a boxed slice's would.
unsafe impl Send for AlignedBytes {}
// SAFETY: a shared reference gives only shared access to the bytes.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    /// `len` zero bytes, at least one.
    pub(crate) fn new(len: usize) -> Self {
        let Ok(layout) = Layout::from_size_align(len.max(1), ALIGNMENT) else {
            handle_alloc_error(Layout::new::<u8>());
        };
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        Self { start, layout }
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is an allocation of `layout.size()` initialised bytes that lives as long as
        // `self`, and the shared borrow of `self` keeps writers away.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the exclusive borrow of `self` keeps everyone else away.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc_zeroed` with this very layout and is freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Whether every page of the file's range is in the page cache. `false` where the kernel cannot tell:
/// before Linux 6.5, or when it will not say to a process that neither owns nor may write the file.
pub(crate) fn is_cached(file: impl AsFd, offset: u64, len: u64) -> bool {
    /// `cachestat(2)`, the same number on every architecture.
    const SYS_CACHESTAT: libc::c_long = 451;
    /// Set once the kernel is known not to have it.
    static UNKNOWN: AtomicBool = AtomicBool::new(false);
    const PAGE: u64 = 4096;

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
    let pages = (offset + len).div_ceil(PAGE) - offset / PAGE;
    counts.cached >= pages
}

/// Bytes written to a socket that its peer has not acknowledged yet.
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
    fn buffers_are_aligned_zeroed_and_writable() {
        for len in [1, 4096, 10_000] {
            let mut bytes = AlignedBytes::new(len);
            assert_eq!((bytes.len(), bytes.as_ptr() as usize % ALIGNMENT), (len, 0));
            assert!(bytes.iter().all(|&byte| byte == 0));
            bytes[len - 1] = 7;
            assert_eq!(bytes[len - 1], 7);
        }
    }
}
