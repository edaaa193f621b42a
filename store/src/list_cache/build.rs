//! Writes the file of an encoded list.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use stillmirror_protocol::list::ListRef;
use stillmirror_protocol::rsync::flist::ListWriter;
use stillmirror_protocol::rsync::selection::Hides;
use twox_hash::XxHash3_128;

use super::file::{HEADER_BYTES, Header, Mark, padded};
use super::space::Space;
use super::{Key, Reservation};
use crate::error::{At, StoreError};

/// Bytes of the stream that are encoded at a time. A mark is set in each piece where one list ends.
const PIECE: usize = 16 << 10;

/// Writes a list to a draft in `dir` and renames it to `path`. Returns the file, open for reading. `None` if
/// there is no room.
pub(super) fn build(
    dir: &Path,
    path: &Path,
    key: &Key,
    list: ListRef<'_>,
    writer: ListWriter,
    hides: &impl Hides,
    reservation: Reservation<'_>,
) -> Result<Option<(File, Space)>, StoreError> {
    let draft = Draft::new(dir);
    let (file, rows) = (draft.create("list")?, draft.create("rows")?);
    let body = Body { out: BufWriter::new(&file), hash: XxHash3_128::new(), len: HEADER_BYTES as u64, reservation };
    let (header, space) = match body.write(key, list, writer, hides, &rows) {
        Ok(written) => written,
        Err(Failed::NoRoom) => return Ok(None),
        Err(Failed::Store(error)) => return Err(error),
        Err(Failed::Io(error)) => return Err(error).at("write", &draft.path("list")),
    };
    if hides.gave_up() {
        return Err(io::Error::other("the filter rules cost too much")).at("write", &draft.path("list"));
    }
    file.write_all_at(&header.encode(), 0).at("write", &draft.path("list"))?;
    // The kernel keeps dirty pages of a map in memory, and can evict clean ones.
    file.sync_data().at("sync", &draft.path("list"))?;
    fs::rename(draft.path("list"), path).at("rename", &draft.path("list"))?;
    Ok(Some((file, space)))
}

/// Why a list was not written.
enum Failed {
    NoRoom,
    Store(StoreError),
    Io(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Writes everything after the header.
struct Body<'a> {
    out: BufWriter<&'a File>,
    hash: XxHash3_128,
    len: u64,
    reservation: Reservation<'a>,
}

impl Body<'_> {
    fn write(
        mut self,
        key: &Key,
        list: ListRef<'_>,
        mut writer: ListWriter,
        hides: &impl Hides,
        spilled: &File,
    ) -> Result<(Header, Space), Failed> {
        self.reserve(HEADER_BYTES)?;
        self.out.write_all(&[0; HEADER_BYTES])?;
        let mut spill = BufWriter::new(spilled);
        let (mut stream, mut rows, mut marks) = (Vec::with_capacity(2 * PIECE), Vec::new(), Vec::new());
        let (mut written_bytes, mut row_count) = (0u64, 0u32);
        loop {
            let written = writer.write(list, hides, &mut stream, &mut rows, PIECE);
            self.put(&stream)?;
            self.reserve(4 * rows.len())?;
            for row in rows.drain(..) {
                spill.write_all(&u32::to_le_bytes(row))?;
                row_count += 1;
            }
            if let Some(at) = written.boundary.or_else(|| written.done.then_some(stream.len())) {
                let (lists, entries) = writer.finished();
                marks.push(Mark { offset: written_bytes + at as u64, lists, entries });
            }
            written_bytes += stream.len() as u64;
            stream.clear();
            if written.done {
                break;
            }
        }
        if writer.is_damaged() {
            return Err(io::Error::other("the generation's file list is damaged").into());
        }
        self.pad()?;
        for Mark { offset, lists, entries } in &marks {
            self.put(&offset.to_le_bytes())?;
            self.put(&lists.to_le_bytes())?;
            self.put(&entries.to_le_bytes())?;
        }
        spill.flush()?;
        drop(spill);
        self.copy(spilled)?;
        self.out.flush()?;
        let header = Header {
            key: key.digest.0,
            stream: written_bytes,
            total: writer.total(),
            marks: marks.len() as u32,
            rows: row_count,
            lists: writer.lists(),
            entries: writer.entries(),
            checksum: self.hash.finish_128(),
        };
        Ok((header, self.reservation.finish(self.len)))
    }

    /// Takes `bytes` of the reservation, for either of the two files.
    fn reserve(&mut self, bytes: usize) -> Result<(), Failed> {
        if self.reservation.take(bytes as u64).map_err(Failed::Store)? { Ok(()) } else { Err(Failed::NoRoom) }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        self.reserve(bytes.len())?;
        self.hash.write(bytes);
        self.len += bytes.len() as u64;
        Ok(self.out.write_all(bytes)?)
    }

    fn pad(&mut self) -> Result<(), Failed> {
        let target = padded(self.len).unwrap_or(self.len);
        self.put(&[0; 8][..(target - self.len) as usize])
    }

    fn copy(&mut self, mut from: &File) -> Result<(), Failed> {
        from.rewind()?;
        let mut buffer = vec![0; PIECE];
        loop {
            match from.read(&mut buffer)? {
                0 => return Ok(()),
                len => self.put(&buffer[..len])?,
            }
        }
    }
}

/// Files with temporary names, which no reader opens. They are removed when the draft is dropped.
struct Draft {
    stem: PathBuf,
}

impl Draft {
    fn new(dir: &Path) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // The process ID alone is not unique: in a container, the process after a crash often has the same one.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        Self { stem: dir.join(format!(".tmp-{}-{now}-{number}", std::process::id())) }
    }

    fn path(&self, part: &str) -> PathBuf {
        self.stem.with_extension(part)
    }

    fn create(&self, part: &str) -> Result<File, StoreError> {
        let path = self.path(part);
        // Only the owner may access the file, like everything that is mapped: see `Map::of`.
        let options = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).clone();
        options.open(&path).at("create", &path)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        for part in ["list", "rows"] {
            drop(fs::remove_file(self.path(part)));
        }
    }
}
