//! The documents name only what exists: links, paths, flags and configuration keys are compared with the repository, the
//! binary's `--help` and `mirror.toml.example`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Flags of other programs that the documents name: rsync, then cargo and the scripts in `benches/system/`.
const FOREIGN_FLAGS: &str = "\
--append --append-verify --backup-dir --bwlimit --checksum-choice --checksum-seed --chmod --chown \
--compare-dest --compress-choice --compress-level --contimeout --copy-dest --copy-unsafe-links --daemon --del \
--delay-updates --delete-missing-args --devices --exclude-from --existing --fake-super --filter --force \
--fsync --fuzzy --groupmap --iconv --ignore-errors --ignore-existing --ignore-missing-args --include-from \
--info --inplace --link-dest --list-only --log-file --max-alloc --max-size --min-size --mkpath --modify-window \
--munge-links --new-compress --no-implied-dirs --no-inc-recursive --no-motd --no-relative --no-whole-file --old-args \
--old-compress --out-format --outbuf --partial --partial-dir --preallocate --progress --protocol --prune-empty-dirs \
--remove-source-files --safe-links --size-only --skip-compress --specials --stats --stop-after --usermap \
--unix-socket --write-devices \
--all --all-targets --bench --kill-whom --locked --now --release --rsync --save --signal --workspace";

/// Keys of `rsyncd.conf` that are quoted with a value.
const FOREIGN_KEYS: [&str; 1] = ["uid"];

/// Paths that exist only after a program ran.
const MADE_PATHS: [&str; 1] = ["fuzz/artifacts"];

/// Endings of names that belong to the repository even without their directories.
const OWN_ENDINGS: [&str; 6] = [".rs", ".md", ".py", ".service", ".timer", ".example"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Adds the files below `dir` to `files`, by their paths relative to the root.
fn collect_files(dir: &Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            if name != ".git" && name != "target" {
                collect_files(&path, files);
            }
        } else {
            files.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
        }
    }
}

/// Splits a document into its prose and its fenced blocks.
fn split(text: &str) -> (String, Vec<String>) {
    let (mut prose, mut fences, mut open) = (String::new(), Vec::new(), None::<String>);
    for line in text.lines() {
        let fence = line.trim_start().starts_with("```");
        match (&mut open, fence) {
            (None, true) => open = Some(String::new()),
            (None, false) => prose += &format!("{line}\n"),
            (Some(_), true) => fences.extend(open.take()),
            (Some(block), false) => *block += &format!("{line}\n"),
        }
    }
    assert!(open.is_none(), "a fenced block is not closed");
    (prose, fences)
}

/// Returns the spans in backticks, and the prose without them.
fn code_spans(prose: &str) -> (Vec<String>, String) {
    let (mut spans, mut rest) = (Vec::new(), String::new());
    for paragraph in prose.split("\n\n") {
        // Every second piece is within backticks; a table cell never holds a backtick itself.
        for (at, piece) in paragraph.split('`').enumerate() {
            if at % 2 == 1 {
                spans.push(piece.split_whitespace().collect::<Vec<_>>().join(" "));
            } else {
                rest += piece;
            }
        }
        rest += "\n\n";
    }
    (spans, rest)
}

/// Returns the targets of `[text](target)` that lead to files.
fn relative_links(prose: &str) -> Vec<&str> {
    let targets = prose.split("](").skip(1).filter_map(|after| after.split_once(')')).map(|(target, _)| target);
    targets.filter(|target| !target.contains("://") && !target.starts_with('#')).collect()
}

/// Returns the words that begin with `--` and a letter, without what follows an `=` or `*`.
fn flags(text: &str) -> Vec<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let words = text.split(|c: char| !is_part(c)).map(|word| word.trim_end_matches('-'));
    let named =
        |word: &&str| word.strip_prefix("--").is_some_and(|name| name.starts_with(|c: char| c.is_alphanumeric()));
    words.filter(named).map(str::to_owned).collect()
}

/// Returns `key` if the text has the form `key = …`.
fn assigned_key(text: &str) -> Option<&str> {
    let (key, _) = text.split_once(" = ")?;
    let is_key = !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    is_key.then_some(key)
}

