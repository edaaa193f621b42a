//! Which files refer to which others, by the layouts of repositories.
//!
//! What others refer to gets its name first. What refers to others is fetched first, because it is what a publisher
//! replaces under the same name.
//!
//! Clients of a package repository begin with a *head*, which names *indices* by digest, which name packages by
//! digest. The layouts of the common kinds of repositories are recognized by their names.

use stillmirror_protocol::path;

/// The position of a name in that order. A reader who fetches a file of one rank finds the files of lower ranks that it
/// refers to. A detached signature has the rank of what it signs, and is next to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// Everything not named below.
    Payload = 0,
    /// Lists of packages. See [`INDEX_DIRECTORIES`], [`INDEX_BEGINNINGS`] and the others.
    Index = 1,
    /// What lists or signs indices, and the marks of a finished update. See [`HEADS`] and [`HEAD_BEGINNINGS`].
    Head = 2,
}

impl Rank {
    /// The number of ranks.
    pub(crate) const COUNT: usize = 3;
}

/// Extensions of detached signatures and keys.
const SIGNATURES: &[&[u8]] = &[b".asc", b".sig", b".gpg", b".sign", b".minisig", b".key", b".signed"];

/// Names of heads: Debian, rpm, OSTree, OCI layouts, simplestreams, TeX Live, FreeBSD, Slackware, CRAN, CPAN, RubyGems and
/// the time stamps of mirror scripts.
const HEADS: &[&[u8]] = &[
    b"Release",
    b"InRelease",
    b"repomd.xml",
    b"summary",
    b"index.json",
    b"oci-layout",
    b"texlive.tlpdb",
    b"meta.conf",
    b"meta.txz",
    b"CHECKSUMS.md5",
    b"FILELIST.TXT",
    b"RECENT",
    b"TIMESTAMP",
    b"timestamp",
    b"lastupdate",
    b"lastsync",
    b".lastsync",
    b"LAST_UPDATED",
];
/// Beginnings of the names of heads: files of checksums beside images.
const HEAD_BEGINNINGS: &[&[u8]] =
    &[b"SHA1SUM", b"SHA256SUM", b"SHA512SUM", b"MD5SUM", b"sha256sum", b"sha512sum", b"md5sum", b"B2SUM"];

/// Directories that hold indices: Debian, rpm, Debian's by-hash and indices, crates and PyPI, conda, simplestreams, RubyGems.
const INDEX_DIRECTORIES: &[&[u8]] =
    &[b"dists", b"repodata", b"by-hash", b"indices", b"simple", b"streams", b"specs", b"tlpkg", b"modules"];
/// Beginnings of the names of indices.
const INDEX_BEGINNINGS: &[&[u8]] = &[
    b"Packages",
    b"Sources",
    b"Contents-",
    b"APKINDEX.",
    b"index.",
    b"ls-lR",
    b"repodata.json",
    b"current_repodata.json",
    b"specs.",
    b"latest_specs.",
    b"prerelease_specs.",
    b"maven-metadata.xml",
    b"packagesite.",
    b"digests.",
    b"PACKAGES",
    b"02packages.details",
    b"Manifest",
    b"fullfilelist",
    b"fullfiletimelist",
    b"nix-cache-info",
];
/// Extensions of indices, also before a further extension: Arch and Void.
const INDEX_EXTENSIONS: &[&[u8]] = &[b".db", b".files"];
/// Ends of the names of indices: Void.
const INDEX_ENDS: &[&[u8]] = &[b"-repodata"];

