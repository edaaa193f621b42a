//! Files with holes: long runs of zeros take no disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Zeros are looked for in blocks of this many bytes, as file systems allocate them.
const BLOCK: usize = 4096;
/// Bytes of the shortest run of zeros that becomes a hole: each hole is one more extent of the file.
const MIN_HOLE: u64 = 64 << 10;
const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// A file that is written in order, and in which long runs of zeros become holes. What lies behind the last byte
/// written must have been cut off.
#[derive(Debug)]
pub(super) struct SparseFile {
    file: File,
    /// Bytes so far.
    len: u64,
    /// How many of these, at the end, are zeros that are not written.
    zeros: u64,
}

impl SparseFile {
    /// Goes on behind the first `len` bytes, which are all that the file has.
    pub(super) fn new(file: File, len: u64) -> Self {
        Self { file, len, zeros: 0 }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        // What of `bytes` is to be written next, and what was looked at.
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

    /// Gives the file the length of what was written, and gives it back.
    pub(super) fn finish(self) -> io::Result<File> {
        if self.zeros > 0 {
            self.file.set_len(self.len)?;
        }
        Ok(self.file)
    }

    /// Writes a part of the bytes under way, which begins so far behind those before.
    fn write_at(&self, bytes: &[u8], start: usize) -> io::Result<()> {
        self.file.write_all_at(bytes, self.len + start as u64)
    }

    /// Writes the zeros that end where the bytes under way begin.
    fn write_zeros(&self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            let part = count.min(BLOCK as u64);
            self.file.write_all_at(&ZEROS[..part as usize], self.len - count)?;
            count -= part;
        }
        Ok(())
    }
}

/// Copies a whole file into an empty one; holes stay holes.
pub(super) fn copy(source: &File, dest: &File) -> io::Result<()> {
    use io::Read as _;
    let len = source.metadata()?.len();
    let mut at = 0;
    while at < len {
        let (start, end) = match next_data(source, at) {
            Ok(Some(start)) => (start, seek(source, SeekFrom::Hole(start))?),
            Ok(None) => break,
            // Without an answer all is data.
            Err(_) => (at, len),
        };
        seek(source, SeekFrom::Start(start))?;
        seek(dest, SeekFrom::Start(start))?;
        // copy_file_range(2) beneath, where the kernel can.
        let (mut part, mut dest) = (source.take(end - start), dest);
        if io::copy(&mut part, &mut dest)? < end - start {
            break;
        }
        at = end;
    }
    dest.set_len(len)
}

/// Where data begin, at `at` or behind it.
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
        fn what_is_written_and_copied_is_read_again(
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
    fn long_runs_take_no_disk_in_the_file_and_its_copy_and_short_ones_are_written() {
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
