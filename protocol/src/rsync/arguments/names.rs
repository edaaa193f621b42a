//! The table of options that stock clients know.

use super::Used;

/// A known option.
pub(super) struct Known {
    pub(super) used: Used,
    pub(super) takes_value: bool,
}

/// Returns the option with this long name.
pub(super) fn by_name(name: &[u8]) -> Option<&'static Known> {
    OPTIONS.iter().find(|known| known.used.name.as_bytes() == name)
}

/// Returns the option with this letter.
pub(super) fn by_letter(letter: u8) -> Option<&'static Known> {
    OPTIONS.iter().find(|known| known.used.letter == Some(char::from(letter)))
}

const fn flag(name: &'static str) -> Known {
    Known { used: Used { name, letter: None }, takes_value: false }
}

const fn letter(letter: char, name: &'static str) -> Known {
    Known { used: Used { name, letter: Some(letter) }, takes_value: false }
}

const fn value(name: &'static str) -> Known {
    Known { used: Used { name, letter: None }, takes_value: true }
}

const fn letter_value(letter: char, name: &'static str) -> Known {
    Known { used: Used { name, letter: Some(letter) }, takes_value: true }
}

/// The options in the manual of rsync 3.5.0, except those that only the user's side can use. Most of them
/// change nothing for a sender, and some are sent only by old clients.
const OPTIONS: &[Known] = &[
    letter('A', "acls"),
    letter('C', "cvs-exclude"),
    // It stands for two options, and rsync has no long name for it.
    letter('D', "D"),
    letter('E', "executability"),
    letter('H', "hard-links"),
    letter('I', "ignore-times"),
    letter('J', "omit-link-times"),
    letter('K', "keep-dirlinks"),
    letter('L', "copy-links"),
    letter('N', "crtimes"),
    letter('O', "omit-dir-times"),
    letter('R', "relative"),
    letter('S', "sparse"),
    letter('U', "atimes"),
    letter('W', "whole-file"),
    letter('X', "xattrs"),
    letter('b', "backup"),
    letter('c', "checksum"),
    letter('d', "dirs"),
    letter('g', "group"),
    letter('h', "human-readable"),
    letter('i', "itemize-changes"),
    letter('k', "copy-dirlinks"),
    letter('l', "links"),
    letter('m', "prune-empty-dirs"),
    letter('n', "dry-run"),
    letter('o', "owner"),
    letter('p', "perms"),
    letter('q', "quiet"),
    letter('r', "recursive"),
    letter('s', "secluded-args"),
    letter('t', "times"),
    letter('u', "update"),
    letter('v', "verbose"),
    letter('x', "one-file-system"),
    letter('y', "fuzzy"),
    letter('z', "compress"),
    letter('0', "from0"),
    letter_value('@', "modify-window"),
    letter_value('B', "block-size"),
    letter_value('M', "remote-option"),
    letter_value('T', "temp-dir"),
    letter_value('f', "filter"),
    value("backup-dir"),
    value("bwlimit"),
    value("checksum-choice"),
    value("checksum-seed"),
    value("compare-dest"),
    value("compress-choice"),
    value("compress-level"),
    value("copy-dest"),
    value("debug"),
    value("files-from"),
    value("groupmap"),
    value("iconv"),
    value("info"),
    value("link-dest"),
    value("log-format"),
    value("max-alloc"),
    value("max-delete"),
    value("max-size"),
    value("min-size"),
    value("only-write-batch"),
    value("out-format"),
    value("partial-dir"),
    value("skip-compress"),
    value("stop-after"),
    value("stop-at"),
    value("suffix"),
    value("timeout"),
    value("usermap"),
    flag("append"),
    flag("copy-devices"),
    flag("copy-unsafe-links"),
    flag("delay-updates"),
    flag("delete"),
    flag("delete-after"),
    flag("delete-before"),
    flag("delete-delay"),
    flag("delete-during"),
    flag("delete-excluded"),
    flag("delete-missing-args"),
    flag("devices"),
    flag("existing"),
    flag("fake-super"),
    flag("force"),
    flag("fsync"),
    flag("ignore-errors"),
    flag("ignore-existing"),
    flag("ignore-missing-args"),
    flag("inplace"),
    flag("list-only"),
    flag("mkpath"),
    flag("msgs2stderr"),
    flag("munge-links"),
    flag("new-compress"),
    flag("no-implied-dirs"),
    flag("no-msgs2stderr"),
    flag("no-relative"),
    flag("no-specials"),
    flag("numeric-ids"),
    flag("old-compress"),
    flag("open-noatime"),
    flag("partial"),
    flag("preallocate"),
    flag("remove-sent-files"),
    flag("remove-source-files"),
    flag("safe-links"),
    flag("sender"),
    flag("server"),
    flag("size-only"),
    flag("specials"),
    flag("stats"),
    flag("super"),
    flag("trust-sender"),
    flag("use-qsort"),
    flag("write-devices"),
];
