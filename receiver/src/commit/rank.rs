//! The order in which files are renamed into place.

use stillmirror_protocol::path;

/// The position of a file in that order. Files that list or sign other files come after them, so that a
/// reader who fetches such a file finds the files that it names:
///
/// - *payload*: everything not named below;
/// - *index*: below a `dists/`, `repodata/`, `by-hash/` or `indices/` directory, and `Packages*`, `Sources*`,
///   `Contents-*`, `*.db`, `*.db.*`, `*.files`, `*.files.*`, `APKINDEX.*`, `index.*`, `ls-lR*`;
/// - *head*: files that list or sign the indices: `Release`, `InRelease`, `Release.gpg`, `repomd.xml*`,
///   `SHA256SUMS*`, `SHA512SUMS*`, `*CHECKSUM*`, `TIMESTAMP`, `lastupdate`, `lastsync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    Payload,
    Index,
    Head,
}

/// Returns the rank of a file's path.
pub(crate) fn rank(file: &[u8]) -> Rank {
    let (dir, name) = path::split(file);
    let begins = |beginnings: &[&[u8]]| beginnings.iter().any(|beginning| name.starts_with(beginning));
    let contains = |part: &[u8]| name.windows(part.len()).any(|window| window == part);
    let heads: &[&[u8]] = &[b"repomd.xml", b"SHA256SUMS", b"SHA512SUMS"];
    let is_head =
        [&b"Release"[..], b"InRelease", b"Release.gpg", b"TIMESTAMP", b"lastupdate", b"lastsync"].contains(&name);
    if is_head || begins(heads) || contains(b"CHECKSUM") {
        return Rank::Head;
    }
    let directories: &[&[u8]] = &[b"dists", b"repodata", b"by-hash", b"indices"];
    let indices: &[&[u8]] = &[b"Packages", b"Sources", b"Contents-", b"APKINDEX.", b"index.", b"ls-lR"];
    let suffixed = |suffix: &[u8]| name.ends_with(suffix) || contains(&[suffix, b"."].concat());
    if path::components(dir).any(|dir| directories.contains(&dir))
        || begins(indices)
        || suffixed(b".db")
        || suffixed(b".files")
    {
        return Rank::Index;
    }
    Rank::Payload
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_refer_to_others_come_after_them() {
        for (path, expected) in [
            ("pool/main/a/apt_2.0_amd64.deb", Rank::Payload),
            ("iso/debian-12.iso", Rank::Payload),
            ("dists/stable/main/binary-amd64/Packages.xz", Rank::Index),
            ("dists/stable/main/by-hash/SHA256/abc", Rank::Index),
            ("dists/stable/Release", Rank::Head),
            ("dists/stable/InRelease", Rank::Head),
            ("fedora/40/repodata/abc-primary.xml.zst", Rank::Index),
            ("fedora/40/repodata/repomd.xml", Rank::Head),
            ("fedora/40/repodata/repomd.xml.asc", Rank::Head),
            ("core/os/x86_64/core.db", Rank::Index),
            ("core/os/x86_64/core.db.tar.gz", Rank::Index),
            ("core/os/x86_64/linux-6.1.pkg.tar.zst", Rank::Payload),
            ("alpine/v3.20/main/x86_64/APKINDEX.tar.gz", Rank::Index),
            ("iso/SHA256SUMS", Rank::Head),
            ("iso/Fedora-40-CHECKSUM", Rank::Head),
            ("lastsync", Rank::Head),
        ] {
            assert_eq!(rank(path.as_bytes()), expected, "{path}");
        }
    }
}
