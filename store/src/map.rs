//! Memory-mapped files. This module contains the only unsafe code of the crate.
//!
//! [`Map`] maps a file as bytes. [`Archived`] maps a file with an archived value, and checks it once when it
//! is opened.
#![allow(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::FileExt;

use mmap_rs::{Mmap, MmapFlags, MmapOptions};
use rkyv::Portable;
use rkyv::api::high::HighValidator;
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use rustix::mm::{Advice, madvise};
use twox_hash::XxHash3_128;

const CHUNK: usize = 1 << 20;

/// A read-only, private mapping of a whole file.
#[derive(Debug)]
pub(crate) struct Map {
    /// `None` for an empty file, which cannot be mapped.
    pages: Option<Mmap>,
    len: usize,
    /// Bytes at the end that this process has a copy of, made when the file was mapped.
    copied: usize,
}

impl Map {
    /// Maps a file.
    ///
    /// This is sound because of how the store treats its files: a file that has its final name is never
    /// written or truncated again. It is only unlinked, and a mapping keeps an unlinked file. A program that
    /// tampers with the store and truncates a mapped file kills this process with SIGBUS, and one that writes
    /// to it changes bytes that were checked. A program that runs as another user can do neither, because
    /// only their owner may write to the store's files.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        Self::with_copied_end(file, 0)
    }

    /// Like [`Map::of`], but copies the last `copied` bytes. If the kernel drops a page and reads it again
    /// from a disk that has rotted, these bytes do not change.
    pub(crate) fn with_copied_end(file: &File, copied: usize) -> io::Result<Self> {
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        if len == 0 {
            return Ok(Self { pages: None, len, copied: 0 });
        }
        let options = MmapOptions::new(len).map_err(io::Error::other)?.with_flags(MmapFlags::NO_RESERVE);
        // SAFETY: `with_file` requires that the file does not change while it is mapped. `Map::of` explains
        // why it does not.
        let options = unsafe { options.with_file(file, 0) };
        let copied = copied.min(len);
        let pages = if copied == 0 {
            options.map()
        } else {
            options.map_mut().and_then(|mut pages| {
                // Writing to a page of a private mapping copies it, even if the byte stays the same.
                for at in (len - copied..len).step_by(MmapOptions::page_size()).chain([len - 1]) {
                    let byte = &mut pages.as_mut_slice()[at];
                    *byte = std::hint::black_box(*byte);
                }
                pages.make_read_only().map_err(|(_, error)| error)
            })
        };
        Ok(Self { pages: Some(pages.map_err(io::Error::other)?), len, copied })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.pages.as_ref().map_or(&[], |pages| &pages.as_slice()[..self.len])
    }

    /// Releases the memory of all pages except the copied ones. The kernel reads them from the file again on
    /// use.
    pub(crate) fn forget_pages(&self) {
        let end = (self.len - self.copied) / MmapOptions::page_size() * MmapOptions::page_size();
        let end = if self.copied == 0 { usize::MAX } else { end };
        self.advise(Advice::LinuxDontNeed, end);
    }

    /// From now on, the kernel reads missing pages one by one, without the device's read-ahead.
    fn read_single_pages(&self) {
        self.advise(Advice::Random, usize::MAX);
    }

    /// Gives the kernel advice about the pages before the byte `end`.
    fn advise(&self, advice: Advice, end: usize) {
        if let Some(pages) = &self.pages {
            // SAFETY: the range lies in this mapping. `forget_pages` only releases pages that have never been
            // written, so they hold the file's content, and `Random` changes no page. So neither advice
            // changes a byte that is read.
            let taken = unsafe { madvise(pages.as_ptr().cast_mut().cast(), pages.size().min(end), advice) };
            debug_assert!(taken.is_ok(), "{taken:?}");
        }
    }
}

/// A mapped file that contains one rkyv value behind a header. The value is checked when the file is mapped.
pub(crate) struct Archived<T> {
    map: Map,
    /// A second mapping of the file, for callers that read little of it. See [`Archived::get_sparsely`].
    single_pages: Map,
    header: usize,
    value: PhantomData<fn() -> T>,
}

impl<T> Archived<T>
where
    T: Portable + for<'a> CheckBytes<HighValidator<'a, rancor::Error>>,
{
    /// Maps `file` and checks that the bytes after the first `header` bytes are an archived `T`. The root
    /// value, which is at the end and contains the offsets of its columns, is copied, so no access leaves the
    /// file if its disk rots later.
    ///
    /// Fails with [`io::ErrorKind::InvalidData`] if the archive is invalid.
    pub(crate) fn of(file: &File, header: usize) -> io::Result<Self> {
        let map = Map::with_copied_end(file, size_of::<T>())?;
        let body = map.bytes().get(header..).unwrap_or_default();
        rkyv::access::<T, rancor::Error>(body).map_err(|_| io::ErrorKind::InvalidData)?;
        let single_pages = Map::with_copied_end(file, size_of::<T>())?;
        let end = |map: &Map| map.bytes().get(map.len - map.copied..).map(<[u8]>::to_vec);
        if single_pages.len != map.len || end(&single_pages) != end(&map) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        single_pages.read_single_pages();
        Ok(Self { map, single_pages, header, value: PhantomData })
    }

    pub(crate) fn get(&self) -> &T {
        self.value_in(&self.map)
    }

    /// The value, for callers that read little of it: pages that are not in memory are read one by one. That
    /// takes a tenth of a millisecond per page, while the read-ahead of a whole column takes ten milliseconds
    /// at once. For many pages, this is slower than [`Archived::get`].
    pub(crate) fn get_sparsely(&self) -> &T {
        self.value_in(&self.single_pages)
    }

    /// Returns the value in one of the two mappings. Every access to a mapped index goes through this function.
    fn value_in<'a>(&'a self, map: &'a Map) -> &'a T {
        // SAFETY: `of` is the only constructor, and has checked these bytes for this type. The root value
        // with the offsets of the columns is a copy that belongs to this process, and is the same in both
        // mappings. The columns hold plain numbers, for which every bit pattern is valid.
        unsafe { rkyv::access_unchecked::<T>(&map.bytes()[self.header..]) }
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.bytes()
    }

    /// See [`Map::forget_pages`].
    pub(crate) fn forget_pages(&self) {
        self.map.forget_pages();
    }
}

impl<T> fmt::Debug for Archived<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.map.fmt(f)
    }
}

/// Computes the XXH3-128 of `len` bytes at `offset`. Reads them with system calls, so that no mapped page is
/// touched.
pub(crate) fn checksum(file: &File, offset: u64, len: u64) -> io::Result<u128> {
    let mut hash = XxHash3_128::new();
    let mut buffer = vec![0; CHUNK.min(len as usize)];
    let (mut at, end) = (offset, offset + len);
    while at < end {
        let wanted = buffer.len().min((end - at) as usize);
        file.read_exact_at(&mut buffer[..wanted], at)?;
        hash.write(&buffer[..wanted]);
        at += wanted as u64;
    }
    Ok(hash.finish_128())
}
