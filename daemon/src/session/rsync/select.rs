//! What of the repository a client wants: its rules, its paths, its names.

use std::sync::Arc;

use stillmirror_protocol::path;
use stillmirror_protocol::rsync::arguments::FilesFrom;
use stillmirror_protocol::rsync::flist::Class;
use stillmirror_protocol::rsync::replies::{Replies, Severity};
use stillmirror_protocol::rsync::requests::{Event, Requests};
use stillmirror_protocol::rsync::rules::Rules;
use stillmirror_protocol::rsync::selection::{Hides, Missing, Selecting, Selection};

use super::{Input, Session, Settled};
use crate::file::{FileState, OpenFile};
use crate::pool::EXTENT;
use crate::session::{Ended, Pinned};

/// Bytes of a file of names in the repository.
const NAMES_BYTES: u64 = 256 << 20;

/// What is to be listed.
pub(super) struct Selected {
    pub(super) selection: Selection,
    pub(super) rules: Arc<Rules>,
    pub(super) class: Class,
}

/// Names that are being looked up.
struct Lookup {
    selecting: Selecting,
    missing: Vec<Missing>,
}

impl Session {
    /// Reads the client's rules and names. What is missing is said to it.
    pub(super) async fn select(
        &self,
        input: &mut Input,
        settled: &Arc<Settled>,
        replies: &mut Replies,
    ) -> Result<Selected, Ended> {
        let rules = Arc::new(self.rules(input, settled).await?);
        let lookup = {
            let (settled, rules) = (Arc::clone(settled), Arc::clone(&rules));
            self.blocking(move || begin(&settled, &rules)).await??
        };
        let mut lookup = self.tell_missing(settled, replies, lookup).await?;
        match &settled.options.files_from {
            FilesFrom::No => {}
            FilesFrom::Client => lookup = self.client_names(input, settled, &rules, replies, lookup).await?,
            FilesFrom::Path(path) => {
                let (path, pinned, rules) = (path.clone(), Arc::clone(settled), Arc::clone(&rules));
                let named = self.blocking(move || module_names(&pinned, &rules, &path, lookup)).await??;
                lookup = self.tell_missing(settled, replies, named).await?;
            }
        }
        let selection = lookup.selecting.finish();
        let rules = self.without_void(settled, rules).await?;
        let nameless = settled.pinned.repository.module.numeric_ids;
        let class = Class { nameless, ..settled.setup.class(&settled.options) };
        Ok(Selected { selection, rules, class })
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
        let settled = Arc::clone(settled);
        self.blocking(move || {
            let Settled { pinned, options, .. } = &*settled;
            let texts = texts.iter().map(Vec::as_slice);
            let rules = Rules::parse(texts, options.version, options.cvs_exclude)?;
            let rules = rules.within(Arc::clone(&pinned.repository.rules));
            let is_one = options.wanted().may_be_incremental();
            let under = if is_one { transferred(&options.paths[0]).0 } else { b"" };
            rules.check_merges(pinned.edition.generation.list(), under)?;
            Ok(rules)
        })
        .await?
    }

    /// Looks up the names that the client streams, as they come.
    async fn client_names(
        &self,
        input: &mut Input,
        settled: &Arc<Settled>,
        rules: &Arc<Rules>,
        replies: &mut Replies,
        mut lookup: Lookup,
    ) -> Result<Lookup, Ended> {
        loop {
            let (requests, settled_too, rules) = (input.take_requests()?, Arc::clone(settled), Arc::clone(rules));
            let step = move || streamed_names(requests, &settled_too, &rules, lookup);
            let (requests, looked_up, is_over) = self.blocking(step).await?;
            input.put_requests(requests);
            lookup = self.tell_missing(settled, replies, looked_up).await?;
            if is_over? {
                return Ok(lookup);
            }
            input.read_in_time().await?;
        }
    }

