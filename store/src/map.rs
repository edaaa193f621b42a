//! Mapped files. The only unsafe code of the crate.
#![allow(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::FileExt;

use mmap_rs::{Mmap, MmapOptions};
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
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        if len == 0 {
            return Ok(Self { pages: None, len });
        }
        let options = MmapOptions::new(len).map_err(io::Error::other)?;
        // SAFETY: `with_file` asks that the file is not changed while it is mapped: the contract above.
        let pages = unsafe { options.with_file(file, 0) }.map().map_err(io::Error::other)?;
        Ok(Self { pages: Some(pages), len })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.pages.as_ref().map_or(&[], |pages| &pages.as_slice()[..self.len])
    }

    /// Gives back the memory of all pages that were touched. They come back from the file on use.
    pub(crate) fn forget_pages(&self) {
        self.advise(Advice::LinuxDontNeed);
    }

    /// From now on a page that is not in memory is read alone, without the device's read-ahead.
    fn read_single_pages(&self) {
        self.advise(Advice::Random);
    }

    fn advise(&self, advice: Advice) {
        if let Some(pages) = &self.pages {
            // SAFETY: the range is this mapping's own. It is private and has never been written, so its
            // pages hold nothing but the file's content: none of the advices above changes a byte that is read.
            let taken = unsafe { madvise(pages.as_ptr().cast_mut().cast(), pages.size(), advice) };
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
    /// Maps `file` and checks that the bytes after `header` ones are an archived `T`.
    pub(crate) fn of(file: &File, header: usize) -> io::Result<Self> {
        let map = Map::of(file)?;
        let body = map.bytes().get(header..).unwrap_or_default();
        rkyv::access::<T, rancor::Error>(body).map_err(|_| io::ErrorKind::InvalidData)?;
        let single_pages = Map::of(file)?;
        if single_pages.len != map.len {
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
        // SAFETY: `of` is the only maker, and has checked these bytes for this type. They do not change, see
        // `Map::of`, and are the same in both mappings, which are of one open file.
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
