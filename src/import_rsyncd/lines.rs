//! Reads an rsyncd.conf, with the files that it includes.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result};

use crate::exit::UsageError;

/// A parameter of the file.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) at: Place,
    /// The name as the manual writes it. In lower case, if the manual does not have it.
    pub(super) key: String,
    pub(super) value: String,
}

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: Rc<Path>,
    pub(super) line: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// A module, with the global parameters that were in force where it begins.
#[derive(Debug, Clone)]
pub(super) struct Module {
    pub(super) at: Place,
    pub(super) name: String,
    pub(super) lines: Vec<Line>,
    pub(super) defaults: Vec<Line>,
}

/// What the files contain.
#[derive(Debug, Default)]
pub(super) struct Modules {
    /// The parameters outside of modules, in all files.
    pub(super) global: Vec<Line>,
    pub(super) modules: Vec<Module>,
}

impl Modules {
    /// Reads a file and what it includes.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let mut reading = Reading::default();
        reading.file(path, &mut Section::default(), 0)?;
        Ok(reading.found)
    }
}

/// Where in a file the next line belongs.
#[derive(Debug, Clone, Default)]
struct Section {
    /// The index of the module. `None` outside of modules.
    module: Option<usize>,
    /// The global parameters in force.
    defaults: Vec<Line>,
}

#[derive(Default)]
struct Reading {
    found: Modules,
    files: usize,
}

impl Reading {
    fn file(&mut self, path: &Path, section: &mut Section, depth: usize) -> Result<()> {
        self.files += 1;
        if depth > MAX_DEPTH || self.files > MAX_FILES {
            let message = format!("{}: more than {MAX_FILES} files, or {MAX_DEPTH} inside each other", path.display());
            return Err(UsageError(message).into());
        }
        let text = read(path)?;
        let file: Rc<Path> = path.into();
        let mut numbered = text.lines().enumerate();
        while let Some((number, first)) = numbered.next() {
            let at = Place { file: Rc::clone(&file), line: number + 1 };
            let mut line = first.trim().to_owned();
            if line.starts_with('#') {
                continue;
            }
            while let Some(begun) = line.strip_suffix('\\') {
                let Some((_, next)) = numbered.next() else {
                    line = begun.to_owned();
                    break;
                };
                line = format!("{begun}{}", next.trim_end());
            }
            self.line(line.trim(), at, section, depth)?;
        }
        Ok(())
    }

    fn line(&mut self, line: &str, at: Place, section: &mut Section, depth: usize) -> Result<()> {
        if line.is_empty() {
            return Ok(());
        }
        if let Some(path) = line.strip_prefix("&include ") {
            // What an included file sets holds only there.
            let paths = included(Path::new(path.trim()), "conf")?;
            return paths.iter().try_for_each(|path| {
                let mut inner = Section { module: None, defaults: section.defaults.clone() };
                self.file(path, &mut inner, depth + 1)
            });
        }
        if let Some(path) = line.strip_prefix("&merge ") {
            let paths = included(Path::new(path.trim()), "inc")?;
            return paths.iter().try_for_each(|path| self.file(path, section, depth + 1));
        }
        if let Some(name) = line.strip_prefix('[') {
            let name = name.strip_suffix(']').map(words).filter(|name| !name.is_empty());
            let name = name.ok_or_else(|| UsageError(format!("{at}: '{line}' is not a module: write [name]")))?;
            section.module = (!name.eq_ignore_ascii_case("global")).then(|| {
                let defaults = section.defaults.clone();
                self.found.modules.push(Module { at, name, lines: Vec::new(), defaults });
                self.found.modules.len() - 1
            });
            return Ok(());
        }
        let (key, value) = line
            .split_once('=')
            .ok_or_else(|| UsageError(format!("{at}: '{line}' is not a parameter: write name = value")))?;
        let line = Line { at, key: name(key), value: value.trim().to_owned() };
        match section.module.and_then(|module| self.found.modules.get_mut(module)) {
            Some(module) => module.lines.push(line),
            None => {
                section.defaults.push(line.clone());
                self.found.global.push(line);
            }
        }
        Ok(())
    }
}

/// Returns a name with one space between its words.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns a parameter's name as the manual writes it. Case and white space do not count.
fn name(text: &str) -> String {
    let bare = |text: &str| text.replace(|c: char| c.is_whitespace() || c == '-' || c == '_', "").to_ascii_lowercase();
    let known = NAMES.iter().find(|known| bare(known) == bare(text));
    known.map_or_else(|| words(text).to_ascii_lowercase(), |known| (*known).to_owned())
}

