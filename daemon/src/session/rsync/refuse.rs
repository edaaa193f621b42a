//! Options that the operator does not want.

use stillmirror_protocol::rsync::arguments::{self, Compress, Options, Used};
use stillmirror_protocol::rsync::fault::Fault;

use crate::config::Compression;

/// Holds a client's options against `refuse options` and against what is refused in any case.
pub(super) fn check(options: &Options, refused: &[String], compression: Compression) -> Result<(), Fault> {
    if let Some(fault) = &options.fault {
        return Err(fault.clone());
    }
    if let Some(used) = options.used.iter().find(|used| is_refused(used, refused)) {
        return Err(Fault::Refused(used.name.to_owned()));
    }
    let is_compressed = !matches!(options.compress, Compress::No | Compress::Chosen(arguments::Compression::None));
    if compression == Compression::Refuse && is_compressed {
        return Err(Fault::Refused("compress".to_owned()));
    }
    Ok(())
}

/// The last pattern that matches the option decides.
fn is_refused(used: &Used, patterns: &[String]) -> bool {
    let matches = |pattern: &str| {
        let mut buffer = [0; 4];
        let is_letter = used.letter.is_some_and(|letter| *letter.encode_utf8(&mut buffer) == *pattern);
        matches_wildcard(pattern, used.name) || is_letter
    };
    let mut refused = false;
    for pattern in patterns {
        match pattern.strip_prefix('!') {
            Some(pattern) if matches(pattern) => refused = false,
            None if matches(pattern) => refused = true,
            _ => {}
        }
    }
    refused
}

/// Whether a pattern, in which `*` stands for anything, matches a whole name.
fn matches_wildcard(pattern: &str, name: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut rest) = name.strip_prefix(head) else { return false };
    let mut parts: Vec<&str> = tail.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(name: &'static str, letter: Option<char>, patterns: &[&str]) -> bool {
        let patterns: Vec<String> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        is_refused(&Used { name, letter }, &patterns)
    }

    #[test]
    fn an_option_is_refused_by_name_letter_or_wildcard() {
        assert!(refused("checksum", Some('c'), &["checksum"]) && refused("checksum", Some('c'), &["c"]));
        assert!(refused("delete-after", None, &["delete*"]) && refused("delete-after", None, &["*-*er"]));
        assert!(!refused("delete-after", None, &["delete", "del*x", "c", "*-"]));
        assert!(refused("links", Some('l'), &["*"]));
    }

    #[test]
    fn the_last_pattern_that_matches_decides() {
        assert!(!refused("archive", Some('a'), &["*", "!a"]) && refused("archive", Some('a'), &["!a", "*"]));
        assert!(refused("links", Some('l'), &["*", "!a"]));
    }
}