fn help(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_stillmirror")).args(arguments).arg("--help").output().unwrap();
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What documents may name.
struct Facts {
    files: Vec<String>,
    /// The flags of each subcommand.
    commands: BTreeMap<String, BTreeSet<String>>,
    /// The flags of all subcommands and of other programs.
    flags: BTreeSet<String>,
    keys: BTreeSet<String>,
}

impl Facts {
    fn gather() -> Self {
        let mut files = Vec::new();
        collect_files(root(), &mut files);
        let main = help(&[]);
        let listed = main.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
        let names = listed
            .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
            .filter_map(|line| line.split_whitespace().next());
        let commands: BTreeMap<_, BTreeSet<_>> = names
            .filter(|name| *name != "help")
            .map(|name| (name.to_owned(), flags(&help(&[name])).into_iter().collect()))
            .collect();
        assert!(commands.contains_key("index") && commands["pull"].contains("--delete"), "{commands:?}");
        let foreign = FOREIGN_FLAGS.split_whitespace().map(str::to_owned);
        let flags = flags(&main).into_iter().chain(commands.values().flatten().cloned()).chain(foreign).collect();
        let example = fs::read_to_string(root().join("mirror.toml.example")).unwrap();
        let keys = example.lines().filter_map(|line| assigned_key(line.strip_prefix('#').unwrap_or(line)));
        let keys = keys.chain(FOREIGN_KEYS).map(str::to_owned).collect();
        Self { files, commands, flags, keys }
    }

    /// Returns what the document names and what does not exist.
    fn faults(&self, document: &str, text: &str) -> Vec<String> {
        let (prose, fences) = split(text);
        let (spans, plain) = code_spans(&prose);
        let dir = root().join(document).parent().unwrap().to_owned();
        let links = relative_links(&plain).into_iter();
        let mut faults: Vec<_> = links
            .filter(|target| !dir.join(target.split('#').next().unwrap()).exists())
            .map(|target| format!("link {target}"))
            .collect();
        for span in &spans {
            faults.extend(self.path_fault(span, &dir).map(|path| format!("path {path}")));
            let unknown = flags(span).into_iter().filter(|flag| !self.flags.contains(flag));
            faults.extend(unknown.map(|flag| format!("flag {flag}")));
            faults.extend(self.command_faults(span));
            faults.extend(self.key_fault(span));
        }
        for fence in &fences {
            faults.extend(fence.lines().flat_map(|line| self.command_faults(line)));
            if fence.lines().any(|line| ["[daemon]", "[index]", "[[repository]]"].contains(&line)) {
                faults.extend(fence.lines().filter_map(|line| self.key_fault(line)));
            }
        }
        faults
    }

    /// Returns the path that a span begins with if it looks like one of the repository and is not there.
    fn path_fault(&self, span: &str, dir: &Path) -> Option<String> {
        let word = span.split(' ').next()?.trim_end_matches('/');
        let is_path = |c: char| c.is_ascii_alphanumeric() || "._/-".contains(c);
        if word.starts_with('/') || !word.chars().all(is_path) {
            return None;
        }
        let missing = match word.split_once('/') {
            Some((top, _)) if self.files.iter().any(|file| file.split('/').next() == Some(top) && file != top) => {
                !root().join(word).exists() && !MADE_PATHS.contains(&word)
            }
            _ if OWN_ENDINGS.iter().any(|ending| word.ends_with(ending) && word != *ending) => {
                let end = format!("/{word}");
                !dir.join(word).exists() && !self.files.iter().any(|file| file == word || file.ends_with(&end))
            }
            _ => false,
        };
        missing.then(|| word.to_owned())
    }

    /// Returns the flags after `stillmirror COMMAND` that this command does not have.
    fn command_faults(&self, line: &str) -> Vec<String> {
        let mut faults = Vec::new();
        for after in line.split("stillmirror ").skip(1) {
            let Some((name, known)) = self.commands.get_key_value(after.split(' ').next().unwrap_or_default()) else {
                continue;
            };
            let own = after.split(['|', '#', ';', '&']).next().unwrap_or_default();
            let unknown = flags(own).into_iter().filter(|flag| !known.contains(flag));
            faults.extend(unknown.map(|flag| format!("{name} {flag}")));
        }
        faults
    }

    fn key_fault(&self, text: &str) -> Option<String> {
        let key = assigned_key(text)?;
        (!self.keys.contains(key)).then(|| format!("key {key}"))
    }
}

/// Returns the longest run of words in a quoted message without its variable parts: `…`, and single letters such as `N`.
fn longest_fixed_part(message: &str) -> String {
    let is_variable = |word: &&str| {
        let letters: Vec<_> = word.chars().filter(|c| c.is_alphanumeric()).collect();
        word.contains('…') || letters.len() == 1 && word.len() > usize::from(letters[0].is_lowercase())
    };
    let words: Vec<_> = message.split(' ').collect();
    let runs = words.split(|word| is_variable(word)).map(|run| run.join(" "));
    runs.max_by_key(String::len).unwrap_or_default()
}

/// README.md and the like, and everything below `docs/`.
fn documents(facts: &Facts) -> Vec<&str> {
    let named = ["README.md", "CONTRIBUTING.md", "SECURITY.md"];
    let is_document = |file: &&str| named.contains(file) || file.starts_with("docs/") && file.ends_with(".md");
    facts.files.iter().map(String::as_str).filter(is_document).collect()
}

#[test]
fn documents_name_only_what_exists() {
    let facts = Facts::gather();
    let documents = documents(&facts);
    assert!(documents.len() > 10 && documents.contains(&"README.md"), "{documents:?}");
    let mut named = BTreeSet::new();
    let mut faults = Vec::new();
    for document in documents {
        let text = fs::read_to_string(root().join(document)).unwrap();
        named.extend(code_spans(&split(&text).0).0.iter().flat_map(|span| flags(span)));
        faults.extend(facts.faults(document, &text).into_iter().map(|fault| format!("{document}: {fault}")));
    }
    assert!(faults.is_empty(), "these do not exist:\n{}", faults.join("\n"));
    let stale: Vec<_> = FOREIGN_FLAGS.split_whitespace().filter(|flag| !named.contains(*flag)).collect();
    assert!(stale.is_empty(), "FOREIGN_FLAGS lists what no document names: {stale:?}");
}

#[test]
fn messages_in_the_troubleshooting_table_are_in_the_sources() {
    let mut files = Vec::new();
    collect_files(root(), &mut files);
    let mut sources = String::new();
    for file in files.iter().filter(|file| file.ends_with(".rs") && !file.contains("tests/")) {
        for line in fs::read_to_string(root().join(file)).unwrap().lines() {
            // A string literal that goes on in the next line.
            match line.strip_suffix('\\') {
                Some(line) => sources += line.trim_start(),
                None => sources += &format!("{}\n", line.trim_start()),
            }
        }
    }
    let text = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let (_, table) = text.split_once("## Troubleshooting").unwrap();
    let first_cells: Vec<_> = table.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next()).collect();
    assert!(first_cells.len() > 5, "{first_cells:?}");
    let missing: Vec<_> = first_cells
        .iter()
        .filter_map(|cell| cell.split('`').next())
        .map(longest_fixed_part)
        .filter(|part| part.split(' ').count() < 2 || !sources.contains(part.as_str()))
        .collect();
    assert!(missing.is_empty(), "no source has these messages: {missing:?}");
}

