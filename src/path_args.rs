//! Paths on the command line.

use std::path::PathBuf;

use clap::builder::{PathBufValueParser, TypedValueParser};

/// Parses a local path. Refuses one that begins with `~`: shells expand it only at the start of an unquoted word, so
/// `--store=~/x` and `'~/x'` arrive here as they are, and would name a directory `~`.
pub(crate) fn local() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| {
        if path.as_os_str().as_encoded_bytes().starts_with(b"~") {
            let path = path.display();
            return Err(format!(
                "the shell did not expand '~': write it unquoted, at the start of a word, or write $HOME (a name that \
                 really begins with '~' is ./{path})"
            ));
        }
        Ok(path)
    })
}
