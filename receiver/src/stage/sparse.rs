//! Writes and copies files with holes, so that long runs of zeros take no disk space.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Zeros are searched in blocks of this many bytes, because file systems allocate such blocks.
const BLOCK: usize = 4096;
/// Length in bytes of the shortest run of zeros that becomes a hole. Each hole adds an extent to the file.
const MIN_HOLE: u64 = 64 << 10;
const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// A file that is written in order, and in which long runs of zeros become holes. Anything behind the last
/// byte written must have been cut off.
#[derive(Debug)]
pub(super) struct SparseFile {
    file: File,
    /// Number of bytes so far.
    len: u64,
    /// How many of them, at the end, are zeros that are not written yet.
    zeros: u64,
}

impl SparseFile {
    /// Continues a file after its first `len` bytes, which must be all that it has.
    pub(super) fn new(file: File, len: u64) -> Self {
        Self { file, len, zeros: 0 }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        // `data` is the range of `bytes` to write next; `at` is how far `bytes` has been examined.
        let (mut data, mut at) = (0..0, 0);
        while at < bytes.len() {
            let room = BLOCK - ((self.len + at as u64) % BLOCK as u64) as usize;
            let end = bytes.len().min(at + room);
            if bytes[at..end] == ZEROS[..end - at] {
                self.zeros += (end - at) as u64;
            } else {
                if self.zeros >= MIN_HOLE {
                    self.write_at(&bytes[data.clone()], data.start)?;
                    data.start = at;
                } else if self.zeros > at as u64 {
                    self.write_zeros(self.zeros - at as u64)?;
                }
                (self.zeros, data.end) = (0, end);
            }
            at = end;
        }
        self.write_at(&bytes[data.clone()], data.start)?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Sets the file's length to the number of bytes written, so that zeros at its end are not lost if nothing follows.
    pub(super) fn settle(&self) -> io::Result<()> {
        if self.zeros > 0 { self.file.set_len(self.len) } else { Ok(()) }
    }

    /// Settles the file and returns it.
    pub(super) fn finish(self) -> io::Result<File> {
        self.settle()?;
        Ok(self.file)
    }

    /// Writes a part of the current bytes, which begins at `start` in them.
    fn write_at(&self, bytes: &[u8], start: usize) -> io::Result<()> {
        self.file.write_all_at(bytes, self.len + start as u64)
    }

    /// Writes the last `count` zeros before the current bytes.
    fn write_zeros(&self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            let part = count.min(BLOCK as u64);
            self.file.write_all_at(&ZEROS[..part as usize], self.len - count)?;
            count -= part;
        }
        Ok(())
    }
}

/// Copies a whole file into an empty one, and keeps its holes.
pub(super) fn copy(source: &File, dest: &File) -> io::Result<()> {
    use io::Read as _;
    let len = source.metadata()?.len();
    let mut at = 0;
    while at < len {
        let (start, end) = match next_data(source, at) {
            Ok(Some(start)) => (start, seek(source, SeekFrom::Hole(start))?),
            Ok(None) => break,
            // If the file system does not report holes, everything is data.
            Err(_) => (at, len),
        };
        seek(source, SeekFrom::Start(start))?;
        seek(dest, SeekFrom::Start(start))?;
        // This uses copy_file_range(2) where the kernel can.
        let (mut part, mut dest) = (source.take(end - start), dest);
        if io::copy(&mut part, &mut dest)? < end - start {
            break;
        }
        at = end;
    }
    dest.set_len(len)
}

/// Returns where the next data begins, at `at` or behind it. `None` if the rest is a hole.
fn next_data(file: &File, at: u64) -> Result<Option<u64>, Errno> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(start) => Ok(Some(start)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use proptest::prelude::*;

    use super::*;

    fn written(pieces: &[Vec<u8>], begun: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(begun, 0).unwrap();
        let mut sparse = SparseFile::new(file, begun.len() as u64);
        pieces.iter().for_each(|piece| sparse.write(piece).unwrap());
        sparse.finish().unwrap()
    }

    fn content(file: &File) -> Vec<u8> {
        let mut content = vec![1; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut content, 0).unwrap();
        content
    }

    proptest! {
        #[test]
        fn a_written_file_and_its_copy_have_the_written_content(
            parts in proptest::collection::vec((0..150_000usize, 0..9000usize, any::<u8>()), 0..5),
            cut in 1..300_000usize,
            begun in 0..5000usize,
        ) {
            let bytes: Vec<u8> =
                parts.iter().flat_map(|&(zeros, len, byte)| [vec![0; zeros], vec![byte; len]].concat()).collect();
            let begun = vec![7; begun];
            let file = written(&bytes.chunks(cut).map(<[u8]>::to_vec).collect::<Vec<_>>(), &begun);
            prop_assert!(content(&file) == [begun, bytes].concat());
            let copied = tempfile::tempfile().unwrap();
            copy(&file, &copied).unwrap();
            prop_assert!(content(&copied) == content(&file));
        }
    }

    #[test]
    fn long_runs_of_zeros_take_no_disk_and_short_ones_are_written() {
        let data = vec![1; 4096];
        let pieces = [data.clone(), vec![0; 8 << 20], data.clone(), vec![0; 32 << 10], data, vec![0; 1 << 20]];
        let file = written(&pieces, b"");
        let disk = |file: &File| file.metadata().unwrap().blocks() * 512;
        let copied = tempfile::tempfile().unwrap();
        copy(&file, &copied).unwrap();
        for disk in [disk(&file), disk(&copied)] {
            assert!((44 << 10..100 << 10).contains(&disk), "{disk} bytes");
        }
    }
}
