//! Reads what a client sends after the setup.
//!
//! [`Requests`] turns the stream into [`Event`]s: filter rules, then the names of `--files-from`, then
//! requests and ends of phases. Messages may arrive between them at any time.

mod request;
#[cfg(test)]
mod tests;

pub use request::{Request, SumHead, item};

use crate::codec::DecodeError;
use crate::limits;
use crate::rsync::arguments::{Append, FilesFrom, Options};
use crate::rsync::codec::{Cursor, NDX_DEL_STATS, NDX_DONE, NdxDecoder};
use crate::rsync::fault::Fault;
use crate::rsync::mux::{Demux, Part, tag};
use crate::rsync::setup::Setup;
use crate::rsync::version::Version;

/// Length of a strong checksum when a file is requested again, in bytes, unless the session's digest is shorter.
const REDO_STRONG_LEN: usize = 16;

/// Limits for one client's filter rules, which the server keeps for the whole session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleLimits {
    /// Maximum number of rules. The longest scripts of public mirrors have dozens, generated lists thousands.
    pub count: usize,
    /// Maximum total length of the rules, in bytes.
    pub bytes: usize,
}

impl Default for RuleLimits {
    fn default() -> Self {
        Self { count: 10_000, bytes: 1 << 20 }
    }
}

/// One event in a client's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A filter rule in the syntax of the negotiated version.
    Rule(Vec<u8>),
    /// The end of the rules.
    RulesEnd,
    /// A name of `--files-from=-`. The caller must limit their number.
    Name(Vec<u8>),
    /// The end of the names.
    NamesEnd,
    /// A request for one entry.
    Request(Request),
    /// The end of a list or phase. [`super::phases::Phases::done`] returns the answer.
    Done,
    /// The client's deletion counts. Echo them with [`super::replies::Replies::deleted`].
    Deleted([i32; 5]),
    /// A keep-alive.
    KeepAlive,
    /// The client exits with this code. Answer with [`super::replies::Replies::exit_seen`] and close.
    Exit(Option<i32>),
    /// The client has received this file (`--remove-source-files`, which is refused here).
    Success(i32),
    /// Text from the client, for the log.
    Text(Vec<u8>),
}

/// Parses a client's stream. It buffers input that has not been returned as an event yet, but discards block
/// checksums as they arrive.
#[derive(Debug)]
pub struct Requests {
    version: Version,
    expects_names: bool,
    append: bool,
    dry_run: bool,
    xattrs: XattrRequests,
    /// Length of a strong checksum when a file is requested again, in bytes.
    redo_strong_len: i32,
    strong_limit: i32,
    demux: Demux,
    /// Received bytes. Those before `input_pos` have been consumed.
    input: Vec<u8>,
    input_pos: usize,
    /// The data stream. The bytes before `data_pos` have been consumed.
    data: Vec<u8>,
    data_pos: usize,
    /// Number of bytes of the data stream that are still to be discarded.
    skip: u64,
    ndx: NdxDecoder,
    rule_limits: RuleLimits,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Rules { count: usize, bytes: usize },
    Names,
    Entries,
}

/// When a request with [`item::XATTR`] carries a list of the attributes whose values the client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum XattrRequests {
    Never,
    Always,
    /// Not if the entry becomes a link to another entry that the client has.
    ExceptLinks,
}

impl Requests {
    /// Creates a reader at the first byte after the setup.
    pub fn new(setup: &Setup, options: &Options) -> Self {
        let facts = setup.version.facts();
        let xattrs = match (options.xattrs && !options.dry_run, facts.exit_messages) {
            (false, _) => XattrRequests::Never,
            (true, true) if !options.capabilities.plain_xattr_links => XattrRequests::ExceptLinks,
            (true, _) => XattrRequests::Always,
        };
        Self {
            version: setup.version,
            expects_names: options.files_from == FilesFrom::Client,
            append: options.append != Append::No,
            dry_run: options.dry_run,
            xattrs,
            redo_strong_len: setup.transfer.bytes().min(REDO_STRONG_LEN) as i32,
            strong_limit: setup.transfer.bytes().max(REDO_STRONG_LEN) as i32,
            demux: Demux::new(facts.framed_requests),
            input: Vec::new(),
            input_pos: 0,
            data: Vec::new(),
            data_pos: 0,
            skip: 0,
            ndx: NdxDecoder::new(setup.version),
            rule_limits: RuleLimits::default(),
            stage: Stage::Rules { count: 0, bytes: 0 },
        }
    }

