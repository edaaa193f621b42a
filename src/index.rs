//! `stillmirror index`.

use std::io::Read;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use stillmirror_indexer::{self as indexer, CtimeRule, IndexError, Options, Report};
use stillmirror_protocol::filter::Filter;
use stillmirror_protocol::path::Escaped;
use stillmirror_protocol::sums::SumsPolicy;
use stillmirror_store::{Retention, StoreError};

use crate::config::{Bytes, Config, Ctime, Index, Part, Pattern, Seconds, Specials, Unreadable};
use crate::exit::{Exit, UsageError};
use crate::output::{OutputArgs, bytes, count, line};
use crate::progress::{self, FilesDone};
use crate::sign::load_key;
use crate::{path_args, signals};

const EXAMPLES: &str = "\
Examples:
  stillmirror index --root /srv/debian --store /var/lib/stillmirror/debian
  stillmirror index --config /etc/stillmirror/mirror.toml debian
  my-publish --print-paths | stillmirror index --root … --store … --changed-from -

`stillmirror --help` lists the exit codes.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Index only these repositories of the configuration file
    #[arg(value_name = "NAME", requires = "config")]
    names: Vec<String>,
    /// The configuration file (see mirror.toml.example)
    #[arg(long, value_name = "FILE", value_parser = path_args::local())]
    #[arg(conflicts_with_all = ["root", "store", "name"], required_unless_present = "root")]
    config: Option<PathBuf>,
    /// The tree to index
    #[arg(long, value_name = "DIR", value_parser = path_args::local(), requires = "store")]
    root: Option<PathBuf>,
    /// Where its generations are kept; created if it does not exist
    #[arg(long, value_name = "DIR", value_parser = path_args::local(), requires = "root")]
    store: Option<PathBuf>,
    /// The repository's name in URLs [default: the store's name, or the last component of the root]
    #[arg(long, requires = "root")]
    name: Option<String>,
    /// Look only at the paths that this file (or standard input, for '-') names: changed, new and removed paths
    /// relative to the root, one per line; a directory stands for everything below it
    #[arg(long, value_name = "FILE|-", value_parser = path_args::local())]
    changed_from: Option<PathBuf>,
    /// The paths of --changed-from end in NUL instead of a newline
    #[arg(long, short = '0', requires = "changed_from")]
    null: bool,
    /// Publish an empty root even if the current generation has files; without this flag, the root is assumed not to
    /// be mounted
    #[arg(long)]
    allow_empty: bool,
    /// Check everything that the store keeps, and re-read the files for which it is damaged
    #[arg(long, conflicts_with = "changed_from")]
    verify_store: bool,
    /// Wait until another process that writes to the store has ended, without TIME as long as it takes; without this flag
    /// `index` fails at once
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true)]
    wait: Option<Option<Seconds>>,
    /// What to do with a file of which only the ctime differs [default: explained]
    #[arg(long)]
    ctime: Option<Ctime>,
    /// Keep the contents of all kept generations, so that `serve` sends them whole while files are replaced and removed;
    /// needs a file system with reflinks (XFS, btrfs) or hard links. A run without it removes them
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pin: Option<bool>,
    /// Where --pin keeps them, on the file system of the root [default: `pool` in the store if that is there, else
    /// `.stillmirror-pool` in the root]
    #[arg(long, value_name = "DIR", value_parser = path_args::local())]
    pool: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    overrides: Overrides,
}

