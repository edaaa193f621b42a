//! Mapped files. The only unsafe code of the crate.
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

/// A file, mapped whole, read-only and private.
#[derive(Debug)]
pub(crate) struct Map {
    /// None for an empty file, which cannot be mapped.
    pages: Option<Mmap>,
    len: usize,
    /// Bytes at the end that are in memory of this process, as they were when the file was mapped.
    own: usize,
}

impl Map {
    /// Maps a file.
    ///
    /// The store's discipline is what makes this sound: a file that has its final name is never written
    /// or cut again, only unlinked, and a mapping keeps the unlinked file. A program that breaks into
    /// the store and cuts a mapped file ends this process with SIGBUS; one that writes into it changes
    /// what was checked. Nothing that runs as another user can do either: the store's files are
    /// writable by their owner alone.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        Self::with_own_end(file, 0)
    }

    /// The same, with a copy of the last `own` bytes: a page that the kernel drops and reads again from a disk that
    /// has rotted changes the rest alone.
    pub(crate) fn with_own_end(file: &File, own: usize) -> io::Result<Self> {
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        if len == 0 {
            return Ok(Self { pages: None, len, own: 0 });
        }
        let options = MmapOptions::new(len).map_err(io::Error::other)?.with_flags(MmapFlags::NO_RESERVE);
        // SAFETY: `with_file` asks that the file is not changed while it is mapped: the contract above.
        let options = unsafe { options.with_file(file, 0) };
        let own = own.min(len);
        let pages = if own == 0 {
            options.map()
        } else {
            options.map_mut().and_then(|mut pages| {
                // Writing to a page of a private mapping makes a copy of it, whatever is written.
                for at in (len - own..len).step_by(MmapOptions::page_size()).chain([len - 1]) {
                    let byte = &mut pages.as_mut_slice()[at];
                    *byte = std::hint::black_box(*byte);
                }
                pages.make_read_only().map_err(|(_, error)| error)
            })
        };
        Ok(Self { pages: Some(pages.map_err(io::Error::other)?), len, own })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.pages.as_ref().map_or(&[], |pages| &pages.as_slice()[..self.len])
    }

    /// Gives back the memory of all pages that were touched, but for the own ones. They come back from the file on use.
    pub(crate) fn forget_pages(&self) {
        let end = (self.len - self.own) / MmapOptions::page_size() * MmapOptions::page_size();
        let end = if self.own == 0 { usize::MAX } else { end };
        self.advise(Advice::LinuxDontNeed, end);
    }

    /// From now on a page that is not in memory is read alone, without the device's read-ahead.
    fn read_single_pages(&self) {
        self.advise(Advice::Random, usize::MAX);
    }

    /// Advises on the pages before `end`.
    fn advise(&self, advice: Advice, end: usize) {
        if let Some(pages) = &self.pages {
            // SAFETY: the range is this mapping's own. What is given back of it has never been written, so its
            // pages hold nothing but the file's content: none of the advices above changes a byte that is read.
            let taken = unsafe { madvise(pages.as_ptr().cast_mut().cast(), pages.size().min(end), advice) };
            debug_assert!(taken.is_ok(), "{taken:?}");
        }
    }
}

/// A mapped file with one rkyv value behind a header, which is checked when this is made.
pub(crate) struct Archived<T> {
    map: Map,
    /// The same file once more, for who wants little of it: see [`Archived::get_sparsely`].
    single_pages: Map,
    header: usize,
    value: PhantomData<fn() -> T>,
}

impl<T> Archived<T>
where
    T: Portable + for<'a> CheckBytes<HighValidator<'a, rancor::Error>>,
{
    /// Maps `file` and checks that the bytes after `header` ones are an archived `T`. The value itself, which stands at
    /// the end and says where its columns are, is copied: no access leaves the file, whatever its disk does later.
    pub(crate) fn of(file: &File, header: usize) -> io::Result<Self> {
        let map = Map::with_own_end(file, size_of::<T>())?;
        let body = map.bytes().get(header..).unwrap_or_default();
        rkyv::access::<T, rancor::Error>(body).map_err(|_| io::ErrorKind::InvalidData)?;
        let single_pages = Map::with_own_end(file, size_of::<T>())?;
        let end = |map: &Map| map.bytes().get(map.len - map.own..).map(<[u8]>::to_vec);
        if single_pages.len != map.len || end(&single_pages) != end(&map) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        single_pages.read_single_pages();
        Ok(Self { map, single_pages, header, value: PhantomData })
    }

    /// The value.
    pub(crate) fn get(&self) -> &T {
        self.value_in(&self.map)
    }

    /// The value, for who looks at little of it: what is not in memory is read page by page. That takes a
    /// tenth of a millisecond a page, where the read-ahead of a whole column takes ten at once; of many pages
    /// it would be the slower one.
    pub(crate) fn get_sparsely(&self) -> &T {
        self.value_in(&self.single_pages)
    }

    /// Every access to a mapped index comes through here.
    fn value_in<'a>(&'a self, map: &'a Map) -> &'a T {
        // SAFETY: `of` is the only maker, and has checked these bytes for this type. What says where its columns are is
        // this process's own in both mappings, and the same; the columns hold plain numbers, of which any is possible.
        unsafe { rkyv::access_unchecked::<T>(&map.bytes()[self.header..]) }
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.bytes()
    }

    /// As [`Map::forget_pages`].
    pub(crate) fn forget_pages(&self) {
        self.map.forget_pages();
    }
}

impl<T> fmt::Debug for Archived<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.map.fmt(f)
    }
}

/// XXH3-128 of `len` bytes at `offset`, read in pieces so that no mapped page is touched.
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