    /// No rules, when they hide nothing of what is asked for: then the list is everybody's.
    async fn without_void(&self, settled: &Arc<Settled>, rules: Arc<Rules>) -> Result<Arc<Rules>, Ended> {
        if rules.nothing() || !settled.options.wanted().may_be_incremental() {
            return Ok(rules);
        }
        let settled = Arc::clone(settled);
        self.blocking(move || {
            let (dir, name) = transferred(&settled.options.paths[0]);
            // A path through a symlink is no path of the list's.
            if settled.pinned.edition.generation.list().find(dir).is_none_or(|row| row.target().is_some()) {
                return rules;
            }
            let key = [&rules.key(), &b"\0"[..], &name.to_le_bytes(), dir].concat();
            let edition = &settled.pinned.edition;
            let is_void = edition.voids.get(&key, || rules.is_void_below(edition.generation.list(), dir, name));
            if is_void { Arc::default() } else { rules }
        })
        .await
    }

    async fn tell_missing(
        &self,
        settled: &Settled,
        replies: &mut Replies,
        mut lookup: Lookup,
    ) -> Result<Lookup, Ended> {
        let ignored = |missing: &Missing| settled.options.ignore_missing_args && missing.may_be_ignored();
        for missing in lookup.missing.drain(..).filter(|missing| !ignored(missing)) {
            let severity = if missing.is_error() { Severity::Transfer } else { Severity::Info };
            replies.message(severity, missing.message(&settled.pinned.repository.name));
        }
        self.flush(replies).await?;
        Ok(lookup)
    }
}

/// The one directory (or file) that is transferred, and where names in the list begin within paths below it.
fn transferred(path: &[u8]) -> (&[u8], usize) {
    match path.strip_suffix(b"/") {
        Some(dir) => (dir, path.len()),
        None => (path, path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1)),
    }
}

fn begin(settled: &Settled, rules: &Rules) -> Result<Lookup, Ended> {
    let mut missing = Vec::new();
    let list = settled.pinned.edition.generation.list();
    let selecting = Selecting::new(list, settled.options.wanted(), rules, &mut missing);
    Ok(Lookup { selecting, missing })
}

/// Looks up what the parser has; whether that were all names.
fn streamed_names(
    mut requests: Requests,
    settled: &Settled,
    rules: &Rules,
    mut lookup: Lookup,
) -> (Requests, Lookup, Result<bool, Ended>) {
    let list = settled.pinned.edition.generation.list();
    let is_over = loop {
        match requests.next() {
            Ok(Some(Event::Name(name))) => lookup.missing.extend(lookup.selecting.add(list, rules, &name).err()),
            Ok(Some(Event::NamesEnd)) => break Ok(true),
            Ok(Some(Event::Exit(code))) => break Err(Ended::ClientExit(code)),
            Ok(Some(_)) => {}
            Ok(None) => break Ok(false),
            Err(fault) => break Err(fault.into()),
        }
    };
    (requests, lookup, is_over)
}

/// Looks up the names in a file of the repository.
fn module_names(settled: &Settled, rules: &Rules, path: &[u8], mut lookup: Lookup) -> Result<Lookup, Ended> {
    let list = settled.pinned.edition.generation.list();
    let content = read_file(&settled.pinned, path)
        .ok_or_else(|| Ended::Refused(format!("failed to open files-from file {}", path::Escaped(path))))?;
    let ends = |byte: &u8| if settled.options.from0 { *byte == 0 } else { *byte == b'\n' || *byte == b'\r' };
    let is_comment = |name: &[u8]| !settled.options.from0 && (name.starts_with(b"#") || name.starts_with(b";"));
    for name in content.split(ends).filter(|name| !name.is_empty() && !is_comment(name)) {
        lookup.missing.extend(lookup.selecting.add(list, rules, name).err());
    }
    Ok(lookup)
}

/// A file of the repository, if it is the indexed one and not too large for what it is to be.
fn read_file(pinned: &Pinned, path: &[u8]) -> Option<Vec<u8>> {
    let generation = &pinned.edition.generation;
    let path = path.strip_prefix(b"/").unwrap_or(path);
    let row = generation.list().find(path).filter(|row| row.is_file() && row.size() <= NAMES_BYTES)?;
    let file = pinned.repository.tree.open_file(path, FileState::indexed(generation, row.number())).ok()?;
    let mut buffer = crate::direct::AlignedBytes::slab(EXTENT).pop()?;
    let mut content = Vec::new();
    while (content.len() as u64) < row.size() {
        let at = content.len() as u64;
        let len = (row.size() - at).min(EXTENT as u64) as usize;
        let range = file.read(at, len, &mut buffer[..OpenFile::room(at, len)]).ok()?;
        content.extend_from_slice(&buffer[range]);
    }
    Some(content)
}