/// The keys of `[index]` as options.
#[derive(Clone, Args)]
struct Overrides {
    /// List names that match even if a later --exclude matches them too
    #[arg(long, value_name = "PATTERN")]
    include: Option<Vec<Pattern>>,
    /// Leave out names that match, and everything below them
    #[arg(long, value_name = "PATTERN")]
    exclude: Option<Vec<Pattern>>,
    /// What to do with devices, fifos and sockets [default: keep]
    #[arg(long)]
    specials: Option<Specials>,
    /// What to do with files and directories that cannot be read [default: keep-old]
    #[arg(long)]
    unreadable: Option<Unreadable>,
    /// Compute XXH128 digests too
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    xxh128: Option<bool>,
    /// Compute MD5 digests too
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    md5: Option<bool>,
    /// Compute block checksums [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    block_checksums: Option<bool>,
    /// The smallest block size [default: 512]
    #[arg(long, value_name = "SIZE")]
    smallest_block: Option<Bytes>,
    /// Compute no block checksums for files that match
    #[arg(long, value_name = "PATTERN")]
    no_block_checksums: Option<Vec<Pattern>>,
    /// Keep the content of files up to this size in the store and serve it from there; 0 keeps none [default: 16KiB]
    #[arg(long, value_name = "SIZE")]
    keep_contents: Option<Bytes>,
    /// Sign the head with this secret key (from `stillmirror keygen` or `minisign -G -W`); a head that does not change is
    /// signed again when half of --expires is over
    #[arg(long, value_name = "FILE", value_parser = path_args::local())]
    sign: Option<PathBuf>,
    /// How long mirrors accept the signature [default: 7d]
    #[arg(long, value_name = "AGE")]
    expires: Option<Seconds>,
    /// Re-read this share of the unchanged files, such as 1/30 or 2.5%, those not read for the longest time first, and
    /// report files whose content is not the indexed one [default: 0]
    #[arg(long, value_name = "SHARE")]
    scrub: Option<Part>,
    /// The number of generations to keep, including the current one [default: 8]
    #[arg(long, value_name = "NUMBER")]
    keep_generations: Option<u32>,
    /// How long to keep generations [default: limited by --keep-generations only]
    #[arg(long, value_name = "TIME")]
    keep_age: Option<Seconds>,
    /// The number of threads that walk and hash; 0 uses all cores
    #[arg(long, value_name = "NUMBER")]
    threads: Option<usize>,
}

impl From<Overrides> for Index {
    fn from(flags: Overrides) -> Self {
        Index {
            include: flags.include,
            exclude: flags.exclude,
            specials: flags.specials,
            unreadable: flags.unreadable,
            xxh128: flags.xxh128,
            md5: flags.md5,
            block_checksums: flags.block_checksums,
            smallest_block: flags.smallest_block,
            no_block_checksums: flags.no_block_checksums,
            keep_contents: flags.keep_contents,
            sign_key: flags.sign,
            sign_expires: flags.expires,
            scrub: flags.scrub,
            keep_generations: flags.keep_generations,
            keep_age: flags.keep_age,
            threads: flags.threads,
        }
    }
}

/// The pause between attempts to get a store that another process has.
const PAUSE: Duration = Duration::from_millis(200);

/// The default number of generations to keep.
const KEEP_GENERATIONS: u32 = 8;

pub(crate) fn run(arguments: Arguments) -> Result<Exit> {
    let changed = arguments.changed_from.as_deref().map(|from| read_names(from, arguments.null)).transpose()?;
    let (allow_empty, verify_store) = (arguments.allow_empty, arguments.verify_store);
    let wait = arguments.wait.map_or(Duration::ZERO, |wait| wait.map_or(Duration::MAX, Seconds::duration));
    let mut all = options(&arguments)?;
    if changed.is_some() && all.len() != 1 {
        return Err(UsageError("--changed-from works on one repository: name it".to_owned()).into());
    }
    let stop = signals::stop_flag()?;
    let mut exit = Exit::Done;
    for options in &mut all {
        options.allow_empty = allow_empty;
        options.verify_store = verify_store;
        options.changed_from = changed.as_ref().map(|names| below_root(names, &options.root)).transpose()?;
        let bar = arguments.output.bar();
        let report = index_in_turn(options, &BarProgress::new(&bar), &stop, wait);
        bar.finish_and_clear();
        match report {
            Ok(report) => {
                exit = exit.or(print(&options.name, &report, &arguments.output));
            }
            Err(IndexError::Stopped) => return Err(IndexError::Stopped.into()),
            // One repository that fails does not keep the others from being indexed.
            Err(error) => {
                eprintln!("stillmirror: {}: {error}", options.name);
                exit = exit.or(crate::exit::of(&error.into()));
            }
        }
    }
    Ok(exit)
}