/// Returns the rank of a path.
pub(crate) fn rank(file: &[u8]) -> Rank {
    let (dir, mut name) = path::split(file);
    while let Some(signed) = SIGNATURES.iter().find_map(|end| name.strip_suffix(*end)).filter(|name| !name.is_empty()) {
        name = signed;
    }
    let begins = |beginnings: &[&[u8]]| beginnings.iter().any(|beginning| name.starts_with(beginning));
    let contains = |part: &[u8]| name.windows(part.len()).any(|window| window == part);
    let in_directory = |names: &[&[u8]]| path::components(dir).any(|dir| names.contains(&dir));
    // A file named by its digest is not a head, nor are the `Release` files of Debian's components, which the one of the
    // suite lists.
    let (_, parent) = path::split(dir);
    let is_listed =
        in_directory(&[b"by-hash"]) || (name == b"Release" && (parent.starts_with(b"binary-") || parent == b"source"));
    if !is_listed && (HEADS.contains(&name) || begins(HEAD_BEGINNINGS) || contains(b"CHECKSUM")) {
        return Rank::Head;
    }
    let extended = |extension: &&[u8]| name.ends_with(extension) || contains(&[extension, &b"."[..]].concat());
    if in_directory(INDEX_DIRECTORIES)
        || begins(INDEX_BEGINNINGS)
        || INDEX_EXTENSIONS.iter().any(extended)
        || INDEX_ENDS.iter().any(|end| name.ends_with(end))
    {
        return Rank::Index;
    }
    Rank::Payload
}

/// Returns the directory of the repository whose files a head or an index may refer to: for Debian the parent of
/// `dists`, for rpm the parent of `repodata`. For all others it is the root, which is empty, because they may refer to
/// files anywhere.
pub(crate) fn scope(file: &[u8]) -> &[u8] {
    let mut start = 0;
    for component in path::components(file) {
        if component == b"dists" || component == b"repodata" {
            return file.get(..start.max(1) - 1).unwrap_or_default();
        }
        start += component.len() + 1;
    }
    b""
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
            ("dists/stable/Release.gpg", Rank::Head),
            ("dists/stable/InRelease", Rank::Head),
            ("dists/stable/main/binary-amd64/Release", Rank::Index),
            ("flat/Packages.gz", Rank::Index),
            ("flat/Release", Rank::Head),
            ("fedora/40/repodata/abc-primary.xml.zst", Rank::Index),
            ("fedora/40/repodata/abc-primary.xml.zck", Rank::Index),
            ("fedora/40/repodata/repomd.xml", Rank::Head),
            ("fedora/40/repodata/repomd.xml.asc", Rank::Head),
            ("core/os/x86_64/core.db", Rank::Index),
            ("core/os/x86_64/core.db.sig", Rank::Index),
            ("core/os/x86_64/core.db.tar.gz", Rank::Index),
            ("core/os/x86_64/linux-6.1.pkg.tar.zst", Rank::Payload),
            ("core/os/x86_64/linux-6.1.pkg.tar.zst.sig", Rank::Payload),
            ("alpine/v3.20/main/x86_64/APKINDEX.tar.gz", Rank::Index),
            ("simple/requests/index.html", Rank::Index),
            ("conda-forge/noarch/repodata.json.zst", Rank::Index),
            ("src/contrib/PACKAGES.gz", Rank::Index),
            ("modules/02packages.details.txt.gz", Rank::Index),
            ("specs.4.8.gz", Rank::Index),
            ("org/a/b/maven-metadata.xml", Rank::Index),
            ("current/x86_64-repodata", Rank::Index),
            ("FreeBSD:14:amd64/latest/packagesite.pkg", Rank::Index),
            ("FreeBSD:14:amd64/latest/meta.conf", Rank::Head),
            ("slackware64-15.0/CHECKSUMS.md5.asc", Rank::Head),
            ("tlnet/tlpkg/texlive.tlpdb", Rank::Head),
            ("repo/summary.sig", Rank::Head),
            ("image/index.json", Rank::Head),
            ("iso/SHA256SUMS", Rank::Head),
            ("iso/SHA256SUMS.sign", Rank::Head),
            ("iso/Fedora-40-CHECKSUM", Rank::Head),
            ("lastsync", Rank::Head),
        ] {
            assert_eq!(rank(path.as_bytes()), expected, "{path}");
        }
    }

    #[test]
    fn a_repository_ends_where_its_layout_says() {
        for (path, expected) in [
            ("dists/stable/InRelease", ""),
            ("debian/dists/stable/InRelease", "debian"),
            ("a/b/repodata/repomd.xml", "a/b"),
            ("iso/SHA256SUMS", ""),
            ("pool/dists.txt", ""),
        ] {
            assert_eq!(scope(path.as_bytes()), expected.as_bytes(), "{path}");
        }
    }
}
