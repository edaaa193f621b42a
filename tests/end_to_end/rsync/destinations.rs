//! Random source trees, destinations and command lines. The result must be the same as with a stock daemon. Failures are
//! shrunk to small cases.
//!
//! The default run is short and always the same. `benches/system/rsync_destinations.py` makes long runs with the
//! environment variables in `settings`.

mod options;
mod report;
mod settings;
mod source;
mod state;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use self::options::Line;
use self::report::{Failure, Report};
use self::settings::{Judged, Settings};
use self::source::Entry;
use self::state::{Base, Op};
use super::peers::{Difference, Gap, HANGS, Pulled, Stock, am_root, differences, gaps, index, pull_and_look};
use super::tree::{SOME_TIME, touch};
use crate::support::*;

/// The number of cases with one source tree, for which both daemons are started once.
const BATCH: usize = 12;
/// The maximum number of steps for shrinking a failure.
const SHRINKING_STEPS: usize = 300;
/// Exit codes of clients that give up: syntax, protocol, unsupported, start, socket, stream, time.
const GIVES_UP: [i32; 7] = [1, 2, 4, 5, 10, 12, HANGS];
/// The maximum number of names if symlinks are followed. A few symlinks can multiply a tree beyond any bound.
const FOLLOWED_LIMIT: usize = 3000;

#[test]
fn every_state_of_a_destination_becomes_what_a_stock_daemon_makes_of_it() {
    let settings = Settings::from_environment();
    let report = judge(&settings);
    settings.save(&report);
    println!("{report}");
    assert!(report.failures.is_empty(), "{} cases differ", report.failures.len());
}

/// Runs all cases. Clients sleep most of the time, so batches run concurrently, each with its own seed.
fn judge(settings: &Settings) -> Report {
    let (report, gaps) = (Mutex::new(Report::default()), gaps());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..settings.jobs {
            scope.spawn(|| {
                loop {
                    let done = next.fetch_add(1, Ordering::Relaxed) * BATCH;
                    if done >= settings.cases {
                        break;
                    }
                    let seed = settings.seed + (done / BATCH) as u64;
                    judge_batch(settings, &gaps, seed, BATCH.min(settings.cases - done), &report);
                }
            });
        }
    });
    report.into_inner().expect("no thread panicked")
}

fn judge_batch(settings: &Settings, gaps: &[Gap], seed: u64, count: usize, report: &Mutex<Report>) {
    let mut runner = runner(seed);
    let entries = source::any().new_tree(&mut runner).expect("a tree").current();
    let judge = Judge { settings, gaps, entries: &entries, peers: RefCell::default() };
    let cases = Case::any(&judge.peers_of(&vec![true; entries.len()]).facts(), settings, entries.len());
    for _ in 0..count {
        judge.try_case(cases.new_tree(&mut runner).expect("a case"), seed, report);
    }
}

fn runner(seed: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// What both clients start from, and their command line.
#[derive(Clone, Debug)]
struct Case {
    line: Line,
    base: Base,
    ops: Vec<Op>,
    /// The operations on the copy for `--link-dest` and similar options.
    alt: Vec<Op>,
    /// Which entries the source tree has. All of them, until shrinking removes some.
    kept: Vec<bool>,
}

impl Case {
    fn any(facts: &options::Facts, settings: &Settings, entries: usize) -> BoxedStrategy<Self> {
        let line = options::any(facts, settings.protocol, &settings.without);
        let base = select(vec![Base::Empty, Base::Copy, Base::Copy, Base::Copy, Base::Copy, Base::Copy, Base::Absent]);
        let ops = prop_oneof![
            1 => state::ops(&facts.paths, &facts.dirs, 5),
            2 => state::ops(&facts.paths, &facts.dirs, 20),
        ];
        let alt = state::ops(&facts.paths, &facts.dirs, 6);
        (line, ops, alt, base, vec![prop::bool::weighted(1.0); entries])
            .prop_map(|(line, ops, alt, base, kept)| {
                // If a destination has many names of each file, every pull is a race.
                let base = if line.merges_names() { Base::Empty } else { base };
                Self { line, base, ops, alt, kept }
            })
            .boxed()
    }

    fn command(&self) -> String {
        format!("rsync {}", self.line.words("NAMES").join(" "))
    }

    fn uses_alt(&self) -> bool {
        self.line.options().any(|word| word.ends_with("=../alt"))
    }
}

/// Judges the cases of one source tree.
struct Judge<'a> {
    settings: &'a Settings,
    gaps: &'a [Gap],
    entries: &'a [Entry],
    /// The daemons for the entries that were used last.
    peers: RefCell<Option<(Vec<bool>, Rc<Peers>)>>,
}

/// What differs in one case.
#[derive(Default)]
struct Found {
    unexplained: Vec<Difference>,
    is_known: bool,
    features: Vec<String>,
    codes: [Option<i32>; 2],
    errors: [String; 2],
}

