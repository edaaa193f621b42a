//! What the client sends after the setup: filter rules, names of `--files-from`, requests, ends of phases.

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

/// Bytes of a strong sum when a file is asked for again, unless the session's digest has fewer.
const REDO_SUM: usize = 16;

/// What the filter rules of one client may come to: the server keeps them for the whole session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleLimits {
    /// Their number. The longest scripts of public mirrors have dozens, generated lists thousands.
    pub count: usize,
    /// Bytes of all of them.
    pub bytes: usize,
}

impl Default for RuleLimits {
    fn default() -> Self {
        Self { count: 10_000, bytes: 1 << 20 }
    }
}

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A filter rule in the version's own words.
    Rule(Vec<u8>),
    /// No more rules.
    RulesEnd,
    /// A name of `--files-from=-`. Their number is the caller's to bound.
    Name(Vec<u8>),
    /// No more names.
    NamesEnd,
    /// A request for one entry.
    Request(Request),
    /// The end of a list or phase: ask [`super::phases::Phases::done`] for the answer.
    Done,
    /// What the client deleted; to be echoed with [`super::replies::Replies::deleted`].
    Deleted([i32; 5]),
    /// A sign of life without meaning.
    KeepAlive,
    /// The client ends with this exit code; answer with [`super::replies::Replies::exit_seen`] and close.
    Exit(Option<i32>),
    /// The client has this file (`--remove-source-files`, which is refused here).
    Success(i32),
    /// Text of the client, for the log.
    Text(Vec<u8>),
}

/// Reads a client's stream. It holds what was received and not yet asked for; block sums are dropped as
/// they come.
#[derive(Debug)]
pub struct Requests {
    version: Version,
    names: bool,
    append: bool,
    dry_run: bool,
    xattrs: XattrRequests,
    /// Bytes of a strong sum when a file is asked for again.
    redo_sum: i32,
    strong_limit: i32,
    demux: Demux,
    /// Bytes as received, from `taken` on.
    input: Vec<u8>,
    taken: usize,
    /// The data stream, from `read` on.
    data: Vec<u8>,
    read: usize,
    /// Bytes of the data stream to drop.
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

/// When a request with [`item::XATTR`] has a list of the attributes whose values are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum XattrRequests {
    Never,
    Always,
    /// Not when the entry becomes a link to another that the client has.
    ExceptLinks,
}

impl Requests {
    /// At the first byte after the setup.
    pub fn new(setup: &Setup, options: &Options) -> Self {
        let facts = setup.version.facts();
        let xattrs = match (options.xattrs && !options.dry_run, facts.exit_messages) {
            (false, _) => XattrRequests::Never,
            (true, true) if !options.capabilities.plain_xattr_links => XattrRequests::ExceptLinks,
            (true, _) => XattrRequests::Always,
        };
        Self {
            version: setup.version,
            names: options.files_from == FilesFrom::Client,
            append: options.append != Append::No,
            dry_run: options.dry_run,
            xattrs,
            redo_sum: setup.transfer.bytes().min(REDO_SUM) as i32,
            strong_limit: setup.transfer.bytes().max(REDO_SUM) as i32,
            demux: Demux::new(facts.framed_requests),
            input: Vec::new(),
            taken: 0,
            data: Vec::new(),
            read: 0,
            skip: 0,
            ndx: NdxDecoder::new(setup.version),
            rule_limits: RuleLimits::default(),
            stage: Stage::Rules { count: 0, bytes: 0 },
        }
    }

    /// The same, with other limits for the filter rules.
    #[must_use]
    pub fn limit_rules(self, rule_limits: RuleLimits) -> Self {
        Self { rule_limits, ..self }
    }

    /// Takes bytes of the client. Ask for all events before more is given, and memory stays bounded by what is given
    /// and one rule, name or request.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.input.drain(..self.taken);
        self.taken = 0;
        self.input.extend_from_slice(bytes);
    }

    /// The next event; none until more bytes come. A fault is final.
    #[allow(clippy::should_implement_trait, reason = "an event may follow after none")]
    pub fn next(&mut self) -> Result<Option<Event>, Fault> {
        loop {
            if let Some(event) = self.parse()? {
                return Ok(Some(event));
            }
            let mut rest = &self.input[self.taken..];
            let part = self.demux.next(&mut rest)?;
            self.taken = self.input.len() - rest.len();
            match part {
                None => return Ok(None),
                Some(Part::Data(bytes)) => {
                    let dropped = self.skip.min(bytes.len() as u64);
                    self.skip -= dropped;
                    self.data.drain(..self.read);
                    self.read = 0;
                    self.data.extend_from_slice(&bytes[dropped as usize..]);
                }
                Some(Part::Message { tag, payload }) => return message(tag, payload).map(Some),
            }
        }
    }

    /// The next event that is complete in the data stream.
    fn parse(&mut self) -> Result<Option<Event>, Fault> {
        let mut cursor = Cursor::new(&self.data[self.read..]);
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
                // The state of the indices must not run ahead of a request that is not complete.
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
        self.read += cursor.position();
        self.after(&event)?;
        Ok(Some(event))
    }

    /// What an event means for what follows it.
    fn after(&mut self, event: &Event) -> Result<(), Fault> {
        match event {
            Event::RulesEnd if self.names => {
                self.stage = Stage::Names;
                if self.version.facts().raw_names && (self.read < self.data.len() || !self.demux.set_raw(true)) {
                    return Err(Fault::NamesInFrame);
                }
            }
            Event::RulesEnd => self.stage = Stage::Entries,
            Event::NamesEnd => {
                self.stage = Stage::Entries;
                if self.version.facts().raw_names {
                    // What was taken for names beyond their end is frames.
                    self.input.splice(..self.taken, self.data.drain(self.read..));
                    self.taken = 0;
                    self.demux.set_raw(false);
                }
            }
            Event::Request(Request { sums: Some(sums), .. }) if !self.appends(sums) => {
                let sums = sums.sums();
                let here = sums.min((self.data.len() - self.read) as u64);
                self.read += here as usize;
                self.skip = sums - here;
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

    /// Whether this head tells how much of the file the client has, and no sums follow. A file that is asked for
    /// again comes whole, even with `--append`: such a request is known by the length of its sums.
    fn appends(&self, sums: &SumHead) -> bool {
        self.append && sums.strong_len < self.redo_sum
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
