//! Small contents that the store keeps. They are read from its packs, many at once, without opening the files
//! in the tree.

use std::ops::Range;
use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::io::Errno;
use stillmirror_protocol::limits;
use stillmirror_protocol::wire::ItemFailure;
use stillmirror_store::Generation;

use super::{FileState, Tree, Way, read_aligned, read_full};
use crate::config::DirectPolicy;
use crate::direct::{self, ALIGNMENT};

/// The place of a file's content in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    /// The pack's number.
    pub(crate) pack: u32,
    /// The file's number in the list.
    pub(crate) file: u32,
    /// The offset in the pack, in bytes.
    pub(crate) at: u64,
    /// Length of the content and of the checksum behind it, in bytes. The content is sent only if the
    /// checksum matches.
    pub(crate) len: u32,
}

impl Stored {
    /// Returns where the content of the regular file at `row` is, or `None` if the store does not have it.
    /// Files that not everybody may read count as not stored: for these, the file's own permissions decide
    /// whether the daemon may read them.
    pub(crate) fn of(generation: &Generation, row: u32) -> Option<Self> {
        let list = generation.list();
        let row = list.row(row);
        let (file, size) = (row.file_number()?, row.size());
        // Most files are larger, and need no further lookup.
        let (pack, place) = (size <= u64::from(limits::KEPT_CONTENT)).then(|| generation.content(file, size))??;
        let len = u32::try_from(place.end - place.start).ok()?;
        list.is_public(row.number()).then_some(Self { pack, file, at: place.start, len })
    }

    /// Returns the range of bytes in the pack.
    pub(crate) fn bytes(self) -> Range<u64> {
        self.at..self.at + u64::from(self.len)
    }
}

impl Tree {
    /// Returns whether bytes of a pack are all in the page cache, and may be taken from there.
    pub(crate) fn is_stored_in_page_cache(&self, generation: &Generation, pack: u32, bytes: &Range<u64>) -> bool {
        self.policy != DirectPolicy::Always
            && open(generation, pack).is_ok_and(|file| direct::is_cached(&file, bytes.start, bytes.end - bytes.start))
    }

    /// Reads bytes of a pack into `room`, which is aligned to [`ALIGNMENT`]. They begin at the same offset
    /// from an aligned position as in the pack. Fails if the pack is gone, or ends before the last byte.
    pub(crate) fn read_stored(
        &self,
        generation: &Generation,
        pack: u32,
        bytes: &Range<u64>,
        room: &mut [u8],
    ) -> Result<(), Errno> {
        let file = open(generation, pack)?;
        let device = rustix::fs::fstat(&file)?.st_dev;
        let (skip, len) = ((bytes.start % ALIGNMENT as u64) as usize, (bytes.end - bytes.start) as usize);
        // Packs stay in the page cache, like the rest of the store, so that the next client is served from
        // there. Only the policy `Always` avoids that.
        let mut way = match self.policy {
            DirectPolicy::Always => self.way(&file, device, bytes.start, len),
            DirectPolicy::Auto | DirectPolicy::Never => Way::ThroughCache,
        };
        if let Way::Directly(alignment) = way {
            let read = rustix::fs::fcntl_setfl(&file, OFlags::DIRECT)
                .and_then(|()| read_aligned(&file, bytes.start - skip as u64, skip + len, room, alignment));
            match read {
                Ok(filled) => return if filled >= skip + len { Ok(()) } else { Err(Errno::IO) },
                Err(Errno::INVAL) => {
                    self.learn(device, None);
                    rustix::fs::fcntl_setfl(&file, OFlags::empty())?;
                    way = Way::ThroughCacheAndOut;
                }
                Err(errno) => return Err(errno),
            }
        }
        let filled = read_full(&file, bytes.start, &mut room[skip..skip + len], way)?;
        if filled == len { Ok(()) } else { Err(Errno::IO) }
    }

    /// Reads a small range from the tree instead of the store, to memory that need not be aligned.
    pub(crate) fn read_instead(
        &self,
        path: &[u8],
        indexed: FileState,
        offset: u64,
        room: &mut [u8],
    ) -> Result<(), ItemFailure> {
        let (file, _) = self.checked(path, indexed, self.open_waiting(path, OFlags::empty()))?;
        let filled = read_full(&file, offset, room, Way::ThroughCache).map_err(|errno| self.failure(path, errno))?;
        self.check(path, indexed, &file)?;
        if filled == room.len() { Ok(()) } else { Err(ItemFailure::Unreadable) }
    }
}

fn open(generation: &Generation, pack: u32) -> Result<OwnedFd, Errno> {
    let file = generation.pack(pack).ok_or(Errno::NOENT)?.open();
    file.map(OwnedFd::from).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::NOENT))
}
