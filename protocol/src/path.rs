//! Names and relative paths: bytes, never trusted.

use std::fmt;

use thiserror::Error;

use crate::limits;

/// Why a name or path is refused. `Display` shows the offender with odd bytes escaped.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PathError {
    /// A component is empty, or longer than [`limits::NAME`].
    #[error("a name of {0} bytes")]
    Length(usize),
    /// A component is `.` or `..`.
    #[error("the name {}", Escaped(.0))]
    Dots(Vec<u8>),
    /// A component holds `/` or NUL.
    #[error("a name with '/' or NUL in it: {}", Escaped(.0))]
    Byte(Vec<u8>),
    /// The path is absolute.
    #[error("the absolute path {}", Escaped(.0))]
    Absolute(Vec<u8>),
    /// The path is longer than [`limits::PATH`].
    #[error("a path of {0} bytes")]
    TooLong(usize),
}

/// Accepts one path component: 1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`.
pub fn check_name(name: &[u8]) -> Result<(), PathError> {
    if name.is_empty() || name.len() > limits::NAME {
        return Err(PathError::Length(name.len()));
    }
    if name == b"." || name == b".." {
        return Err(PathError::Dots(name.to_vec()));
    }
    if name.iter().any(|&byte| byte == b'/' || byte == 0) {
        return Err(PathError::Byte(name.to_vec()));
    }
    Ok(())
}

/// Accepts a relative path of checked names; the empty path is the root. One trailing slash, as a
/// shell's completion leaves it, is dropped.
pub fn check_relative(path: &[u8]) -> Result<&[u8], PathError> {
    if path.first() == Some(&b'/') {
        return Err(PathError::Absolute(path.to_vec()));
    }
    if path.len() > limits::PATH {
        return Err(PathError::TooLong(path.len()));
    }
    let path = path.strip_suffix(b"/").unwrap_or(path);
    if !path.is_empty() {
        path.split(|&byte| byte == b'/').try_for_each(check_name)?;
    }
    Ok(path)
}

/// `parent/name`, or `name` alone below the root.
pub fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

/// The parent's path and the last name; the parent of a top-level name is the empty path.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

/// The components of a checked relative path; none for the root.
pub fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/').filter(|name| !name.is_empty())
}

/// Shows bytes as text: UTF-8 as it is, control characters and stray bytes as `\xNN`, so that a hostile
/// name cannot steer a terminal.
#[derive(Debug, Clone, Copy)]
pub struct Escaped<'a>(pub &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                if character.is_control() || character == '\\' {
                    write!(f, "{}", character.escape_default())?;
                } else {
                    write!(f, "{character}")?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_root_are_refused() {
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'a'; 256]] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        for path in [&b"/etc"[..], b"a//b", b"a/../b", b"./a", b"a/."] {
            assert!(check_relative(path).is_err(), "{path:?}");
        }
        assert_eq!(check_relative(b"pool/main/"), Ok(&b"pool/main"[..]));
        assert_eq!(check_relative(b""), Ok(&b""[..]));
    }

    #[test]
    fn a_hostile_name_is_shown_escaped() {
        assert_eq!(Escaped(b"caf\xc3\xa9\x1b[2J\xff").to_string(), "café\\u{1b}[2J\\xff");
    }
}
