//! Decompresses index files, which are foreign bytes: sizes and memory are bounded.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;
use std::sync::Arc;

use liblzma::stream::{CONCATENATED, Stream};
use thiserror::Error;

/// Why an index file cannot be read.
#[derive(Debug, Clone, Error)]
pub enum IndexFault {
    /// It cannot be read or decompressed.
    #[error("{0}")]
    Read(Arc<io::Error>),
    /// It is not XML.
    #[error("it is not well-formed XML: {0}")]
    Xml(String),
    /// A line is neither a field, nor a part of one, nor empty.
    #[error("line {0} is not a field")]
    Line(u64),
    /// It ends before its elements do.
    #[error("it ends too soon")]
    Short,
    /// It does not name the file that lists packages.
    #[error("it names no list of packages")]
    NoPrimary,
    /// It names a list of packages that the repository does not have, or has only in a form that cannot be read.
    #[error("the repository has no '{0}' that can be read")]
    NoForm(String),
}

impl From<io::Error> for IndexFault {
    fn from(error: io::Error) -> Self {
        Self::Read(Arc::new(error))
    }
}

/// Extensions of the forms that can be read. Without one, a file is not compressed.
pub(crate) const EXTENSIONS: [&[u8]; 4] = [b"", b".xz", b".gz", b".zst"];

/// Returns a reader of what a file contains once it is decompressed. The first bytes decide how it is compressed. It fails
/// after [`LONGEST`] bytes.
pub(crate) fn open<'a>(mut input: impl BufRead + 'a) -> Result<Metered<Box<dyn Read + 'a>>, IndexFault> {
    let start = input.fill_buf()?;
    let reader: Box<dyn Read + 'a> = if start.starts_with(b"\x1f\x8b") {
        Box::new(flate2::bufread::MultiGzDecoder::new(input))
    } else if start.starts_with(b"\xfd7zXZ\0") {
        let stream = Stream::new_stream_decoder(MEMORY, CONCATENATED).map_err(io::Error::other)?;
        Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
    } else if start.starts_with(b"\x28\xb5\x2f\xfd") {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
        decoder.window_log_max(WINDOW_LOG)?;
        Box::new(decoder)
    } else {
        Box::new(input)
    };
    Ok(Metered::new(reader))
}

/// A reader that fails when it has given too many bytes, in all or since it was told that a unit ended.
pub(crate) struct Metered<R> {
    inner: BufReader<R>,
    /// Bytes that it may still give in all.
    left: u64,
    unit: Rc<Cell<u64>>,
}

/// Tells a [`Metered`] reader that a unit ended.
pub(crate) struct Unit(Rc<Cell<u64>>);

impl Unit {
    pub(crate) fn ended(&self) {
        self.0.set(LONGEST_UNIT);
    }
}

impl<R: Read> Metered<R> {
    fn new(inner: R) -> Self {
        Self { inner: BufReader::with_capacity(64 << 10, inner), left: LONGEST, unit: Rc::new(Cell::new(LONGEST_UNIT)) }
    }

    pub(crate) fn unit(&self) -> Unit {
        Unit(Rc::clone(&self.unit))
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let len = bytes.len().min(out.len());
        out[..len].copy_from_slice(&bytes[..len]);
        self.consume(len);
        Ok(len)
    }
}

impl<R: Read> BufRead for Metered<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let bytes = self.inner.fill_buf()?;
        if !bytes.is_empty() && self.left == 0 {
            return Err(io::Error::other(format!("it has more than {LONGEST} bytes")));
        }
        if !bytes.is_empty() && self.unit.get() == 0 {
            return Err(io::Error::other(format!("a line or element has more than {LONGEST_UNIT} bytes")));
        }
        let allowed = self.left.min(self.unit.get()).min(bytes.len() as u64);
        Ok(&bytes[..allowed as usize])
    }

    fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
        self.left = self.left.saturating_sub(amount as u64);
        self.unit.set(self.unit.get().saturating_sub(amount as u64));
    }
}

/// Maximum number of bytes of one index, not compressed. The largest public ones have some hundred megabytes.
const LONGEST: u64 = 2 << 30;
/// Maximum number of bytes of one line or XML element. Some packages list thousands of others in one field.
const LONGEST_UNIT: u64 = 16 << 20;
/// Maximum number of bytes of memory that an xz file may require. `xz -9` requires 65 MiB.
const MEMORY: u64 = 256 << 20;
/// Maximum size of a zstd file's window, as a power of two: the default of the stock program.
const WINDOW_LOG: u32 = 27;
