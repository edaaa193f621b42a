//! One entry as a client prints it. A client escapes what is not printable, so a name has no newline.

use super::difference::{Aspect, Difference};

/// What a client is told to print about each entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// All attributes.
    Items,
    /// The same, and the digest of `-c`.
    Digests,
    /// What `--list-only` prints.
    Listing,
    /// What a client would do with its own files.
    Changes,
}

impl Format {
    /// Returns the option for it. `//` ends the name, because no name has two slashes.
    pub(super) fn words(self) -> &'static [&'static str] {
        match self {
            Self::Items => &["--out-format=%i|%B|%U|%G|%l|%M|%n//%L"],
            Self::Digests => &["--out-format=%i|%B|%U|%G|%l|%M|%C|%n//%L"],
            Self::Listing => &["--list-only"],
            Self::Changes => &["--out-format=%i|%n//%L"],
        }
    }

    /// Returns the meaning of the fields of a record.
    fn aspects(self) -> &'static [Aspect] {
        use Aspect::{Change, Digest, Group, HardLink, Mode, Owner, Size, Target, Time, Type};
        match self {
            Self::Items => &[Type, Mode, Owner, Group, Size, Time, Target, HardLink],
            Self::Digests => &[Type, Mode, Owner, Group, Size, Time, Target, HardLink, Digest],
            Self::Listing => &[Type, Mode, Size, Time, Target],
            Self::Changes => &[Change, Target, HardLink],
        }
    }

    /// Reads a line. Writes a record to `out`: the path and the fields, each ended by NUL, so that records sort by path.
    /// Returns whether the line describes an entry.
    pub(super) fn read(self, line: &[u8], out: &mut Vec<u8>) -> bool {
        out.clear();
        match self {
            Self::Items => item(line, 7, out),
            Self::Digests => item(line, 8, out),
            Self::Listing => listed(line, out),
            Self::Changes => item(line, 2, out),
        }
        .is_some()
    }
}

/// Reads a line of `--out-format` with this many parts.
fn item(line: &[u8], count: usize, out: &mut Vec<u8>) -> Option<()> {
    let parts: Vec<&[u8]> = line.splitn(count, |&byte| byte == b'|').collect();
    let (&name, parts) = parts.split_last().filter(|(_, rest)| rest.len() == count - 1)?;
    let (&change, attributes) = parts.split_first()?;
    let end = name.windows(2).position(|pair| pair == b"//")?;
    let rest = name.get(end + 2..)?;
    let rest = rest.strip_prefix(b"/").unwrap_or(rest);
    let kind = *change.get(1)?;
    put(out, name.get(..end)?);
    if attributes.is_empty() {
        put(out, change.trim_ascii());
    } else {
        put(out, &[kind]);
    }
    for (at, attribute) in attributes.iter().enumerate().take(5) {
        // The size of a directory depends on its file system, and no client uses it.
        let is_size_of_dir = kind == b'd' && at == 3;
        put(out, if is_size_of_dir { b"" } else { attribute });
    }
    put(out, rest.strip_prefix(b" -> ").unwrap_or_default());
    put(out, rest.strip_prefix(b" => ").unwrap_or_default());
    if let Some(digest) = attributes.get(5) {
        put(out, digest.trim_ascii());
    }
    Some(())
}

/// Reads a line of `--list-only`: `-rw-r--r--          1,234 2017/07/14 02:40:00 name`.
fn listed(line: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (mode, rest) = line.split_at_checked(10)?;
    let (&kind, mode) = mode.split_first()?;
    if !b"-dlbcps".contains(&kind) {
        return None;
    }
    let rest = rest.trim_ascii_start();
    let mut parts = rest.splitn(4, |&byte| byte == b' ');
    let (size, date, time, name) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if !size.iter().all(|byte| byte.is_ascii_digit() || *byte == b',') || size.is_empty() {
        return None;
    }
    let arrow = (kind == b'l').then(|| name.windows(4).position(|part| part == b" -> ")).flatten();
    let (name, target) = arrow.map_or((name, &b""[..]), |at| (&name[..at], &name[at + 4..]));
    put(out, name);
    put(
        out,
        &[match kind {
            b'-' => b'f',
            b'l' => b'L',
            b'b' | b'c' => b'D',
            b'p' | b's' => b'S',
            kind => kind,
        }],
    );
    put(out, mode);
    let digits = size.iter().copied().filter(|_| kind != b'd').filter(u8::is_ascii_digit);
    out.extend(digits);
    out.push(0);
    out.extend_from_slice(date);
    out.push(b'-');
    put(out, time);
    put(out, target);
    Some(())
}

fn put(out: &mut Vec<u8>, field: &[u8]) {
    out.extend_from_slice(field);
    out.push(0);
}

/// A record that [`Format::read`] wrote.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<'a>(pub(super) &'a [u8]);