impl Found {
    fn facets(&self) -> BTreeSet<&str> {
        self.unexplained.iter().map(|(facet, _)| facet.as_str()).collect()
    }
}

impl Judge<'_> {
    fn try_case(&self, mut tree: impl ValueTree<Value = Case>, seed: u64, report: &Mutex<Report>) {
        let report = || report.lock().expect("no thread panicked");
        let case = tree.current();
        let found = self.compare(&case);
        report().count(case.command(), &case.line.features(), &found);
        if found.unexplained.is_empty() {
            return;
        }
        let again = self.compare(&case);
        if again.unexplained.is_empty() || !self.is_steady(&case) {
            report().unsteady.push(self.failure(&case, &found, seed));
            return;
        }
        let mut least = (case, again);
        if report().begin_to_shrink(self.settings.shrunk) {
            self.shrink(&mut tree, &mut least);
        }
        let failure = self.failure(&least.0, &least.1, seed);
        eprintln!("{failure}");
        let is_steady = self.is_steady(&least.0);
        let mut report = report();
        if is_steady {
            report.failures.push(failure);
        } else {
            report.unsteady.push(failure);
        }
    }

    /// Returns whether two stock daemons give the same result, and end. Otherwise the case proves nothing.
    fn is_steady(&self, case: &Case) -> bool {
        let peers = self.peers_of(&case.kept);
        (0..3)
            .map(|_| peers.compare(case, self, true))
            .all(|found| found.unexplained.is_empty() && !found.codes.contains(&Some(HANGS)))
    }

    /// Drops everything that the failure does not need.
    fn shrink(&self, tree: &mut impl ValueTree<Value = Case>, least: &mut (Case, Found)) {
        let facets: BTreeSet<_> = least.1.facets().into_iter().map(str::to_owned).collect();
        let mut goes_on = tree.simplify();
        for _ in 0..SHRINKING_STEPS {
            if !goes_on {
                break;
            }
            let case = tree.current();
            let found = self.compare(&case);
            // Another failure is not a simpler form of this one.
            if found.facets().iter().any(|facet| facets.contains(*facet)) {
                *least = (case, found);
                goes_on = tree.simplify();
            } else {
                // A failure that occurs only now and then is no reason to stop.
                goes_on = tree.complicate() || tree.simplify();
            }
        }
    }

    fn compare(&self, case: &Case) -> Found {
        self.peers_of(&case.kept).compare(case, self, false)
    }

    /// Returns the daemons that serve these entries, and starts them if necessary.
    fn peers_of(&self, kept: &[bool]) -> Rc<Peers> {
        let mut peers = self.peers.borrow_mut();
        match &*peers {
            Some((known, peers)) if known == kept => peers.clone(),
            _ => {
                *peers = None;
                let entries: Vec<_> = self.kept(kept).cloned().collect();
                let new = Rc::new(Peers::start(entries, &self.settings.judged));
                *peers = Some((kept.to_vec(), new.clone()));
                new
            }
        }
    }

    fn kept<'b>(&'b self, kept: &'b [bool]) -> impl Iterator<Item = &'b Entry> {
        self.entries.iter().zip(kept).filter_map(|(entry, kept)| kept.then_some(entry))
    }

    fn failure(&self, case: &Case, found: &Found, seed: u64) -> Failure {
        let lines = |ops: &[Op]| ops.iter().map(ToString::to_string).collect();
        Failure {
            seed,
            source: self.kept(&case.kept).map(ToString::to_string).collect(),
            base: format!("{:?}", case.base).to_lowercase(),
            ops: lines(&case.ops),
            alt: if case.uses_alt() { lines(&case.alt) } else { Vec::new() },
            command: case.command(),
            names: case.line.names().unwrap_or_default(),
            codes: found.codes,
            differences: found.unexplained.clone(),
            errors: found.errors.clone(),
        }
    }
}

/// The daemons for one source tree.
struct Peers {
    world: World,
    entries: Vec<Entry>,
    stock: Stock,
    judged: Daemon,
    runs: AtomicUsize,
}

/// The daemon under test.
enum Daemon {
    Ours(Server),
    Stock(Stock),
}

impl Daemon {
    fn address(&self) -> &str {
        match self {
            Self::Ours(server) => &server.address,
            Self::Stock(stock) => &stock.address,
        }
    }
}

impl Peers {
    fn start(entries: Vec<Entry>, judged: &Judged) -> Self {
        let world = World::new();
        std::fs::remove_dir(world.src()).expect("an empty directory");
        source::make(&world.src(), &entries);
        let judged = match judged {
            Judged::Ours => {
                index(&world);
                Daemon::Ours(world.serve())
            }
            Judged::StockAgain => Daemon::Stock(stock(&world)),
        };
        Self { stock: stock(&world), judged, world, entries, runs: AtomicUsize::new(0) }
    }

