//! Options that the operator refuses (`refuse options`).

use stillmirror_protocol::filter::Filter;
use stillmirror_protocol::rsync::arguments::{self, Compress, Options, Used};
use stillmirror_protocol::rsync::fault::Fault;

use crate::config::Compression;

/// Checks a client's options against `refuse options`, and against what is always refused. Fails with the fault to report
/// to the client.
pub(super) fn check(options: &Options, refused: &[String], compression: Compression) -> Result<(), Fault> {
    if let Some(fault) = &options.fault {
        return Err(fault.clone());
    }
    if let Some(name) = options.used.iter().find_map(|used| refused_name(used, refused)) {
        return Err(Fault::Refused(name.to_owned()));
    }
    let is_compressed = !matches!(options.compress, Compress::No | Compress::Chosen(arguments::Compression::None));
    if compression == Compression::Refuse && is_compressed {
        return Err(Fault::Refused("compress".to_owned()));
    }
    Ok(())
}

/// How a term of `refuse options` matched an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Match {
    Name,
    Wildcard,
}

/// Options that no wildcard matches, because clients send them unasked or could do nothing without them. So `* !a !v`
/// works as a list of what is allowed. Determined by testing every option with rsync 3.5.0.
const BEYOND_WILDCARDS: [&str; 8] =
    ["checksum-seed", "dry-run", "from0", "log-format", "secluded-args", "sender", "server", "use-qsort"];
/// Options that cannot be refused by name either.
const BEYOND_NAMES: [&str; 2] = ["delete-missing-args", "ignore-missing-args"];
/// The letters that `-a` stands for, and that clients send in its place.
const ARCHIVE: [char; 9] = ['r', 'd', 'l', 'p', 't', 'g', 'o', 'D', 'a'];
/// Names in `refuse options` for options that clients send under another name.
const ALIASES: [(&str, &str); 9] = [
    ("archive", "a"),
    ("cc", "checksum-choice"),
    ("zc", "compress-choice"),
    ("zl", "compress-level"),
    ("no-R", "no-relative"),
    ("no-i-d", "no-implied-dirs"),
    ("protect-args", "secluded-args"),
    ("out-format", "log-format"),
    ("log-format", "out-format"),
];

/// Returns the name of the refused option because of which a client's option is refused: the option's own name, or that
/// of an option that it implies. `None` if the option is allowed.
fn refused_name(used: &Used, terms: &[String]) -> Option<&'static str> {
    if refusal(used, terms).is_some() {
        return Some(used.name);
    }
    let named = |name| refusal(&Used { name, letter: None }, terms);
    let compress = || refusal(&Used { name: "compress", letter: Some('z') }, terms).map(|_| "compress");
    let any = |names: [&'static str; 2]| names.into_iter().find(|name| named(name).is_some());
    match used.name {
        "append" => any(["inplace", "partial"]),
        "inplace" => any(["partial"; 2]),
        "compress-choice" | "compress-level" | "new-compress" | "old-compress" => compress(),
        // `--delete` stands for one of these two.
        "delete" => named("delete-before").and(named("delete-during")).map(|_| "delete-before"),
        "remove-source-files" | "remove-sent-files" => any(["delete"; 2]),
        "delete-missing-args" => named("delete").filter(|by| *by == Match::Name).map(|_| "delete"),
        _ => None,
    }
}

/// Returns how an option is refused. `None` if it is allowed. The last term that matches the option decides.
fn refusal(used: &Used, terms: &[String]) -> Option<Match> {
    let mut refused = None;
    for term in terms {
        let (accepts, term) = term.strip_prefix('!').map_or((false, term.as_str()), |term| (true, term));
        if let Some(by) = matches(term, used) {
            refused = (!accepts).then_some(by);
        }
    }
    refused
}