    /// Replaces the limits for the filter rules.
    #[must_use]
    pub fn limit_rules(self, rule_limits: RuleLimits) -> Self {
        Self { rule_limits, ..self }
    }

    /// Takes bytes from the client. Call [`Self::next`] until it returns `None` before passing more bytes.
    /// Memory then stays bounded by the bytes passed and one rule, name or request.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.input.drain(..self.input_pos);
        self.input_pos = 0;
        self.input.extend_from_slice(bytes);
    }

    /// Returns the next event. `None` until more bytes arrive. A fault is final.
    #[allow(clippy::should_implement_trait, reason = "an event may follow after `None`")]
    pub fn next(&mut self) -> Result<Option<Event>, Fault> {
        loop {
            if let Some(event) = self.parse()? {
                return Ok(Some(event));
            }
            let mut rest = &self.input[self.input_pos..];
            let part = self.demux.next(&mut rest)?;
            self.input_pos = self.input.len() - rest.len();
            match part {
                None => return Ok(None),
                Some(Part::Data(bytes)) => {
                    let dropped = self.skip.min(bytes.len() as u64);
                    self.skip -= dropped;
                    self.data.drain(..self.data_pos);
                    self.data_pos = 0;
                    self.data.extend_from_slice(&bytes[dropped as usize..]);
                }
                Some(Part::Message { tag, payload }) => return message(tag, payload).map(Some),
            }
        }
    }

    /// Parses the next event in the data stream. `None` if it is not complete.
    fn parse(&mut self) -> Result<Option<Event>, Fault> {
        let mut cursor = Cursor::new(&self.data[self.data_pos..]);
        if cursor.remaining() == 0 || self.skip > 0 {
            return Ok(None);
        }
        let event = match self.stage {
            Stage::Rules { count, bytes } => rule(&mut cursor, count, bytes, self.rule_limits).map(|(event, stage)| {
                self.stage = stage;
                event
            }),
            Stage::Names => name(&mut cursor),
            Stage::Entries => {
                // The state of the indices must not advance beyond an incomplete request.
                let mut ndx = self.ndx.clone();
                let event = self.entry(&mut cursor, &mut ndx);
                if event.is_ok() {
                    self.ndx = ndx;
                }
                event
            }
        };
        let event = match event {
            Err(Fault::Decode(DecodeError::Short(_))) => return Ok(None),
            event => event?,
        };
        self.data_pos += cursor.position();
        self.update_state(&event)?;
        Ok(Some(event))
    }

    /// Updates the state for what follows this event.
    fn update_state(&mut self, event: &Event) -> Result<(), Fault> {
        match event {
            Event::RulesEnd if self.expects_names => {
                self.stage = Stage::Names;
                if self.version.facts().raw_names && (self.data_pos < self.data.len() || !self.demux.set_raw(true)) {
                    return Err(Fault::NamesInFrame);
                }
            }
            Event::RulesEnd => self.stage = Stage::Entries,
            Event::NamesEnd => {
                self.stage = Stage::Entries;
                if self.version.facts().raw_names {
                    // Bytes after the end of the names, which were read as raw data, are frames.
                    self.input.splice(..self.input_pos, self.data.drain(self.data_pos..));
                    self.input_pos = 0;
                    self.demux.set_raw(false);
                }
            }
            Event::Request(Request { sums: Some(sums), .. }) if !self.appends(sums) => {
                let bytes = sums.checksum_bytes();
                let here = bytes.min((self.data.len() - self.data_pos) as u64);
                self.data_pos += here as usize;
                self.skip = bytes - here;
            }
            _ => {}
        }
        Ok(())
    }

    fn entry(&self, cursor: &mut Cursor<'_>, ndx: &mut NdxDecoder) -> Result<Event, Fault> {
        let facts = self.version.facts();
        match ndx.get("file index", cursor)? {
            NDX_DONE => Ok(Event::Done),
            NDX_DEL_STATS if facts.exit_messages => deleted(cursor),
            ndx @ 0.. => self.request(ndx, cursor).map(Event::Request),
            ndx => Err(Fault::Index(ndx)),
        }
    }

    fn request(&self, ndx: i32, cursor: &mut Cursor<'_>) -> Result<Request, Fault> {
        let facts = self.version.facts();
        let flags = if facts.item_flags { cursor.u16("item flags")? } else { item::TRANSFER };
        let basis = if flags & item::BASIS != 0 { Some(cursor.byte("kind of basis")?) } else { None };
        let name =
            if flags & item::NAME != 0 { Some(cursor.vstring("name of basis", limits::PATH)?.into()) } else { None };
        let xattrs = self.has_xattrs(flags);
        if xattrs && cursor.varint("extended attribute")? != 0 {
            return Err(Fault::Xattrs);
        }
        let sums = if flags & item::TRANSFER != 0 && !self.dry_run {
            Some(SumHead::read(cursor)?.check(facts.block_len, self.strong_limit)?)
        } else {
            None
        };
        let from = sums.filter(|sums| self.appends(sums)).map_or(0, |sums| sums.bytes());
        Ok(Request { ndx, flags, basis, name, xattrs, sums, from })
    }

    /// Returns whether the head only tells how much of the file the client has, so that no block checksums
    /// follow. Even with `--append`, a file that is requested again is sent whole. The length of the strong
    /// checksums distinguishes such a request.
    fn appends(&self, sums: &SumHead) -> bool {
        self.append && sums.strong_len < self.redo_strong_len
    }

    fn has_xattrs(&self, flags: u16) -> bool {
        const LINK: u16 = item::NAME | item::LOCAL_CHANGE;
        match self.xattrs {
            XattrRequests::Never => false,
            XattrRequests::Always => flags & item::XATTR != 0,
            XattrRequests::ExceptLinks => flags & item::XATTR != 0 && flags & LINK != LINK,
        }
    }
}

