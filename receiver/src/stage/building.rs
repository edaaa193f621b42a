//! Builds one content from the pieces of a [`Task`].
//!
//! Call [`Building::literal`] for the bytes of the literal pieces, in order, then [`Building::copy`] for the
//! copies that remain, then [`Building::finish`]. If a pull ends before, the next one continues with what is written:
//! everything that arrived, except a beginning of which the rest is still to come in the same call.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;

use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};
use stillmirror_protocol::delta::Piece;
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::limits;
use stillmirror_protocol::sums::{Scheme, SumsBuilder, SumsPolicy};

use super::sparse::SparseFile;
use super::{Metadata, Stage, final_name, part_name, set_metadata, wrong_name};
use crate::local;
use crate::roots::{FileAt, Roots};

/// A content to build.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    /// The caller's number for this task.
    pub(crate) number: usize,
    pub(crate) sha256: Digest,
    pub(crate) size: u64,
    pub(crate) metadata: Metadata,
    /// Number of bytes to keep of the part that an earlier pull left.
    pub(crate) keep: u64,
    /// The pieces of the rest, in order, from `keep` on.
    pub(crate) pieces: Vec<Piece>,
    /// Local files that the pieces refer to.
    pub(crate) bases: Vec<FileAt>,
    /// What the store keeps of the content. `None` if there is no store.
    pub(crate) keep_in_store: Option<KeepPolicy>,
}

/// What the store keeps of contents.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeepPolicy {
    pub(crate) sums: SumsPolicy,
    /// Size in bytes up to which contents are kept whole. 0 keeps none.
    pub(crate) contents: u64,
}

/// The data that the store is to keep of one content. Both may be empty.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) sums: Vec<u8>,
    pub(crate) content: Vec<u8>,
}

/// The outcome of a build.
#[derive(Debug)]
pub(crate) enum Built {
    /// The digest is right. Holds what the store is to keep of the content.
    Right(Kept),
    /// The digest is wrong.
    Wrong,
}

/// A content under construction. Literals arrive in order, copies are made in between, and everything is
/// hashed as it is written.
pub(crate) struct Building<'a> {
    stage: &'a Stage,
    roots: Roots<'a>,
    task: Task,
    hasher: Sha256,
    sums: Option<SumsBuilder>,
    /// The content so far, if the store keeps it.
    content: Option<Vec<u8>>,
    /// `None` until something is written: a content that arrives at once is written at once.
    file: Option<SparseFile>,
    buffer: Vec<u8>,
    /// The current piece, and the number of its bytes that are done.
    piece: usize,
    done: u64,
    /// The index after the last literal piece.
    literals_end: usize,
    bases: Vec<Option<File>>,
    /// Whether a basis could not be read, so that the content is wrong.
    spoilt: bool,
}

impl<'a> Building<'a> {
    pub(crate) fn new(stage: &'a Stage, roots: Roots<'a>, task: Task) -> Self {
        let keep = task.keep_in_store;
        let scheme = keep.map(|keep| Scheme::for_size(task.size, &keep.sums)).filter(|scheme| !scheme.is_empty());
        Self {
            stage,
            roots,
            sums: scheme.map(|scheme| SumsBuilder::new(scheme, task.size)),
            content: keep
                .is_some_and(|keep| task.size <= keep.contents.min(u64::from(limits::KEPT_CONTENT)))
                .then(Vec::new),
            bases: task.bases.iter().map(|_| None).collect(),
            literals_end: task
                .pieces
                .iter()
                .rposition(|piece| matches!(piece, Piece::Literal { .. }))
                .map_or(0, |last| last + 1),
            task,
            hasher: Sha256::new(),
            file: None,
            buffer: Vec::new(),
            piece: 0,
            done: 0,
            spoilt: false,
        }
    }

    pub(crate) fn task(&self) -> &Task {
        &self.task
    }

    /// Returns whether every piece is done.
    pub(crate) fn is_complete(&self) -> bool {
        self.piece == self.task.pieces.len()
    }

    /// Returns whether literals are still to come.
    pub(crate) fn wants_literals(&self) -> bool {
        self.piece < self.literals_end
    }

    /// Makes the copies before the next literal piece.
    pub(crate) fn copy(&mut self) -> io::Result<()> {
        self.resume()?;
        while let Some(&Piece::Copy { len, basis, offset, .. }) = self.task.pieces.get(self.piece) {
            self.copy_piece(basis as usize, offset, len)?;
            self.piece += 1;
        }
        Ok(())
    }

