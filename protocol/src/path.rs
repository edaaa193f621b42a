//! Names and relative paths as bytes: checking, joining, splitting and displaying them. They are never trusted.

use std::fmt;

use thiserror::Error;

use crate::limits;

/// Why a name or path is refused. `Display` escapes unprintable bytes.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PathError {
    /// A component is empty, or longer than [`limits::NAME`].
    #[error("name of {0} bytes, must be 1 to {max}", max = limits::NAME)]
    Length(usize),
    /// A component is `.` or `..`.
    #[error("invalid name '{}'", Escaped(.0))]
    Dots(Vec<u8>),
    /// A component contains `/` or NUL.
    #[error("name contains '/' or NUL: '{}'", Escaped(.0))]
    Byte(Vec<u8>),
    /// The path is absolute.
    #[error("absolute path '{}'", Escaped(.0))]
    Absolute(Vec<u8>),
    /// The path is longer than [`limits::PATH`].
    #[error("path of {0} bytes, the limit is {limit}", limit = limits::PATH)]
    TooLong(usize),
}

/// Checks one path component: 1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`.
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

/// Checks a relative path and each of its names; the empty path is the root. Returns the path without a trailing slash,
/// which a shell's completion may have added.
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

/// Returns `parent/name`, or `name` if the parent is the root.
pub fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

/// Splits a path into the parent's path and the last name. The parent of a top-level name is the empty path.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

/// Returns the components of a checked relative path. The root has none.
pub fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/').filter(|name| !name.is_empty())
}

/// Displays bytes as text. UTF-8 is shown as it is, except that control characters and backslashes are escaped and
/// invalid bytes are shown as `\xNN`, so that a hostile name cannot control a terminal.
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
