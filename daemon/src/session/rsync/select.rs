//! Finds out what of the repository a client wants: its rules, its paths, and its names (`--files-from`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use stillmirror_protocol::list::{ListRef, Row};
use stillmirror_protocol::rsync::arguments::FilesFrom;
use stillmirror_protocol::rsync::fault::Fault;
use stillmirror_protocol::rsync::flist::Class;
use stillmirror_protocol::rsync::replies::Replies;
use stillmirror_protocol::rsync::requests::{Event, Requests};
use stillmirror_protocol::rsync::rules::Rules;
use stillmirror_protocol::rsync::selection::{self, Hides, Missing, Selecting, Selection};
use stillmirror_protocol::{limits, path};

use super::{Input, Session, Settled};
use crate::cause::Cause;
use crate::choosing::Effort;
use crate::ended::Ended;
use crate::file::OpenFile;
use crate::pinned::Pinned;

/// The maximum size (bytes) of a file of names in the repository.
const MAX_NAMES_FILE: u64 = 256 << 20;
/// Bytes of such a file that are looked up at a time. A client can name any file there, and every missing name is
/// reported.
const NAMES_CHUNK: u64 = 64 << 10;

/// How long a client waits for the search whether its rules hide anything.
const NO_OP_TIMEOUT: Duration = Duration::from_millis(10);

/// The budget of one step: the names that are looked up, and the comparison steps that they may cost. Together they take
/// some two milliseconds.
const STEP_NAMES: u32 = 4096;
const STEP_WORK: u64 = 1 << 20;
/// The memory of a compiled rule for each byte of its text. The maximum is reached by classes of one byte.
const RULE_BYTES: usize = 12;

/// The selection, the rules and the class of the list to send.
pub(super) struct Selected {
    pub(super) selection: Selection,
    pub(super) rules: Arc<Rules>,
    pub(super) class: Class,
}

/// The state of looking up paths and names.
struct Lookup {
    selecting: Selecting,
    missing: Vec<Missing>,
}

/// The budget of one step of looking up names.
struct StepBudget<'a> {
    rules: &'a Rules,
    /// The rules' count of comparison steps when the step began.
    before: u64,
    names: u32,
}

impl<'a> StepBudget<'a> {
    fn new(rules: &'a Rules) -> Self {
        Self { rules, before: rules.steps(), names: 0 }
    }

    /// Returns whether the step may look up one more name, and counts it.
    fn has_more(&mut self) -> bool {
        self.names += 1;
        self.names <= STEP_NAMES && self.rules.steps().wrapping_sub(self.before) < STEP_WORK
    }
}

/// The progress of looking up streamed names.
enum Progress {
    /// More names may be in the parser.
    More,
    /// The client has to send more.
    NeedsInput,
    Done,
}

impl Session {
    /// Reads the client's rules, and looks up its paths and names. Missing ones are reported to the client.
    pub(super) async fn select(
        &self,
        input: &mut Input,
        settled: &Arc<Settled>,
        replies: &mut Replies,
    ) -> Result<Selected, Ended> {
        let rules = Arc::new(self.rules(input, settled).await?);
        let mut lookup = self.paths(settled, &rules, replies).await?;
        match &settled.options.files_from {
            FilesFrom::No => {}
            FilesFrom::Client => lookup = self.client_names(input, settled, &rules, replies, lookup).await?,
            FilesFrom::Path(path) => lookup = self.module_names(settled, path, &rules, replies, lookup).await?,
        }
        let selection = lookup.selecting.finish();
        self.list_memory.lock().await.cover(selection.memory()).await?;
        let rules = self.drop_no_op_rules(settled, rules).await?;
        let module = &settled.pinned.repository.module;
        let (nameless, munged, chmod) = (module.numeric_ids, module.munge_symlinks, module.outgoing_chmod);
        let public_digests = settled.pinned.repository.is_public_only;
        let class = Class { nameless, munged, chmod, public_digests, ..settled.setup.class(&settled.options) };
        Ok(Selected { selection, rules, class })
    }