    /// Adds the next literal bytes. They must not reach beyond the end of the current piece.
    pub(crate) fn literal(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.copy()?;
        self.take(bytes)?;
        self.done += bytes.len() as u64;
        if self.task.pieces.get(self.piece).is_some_and(|piece| piece.len() == self.done) {
            (self.piece, self.done) = (self.piece + 1, 0);
        }
        if !self.wants_literals() {
            return self.copy();
        }
        self.flush()
    }

    /// Checks the digest, and renames the content to its final staged name if it is right. If not, and more than a buffer
    /// of it is written, the file remains as [`super::wrong_at`].
    pub(crate) fn finish(mut self) -> io::Result<Built> {
        self.resume()?;
        let digest = Digest(std::mem::take(&mut self.hasher).finalize().into());
        if digest != self.task.sha256 || self.spoilt {
            if self.file.is_some() {
                self.flush()?;
                let part = part_name(self.task.sha256);
                local::rename(self.stage.fd(), &part, self.stage.fd(), &wrong_name(self.task.sha256))?;
            }
            return Ok(Built::Wrong);
        }
        let (name, opened) = (final_name(self.task.sha256), self.file.is_some());
        let mut file = match self.file.take() {
            Some(file) => file,
            None => SparseFile::new(self.stage.create(&name)?, 0),
        };
        file.write(&self.buffer)?;
        let file = file.finish()?;
        set_metadata(&file, &self.task.metadata)?;
        if opened {
            local::rename(self.stage.fd(), &part_name(self.task.sha256), self.stage.fd(), &name)?;
        }
        let content = self.content.unwrap_or_default();
        Ok(Built::Right(Kept { sums: self.sums.map_or_else(Vec::new, SumsBuilder::finish), content }))
    }

    /// Reads the part that an earlier pull left, on the first call.
    fn resume(&mut self) -> io::Result<()> {
        if self.task.keep == 0 || self.file.is_some() {
            return Ok(());
        }
        let mut file = local::open_file(self.stage.fd(), &part_name(self.task.sha256), OFlags::RDWR)?;
        file.set_len(self.task.keep)?;
        let mut buffer = vec![0; BUFFER];
        let mut left = self.task.keep;
        while left > 0 {
            let room = (left as usize).min(BUFFER);
            file.read_exact(&mut buffer[..room])?;
            self.digest(&buffer[..room]);
            left -= room as u64;
        }
        self.file = Some(SparseFile::new(file, self.task.keep));
        Ok(())
    }

    fn copy_piece(&mut self, basis: usize, mut offset: u64, mut len: u64) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER.min(len as usize)];
        while len > 0 {
            let room = buffer.len().min(len as usize);
            if !self.read_basis(basis, offset, &mut buffer[..room]) {
                // The basis changed meanwhile, or its disk fails. `finish` reports it, and the file is
                // fetched whole.
                self.spoilt = true;
                buffer[..room].fill(0);
            }
            self.take(&buffer[..room])?;
            (offset, len) = (offset + room as u64, len - room as u64);
        }
        Ok(())
    }

    fn read_basis(&mut self, basis: usize, offset: u64, buffer: &mut [u8]) -> bool {
        let (Some(slot), Some(at)) = (self.bases.get_mut(basis), self.task.bases.get(basis)) else { return false };
        if slot.is_none() {
            *slot = self.roots.file(at).ok();
        }
        slot.as_ref().is_some_and(|file| file.read_exact_at(buffer, offset).is_ok())
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest(bytes);
        // A small file is written at once, from the buffer.
        if bytes.len() >= UNBUFFERED && self.task.size > BUFFER as u64 {
            self.flush()?;
            return self.write(bytes);
        }
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Computes all checksums of a part of the bytes before those of the next part, so that they stay in the cache.
    fn digest(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(CACHED) {
            self.hasher.update(part);
            if let Some(sums) = &mut self.sums {
                sums.update(part);
            }
        }
        if let Some(content) = &mut self.content {
            content.extend_from_slice(bytes);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        self.write(&buffer)?;
        buffer.clear();
        self.buffer = buffer;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(SparseFile::new(self.stage.create(&part_name(self.task.sha256))?, 0));
        }
        self.file.as_mut().map_or(Ok(()), |file| file.write(bytes).and_then(|()| file.settle()))
    }
}

/// Number of bytes gathered before they are written.
const BUFFER: usize = 256 << 10;
/// Number of bytes that are written without being gathered.
const UNBUFFERED: usize = 64 << 10;
/// Number of bytes that a core's cache has room for besides what it needs to hash them.
const CACHED: usize = 64 << 10;
