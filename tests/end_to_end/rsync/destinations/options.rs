//! Random command lines.

use std::fmt::Write;

use proptest::prelude::*;
use proptest::sample::select;

/// Options of which a case has at most one.
struct Row {
    /// How many of 100 cases have one of them.
    share: u32,
    choices: &'static [Choice],
}

/// Words of a command line, and the oldest protocol at which a client accepts them.
pub(super) type Choice = (&'static str, u8);

const ROWS: [Row; 11] = [
    Row {
        share: 100,
        choices: &[
            ("-a", 27),
            ("-a", 27),
            ("-aH", 27),
            ("-aH", 27),
            ("-rlt", 27),
            ("-rltH", 27),
            ("-rlptHS", 27),
            ("-rltgoD", 27),
            ("-r", 27),
            ("-rt", 27),
            ("-dlt", 27),
        ],
    },
    Row {
        share: 65,
        choices: &[
            ("--delete", 27),
            ("--delete-before", 27),
            ("--delete-during", 27),
            ("--delete-delay", 27),
            ("--delete-after", 27),
            ("--delete-excluded", 27),
            ("--delete-after --delete-excluded", 27),
            ("--delete --force", 27),
            ("--delete --ignore-errors", 27),
            ("--delete --max-delete=2", 27),
            ("--delete --max-delete=0", 27),
        ],
    },
    Row {
        share: 35,
        choices: &[
            ("--existing", 27),
            ("--ignore-existing", 27),
            ("--existing --ignore-existing", 27),
            ("-u", 27),
            ("--size-only", 27),
            ("-I", 27),
            ("-c", 30),
            ("--modify-window=1", 27),
            ("--max-size=5000", 27),
            ("--min-size=10", 27),
        ],
    },
    Row { share: 18, choices: &[("-n", 27)] },
    Row {
        share: 75,
        choices: &[("-i", 27), ("-ii", 27), ("-v", 27), ("--stats", 27), ("-i --stats", 27), ("-iv", 27)],
    },
    Row {
        share: 40,
        choices: &[
            ("--inplace", 27),
            ("--partial", 27),
            ("--partial-dir=.p", 27),
            ("--delay-updates", 27),
            ("--delay-updates --partial-dir=.p", 27),
            ("--fuzzy", 29),
            ("-W", 27),
            ("--no-whole-file --block-size=700", 27),
            ("--append", 27),
            ("--append-verify", 27),
            ("-S", 27),
        ],
    },
    Row {
        share: 22,
        choices: &[
            ("--link-dest=../alt", 27),
            ("--copy-dest=../alt", 27),
            ("--compare-dest=../alt", 27),
            ("--backup", 27),
            ("--backup --suffix=.old", 27),
            ("--backup --backup-dir=../backup", 27),
            ("--backup --backup-dir=.bak", 27),
        ],
    },
    Row {
        share: 35,
        choices: &[
            ("-L", 27),
            ("-k", 27),
            ("-K", 27),
            ("-k -K", 27),
            ("-L -K", 27),
            ("--copy-unsafe-links", 27),
            ("--safe-links", 27),
            ("--munge-links", 27),
            ("--no-links", 27),
        ],
    },
    Row {
        share: 40,
        choices: &[
            ("--no-inc-recursive", 27),
            ("-m", 29),
            ("-x", 27),
            ("-O", 27),
            ("-J", 27),
            ("--force", 27),
            ("--ignore-errors", 27),
            ("--numeric-ids", 27),
            ("--chmod=D755,F644", 27),
            ("--no-o --no-g", 27),
            ("-s", 27),
            ("-z", 27),
            ("--no-D", 27),
            ("-E", 27),
        ],
    },
    Row {
        share: 35,
        choices: &[
            ("--filter=:_.name", 29),
            ("--filter=:r_.name", 29),
            ("-F", 29),
            ("-FF", 29),
            ("--filter=:s_.name", 29),
            ("--filter=:n_.name", 29),
            ("--filter=:e_.name", 29),
            ("--filter=:-_.name", 29),
            ("--filter=:C", 29),
        ],
    },
    Row { share: 12, choices: &[("-R", 27), ("-R --no-implied-dirs", 30)] },
];

const FILTERS: [Choice; 21] = [
    ("-C", 27),
    ("--filter=P_keep*", 29),
    ("--filter=P_*.o", 29),
    ("--filter=R_keep1", 29),
    ("--filter=H_local*", 29),
    ("--filter=S_local1", 29),
    ("--filter=-r_f*", 29),
    ("--filter=-s_*.o", 29),
    ("--filter=-p_local*", 29),
    ("--filter=-!_*/", 29),
    ("--exclude=local*", 27),
    ("--exclude=keep*", 27),
    ("--exclude=*.o", 27),
    ("--include=*.o", 27),
    ("--exclude=/a/", 27),
    ("--exclude=a-b/", 27),
    ("--exclude=sub/", 27),
    ("--exclude=/a/**", 27),
    ("--exclude=.~tmp~", 27),
    ("--include=*/ --include=f* --exclude=*", 27),
    ("--exclude=*", 27),
];

const FOLLOWS: [&str; 3] = ["-L", "-k", "--copy-unsafe-links"];

/// A command line.
#[derive(Clone, Debug)]
pub(super) struct Line {
    rows: Vec<Option<Choice>>,
    filters: Vec<Choice>,
    /// `--files-from`, with options of its own.
    names: Option<(Vec<String>, Choice)>,
    sources: Vec<String>,
    protocol: u8,
    to_a_name: bool,
}

/// What the command lines need to know about a source tree.
pub(super) struct Facts {
    pub(super) paths: Vec<String>,
    pub(super) dirs: Vec<String>,
    /// Names below symlinks to directories.
    pub(super) through: Vec<String>,
    /// Whether the tree stays small when symlinks are followed.
    pub(super) may_follow: bool,
}

/// Generates command lines: with `protocol` only, if set, and without the words in `without`.
pub(super) fn any(facts: &Facts, protocol: Option<u8>, without: &[String]) -> impl Strategy<Value = Line> + use<> {
    let allowed = |choices: &[Choice]| -> Vec<Choice> {
        let is_left_out = |word: &str| {
            without.iter().any(|left_out| left_out == word) || !facts.may_follow && FOLLOWS.contains(&word)
        };
        choices.iter().filter(|(words, _)| !words.split(' ').any(is_left_out)).copied().collect()
    };
    let rows: Vec<BoxedStrategy<Option<Choice>>> = ROWS
        .iter()
        .map(|row| match allowed(row.choices) {
            choices if choices.is_empty() => Just(None).boxed(),
            choices if row.share == 100 => select(choices).prop_map(Some).boxed(),
            choices => prop::option::weighted(f64::from(row.share) / 100.0, select(choices)).boxed(),
        })
        .collect();
    let filters = match allowed(&FILTERS) {
        choices if choices.is_empty() => Just(Vec::new()).boxed(),
        choices => prop_oneof![
            2 => Just(Vec::new()),
            1 => prop::collection::vec(select(choices), 1..=3)
        ]
        .boxed(),
    };
    let protocols = protocol.map_or_else(|| (27..=32).collect(), |only| vec![only]);
    let names = if without.iter().any(|word| word == "--files-from") {
        Just(None).boxed()
    } else {
        prop::option::weighted(0.14, names(facts)).boxed()
    };
    // No protocol is simpler than another.
    let protocol = select(protocols).no_shrink();
    (rows, filters, names, sources(facts), prop::bool::weighted(0.03), protocol).prop_map(
        |(rows, filters, names, sources, to_a_name, protocol)| Line {
            rows,
            filters,
            names,
            sources,
            protocol,
            to_a_name,
        },
    )
}

fn names(facts: &Facts) -> impl Strategy<Value = (Vec<String>, Choice)> + use<> {
    let options: &'static [Choice] = &[
        ("-a", 27),
        ("-r", 27),
        ("--no-relative", 27),
        ("--no-implied-dirs", 30),
        ("-r --no-implied-dirs", 30),
        ("-r --delete-missing-args", 27),
        ("--ignore-missing-args", 27),
    ];
    let through = if facts.through.is_empty() { facts.paths.clone() } else { facts.through.clone() };
    let name = prop_oneof![
        5 => select(facts.paths.clone()),
        2 => select(through),
        1 => Just("no/such/name".to_owned()),
        1 => select(facts.dirs.clone()).prop_map(|dir| format!("{dir}/")),
    ];
    (prop::collection::vec(name.no_shrink(), 1..=6), select(options))
}