/// Indexes one repository. While another process has the store, tries again for up to `wait`.
fn index_in_turn(
    options: &Options,
    progress: &dyn indexer::Progress,
    stop: &AtomicBool,
    wait: Duration,
) -> Result<Report, IndexError> {
    let began = Instant::now();
    loop {
        match indexer::index(options, progress, stop) {
            Err(IndexError::Store(StoreError::Locked { .. })) if began.elapsed() < wait => {
                if stop.load(Ordering::Relaxed) {
                    return Err(IndexError::Stopped);
                }
                std::thread::sleep(PAUSE);
            }
            result => return result,
        }
    }
}

/// Returns what to index, from the configuration file or the command line.
fn options(arguments: &Arguments) -> Result<Vec<Options>> {
    let flags = Index::from(arguments.overrides.clone());
    let with_pool = |mut options: Options, pin: bool, pool: Option<&PathBuf>| {
        options.pin = arguments.pin.unwrap_or(pin);
        options.pool = arguments.pool.as_ref().or(pool).cloned();
        match &options.pool {
            Some(_) if arguments.pool.is_some() && !options.pin => {
                Err(UsageError("--pool is of no use without --pin".to_owned()).into())
            }
            _ => Ok(options),
        }
    };
    if let Some(path) = &arguments.config {
        let config = Config::load(path)?;
        let selected = config.select(&arguments.names)?;
        if arguments.pool.is_some() && selected.len() != 1 {
            return Err(UsageError("--pool works on one repository: name it".to_owned()).into());
        }
        let resolve = |repository: &&crate::config::Repository| {
            let settings = flags.clone().over(&repository.index.clone().over(&config.index));
            let ctime = arguments.ctime.unwrap_or(repository.ctime);
            let options = repository_options(&repository.root, &repository.store, &repository.name, ctime, &settings)?;
            with_pool(options, repository.pin, repository.pool.as_ref())
        };
        return selected.iter().map(resolve).collect();
    }
    let (Some(root), Some(store)) = (&arguments.root, &arguments.store) else {
        return Err(UsageError("give --config FILE, or --root DIR and --store DIR".to_owned()).into());
    };
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None => default_name(root, store)?,
    };
    let ctime = arguments.ctime.unwrap_or_default();
    Ok(vec![with_pool(repository_options(root, store, &name, ctime, &flags)?, false, None)?])
}

fn default_name(root: &Path, store: &Path) -> Result<String> {
    if let Ok(store) = stillmirror_store::Store::open(store) {
        return Ok(store.repository().to_owned());
    }
    // A root such as "." has no name until it is resolved. A missing root is reported later.
    let root = std::fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    let name = root.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let checked = stillmirror_protocol::head::check_repository_name(&name);
    checked.map_err(|error| UsageError(format!("{error}: give --name")))?;
    Ok(name)
}

fn repository_options(root: &Path, store: &Path, name: &str, ctime: Ctime, settings: &Index) -> Result<Options> {
    let mut options = Options::new(root, store, name);
    options.filter = filter(settings.include.as_deref(), settings.exclude.as_deref())?;
    options.sums_for = filter(None, settings.no_block_checksums.as_deref())?;
    options.sums = sums(settings);
    options.keep_contents = settings.keep_contents.map_or(options.keep_contents, |Bytes(size)| size);
    options.scrub = settings.scrub.and_then(|Part(share)| share);
    if let Some(key) = &settings.sign_key {
        options.signer = Some(Arc::new(load_key(key, settings.sign_expires)?));
    }
    options.xxh128 = settings.xxh128.unwrap_or(false);
    options.md5 = settings.md5.unwrap_or(false);
    options.specials = match settings.specials.unwrap_or(Specials::Keep) {
        Specials::Keep => indexer::Specials::Keep,
        Specials::Skip => indexer::Specials::Skip,
    };
    options.unreadable = match settings.unreadable.unwrap_or(Unreadable::KeepOld) {
        Unreadable::KeepOld => indexer::Unreadable::KeepOld,
        Unreadable::LeaveOut => indexer::Unreadable::LeaveOut,
    };
    options.ctime = match ctime {
        Ctime::Strict => CtimeRule::Strict,
        Ctime::Explained => CtimeRule::Explained,
        Ctime::Ignored => CtimeRule::Ignored,
    };
    options.retention = Retention {
        count: settings.keep_generations.unwrap_or(KEEP_GENERATIONS),
        age: settings.keep_age.map(Seconds::duration),
    };
    options.threads = NonZeroUsize::new(settings.threads.unwrap_or(0));
    Ok(options)
}

