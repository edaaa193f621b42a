//! Why a difference is there, and whether a client could notice it.

use super::difference::{Aspect, Difference};

/// The reason for a difference. For a difference that is not explained it is the likely one, and what to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reason {
    pub(super) text: &'static str,
    /// Whether a client could notice it.
    pub(super) is_noticeable: bool,
}

const STALE: &str = "the tree may have changed after it was indexed: run `stillmirror index`";

/// Explains a difference.
pub(super) fn of(difference: &Difference) -> Reason {
    let unnoticed = |text| Reason { text, is_noticeable: false };
    let noticed = |text| Reason { text, is_noticeable: true };
    let (old, new) = (&difference.old[..], &difference.new[..]);
    match difference.aspect {
        Aspect::Greeting => unnoticed(
            "both sides use the older protocol of the two; the names of digests are for logins, and the client chooses",
        ),
        Aspect::Order => unnoticed("clients name modules, and do not count them"),
        Aspect::Refusal => unnoticed(
            "both daemons refuse the option, and clients fail; whether they can read the exit code of a stock daemon before it \
             closes the connection is a matter of time",
        ),
        Aspect::Wording => {
            unnoticed("both clients fail with the same exit code, and get no file; only the words differ")
        }
        Aspect::Motd => noticed("users see another message: `motd file` in rsyncd.conf, `motd_file` in mirror.toml"),
        Aspect::Module if new.is_empty() => {
            noticed("the new daemon does not list it: its [[repository]] is missing or has `list = false`")
        }
        Aspect::Module => noticed("the old daemon does not list it: it is new, or has `list = no` in rsyncd.conf"),
        Aspect::Comment => noticed("`comment` of the module differs"),
        Aspect::Access => access(old, new),
        Aspect::Login => noticed("`auth users` or the secrets files differ"),
        Aspect::Exit if new.contains("configured to refuse --compress") => noticed(
            "`compression = \"refuse\"` in mirror.toml, or `refuse_options` with `compress`; \"stored\" accepts -z",
        ),
        Aspect::Exit if new.contains("configured to refuse") => {
            noticed("only the new daemon refuses it: `refuse_options` in mirror.toml")
        }
        Aspect::Exit if old.contains("configured to refuse") => {
            noticed("only the old daemon refuses it: `refuse options` in rsyncd.conf has no counterpart in mirror.toml")
        }
        Aspect::Exit => noticed("clients end in another way; the messages say why"),
        Aspect::Message if new.contains("has vanished") => {
            noticed("the file changed after it was indexed, so it is not sent: run `stillmirror index`")
        }
        Aspect::Message if new.contains("Permission denied") => noticed(
            "the daemon's user cannot read it, or the daemon runs as root and serves only what everybody may read",
        ),
        Aspect::Message => noticed("only one daemon says this"),
        Aspect::Entry if new.is_empty() => noticed(
            "the new daemon does not list it: it is not in the index (run `stillmirror index`), or `exclude` in \
             mirror.toml hides it",
        ),
        Aspect::Entry => noticed(
            "the old daemon does not list it: it was removed after it was indexed (run `stillmirror index`), or \
             rsyncd.conf hides it",
        ),
        Aspect::Mode => {
            noticed("`outgoing chmod` differs, or the mode changed after it was indexed: run `stillmirror index`")
        }
        Aspect::Owner | Aspect::Group => {
            noticed("`numeric ids` differs, or the owner changed after it was indexed: run `stillmirror index`")
        }
        Aspect::Type | Aspect::Size | Aspect::Time => noticed(STALE),
        Aspect::Target if is_munged(old, new) || is_munged(new, old) => {
            noticed("`munge symlinks` of the old daemon and `munge_symlinks` of the new one differ")
        }
        Aspect::Target => noticed(STALE),
        Aspect::HardLink => {
            noticed("another name is the first of this hard-linked file; or its links changed: run `stillmirror index`")
        }
        Aspect::Fraction => noticed("clients with --modify-window=-1 compare nanoseconds, and fetch the file again"),
        Aspect::Digest => noticed(
            "the index has no such digest, so clients with -c fetch every file: index with `xxh128 = true` and `md5 = true`; \
             or the content differs",
        ),
        Aspect::Content => noticed("clients get another content: run `stillmirror verify`, and look at the disk"),
        Aspect::Change => change(old, new),
    }
}

fn access(old: &str, new: &str) -> Reason {
    let text = match (is_unknown(old), is_unknown(new)) {
        (false, true) => "the new daemon has no such module, or hides it from this host",
        (true, false) if new.contains("password") => {
            return Reason {
                text: "the new daemon has a module with `list = false` and users, and does not say which names exist",
                is_noticeable: false,
            };
        }
        (true, false) => "the old daemon has no such module",
        _ => {
            "`hosts allow`, `hosts deny` or `auth users` differ: see what `stillmirror import-rsyncd` says of these lines"
        }
    };
    Reason { text, is_noticeable: true }
}

fn is_unknown(answer: &str) -> bool {
    answer.contains("Unknown module")
}

fn change(old: &str, new: &str) -> Reason {
    let is_digest = |change: &str| change.as_bytes().get(2) == Some(&b'c');
    let text = if is_digest(new) && !is_digest(old) {
        "clients with -c fetch the file again: the index has no digest of the kind that the client uses (`xxh128 = true`, \
         `md5 = true`)"
    } else {
        "a client would do something else with its own copy: see the other differences of this entry"
    };
    Reason { text, is_noticeable: true }
}

fn is_munged(munged: &str, plain: &str) -> bool {
    munged.strip_prefix("/rsyncd-munged/") == Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(aspect: Aspect, old: &str, new: &str) -> Reason {
        of(&Difference::new("x", aspect, old, new))
    }

    #[test]
    fn only_what_no_client_notices_is_explained_away() {
        assert!(!reason(Aspect::Greeting, "@RSYNCD: 32.0", "@RSYNCD: 31.0").is_noticeable);
        assert!(!reason(Aspect::Refusal, "10", "4").is_noticeable);
        assert!(!reason(Aspect::Access, "@ERROR: Unknown module 'x'", "asks for a password").is_noticeable);
        for aspect in [Aspect::Motd, Aspect::Entry, Aspect::Mode, Aspect::Exit, Aspect::Content, Aspect::Access] {
            assert!(reason(aspect, "a", "b").is_noticeable, "{aspect:?}");
        }
    }

    #[test]
    fn the_reason_names_the_key() {
        for (aspect, old, new, word) in [
            (Aspect::Target, "/rsyncd-munged/../a", "../a", "munge"),
            (Aspect::Target, "a", "b", "index"),
            (Aspect::Exit, "0", "4: The server is configured to refuse --compress", "compression"),
            (Aspect::Exit, "0", "4: The server is configured to refuse --delete", "refuse_options"),
            (Aspect::Exit, "4: The server is configured to refuse --delete", "0", "refuse options"),
            (Aspect::Access, "open", "@ERROR: Unknown module 'x'", "no such module"),
            (Aspect::Change, ".f", ">fc........", "xxh128"),
        ] {
            assert!(reason(aspect, old, new).text.contains(word), "{old} {new}");
        }
    }
}
