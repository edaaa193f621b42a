//! Parses argument strings into [`Options`].

use std::slice;

use super::names::{self, Known};
use super::{Append, Capabilities, Compress, Compression, FilesFrom, Options};
use crate::limits;
use crate::rsync::digest::Algorithm;
use crate::rsync::fault::Fault;
use crate::rsync::version::Version;

/// Returns whether a second list of arguments follows this one.
pub(super) fn is_secluded(list: &[Vec<u8>]) -> bool {
    list.iter().take_while(|string| *string != b".").any(|string| match string.as_slice() {
        [b'-', b'-', ..] => false,
        [b'-', letters @ ..] => letters.iter().take_while(|&&letter| letter != b'e').any(|&letter| letter == b's'),
        _ => false,
    })
}

/// Parses one or two lists of arguments. If there are two, only the options of the first one count.
pub(super) fn options(version: Version, module: &[u8], first: &[Vec<u8>], second: Option<&[Vec<u8>]>) -> Options {
    let mut parser = Parser::new(version);
    let dot = first.iter().position(|string| string == b".").unwrap_or(first.len());
    let unescaped: Vec<Vec<u8>> = first[..dot].iter().map(|string| unescape(string)).collect();
    if let Some(second) = second {
        parser.options(&unescaped, true);
        // Its first string is the name of a program, and its strings are not escaped.
        let second = second.get(1..).unwrap_or_default();
        let dot = second.iter().position(|string| string == b".").unwrap_or(second.len());
        parser.options(&second[..dot], false);
        parser.options.paths = second.iter().skip(dot + 1).map(|path| strip_module(path, module)).collect();
    } else {
        parser.options(&unescaped, false);
        let paths = first.iter().skip(dot + 1).flat_map(|packed| unpack(packed, module));
        parser.options.paths = paths.take(limits::ARGUMENTS + 1).map(|path| strip_module(path, module)).collect();
    }
    parser.finish()
}

struct Parser {
    options: Options,
    sender: bool,
    relative: Option<bool>,
    no_specials: bool,
}

impl Parser {
    fn new(version: Version) -> Self {
        Self { options: Options::new(version), sender: false, relative: None, no_specials: false }
    }

    /// Parses options. A string that is not an option is a fault, unless `allow_strays` is set.
    fn options(&mut self, strings: &[Vec<u8>], allow_strays: bool) {
        let mut strings = strings.iter();
        while let Some(string) = strings.next() {
            match string.as_slice() {
                [b'-', b'-', long @ ..] => self.long(long, &mut strings),
                [b'-', letters @ ..] if !letters.is_empty() => self.letters(letters, &mut strings),
                _ if allow_strays => {}
                stray => self.fault(Fault::UnknownOption(lossy(stray))),
            }
        }
    }

    fn long(&mut self, option: &[u8], rest: &mut slice::Iter<'_, Vec<u8>>) {
        let equals = option.iter().position(|&byte| byte == b'=');
        let (name, value) = equals.map_or((option, None), |at| (&option[..at], Some(&option[at + 1..])));
        match names::by_name(name) {
            Some(known) if known.takes_value => {
                let value = value.or_else(|| rest.next().map(Vec::as_slice)).unwrap_or_default();
                self.apply(known, value);
            }
            Some(known) if value.is_none() => self.apply(known, b""),
            _ => self.fault(Fault::UnknownOption(format!("--{}", lossy(option)))),
        }
    }

    fn letters(&mut self, letters: &[u8], rest: &mut slice::Iter<'_, Vec<u8>>) {
        for (at, &letter) in letters.iter().enumerate() {
            let tail = &letters[at + 1..];
            if letter == b'e' {
                return self.options.capabilities = Capabilities::parse(self.options.version, tail);
            }
            let Some(known) = names::by_letter(letter) else {
                self.fault(Fault::UnknownOption(format!("-{}", char::from(letter).escape_default())));
                continue;
            };
            if known.takes_value {
                let value = if tail.is_empty() { rest.next().map_or(&[][..], Vec::as_slice) } else { tail };
                return self.apply(known, value);
            }
            self.apply(known, b"");
            if letter == b'D' {
                self.options.specials = true;
            }
        }
    }