fn filter(include: Option<&[Pattern]>, exclude: Option<&[Pattern]>) -> Result<Filter> {
    let mut filter = Filter::default();
    for Pattern(pattern) in include.unwrap_or_default() {
        filter.include(pattern.as_bytes())?;
    }
    for Pattern(pattern) in exclude.unwrap_or_default() {
        filter.exclude(pattern.as_bytes())?;
    }
    Ok(filter)
}

fn sums(settings: &Index) -> SumsPolicy {
    let default = SumsPolicy::default();
    SumsPolicy {
        enabled: settings.block_checksums.unwrap_or(default.enabled),
        finest: settings.smallest_block.map_or(default.finest, |Bytes(size)| size.try_into().unwrap_or(u32::MAX)),
        ..default
    }
}

/// Reads a list of changed paths.
fn read_names(from: &Path, null: bool) -> Result<Vec<Vec<u8>>> {
    let mut bytes = Vec::new();
    let read = if from == Path::new("-") {
        std::io::stdin().read_to_end(&mut bytes)
    } else {
        std::fs::File::open(from).and_then(|mut file| file.read_to_end(&mut bytes))
    };
    read.with_context(|| format!("cannot read the changed paths from {}", from.display()))?;
    let end = if null { 0 } else { b'\n' };
    Ok(bytes.split(|&byte| byte == end).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

/// Returns the names relative to the root. Fails if an absolute name is not below it.
fn below_root(names: &[Vec<u8>], root: &Path) -> Result<Vec<Vec<u8>>> {
    use std::os::unix::ffi::OsStrExt;
    let root = std::path::absolute(root).with_context(|| format!("cannot resolve {}", root.display()))?;
    let relative = |name: &Vec<u8>| {
        let path = Path::new(std::ffi::OsStr::from_bytes(name));
        let below = if path.is_absolute() { path.strip_prefix(&root).ok() } else { Some(path) };
        let below = below.ok_or_else(|| {
            UsageError(format!("the changed path {} is not below the root {}", path.display(), root.display()))
        })?;
        // Shells and find(1) write `a/b` as `./a//b/`, too.
        let parts: Vec<_> = below.components().filter(|part| *part != std::path::Component::CurDir).collect();
        Ok(parts.iter().map(|part| part.as_os_str().as_bytes()).collect::<Vec<_>>().join(&b'/'))
    };
    names.iter().map(relative).collect()
}

/// Prints the report. Returns the exit code.
fn print(name: &str, report: &Report, output: &OutputArgs) -> Exit {
    for problem in &report.unreadable {
        eprintln!("stillmirror: {name}: cannot read {}: {}", Escaped(&problem.path), problem.error);
    }
    for path in &report.rotten {
        eprintln!(
            "stillmirror: {name}: the content of {} is not the indexed one, although nothing says that the file \
             changed: it is not served until it has the indexed content again, or another mtime",
            Escaped(path)
        );
    }
    for path in &report.torn {
        eprintln!("stillmirror: {name}: {} kept changing while it was read", Escaped(path));
    }
    for problem in &report.refused {
        eprintln!("stillmirror: {name}: cannot keep the content of {}: {}", Escaped(&problem.path), problem.error);
    }
    if report.digests_postponed {
        eprintln!("stillmirror: {name}: the new digests are postponed to a run in which every file can be read");
    }
    if report.damaged > 0 {
        let files = count(report.damaged, "file");
        eprintln!("stillmirror: {name}: the store was damaged: its data for {files} was written again");
    }
    if output.json {
        line!("{}", to_json(name, report));
    } else if output.summary() {
        let counts = report.counts;
        let state = if report.published { "published" } else { "unchanged" };
        line!(
            "{name}: generation {} {state}: {} in {}, {}",
            report.generation,
            count(counts.files, "file"),
            count(counts.directories, "directory"),
            bytes(counts.bytes)
        );
        line!(
            "{name}: {} added, {} changed, {} removed; read {} in {:.2} s",
            report.added,
            report.changed,
            report.removed,
            bytes(report.hashed_bytes),
            report.time.total.as_secs_f64()
        );
        if report.pooled > 0 || report.unpooled > 0 {
            line!(
                "{name}: {} put into the pool; {} not kept there (on other file systems, or refused)",
                count(report.pooled, "content"),
                count(report.unpooled, "file")
            );
        }
    }
    let is_whole = report.unreadable.is_empty() && report.rotten.is_empty() && report.refused.is_empty();
    match (is_whole, report.torn.is_empty()) {
        (true, true) => Exit::Done,
        (false, _) => Exit::Partial,
        (true, false) => Exit::Vanished,
    }
}

fn to_json(name: &str, report: &Report) -> Value {
    let counts = report.counts;
    let time = report.time;
    json!({
        "repository": name,
        "generation": report.generation,
        "published": report.published,
        "files": counts.files,
        "directories": counts.directories,
        "symlinks": counts.symlinks,
        "specials": counts.specials,
        "bytes": counts.bytes,
        "added": report.added,
        "changed": report.changed,
        "removed": report.removed,
        "damaged": report.damaged,
        "hashed_files": report.hashed_files,
        "hashed_bytes": report.hashed_bytes,
        "unreadable": report.unreadable.iter().map(|problem| Escaped(&problem.path).to_string()).collect::<Vec<_>>(),
        "rotten": report.rotten.iter().map(|path| Escaped(path).to_string()).collect::<Vec<_>>(),
        "digests_postponed": report.digests_postponed,
        "pooled": report.pooled,
        "unpooled": report.unpooled,
        "refused": report.refused.iter().map(|problem| Escaped(&problem.path).to_string()).collect::<Vec<_>>(),
        "torn": report.torn.iter().map(|path| Escaped(path).to_string()).collect::<Vec<_>>(),
        "seconds": time.total.as_secs_f64(),
        "seconds_by_phase": {
            "open": time.open.as_secs_f64(),
            "walk": time.walk.as_secs_f64(),
            "hash": time.hash.as_secs_f64(),
            "publish": time.publish.as_secs_f64(),
        },
    })
}

/// Shows the indexer's progress on the bar.
struct BarProgress<'a> {
    bar: &'a ProgressBar,
    entries: AtomicU64,
    files: FilesDone,
}

impl<'a> BarProgress<'a> {
    fn new(bar: &'a ProgressBar) -> Self {
        progress::counting(bar, "walking");
        Self { bar, entries: AtomicU64::new(0), files: FilesDone::default() }
    }
}

impl indexer::Progress for BarProgress<'_> {
    fn walked(&self, entries: u64) {
        let entries = self.entries.fetch_add(entries, Ordering::Relaxed) + entries;
        if !self.bar.is_hidden() {
            self.bar.set_message(count(entries, "entry"));
        }
    }

    fn to_hash(&self, files: u64, bytes: u64) {
        progress::measuring(self.bar, "reading", &self.files, files, bytes);
    }

    fn hashed(&self, files: u64, bytes: u64) {
        self.files.add(files);
        self.bar.inc(bytes);
    }

    fn publishing(&self) {
        progress::counting(self.bar, "publishing");
        self.bar.set_message("");
    }
}
