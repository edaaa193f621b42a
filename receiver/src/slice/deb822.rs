//! Reads Debian's `Packages` and `Sources`: which files they name.

use std::io::BufRead;

use stillmirror_protocol::{limits, path};

use super::compressed::{self, IndexFault};

/// Calls `each` with the path of every package in a `Packages` file, relative to the archive's root.
pub(crate) fn packages(input: impl BufRead, each: &mut dyn FnMut(&[u8])) -> Result<(), IndexFault> {
    lines(input, &mut |line| {
        if let Line::Field(b"filename", value) = line {
            each(value);
        }
    })
}

/// Calls `each` with the path of every file of every package in a `Sources` file, relative to the archive's root.
pub(crate) fn sources(input: impl BufRead, each: &mut dyn FnMut(&[u8])) -> Result<(), IndexFault> {
    let (mut directory, mut files, mut is_list) = (Vec::new(), Vec::new(), false);
    let mut flush = |directory: &mut Vec<u8>, files: &mut Vec<Vec<u8>>| {
        files.sort_unstable();
        files.dedup();
        files.drain(..).for_each(|name| each(&path::join(directory, &name)));
        directory.clear();
    };
    lines(input, &mut |line| match line {
        Line::Field(b"directory", value) => {
            directory = value.to_vec();
            is_list = false;
        }
        Line::Field(name, _) => is_list = name == b"files" || name.starts_with(b"checksums-"),
        Line::More(value) if is_list && files.len() < FILES => {
            let name = value.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).nth(2);
            files.extend(name.filter(|name| name.len() <= limits::NAME).map(<[u8]>::to_vec));
        }
        Line::More(_) => {}
        Line::End => flush(&mut directory, &mut files),
    })?;
    Ok(())
}

/// A line of a file in Debian's control format.
enum Line<'a> {
    /// The first line of a field: its name in lower case, and its value.
    Field(&'a [u8], &'a [u8]),
    /// A further line of a field.
    More(&'a [u8]),
    /// The end of a paragraph.
    End,
}

/// Calls `each` for every line. Of a long line, it gets the beginning.
fn lines(input: impl BufRead, each: &mut dyn FnMut(Line<'_>)) -> Result<(), IndexFault> {
    let mut input = compressed::open(input)?;
    let unit = input.unit();
    let (mut line, mut number) = (Vec::new(), 0);
    while next_line(&mut input, &mut line)? {
        unit.ended();
        number += 1;
        match &line[..] {
            [] => each(Line::End),
            [b'#', ..] => {}
            [b' ' | b'\t', rest @ ..] => each(Line::More(rest.trim_ascii())),
            field => {
                let Some(colon) = field.iter().position(|&byte| byte == b':') else {
                    return Err(IndexFault::Line(number));
                };
                let (name, value) = field.split_at(colon);
                if name.is_empty() || !name.iter().all(u8::is_ascii_graphic) {
                    return Err(IndexFault::Line(number));
                }
                each(Line::Field(&name.to_ascii_lowercase(), value[1..].trim_ascii()));
            }
        }
    }
    each(Line::End);
    Ok(())
}

/// Reads a line without its end. Keeps no more than [`LINE`] bytes of it. Returns false at the end of the file.
fn next_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> Result<bool, IndexFault> {
    line.clear();
    let mut is_any = false;
    loop {
        let bytes = input.fill_buf()?;
        if bytes.is_empty() {
            break;
        }
        is_any = true;
        let end = memchr(bytes);
        let part = &bytes[..end.unwrap_or(bytes.len())];
        line.extend_from_slice(&part[..part.len().min(LINE - line.len())]);
        let used = part.len() + usize::from(end.is_some());
        input.consume(used);
        if end.is_some() {
            break;
        }
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(is_any)
}

fn memchr(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|&byte| byte == b'\n')
}

/// Number of bytes of a line that count. A path is shorter.
const LINE: usize = 16 << 10;
/// Maximum number of files of one source package.
const FILES: usize = 64 << 10;