    fn apply(&mut self, known: &Known, value: &[u8]) {
        let name = known.used.name;
        let options = &mut self.options;
        if !options.used.contains(&known.used) {
            options.used.push(known.used);
        }
        match name {
            "sender" => self.sender = true,
            "recursive" => options.recurse = true,
            "dirs" => options.dirs = true,
            "relative" => self.relative = Some(true),
            "no-relative" => self.relative = Some(false),
            "no-implied-dirs" => options.implied_dirs = false,
            "one-file-system" => options.one_file_system = true,
            "links" => options.links = true,
            "copy-links" => options.copy_links = true,
            "copy-dirlinks" => options.copy_dirlinks = true,
            "copy-unsafe-links" => options.copy_unsafe_links = true,
            "hard-links" => options.hard_links = true,
            "owner" => options.owner = true,
            "group" => options.group = true,
            "D" | "devices" => options.devices = true,
            "specials" => options.specials = true,
            "no-specials" => self.no_specials = true,
            "atimes" => options.atimes = true,
            "acls" => self.require_30(known, |options| options.acls = true),
            "xattrs" => self.require_30(known, |options| options.xattrs = true),
            "checksum" => options.checksum = true,
            "cvs-exclude" => options.cvs_exclude = true,
            "dry-run" => options.dry_run = true,
            "list-only" => options.list_only = true,
            "numeric-ids" => options.numeric_ids = true,
            "ignore-missing-args" => options.ignore_missing_args = true,
            "delete-missing-args" => options.delete_missing_args = true,
            "ignore-errors" => options.ignore_errors = true,
            "inplace" => options.inplace = true,
            "append" => {
                options.append = if options.append == Append::No { Append::Blind } else { Append::Verified };
            }
            "from0" => options.from0 = true,
            "files-from" if value == b"-" => options.files_from = FilesFrom::Client,
            "files-from" => options.files_from = FilesFrom::Path(value.to_vec()),
            "compress" if options.compress == Compress::No => options.compress = Compress::Negotiated,
            "new-compress" => options.compress = Compress::Chosen(Compression::Zlibx),
            "old-compress" => options.compress = Compress::Chosen(Compression::Zlib),
            "compress-choice" => self.compress_choice(value),
            "compress-level" => self.options.compress_level = self.number(known, value),
            "checksum-choice" => self.checksum_choice(value),
            "checksum-seed" => self.options.seed = self.number(known, value).filter(|&seed| seed != 0),
            "timeout" => self.options.timeout = self.number(known, value).filter(|&seconds| seconds != 0),
            "bwlimit" => self.options.bwlimit = self.number(known, value).filter(|&rate| rate != 0),
            "remove-source-files" | "remove-sent-files" => self.fault(Fault::WritingOption(name)),
            // Names are sent as the bytes that they are, and devices as devices; the index holds no creation times.
            "iconv" | "copy-devices" | "crtimes" => self.fault(Fault::Refused(name.to_owned())),
            _ => {}
        }
    }

    fn require_30(&mut self, known: &Known, set: impl FnOnce(&mut Options)) {
        let version = self.options.version;
        if version.facts().variable_ints {
            set(&mut self.options);
        } else {
            self.fault(Fault::OptionVersion { option: known.used.name, least: 30, version });
        }
    }

    fn checksum_choice(&mut self, value: &[u8]) {
        if value == b"auto" {
            return;
        }
        let comma = value.iter().position(|&byte| byte == b',');
        let (transfer, list) = comma.map_or((value, value), |at| (&value[..at], &value[at + 1..]));
        let mut choose = |name| {
            Algorithm::from_name(name).unwrap_or_else(|| {
                self.fault(Fault::Choice { what: "checksum", name: lossy(name) });
                Algorithm::None
            })
        };
        self.options.checksum_choice = Some((choose(transfer), choose(list)));
    }

    fn compress_choice(&mut self, value: &[u8]) {
        if value == b"auto" {
            return;
        }
        let chosen = Compression::from_name(value).unwrap_or_else(|| {
            self.fault(Fault::Choice { what: "compress", name: lossy(value) });
            Compression::None
        });
        self.options.compress = Compress::Chosen(chosen);
    }

    fn number<N: std::str::FromStr>(&mut self, known: &Known, value: &[u8]) -> Option<N> {
        let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        if number.is_none() {
            self.fault(Fault::OptionValue { option: known.used.name, value: lossy(value) });
        }
        number
    }

    /// Records a fault. Only the first one is reported to the client.
    fn fault(&mut self, fault: Fault) {
        self.options.fault.get_or_insert(fault);
    }

    fn finish(mut self) -> Options {
        let names = self.options.files_from != FilesFrom::No;
        self.options.relative = self.relative.unwrap_or(names);
        // 2.6.9 asks for a listing of one level with `--list-only` alone.
        self.options.dirs |= names || (self.options.list_only && !self.options.recurse);
        self.options.specials &= !self.no_specials;
        if !self.sender {
            self.options.fault = Some(Fault::ReadOnly);
        } else if self.options.paths.len() > limits::ARGUMENTS {
            self.fault(Fault::TooManyPaths);
        } else if self.options.paths.is_empty() {
            self.fault(Fault::NoPath);
        }
        self.options
    }
}

/// Undoes the client's quoting for a shell. No shell reads the strings here.
fn unescape(string: &[u8]) -> Vec<u8> {
    let mut bytes = string.iter();
    let next = |bytes: &mut slice::Iter<'_, u8>| match bytes.next() {
        Some(b'\\') => Some(*bytes.next().unwrap_or(&b'\\')),
        other => other.copied(),
    };
    std::iter::from_fn(|| next(&mut bytes)).collect()
}

/// Splits a string into the paths that old clients pack into it: `mod/a mod/b`.
fn unpack<'a>(packed: &'a [u8], module: &[u8]) -> impl Iterator<Item = &'a [u8]> {
    let next = [b" ", module, b"/"].concat();
    let begins = move |packed: &[u8], at: usize| packed[at..].starts_with(&next) && packed[at - 1] != b'\\';
    let mut rest = Some(packed);
    std::iter::from_fn(move || {
        let packed = rest?;
        let end = (1..packed.len()).find(|&at| begins(packed, at));
        rest = end.map(|end| &packed[end + 1..]);
        Some(&packed[..end.unwrap_or(packed.len())])
    })
}

/// Removes the module's name from the front of a path.
fn strip_module(path: &[u8], module: &[u8]) -> Vec<u8> {
    let below = match path.strip_prefix(module) {
        Some([]) => &[],
        Some([b'/', below @ ..]) => below,
        _ => path,
    };
    let slashes = below.iter().take_while(|&&byte| byte == b'/').count();
    below[slashes..].to_vec()
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(100)]).into_owned()
}