#[test]
fn the_exit_codes_are_those_of_the_help() {
    let help = help(&[]);
    let (_, listed) = help.split_once("Exit codes:").unwrap();
    let of_help: Vec<_> =
        listed.lines().filter_map(|line| line.split_whitespace().next()?.parse::<u8>().ok()).collect();
    let text = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let cells = text.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse().ok());
    assert_eq!(cells.collect::<Vec<u8>>(), of_help);
}

#[test]
fn the_fixed_part_of_a_message_is_between_its_variables() {
    let message = "the root … is empty, and generation N has F files: is it mounted?";
    assert_eq!(longest_fixed_part(message), "is empty, and generation");
    assert_eq!(longest_fixed_part("the store of 'a', not of a b"), "the store of");
    assert_eq!(longest_fixed_part("written by a process (process P)"), "written by a process (process");
}

#[test]
fn the_finder_finds_each_kind_of_fault_and_nothing_else() {
    let text = "\
A [good](ARCHITECTURE.md) link, a [bad](gone.md) one, one to [elsewhere](https://example.org/gone.md#x).
`daemon/src/lib.rs`, `src/main.rs`, `lib.rs` and `deploy/` exist; `daemon/src/gone.rs` and `gone.rs` do not.
`/srv/gone.rs` and `lists/gone` are not of the repository. A span may break: `stillmirror pull
--delete --changed-from`. `--delete`, `--files-from=:x` and `--max-delete 5` are flags, `--gone=1` is none.
`reload_interval = \"1s\"` is a key, `gone_key = 1` is none, `a sentence = this` is no key.

```
stillmirror pull --delete --scrub 1 | other --gone   # --gone
[daemon]
cache = 1
gone_cache = 1
```
";
    let faults = Facts::gather().faults("docs/sample.md", text);
    let expected = [
        "link gone.md",
        "path daemon/src/gone.rs",
        "path gone.rs",
        "pull --changed-from",
        "flag --gone",
        "key gone_key",
        "pull --scrub",
        "key gone_cache",
    ];
    assert_eq!(faults, expected);
}