fn sources(facts: &Facts) -> impl Strategy<Value = Vec<String>> + use<> {
    let path = prop_oneof![6 => select(facts.paths.clone()), 1 => select(through(facts))];
    let dir = select(facts.dirs.clone());
    let one = prop_oneof![
        4 => path.clone(),
        5 => dir.clone().prop_map(|dir| format!("{dir}/")),
        1 => dir.prop_map(|dir| format!("{}/./{}", dir.split('/').next().unwrap_or_default(), dir.split('/').next_back().unwrap_or_default())),
        2 => path.prop_map(|path| path.replacen('/', "/./", 1)),
        1 => select(vec!["*".to_owned(), "a*".into(),  "no/such".into(), "[a-k]*".into()]),
    ];
    prop_oneof![
        7 => Just(vec![String::new()]),
        4 => prop::collection::vec(one.no_shrink(), 1..=3),
    ]
}

fn through(facts: &Facts) -> Vec<String> {
    if facts.through.is_empty() { facts.paths.clone() } else { facts.through.clone() }
}

impl Line {
    pub(super) fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Returns the options that the protocol supports.
    pub(super) fn options(&self) -> impl Iterator<Item = &'static str> {
        let chosen = self.rows.iter().flatten().chain(&self.filters);
        let of_names = self.names.iter().map(|(_, options)| options);
        chosen.chain(of_names).filter(|(_, oldest)| *oldest <= self.protocol).flat_map(|(words, _)| words.split(' '))
    }

    /// Returns whether a client follows, in its destination, symlinks that the daemon sends as directories.
    pub(super) fn merges_names(&self) -> bool {
        self.options().any(|word| word == "-K") && self.options().any(|word| FOLLOWS.contains(&word))
    }

    /// Returns the content of the list for `--files-from`.
    pub(super) fn names(&self) -> Option<String> {
        let (names, _) = self.names.as_ref()?;
        Some(names.iter().fold(String::new(), |mut text, name| {
            let _ = writeln!(text, "{name}");
            text
        }))
    }

    /// Returns all words. `list` is the path of the list for `--files-from`.
    pub(super) fn words(&self, list: &str) -> Vec<String> {
        let options = self.options().map(str::to_owned);
        let list = self.names.iter().map(|_| format!("--files-from={list}"));
        // With a list of names there is one source, a directory. There is no `*/`: of several directories, the first
        // one's attributes are used, and the file system decides which one a wildcard expands to first.
        let sources = match &self.names {
            Some(_) => &self.sources[..1],
            None => &self.sources[..],
        };
        let sources = sources.iter().map(|source| match &self.names {
            Some(_) if !source.ends_with('/') => "{M}/".to_owned(),
            _ => format!("{{M}}/{source}"),
        });
        let dest = if self.to_a_name { "{D}" } else { "{D}/" };
        std::iter::once(format!("--protocol={}", self.protocol))
            .chain(options)
            .chain(list)
            .chain(sources)
            .chain([dest.to_owned()])
            .collect()
    }

    /// Returns the features that the report counts.
    pub(super) fn features(&self) -> Vec<String> {
        let mut found: Vec<_> = self.options().map(str::to_owned).collect();
        found.extend(self.names.iter().map(|_| "--files-from".to_owned()));
        found.push(format!("--protocol={}", self.protocol));
        found.push(match &self.sources[..] {
            [whole] if whole.is_empty() => "the whole module".into(),
            [one] if one.contains('*') || one.contains('[') => "a wildcard".into(),
            [one] if one.contains("/./") => "a source with /./".into(),
            [one] if one.ends_with('/') => "what is in one directory".into(),
            [_] => "one source".into(),
            _ => "several sources".into(),
        });
        found
    }
}