impl<'a> Record<'a> {
    /// Returns the path as the client prints it.
    pub(super) fn path(self) -> &'a [u8] {
        self.fields().next().unwrap_or_default()
    }

    /// Returns the size if it is a regular file.
    pub(super) fn file_size(self) -> Option<u64> {
        let mut fields = self.fields().skip(1);
        let is_file = fields.next() == Some(b"f");
        std::str::from_utf8(fields.nth(3)?).ok()?.parse().ok().filter(|_| is_file)
    }

    /// Passes the differences between two records of the same path to `found`.
    pub(super) fn differences(self, new: Record<'_>, format: Format, mut found: impl FnMut(Difference)) {
        let pairs = self.fields().skip(1).zip(new.fields().skip(1));
        for ((old, new), aspect) in pairs.zip(format.aspects()).filter(|((old, new), _)| old != new) {
            found(Difference::new(text(self.path()), *aspect, text(old), text(new)));
        }
    }

    /// Returns a few words about the entry.
    pub(super) fn summary(self) -> String {
        let fields: Vec<_> = self.fields().skip(1).filter(|field| !field.is_empty()).map(text).collect();
        fields.join(" ")
    }

    fn fields(self) -> impl Iterator<Item = &'a [u8]> {
        self.0.split(|&byte| byte == 0)
    }
}

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns the bytes of a name that a client printed: it writes `\#ooo` for bytes that are not printable.
pub(super) fn unescape(printed: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(printed.len());
    let mut rest = printed;
    while let Some((&first, after)) = rest.split_first() {
        let octal = |digits: &[u8]| {
            digits.iter().try_fold(0_u8, |value, digit| {
                let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
                value.checked_mul(8)?.checked_add(digit)
            })
        };
        let escaped =
            after.strip_prefix(b"#").filter(|_| first == b'\\').and_then(|digits| digits.get(..3)).and_then(octal);
        match escaped {
            Some(byte) => {
                out.push(byte);
                rest = &rest[5..];
            }
            None => {
                out.push(first);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(format: Format, line: &str) -> Option<String> {
        let mut out = Vec::new();
        format.read(line.as_bytes(), &mut out).then(|| text(&out).replace('\0', ";"))
    }

    #[test]
    fn lines_of_both_forms_are_read() {
        let items = |line: &str| read(Format::Items, line);
        let date = "2017/07/14-02:40:00";
        for (line, record) in [
            (">f+++++++++|rw-r--r--|0|7|1234|DATE|a b|c//", "a b|c;f;rw-r--r--;0;7;1234;DATE;;;"),
            ("cd+++++++++|rwxr-xr-x|0|0|4096|DATE|dir///", "dir;d;rwxr-xr-x;0;0;;DATE;;;"),
            ("cL+++++++++|rwxrwxrwx|0|0|6|DATE|link// -> a//b", "link;L;rwxrwxrwx;0;0;6;DATE;a//b;;"),
            ("hf+++++++++|rw-r--r--|0|0|9|DATE|x// => y", "x;f;rw-r--r--;0;0;9;DATE;;y;"),
            (".d..t......|rwxr-xr-x|0|0|4096|DATE|.///", ".;d;rwxr-xr-x;0;0;;DATE;;;"),
        ] {
            assert_eq!(items(&line.replace("DATE", date)).unwrap(), record.replace("DATE", date));
        }
        let digests = ">f+++++++++|rw-r--r--|0|0|1|T|abc |name//";
        assert_eq!(read(Format::Digests, digests).unwrap(), "name;f;rw-r--r--;0;0;1;T;;;abc;");
        assert_eq!(read(Format::Changes, "*deleting  |old///").unwrap(), "old;*deleting;;;");
        assert_eq!(read(Format::Changes, ".f..t......|x//").unwrap(), "x;.f..t......;;;");
        for line in ["", "skipping directory x", "a|b|c"] {
            assert_eq!(items(line), None);
        }
    }

    #[test]
    fn lines_of_a_listing_are_read() {
        let listed = |line: &str| read(Format::Listing, line);
        let file = "-rw-r--r--          1,234 2017/07/14 02:40:00  a -> b";
        assert_eq!(listed(file).unwrap(), " a -> b;f;rw-r--r--;1234;2017/07/14-02:40:00;;");
        let link = "lrwxrwxrwx              6 2017/07/14 02:40:00 link -> to";
        assert_eq!(listed(link).unwrap(), "link;L;rwxrwxrwx;6;2017/07/14-02:40:00;to;");
        let dir = "drwxr-xr-x          4,096 2017/07/14 02:40:00 .";
        assert_eq!(listed(dir).unwrap(), ".;d;rwxr-xr-x;;2017/07/14-02:40:00;;");
        assert_eq!(listed("receiving file list ... done"), None);
    }

    #[test]
    fn names_are_unescaped() {
        assert_eq!(unescape(br"a\#012b\#303\#244\x\#9\#134#012"), b"a\nb\xc3\xa4\\x\\#9\\#012");
    }

    #[test]
    fn each_field_that_differs_is_a_difference() {
        let record = |line: &str| {
            let mut out = Vec::new();
            assert!(Format::Items.read(line.as_bytes(), &mut out));
            out
        };
        let old = record(">f+++++++++|rw-r--r--|0|0|1|2017/07/14-02:40:00|a//");
        let new = record(">f+++++++++|rw-rw-r--|0|0|2|2017/07/14-02:40:00|a//");
        let mut found = Vec::new();
        Record(&old).differences(Record(&new), Format::Items, |difference| found.push(difference));
        let expected = [
            Difference::new("a", Aspect::Mode, "rw-r--r--", "rw-rw-r--"),
            Difference::new("a", Aspect::Size, "1", "2"),
        ];
        assert_eq!(found, expected);
        assert_eq!(Record(&old).file_size(), Some(1));
    }
}