fn matches(term: &str, used: &Used) -> Option<Match> {
    let mut buffer = [0; 4];
    let letter: &str = used.letter.map_or("", |letter| letter.encode_utf8(&mut buffer));
    if BEYOND_NAMES.contains(&used.name) || term.is_empty() {
        return None;
    }
    if term.contains(['*', '?', '[']) {
        let mut wildcard = Filter::default();
        let is_matched = wildcard.exclude(term.as_bytes()).is_ok()
            && [used.name, letter].iter().any(|name| !name.is_empty() && !wildcard.keeps(name.as_bytes(), false));
        return (is_matched && !BEYOND_WILDCARDS.contains(&used.name)).then_some(Match::Wildcard);
    }
    let is_archive = matches!(term, "a" | "archive") && used.letter.is_some_and(|letter| ARCHIVE.contains(&letter));
    let is_alias = ALIASES.contains(&(term, used.name));
    (term == used.name || term == letter || is_archive || is_alias).then_some(Match::Name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the names by which `terms` refuse the options in `used`.
    fn refused(terms: &str, used: &[(&'static str, &str)]) -> Vec<&'static str> {
        let terms: Vec<String> = terms.split_whitespace().map(str::to_owned).collect();
        let used = used.iter().map(|&(name, letter)| Used { name, letter: letter.chars().next() });
        used.filter_map(|used| refused_name(&used, &terms)).collect()
    }

    const ARCHIVED: [(&str, &str); 4] = [("recursive", "r"), ("links", "l"), ("times", "t"), ("D", "D")];
    const ALWAYS: [(&str, &str); 7] = [
        ("server", ""),
        ("sender", ""),
        ("log-format", ""),
        ("dry-run", "n"),
        ("from0", "0"),
        ("secluded-args", "s"),
        ("checksum-seed", ""),
    ];

    #[test]
    fn an_option_is_refused_by_name_letter_or_wildcard() {
        assert_eq!(refused("checksum", &[("checksum", "c")]), ["checksum"]);
        assert_eq!(refused("c", &[("checksum", "c"), ("checksum-choice", "")]), ["checksum"]);
        assert_eq!(refused("delete*", &[("delete-after", "")]), ["delete-after"]);
        assert_eq!(refused("*-*er", &[("delete-after", "")]), ["delete-after"]);
        assert_eq!(refused("[a-d]*", &[("hard-links", "H"), ("backup", "b"), ("atimes", "U")]), ["backup", "atimes"]);
        assert_eq!(refused("?", &[("links", "l"), ("size-only", "")]), ["links"]);
        assert!(refused("delete del*x c *-", &[("delete-after", "")]).is_empty());
        assert_eq!(refused("zc out-format", &[("compress-choice", ""), ("log-format", "")]).len(), 2);
    }

    #[test]
    fn the_last_term_that_matches_decides() {
        assert!(refused("* !l", &[("links", "l")]).is_empty());
        assert_eq!(refused("!l *", &[("links", "l")]), ["links"]);
        assert_eq!(refused("! c", &[("checksum", "c")]), ["checksum"]);
    }

    #[test]
    fn options_that_clients_send_unasked_are_refused_by_name_but_not_by_wildcard() {
        for terms in ["*", "s* d* l* f* c*", "?"] {
            assert!(refused(terms, &ALWAYS).is_empty(), "{terms}");
        }
        assert_eq!(refused("server n 0 s log-format checksum-seed sender", &ALWAYS).len(), ALWAYS.len());
        let missing = [("ignore-missing-args", ""), ("delete-missing-args", "")];
        assert!(refused("* ignore-missing-args delete-missing-args", &missing).is_empty());
    }

    #[test]
    fn archive_stands_for_its_letters_unless_it_is_part_of_a_wildcard() {
        assert!(refused("* !a", &ARCHIVED).is_empty() && refused("* !archive", &ARCHIVED).is_empty());
        assert_eq!(refused("* !archive*", &ARCHIVED).len(), 4);
        assert_eq!(refused("a", &ARCHIVED).len(), 4);
        assert_eq!(refused("a !r", &ARCHIVED), ["links", "times", "D"]);
        assert_eq!(refused("* !a", &[("hard-links", "H"), ("verbose", "v")]), ["hard-links", "verbose"]);
        assert!(refused("devices specials", &ARCHIVED).is_empty());
    }

    #[test]
    fn an_option_is_refused_if_an_option_that_it_implies_is_refused() {
        for terms in ["compress", "z", "[a-d]*"] {
            assert_eq!(refused(terms, &[("new-compress", "")]), ["compress"], "{terms}");
        }
        assert_eq!(refused("partial", &[("append", ""), ("inplace", "")]), ["partial"; 2]);
        assert_eq!(refused("inplace", &[("append", "")]), ["inplace"]);
        assert_eq!(refused("delete-*", &[("delete", "")]), ["delete-before"]);
        assert!(refused("delete-* !delete-during", &[("delete", "")]).is_empty());
        let deleting = [("remove-source-files", ""), ("delete-missing-args", "")];
        assert_eq!(refused("delete", &deleting), ["delete"; 2]);
        assert_eq!(refused("[a-d]*", &deleting), ["delete"]);
    }
}
