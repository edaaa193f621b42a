//! Selects rpm repositories: directories with a `repodata` directory.

use stillmirror_protocol::path;

use super::part::Part;
use super::rows::Rows;
use super::{Index, IndexKind, Known, Slice, forms};

/// Names of directories that have one architecture's repository.
const ARCHITECTURES: [&str; 19] = [
    "x86_64",
    "x86_64_v2",
    "i386",
    "i486",
    "i586",
    "i686",
    "aarch64",
    "armv7hl",
    "armhfp",
    "ppc64",
    "ppc64le",
    "s390x",
    "riscv64",
    "loongarch64",
    "mips64el",
    "ia64",
    "source",
    "SRPMS",
    "noarch",
];

/// Selects all the repositories in a part whose path begins with a wanted suite.
pub(super) fn select(part: Part<'_>, slice: &Slice, rows: &mut Rows, known: &mut Known) -> Vec<Index> {
    let mut indices = Vec::new();
    for (repodata, at) in part.named(b"repodata") {
        if repodata.child(b"repomd.xml").is_none() {
            continue;
        }
        (known.is_any, known.has_rpm) = (true, true);
        let base = path::split(&at).0;
        let text = path::Escaped(base).to_string();
        let is_in =
            |suite: &&String| text == **suite || text.strip_prefix(&***suite).is_some_and(|rest| rest.starts_with('/'));
        let found: Vec<_> = slice.suites.iter().filter(is_in).cloned().collect();
        known.suites.insert(text.clone());
        if found.is_empty() && !slice.suites.is_empty() {
            continue;
        }
        known.found_suites.extend(found);
        let names = || text.split('/').filter(|name| ARCHITECTURES.contains(name));
        names().for_each(|name| known.add_architecture(name));
        if !names().all(|name| slice.takes_rpm(name)) {
            continue;
        }
        rows.add_below(part.list, repodata);
        let forms = forms(part, repodata, b"repomd.xml");
        indices.push(Index {
            kind: IndexKind::Repomd,
            base: base.to_vec(),
            path: path::join(&at, b"repomd.xml"),
            forms,
        });
    }
    indices
}