    /// Looks up the paths of the command line.
    async fn paths(&self, settled: &Arc<Settled>, rules: &Arc<Rules>, replies: &mut Replies) -> Result<Lookup, Ended> {
        let is_own = rules.are_own() || !settled.options.wanted().is_plain();
        let effort = if is_own { Effort::Own } else { Effort::Plain };
        let mut lookup = None;
        loop {
            let (settled_too, rules_too) = (Arc::clone(settled), Arc::clone(rules));
            let step = move || look_up_paths(&settled_too, &rules_too, lookup);
            let (looked_up, is_over) = self.choosing(&settled.pinned.edition, effort, step).await?;
            self.charge(rules)?;
            let reported = self.report_missing(settled, replies, looked_up).await?;
            if is_over {
                return Ok(reported);
            }
            lookup = Some(reported);
        }
    }

    async fn rules(&self, input: &mut Input, settled: &Arc<Settled>) -> Result<Rules, Ended> {
        let mut texts = Vec::new();
        loop {
            match input.event().await? {
                Event::Rule(text) => texts.push(text),
                Event::RulesEnd => break,
                Event::Exit(code) => return Err(Ended::ClientExit(code)),
                _ => {}
            }
        }
        let edition = &settled.pinned.edition;
        let settled = Arc::clone(settled);
        let is_own = !texts.is_empty() || settled.options.cvs_exclude;
        let bytes = texts.iter().map(|text: &Vec<u8>| text.len() * RULE_BYTES).sum();
        {
            let mut memory = self.list_memory.lock().await;
            memory.set_base(bytes);
            memory.cover(0).await?;
        }
        self.choosing(edition, if is_own { Effort::Own } else { Effort::Plain }, move || {
            let Settled { pinned, options, .. } = &*settled;
            let texts = texts.iter().map(Vec::as_slice);
            let rules = Rules::parse(texts, options.version, options.cvs_exclude)?;
            let rules = rules.within(Arc::clone(&pinned.repository.rules)).public_only(pinned.edition.has_closed_dirs);
            let one = options.paths.first().filter(|_| options.wanted().may_be_incremental());
            let is_own = |dir: &&[u8]| is_literal_path(settled.list_at_first(), &rules, dir);
            let under = one.map(|path| transferred(path).0).filter(is_own);
            rules.check_merges(pinned.edition.generation.list(), under.unwrap_or_default())?;
            Ok(rules)
        })
        .await?
    }

    /// Looks up the names that the client streams, as they arrive.
    async fn client_names(
        &self,
        input: &mut Input,
        settled: &Arc<Settled>,
        rules: &Arc<Rules>,
        replies: &mut Replies,
        mut lookup: Lookup,
    ) -> Result<Lookup, Ended> {
        loop {
            let (requests, settled_too, rules_too) = (input.take_requests()?, Arc::clone(settled), Arc::clone(rules));
            let step = move || streamed_names(requests, &settled_too, &rules_too, lookup);
            let (requests, looked_up, progress) = self.choosing(&settled.pinned.edition, Effort::Own, step).await?;
            self.charge(rules)?;
            input.put_requests(requests);
            lookup = self.report_missing(settled, replies, looked_up).await?;
            match progress? {
                Progress::Done => return Ok(lookup),
                Progress::More => {}
                Progress::NeedsInput => input.read_in_time().await?,
            }
        }
    }

    /// Looks up the names in a file of the repository.
    async fn module_names(
        &self,
        settled: &Arc<Settled>,
        path: &[u8],
        rules: &Arc<Rules>,
        replies: &mut Replies,
        mut lookup: Lookup,
    ) -> Result<Lookup, Ended> {
        let (pinned, path) = (Arc::clone(&settled.pinned), path.to_vec());
        let mut names =
            Some(self.choosing(&settled.pinned.edition, Effort::Own, move || NameFile::open(&pinned, &path)).await??);
        while let Some(mut rest) = names.take() {
            let (settled_too, rules_too) = (Arc::clone(settled), Arc::clone(rules));
            let mut buffer = self.shared.pool.take().await;
            let step = move || {
                rest.look_up(&settled_too, &rules_too, &mut lookup, &mut buffer).map(|more| (more, rest, lookup))
            };
            let (more, rest, looked_up) = self.choosing(&settled.pinned.edition, Effort::Own, step).await??;
            self.charge(rules)?;
            lookup = self.report_missing(settled, replies, looked_up).await?;
            names = more.then_some(rest);
        }
        Ok(lookup)
    }