fn rule(cursor: &mut Cursor<'_>, count: usize, bytes: usize, limits: RuleLimits) -> Result<(Event, Stage), Fault> {
    let len = cursor.i32("length of a rule")?;
    if len == 0 {
        return Ok((Event::RulesEnd, Stage::Entries));
    }
    let bytes = bytes.saturating_add(usize::try_from(len).map_err(|_| Fault::RuleLength(len))?);
    if count >= limits.count {
        return Err(Fault::RulesTooMany(limits.count));
    }
    if bytes > limits.bytes {
        return Err(Fault::RulesTooLong(limits.bytes));
    }
    let stage = Stage::Rules { count: count + 1, bytes };
    Ok((Event::Rule(cursor.take("rule", len as usize)?.to_vec()), stage))
}

fn name(cursor: &mut Cursor<'_>) -> Result<Event, Fault> {
    let window = cursor.clone().take("name", cursor.remaining().min(limits::PATH + 1))?;
    let Some(end) = window.iter().position(|&byte| byte == 0) else {
        let short = window.len() <= limits::PATH;
        return Err(if short { DecodeError::Short("name").into() } else { Fault::NameTooLong });
    };
    cursor.take("name", end + 1)?;
    Ok(if end == 0 { Event::NamesEnd } else { Event::Name(window[..end].to_vec()) })
}

fn deleted(cursor: &mut Cursor<'_>) -> Result<Event, Fault> {
    let mut counts = [0; 5];
    for count in &mut counts {
        *count = cursor.varint("number of deletions")?;
    }
    Ok(Event::Deleted(counts))
}

fn message(tag: u8, payload: &[u8]) -> Result<Event, Fault> {
    let number = || payload.try_into().map(i32::from_le_bytes).map_err(|_| Fault::Frame { tag, len: payload.len() });
    match tag {
        tag::DATA | tag::NOOP => Ok(Event::KeepAlive),
        tag::ERROR_EXIT if payload.is_empty() => Ok(Event::Exit(None)),
        tag::ERROR_EXIT => number().map(|code| Event::Exit(Some(code))),
        tag::SUCCESS => number().map(Event::Success),
        tag::ERROR_XFER | tag::INFO | tag::ERROR | tag::WARNING => Ok(Event::Text(payload.to_vec())),
        _ => Err(Fault::Frame { tag, len: payload.len() }),
    }
}