    fn facts(&self) -> options::Facts {
        let src = self.world.src();
        let (mut paths, mut dirs, mut through) = (Vec::new(), Vec::new(), Vec::new());
        source::walk(&src, &mut |path, facts| {
            let name = path.strip_prefix(&src).expect("below").to_str().expect("plain names").to_owned();
            if facts.is_dir() && !name.is_empty() && !name.starts_with("crowd/") {
                dirs.push(name.clone());
            } else if facts.is_symlink() {
                let below = std::fs::read_dir(path).into_iter().flatten().flatten().take(20);
                through.extend(below.filter_map(|entry| Some(format!("{name}/{}", entry.file_name().to_str()?))));
            }
            if !name.is_empty() && !name.contains("crowd/") {
                paths.push(name);
            }
        });
        dirs.push(String::new());
        options::Facts { paths, dirs, through, may_follow: self.stays_small() }
    }

    fn stays_small(&self) -> bool {
        let place = self.world.path("small");
        let pulled = pull(&self.stock.address, &["-rL", "--list-only", "{M}/"], &place, |_| ());
        pulled.out.len() <= FOLLOWED_LIMIT && pulled.code != Some(HANGS)
    }

    /// Runs both clients from the same state. With `against_itself`, another stock daemon replaces the judged one.
    fn compare(&self, case: &Case, judge: &Judge<'_>, against_itself: bool) -> Found {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let list = self.world.path(&format!("names-{run}"));
        if let Some(names) = case.line.names() {
            std::fs::write(&list, names).expect("a list");
        }
        let words = case.line.words(&list.to_string_lossy());
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let other = against_itself.then(|| stock(&self.world));
        let address = other.as_ref().map_or(self.judged.address(), |other| &other.address);
        let (src, entries) = (self.world.src(), &self.entries);
        let pull = |address: &str, place: &Path| {
            let mut features = Vec::new();
            let pulled = pull(address, &words, place, |place| {
                let destination = prepare(case, place, &src, entries);
                features.clone_from(&destination[0].features);
                destination
            });
            (pulled, features)
        };
        let place = |name: &str| self.world.path(&format!("run-{run}-{name}"));
        let (places, reference) = ([place("stock"), place("judged")], &self.stock.address);
        let ((stock, features), (judged, _)) = std::thread::scope(|scope| {
            let stock = scope.spawn(|| pull(reference, &places[0]));
            let judged = pull(address, &places[1]);
            (stock.join().expect("a pull"), judged)
        });
        let (name, protocol) = (format!("destinations: {}", case.command()), case.line.protocol());
        let mut all = differences(&stock, &judged);
        // How far clients get before they give up is a race.
        if stock.code == judged.code && stock.code.is_some_and(|code| GIVES_UP.contains(&code)) {
            all.clear();
        }
        let is_explained =
            |found: &&Difference| judge.gaps.iter().any(|gap| gap.explains(&name, protocol, &stock, found));
        let unexplained: Vec<_> = all.iter().filter(|found| !is_explained(found)).cloned().collect();
        let codes = [stock.code, judged.code];
        let is_known = unexplained.len() < all.len();
        Found { unexplained, is_known, features, codes, errors: [stock.errors, judged.errors] }
    }
}

/// Pulls in a separate directory, which holds the destination and the directories next to it.
fn pull<T>(address: &str, words: &[&str], place: &Path, prepare: impl FnOnce(&Path) -> T) -> Pulled {
    std::fs::create_dir(place).expect("a directory");
    let prepared = prepare(place);
    touch(place, SOME_TIME, 0);
    let pulled = pull_and_look(address, words, &place.join("dest"), place);
    drop(prepared);
    remove(place);
    pulled
}

fn prepare(case: &Case, place: &Path, src: &Path, entries: &[Entry]) -> Vec<state::Destination> {
    state::make_outside(&place.join("out"));
    let make = |name: &str, base, ops: &[Op]| state::make(&place.join(name), src, entries, base, ops);
    let mut made = vec![make("dest", case.base, &case.ops)];
    if case.uses_alt() {
        made.push(make("alt", Base::Copy, &case.alt));
    }
    made
}

/// Starts a stock daemon. As root it uses chroot, so that it follows symlinks only within the module.
fn stock(world: &World) -> Stock {
    Stock::start(&world.src(), if am_root() { "use chroot = yes" } else { "" })
}

/// Removes a directory, which may contain directories that are not writable.
fn remove(place: &Path) {
    if !am_root() {
        source::walk(place, &mut |path, facts| {
            if facts.is_dir() {
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
                let _ = std::fs::set_permissions(path, mode);
            }
        });
    }
    std::fs::remove_dir_all(place).expect("it goes");
}