    /// Returns no rules if the client's rules hide nothing of what it asks for. The list is then the same for all
    /// clients. If the search takes too long, the rules stay. [`Session::prepare_next`] then searches again for the next
    /// client with these rules, once this client has the beginning of its list.
    async fn drop_no_op_rules(&self, settled: &Arc<Settled>, rules: Arc<Rules>) -> Result<Arc<Rules>, Ended> {
        if rules.nothing() {
            return Ok(rules);
        }
        let edition = &settled.pinned.edition;
        let (settled, looked_at) = (Arc::clone(settled), Arc::clone(&rules));
        let effort = if rules.are_own() { Effort::Own } else { Effort::Plain };
        let are_no_op = self.choosing(edition, effort, move || {
            let begin = Instant::now();
            are_no_op(&settled, &looked_at, settled.list_at_first(), || begin.elapsed() < NO_OP_TIMEOUT)
        });
        let are_no_op = are_no_op.await? == Some(true);
        self.charge(&rules)?;
        if are_no_op {
            self.list_memory.lock().await.set_base(0);
        }
        Ok(if are_no_op { Arc::default() } else { rules })
    }

    async fn report_missing(
        &self,
        settled: &Settled,
        replies: &mut Replies,
        mut lookup: Lookup,
    ) -> Result<Lookup, Ended> {
        self.list_memory.lock().await.cover(lookup.selecting.memory()).await?;
        let ignored = |missing: &Missing| settled.options.ignore_missing_args && missing.may_be_ignored();
        for missing in lookup.missing.drain(..).filter(|missing| !ignored(missing)) {
            let severity = missing.severity(settled.options.version);
            for text in missing.messages(&settled.pinned.repository.name) {
                replies.message(severity, text);
            }
        }
        self.flush(replies).await?;
        Ok(lookup)
    }
}

/// Returns whether rules hide nothing of what is asked for. `None` if that cannot be decided, or if `goes_on` returns
/// false before it is.
pub(super) fn are_no_op(
    settled: &Settled,
    rules: &Rules,
    list: ListRef<'_>,
    goes_on: impl FnMut() -> bool,
) -> Option<bool> {
    let Settled { pinned, options, .. } = settled;
    if rules.nothing() || !options.wanted().may_be_incremental() {
        return None;
    }
    let (dir, name) = transferred(&options.paths[0]);
    if !is_literal_path(list, rules, dir) {
        return None;
    }
    let key = [&rules.key(), &b"\0"[..], &name.to_le_bytes(), dir].concat();
    pinned.edition.no_op_rules.get(&key, || rules.is_void_below(list, dir, name, goes_on))
}

/// Returns the directory (or file) that a path transfers, and the offset at which the names in the list begin within
/// paths below it.
fn transferred(path: &[u8]) -> (&[u8], usize) {
    match path.strip_suffix(b"/") {
        Some(dir) => (dir, path.len()),
        None => (path, path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1)),
    }
}

/// Returns whether rules see exactly this path: it has no `.` or `..`, leads through no symlink, and the module's own
/// rules hide no part of it.
fn is_literal_path(list: ListRef<'_>, rules: &Rules, path: &[u8]) -> bool {
    let is_own = |path: &[u8]| selection::visible(list, rules, path).is_some_and(|row| row.target().is_none());
    selection::tidy(path) == path && is_own(path)
}

/// Looks up the next paths of the command line, within the budget of one step. Returns whether these were the last.
fn look_up_paths(settled: &Settled, rules: &Rules, lookup: Option<Lookup>) -> (Lookup, bool) {
    let (list, mut budget) = (settled.list_at_first(), StepBudget::new(rules));
    let mut lookup = lookup.unwrap_or_else(|| {
        let mut missing = Vec::new();
        let selecting = Selecting::begin(list, settled.options.wanted(), rules, &mut missing);
        Lookup { selecting, missing }
    });
    while budget.has_more() {
        if !lookup.selecting.next_path(list, rules, &mut lookup.missing) {
            return (lookup, true);
        }
    }
    (lookup, false)
}