fn read(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(UsageError(format!("{}: larger than {MAX_BYTES} bytes", path.display())).into());
    }
    String::from_utf8(bytes).map_err(|_| UsageError(format!("{}: not UTF-8", path.display())).into())
}

/// Returns the file, or the files with an extension in a directory, in order.
fn included(path: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    Ok(paths)
}

/// The parameters that can stand in a module, or before the modules as their default.
pub(super) const NAMES: &[&str] = &[
    "auth users",
    "charset",
    "comment",
    "dont compress",
    "early exec",
    "exclude from",
    "exclude",
    "fake super",
    "filter",
    "forward lookup",
    "gid",
    "hosts allow",
    "hosts deny",
    "ignore errors",
    "ignore nonreadable",
    "include from",
    "include",
    "incoming chmod",
    "list",
    "lock file",
    "log file",
    "log format",
    "max connections",
    "max verbosity",
    "munge symlinks",
    "name converter",
    "numeric ids",
    "open noatime",
    "outgoing chmod",
    "path",
    "post-xfer exec",
    "pre-xfer exec",
    "read only",
    "refuse options",
    "reverse lookup",
    "secrets file",
    "strict modes",
    "syslog facility",
    "syslog tag",
    "temp dir",
    "timeout",
    "transfer logging",
    "uid",
    "use chroot",
    "write only",
];
/// Maximum size of a file, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Maximum number of files.
const MAX_FILES: usize = 1000;
/// Maximum number of files that include each other.
const MAX_DEPTH: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(files: &[(&str, &str)]) -> Result<Modules> {
        let dir = tempfile::tempdir()?;
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().context("a parent")?)?;
            fs::write(&path, text.replace("DIR", &dir.path().display().to_string()))?;
        }
        Modules::read(&dir.path().join("rsyncd.conf"))
    }

    fn values<'a>(lines: &'a [Line], key: &str) -> Vec<&'a str> {
        lines.iter().filter(|line| line.key == key).map(|line| &line.value[..]).collect()
    }

    #[test]
    fn names_values_comments_and_continued_lines_are_read_as_the_stock_daemon_reads_them() {
        let text = "  # a comment\nMax  Connections=4\nuid = nobody # no comment\n\n[ftp   area]\n\tpath = /srv/a b \n\
                    exclude = a \\\n  b \\\n c\n[GLOBAL]\ntimeout = 3\n[second]\npath=/x=y\n";
        let found = read_all(&[("rsyncd.conf", text)]).unwrap();
        assert_eq!(values(&found.global, "max connections"), ["4"]);
        assert_eq!(values(&found.global, "uid"), ["nobody # no comment"]);
        let names: Vec<_> = found.modules.iter().map(|module| &module.name[..]).collect();
        assert_eq!(names, ["ftp area", "second"]);
        assert_eq!(values(&found.modules[0].lines, "path"), ["/srv/a b"]);
        assert_eq!(values(&found.modules[0].lines, "exclude"), ["a   b  c"]);
        assert_eq!((found.modules[0].lines[1].at.line, found.modules[1].at.line), (7, 12));
        assert_eq!(values(&found.modules[1].lines, "path"), ["/x=y"]);
        assert!(values(&found.modules[0].defaults, "timeout").is_empty());
        assert_eq!(values(&found.modules[1].defaults, "timeout"), ["3"]);
    }

    #[test]
    fn included_files_keep_their_parameters_to_themselves_and_merged_ones_do_not() {
        let main = "&merge DIR/more\n&include DIR/conf.d\n[last]\npath = /l\n";
        let found = read_all(&[
            ("rsyncd.conf", main),
            ("more/1.inc", "timeout = 7\n"),
            ("more/2.conf", "broken"),
            ("conf.d/a.conf", "timeout = 9\n[a]\npath = /a\n"),
            ("conf.d/b.conf", "[b]\npath = /b\n"),
        ])
        .unwrap();
        let timeouts: Vec<_> =
            found.modules.iter().map(|module| values(&module.defaults, "timeout").pop().unwrap()).collect();
        assert_eq!(timeouts, ["9", "7", "7"]);
    }

    #[test]
    fn what_is_no_parameter_or_includes_itself_is_named_with_its_line() {
        for (text, message) in [
            ("path /x", "rsyncd.conf:1: 'path /x' is not a parameter"),
            ("\n[x", "rsyncd.conf:2: '[x' is not a module"),
            ("[]", "is not a module"),
            ("&include DIR/rsyncd.conf", "16 inside each other"),
            ("&include DIR/none", "cannot open"),
        ] {
            let error = format!("{:#}", read_all(&[("rsyncd.conf", text)]).unwrap_err());
            assert!(error.contains(message), "{error}");
        }
    }
}
