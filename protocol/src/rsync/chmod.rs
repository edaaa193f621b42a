//! Mode changes in the syntax of `--chmod` and of rsyncd.conf's `outgoing chmod`.
//!
//! Sources: the manual pages of rsync and chmod(1), and the results of rsync 3.5.0 for every word on files
//! and directories of many modes. The meaning of `s` and `t` is rsync's own.

use thiserror::Error;

const TYPE: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
const PERMISSIONS: u16 = 0o7777;
const EXECUTE: u16 = 0o111;
/// The bits that a clause without `u`, `g`, `o` or `a` leaves alone: the usual umask. The umask of the
/// process does not count.
const UMASK: u16 = 0o022;

/// A parsed mode change. Texts with the same effect are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Chmod {
    dirs: Masks,
    /// For entries that are not directories and that nobody may execute.
    plain: Masks,
    executable: Masks,
}

/// The bits that are kept, and the bits that are set after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Masks {
    and: u16,
    or: u16,
}

/// An invalid mode change.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is not a mode change such as D755, Fgo-w or a+rX")]
pub struct ChmodError(String);

impl Default for Masks {
    fn default() -> Self {
        Self { and: PERMISSIONS, or: 0 }
    }
}

impl Masks {
    fn then(self, and: u16, or: u16) -> Self {
        let or = self.or & and | or;
        Self { and: self.and & and & !or, or }
    }
}

impl Chmod {
    /// Parses items separated by commas. An empty text changes nothing.
    pub fn parse(text: &str) -> Result<Self, ChmodError> {
        let mut chmod = Self::default();
        for item in text.split(',').filter(|_| !text.is_empty()) {
            chmod = chmod.with(item).ok_or_else(|| ChmodError(item.to_owned()))?;
        }
        Ok(chmod)
    }

    /// Applies the change to a mode. Symlinks keep theirs.
    pub fn apply(&self, mode: u32) -> u32 {
        let masks = match mode & TYPE {
            SYMLINK => return mode,
            DIRECTORY => self.dirs,
            _ if mode & u32::from(EXECUTE) != 0 => self.executable,
            _ => self.plain,
        };
        mode & !u32::from(PERMISSIONS) | mode & u32::from(masks.and) | u32::from(masks.or)
    }

    /// Returns bytes that are the same only for equal changes.
    pub(super) fn key(&self) -> impl Iterator<Item = u8> {
        let Self { dirs, plain, executable } = *self;
        [dirs, plain, executable].into_iter().flat_map(|masks| [masks.and, masks.or]).flat_map(u16::to_le_bytes)
    }

    fn with(mut self, item: &str) -> Option<Self> {
        let (dirs, files, item) = match item.as_bytes().first()? {
            b'D' => (true, false, &item[1..]),
            b'F' => (false, true, &item[1..]),
            _ => (true, true, item),
        };
        let step = Clause::read(item)?;
        if dirs {
            self.dirs = self.dirs.then(step.and, step.or | step.or_if_executable);
        }
        if files {
            self.plain = self.plain.then(step.and, step.or);
            self.executable = self.executable.then(step.and, step.or | step.or_if_executable);
        }
        Some(self)
    }
}

/// The effect of one item.
struct Clause {
    and: u16,
    or: u16,
    or_if_executable: u16,
}

impl Clause {
    fn read(item: &str) -> Option<Self> {
        if item.bytes().all(|byte| byte.is_ascii_digit()) {
            let or = u16::from_str_radix(item, 8).ok().filter(|&mode| mode <= PERMISSIONS)?;
            return Some(Self { and: 0, or, or_if_executable: 0 });
        }
        let at = item.find(['+', '-', '='])?;
        let (who, operator, what) = (&item[..at], item.as_bytes()[at], &item[at + 1..]);
        let who = who.bytes().try_fold(0, |who, letter| Some(who | part(letter)?))?;
        let (reach, named) = if who == 0 { (!UMASK, 0o777) } else { (who, who) };
        let (mut bits, mut if_executable, mut special) = (0, 0, 0);
        for letter in what.bytes() {
            match letter {
                b'r' => bits |= 0o444 & reach,
                b'w' => bits |= 0o222 & reach,
                b'x' => bits |= EXECUTE & reach,
                b'X' => if_executable |= EXECUTE & reach,
                b's' => special |= if set_ids(who) == 0 { 0o4000 } else { set_ids(who) },
                b't' => special |= 0o1000,
                _ => return None,
            }
        }
        Some(match operator {
            b'+' => Self { and: PERMISSIONS, or: bits | special, or_if_executable: if_executable },
            b'-' => Self { and: !(bits | if_executable | special) & PERMISSIONS, or: 0, or_if_executable: 0 },
            _ => {
                let cleared = if special == 0 { named } else { named | set_ids(who) };
                Self { and: !cleared & PERMISSIONS, or: bits | special, or_if_executable: if_executable }
            }
        })
    }
}

/// Returns the permission bits of the user class that a letter names.
fn part(letter: u8) -> Option<u16> {
    match letter {
        b'u' => Some(0o700),
        b'g' => Some(0o070),
        b'o' => Some(0o007),
        b'a' => Some(0o777),
        _ => None,
    }
}

/// Returns the set-user-id and set-group-id bits of the user classes in `who`.
fn set_ids(who: u16) -> u16 {
    (who & 0o400) << 3 | (who & 0o040) << 5
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each line has a text and the results of rsync 3.5.0 for the modes 0000, 0644, 0755, 1001, 4010 and
    /// 7777, first for directories, then for files.
    const OBSERVED: &str = include_str!("chmod/observed.txt");

    #[test]
    fn permissions_change_as_rsync_changes_them() {
        const MODES: [u32; 6] = [0, 0o644, 0o755, 0o1001, 0o4010, 0o7777];
        for line in OBSERVED.lines() {
            let mut words = line.split(' ');
            let text = words.next().unwrap();
            let chmod = Chmod::parse(text).unwrap();
            for kind in [DIRECTORY, 0o100_000] {
                for mode in MODES {
                    let wanted = u32::from_str_radix(words.next().unwrap(), 8).unwrap();
                    let found = chmod.apply(kind | mode);
                    assert_eq!(found, kind | wanted, "{text} of {:o}: {found:o}", kind | mode);
                }
            }
        }
    }

    #[test]
    fn texts_with_the_same_effect_are_equal_and_an_empty_one_has_none() {
        let chmod = |text| Chmod::parse(text).unwrap();
        assert_eq!(chmod("a=rX,u+w"), chmod("u=rwX,go=rX"));
        assert_eq!(chmod("a+r,a-r,a+r"), chmod("a+r"));
        assert_ne!(chmod("D755"), chmod("F755"));
        assert_eq!(chmod(""), Chmod::default());
        assert_eq!(chmod("000").apply(0o120_777), 0o120_777);
    }

    #[test]
    fn a_text_that_rsync_refuses_is_refused() {
        for text in [
            "u+x-w", "FDa+x", "12345", "8", "u", "D", "u+rwX,", ",u+r", "x", "u+q", "777777", "D644F", "D 755",
            "u+r u+w",
        ] {
            assert!(Chmod::parse(text).is_err(), "{text}");
        }
        assert_eq!(Chmod::parse("u+r,u=g").unwrap_err().to_string().split('\'').nth(1), Some("u=g"));
        for text in ["a+", "=", "07777", "ugoa+x"] {
            assert!(Chmod::parse(text).is_ok(), "{text}");
        }
    }
}