/// Looks up the names that the parser has, within the budget of one step.
fn streamed_names(
    mut requests: Requests,
    settled: &Settled,
    rules: &Rules,
    mut lookup: Lookup,
) -> (Requests, Lookup, Result<Progress, Ended>) {
    let (list, mut budget) = (settled.pinned.edition.generation.list(), StepBudget::new(rules));
    let progress = loop {
        if !budget.has_more() {
            break Ok(Progress::More);
        }
        match requests.next() {
            Ok(Some(Event::Name(name))) => lookup.missing.extend(lookup.selecting.add(list, rules, &name).err()),
            Ok(Some(Event::NamesEnd)) => break Ok(Progress::Done),
            Ok(Some(Event::Exit(code))) => break Err(Ended::ClientExit(code)),
            Ok(Some(_)) => {}
            Ok(None) => break Ok(Progress::NeedsInput),
            Err(fault) => break Err(fault.into()),
        }
    };
    (requests, lookup, progress)
}

/// A file of names in the repository, with the progress of reading it.
struct NameFile {
    file: OpenFile,
    size: u64,
    /// Bytes read so far.
    read: u64,
    /// Bytes that are read, but not looked up: whole names, and the beginning of the next one.
    pending: Vec<u8>,
}

impl NameFile {
    /// Opens a file of names. Fails if the file is not the indexed one, is too large, or must not be sent. A path that
    /// the module's rules hide fails in the same way whether the file exists or not.
    fn open(pinned: &Pinned, path: &[u8]) -> Result<Self, Ended> {
        let text = || format!("failed to open files-from file {}", path::Escaped(path));
        let refused = || Ended::Refused(Cause::NamesUnreadable, text());
        let generation = &pinned.edition.generation;
        let path = selection::tidy(path);
        if pinned.repository.rules.hides_file(&path) {
            return Err(Fault::Rejected.into());
        }
        let is_usable = |row: &Row<'_>| row.is_file() && row.size() <= MAX_NAMES_FILE && pinned.may_send(row.number());
        let row = generation.list().find(&path).filter(is_usable).ok_or_else(refused)?;
        let (tree, pooled) = (&pinned.edition.tree, pinned.edition.pooled(row.number()));
        let file = tree.open_file(&path, tree.indexed(generation, row.number()), pooled);
        Ok(Self { file: file.map_err(|_| refused())?, size: row.size(), read: 0, pending: Vec::new() })
    }

    /// Looks up the next names, and reads up to [`NAMES_CHUNK`] bytes into `buffer` if no whole name is pending. Returns
    /// whether there are more names.
    fn look_up(
        &mut self,
        settled: &Settled,
        rules: &Rules,
        lookup: &mut Lookup,
        buffer: &mut [u8],
    ) -> Result<bool, Ended> {
        let from0 = settled.options.from0;
        let ends = |byte: &u8| if from0 { *byte == 0 } else { matches!(byte, b'\n' | b'\r') };
        if self.read < self.size && !self.pending.iter().any(ends) {
            let len = (self.size - self.read).min(NAMES_CHUNK) as usize;
            let read = self.file.read(self.read, len, buffer);
            let refused = || Ended::Refused(Cause::NamesUnreadable, "failed to read the files-from file".to_owned());
            let range = read.map_err(|_| refused())?.range;
            self.read += len as u64;
            self.pending.extend_from_slice(&buffer[range]);
        }
        let is_last = self.read == self.size;
        let end = if is_last { self.pending.len() } else { self.pending.iter().rposition(ends).map_or(0, |at| at + 1) };
        let list = settled.pinned.edition.generation.list();
        let is_comment = |name: &[u8]| !from0 && matches!(name.first(), Some(b'#' | b';'));
        let (mut budget, mut done) = (StepBudget::new(rules), 0);
        for name in self.pending[..end].split(ends) {
            if !budget.has_more() {
                break;
            }
            if !name.is_empty() && !is_comment(name) {
                lookup.missing.extend(lookup.selecting.add(list, rules, name).err());
            }
            done += name.len() + 1;
        }
        let is_all = done >= end;
        self.pending.drain(..done.min(end));
        let is_too_long = is_all && self.pending.len() > limits::PATH;
        if is_too_long { Err(Fault::NameTooLong.into()) } else { Ok(!is_last || !is_all) }
    }
}
