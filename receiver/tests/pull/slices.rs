use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use stillmirror_protocol::list;
use stillmirror_protocol::wire::{ItemFailure, Reply, Request};
use stillmirror_receiver::{Check, Failure, IndexFault, MaxDelete, Names, Options, PullError, Slice};
use stillmirror_store::Store;

use crate::sender::Sender;
use crate::tree::{Tree, assert_same};
use crate::{Place, run, staging_directory_is_removed};

const CHECKS: [Check; 3] = [Check::Stat, Check::Hash, Check::None];
const SUITES: [&str; 3] = ["bookworm", "bookworm-updates", "old/updates"];
const ARCHITECTURES: [&str; 3] = ["amd64", "arm64", "kfreebsd-amd64"];

fn gzip(content: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn xz(content: &str) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(content.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// A Debian archive, and for each file to which suites, components and architectures it belongs.
#[derive(Clone)]
struct Archive {
    tree: Tree,
    owners: Vec<(String, String, String, String)>,
}

impl Archive {
    /// Creates an archive whose packages have a version.
    fn new(version: u32) -> Self {
        let tree =
            Tree::default().file("README", "readme").file("project/trace/origin", "trace").file("ls-lR.gz", "ls");
        let mut archive = Self { tree, owners: Vec::new() };
        archive.tree = archive.tree.symlink("dists/stable", "bookworm");
        for suite in SUITES {
            archive.put(&format!("dists/{suite}/InRelease"), format!("{suite} {version}"), (suite, "", ""));
            for component in ["main", "contrib"] {
                archive.put_component(suite, component, version);
            }
        }
        archive
    }

    fn put_component(&mut self, suite: &str, component: &str, version: u32) {
        let at = format!("dists/{suite}/{component}");
        let flat = suite.replace('/', "-");
        let pool = |name: &str| format!("pool/{component}/{flat}-{name}_{version}.deb");
        for architecture in ARCHITECTURES {
            let tags = (suite, component, architecture);
            let (own, all) = (pool(architecture), pool("all"));
            let text = format!(
                "Package: a\nFilename: {own}\nSize: 1\n\nPackage: b\nArchitecture: all\nFilename: ./{all}\nDescription: b\n c\n"
            );
            self.put(&own, own.clone(), tags);
            self.put(&all, all.clone(), tags);
            let dir = format!("{at}/binary-{architecture}");
            self.put(&format!("{dir}/Release"), format!("{at} {architecture} release"), tags);
            self.put_by_hash(&dir, "Packages.xz", xz(&text), tags);
            self.put_by_hash(&dir, "Packages.gz", gzip(&text), tags);
            self.put(&format!("{dir}/by-hash/SHA256/older"), format!("older {at} {architecture}"), tags);
            self.put_by_hash(&at, &format!("Contents-{architecture}.gz"), gzip(&format!("{at} {architecture}")), tags);
            self.put(&format!("{at}/dep11/Components-{architecture}.yml"), format!("{at} {architecture}"), tags);
            self.put(&format!("{at}/installer-{architecture}/current/image"), "image", ("", "", ""));
            let installer = format!("{at}/debian-installer/binary-{architecture}/Packages");
            self.put(&installer, format!("Filename: {}\n", pool("udeb")), ("", "", ""));
        }
        self.put(&pool("udeb"), "udeb", ("", "", ""));
        self.put_by_hash(&format!("{at}/i18n"), "Translation-en.xz", xz(&at), (suite, component, ""));
        let tags = (suite, component, "source");
        let sources = format!(
            "Package: s\nDirectory: pool/{component}\nFiles:\n 00 1 {flat}.dsc\nChecksums-Sha256:\n 00 1 {flat}.dsc\n 00 1 {flat}.tar\n"
        );
        self.put(&format!("{at}/source/Sources.gz"), gzip(&sources), tags);
        for end in ["dsc", "tar"] {
            self.put(&format!("pool/{component}/{flat}.{end}"), format!("{at} {end}"), tags);
        }
    }

    fn put(&mut self, path: &str, content: impl Into<Vec<u8>>, (suite, component, architecture): (&str, &str, &str)) {
        self.tree = std::mem::take(&mut self.tree).file(path, content);
        self.owners.push((path.to_owned(), suite.to_owned(), component.to_owned(), architecture.to_owned()));
    }

    /// Puts a file that has a hard link named by its digest.
    fn put_by_hash(&mut self, dir: &str, name: &str, content: Vec<u8>, tags: (&str, &str, &str)) {
        let digest = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let group = self.owners.len() as u64;
        for path in [format!("{dir}/{name}"), format!("{dir}/by-hash/SHA256/{digest}")] {
            self.put(&path, content.clone(), tags);
            self.tree = std::mem::take(&mut self.tree).in_group(&path, group);
        }
    }

    /// Returns the paths of the files of a slice. Empty lists stand for everything.
    fn files(&self, suites: &[&str], components: &[&str], architectures: &[&str]) -> BTreeSet<String> {
        let is_in =
            |wanted: &[&str], tag: &String| wanted.is_empty() || tag.is_empty() || wanted.contains(&tag.as_str());
        let owned = self.owners.iter().filter(|(_, suite, component, architecture)| {
            !suite.is_empty()
                && suites_of(suites).contains(suite)
                && is_in(components, component)
                && is_in(architectures, architecture)
        });
        owned.map(|(path, ..)| path.clone()).collect()
    }
}

fn suites_of(suites: &[&str]) -> Vec<String> {
    let all = suites.is_empty();
    let named = SUITES
        .iter()
        .filter(|suite| all || suites.contains(suite) || (**suite == "bookworm" && suites.contains(&"stable")));
    named.map(|suite| (*suite).to_owned()).collect()
}

fn slice(suites: &[&str], components: &[&str], architectures: &[&str]) -> Option<Slice> {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Some(Slice::new(owned(suites), owned(architectures), owned(components)).unwrap())
}

/// Returns the paths of the files below a directory.
fn files(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(at) = dirs.pop() {
        for entry in fs::read_dir(&at).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => dirs.push(entry.path()),
                kind if kind.is_file() => {
                    found.extend([entry.path().strip_prefix(dir).unwrap().to_str().unwrap().to_owned()]);
                }
                _ => {}
            }
        }
    }
    found
}

/// Returns the paths whose data were requested since the last call, each as often as it was.
fn requested(sender: &Sender) -> Vec<String> {
    let current = sender.current();
    let list = list::open(&current.encoded).unwrap();
    let data = sender.requests().into_iter().filter_map(|request| match request {
        Request::Data { items, .. } => Some(items),
        _ => None,
    });
    let mut paths: Vec<_> = data.flatten().map(|item| String::from_utf8(list.path(item.row)).unwrap()).collect();
    paths.sort();
    paths
}

/// Asserts that the store lists exactly the files in the destination.
#[track_caller]
fn assert_listed(place: &Place) {
    let generation = Store::open(&place.store()).unwrap().current().unwrap().unwrap();
    let list = generation.list();
    let rows = (0..list.len()).filter(|&row| list.row(row).is_file());
    let listed: BTreeSet<String> = rows.map(|row| String::from_utf8(list.path(row)).unwrap()).collect();
    assert_eq!(listed, files(&place.dest()));
}

#[test]
fn a_slice_has_what_belongs_to_its_suites_and_architectures_and_nothing_else_is_fetched() {
    for check in CHECKS {
        let (mut archive, place) = (Archive::new(1), Place::new());
        let sender = Sender::of(&archive.tree);
        let options = Options { slice: slice(&["bookworm"], &[], &["amd64"]), check, ..place.mirror(&sender) };
        for version in 1..4 {
            let report = run(options.clone()).unwrap();
            let expected = archive.files(&["bookworm"], &[], &["amd64"]);
            assert_eq!(files(&place.dest()), expected, "{check:?}");
            assert!(report.failed.is_empty() && staging_directory_is_removed(&place.dest()));
            let fetched = requested(&sender);
            let once: BTreeSet<String> = fetched.iter().cloned().collect();
            assert!(once.is_subset(&expected) && once.len() == fetched.len(), "{fetched:?}");
            assert_eq!(version == 1, fetched.contains(&"dists/bookworm/main/i18n/Translation-en.xz".to_owned()));
            assert_listed(&place);
            let head = Store::open(&place.store()).unwrap().current_head().unwrap().unwrap().head;
            assert_eq!(head.slice.unwrap().selected, "suite bookworm; architecture amd64");
            let report = run(options.clone()).unwrap();
            assert!(report.unchanged && requested(&sender).is_empty());
            archive = Archive::new(version + 1);
            sender.publish(&archive.tree);
        }
    }
}

#[test]
fn what_a_slice_fetches_is_counted_once() {
    let (archive, place) = (Archive::new(1), Place::new());
    let sender = Sender::of(&archive.tree);
    let options = Options { slice: slice(&["bookworm"], &[], &["amd64"]), ..place.mirror(&sender) };
    let report = run(options).unwrap();
    let distinct: BTreeSet<Vec<u8>> =
        files(&place.dest()).iter().map(|path| fs::read(place.file(path)).unwrap()).collect();
    assert_eq!(report.bytes_literal, distinct.iter().map(|content| content.len() as u64).sum::<u64>());
    assert_eq!((report.files_updated, report.bytes_matched), (distinct.len() as u64, 0));
}

#[test]
fn a_suite_may_be_a_symlink_and_several_are_one_tree() {
    let (archive, place) = (Archive::new(1), Place::new());
    let sender = Sender::of(&archive.tree);
    let options = |suites: &[&str]| Options { slice: slice(suites, &[], &["arm64"]), ..place.mirror(&sender) };
    run(options(&["stable"])).unwrap();
    assert_eq!(files(&place.dest()), archive.files(&["stable"], &[], &["arm64"]));
    assert_eq!(fs::read_link(place.file("dists/stable")).unwrap(), Path::new("bookworm"));
    run(options(&["bookworm-updates", "bookworm", "old/updates"])).unwrap();
    assert_eq!(files(&place.dest()), archive.files(&[], &[], &["arm64"]));
    assert!(place.file("dists/stable").symlink_metadata().is_err());
    run(options(&[])).unwrap();
    assert_eq!(files(&place.dest()), archive.files(&[], &[], &["arm64"]));
    assert!(place.file("dists/stable").symlink_metadata().is_ok());
}

#[test]
fn a_suite_architecture_or_component_that_does_not_exist_is_an_error_that_names_those_that_do() {
    let (archive, place) = (Archive::new(1), Place::new());
    let sender = Sender::of(&archive.tree);
    let whole = files(&{
        run(place.mirror(&sender)).unwrap();
        place.dest()
    });
    for (slice, words) in [
        (
            slice(&["bookworm", "trixie"], &[], &[]),
            &["no suite 'trixie'", "bookworm, bookworm-updates, old/updates, stable"][..],
        ),
        (slice(&[], &[], &["riscv64"]), &["no architecture 'riscv64'", "amd64, arm64, kfreebsd-amd64, source"]),
        (slice(&[], &["universe"], &[]), &["no component 'universe'", "contrib, contrib/debian-installer, main"]),
    ] {
        let error = run(Options { slice, ..place.mirror(&sender) }).unwrap_err();
        assert!(matches!(error, PullError::Usage(_)));
        for word in words {
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
    }
    // A suite that vanished takes nothing with it.
    sender.publish(&archive.tree.clone().without("dists/bookworm").without("dists/stable"));
    assert!(run(Options { slice: slice(&["bookworm"], &[], &[]), ..place.mirror(&sender) }).is_err());
    assert_eq!(files(&place.dest()), whole);
    sender.publish(&Tree::default().file("a", "a"));
    let error = run(Options { slice: slice(&[], &[], &["amd64"]), ..place.mirror(&sender) }).unwrap_err();
    assert!(error.to_string().contains("no package repository"), "{error}");
}

#[test]
fn a_whole_tree_becomes_a_slice_and_loses_the_rest_only_with_delete_and_within_its_limit() {
    for check in CHECKS {
        let (archive, place) = (Archive::new(1), Place::new());
        let sender = Sender::of(&archive.tree);
        run(place.mirror(&sender)).unwrap();
        sender.requests();
        let whole = files(&place.dest());
        let options = Options { slice: slice(&["bookworm"], &[], &["amd64"]), check, ..place.mirror(&sender) };
        let limited = Options { max_delete: MaxDelete::Usual, ..options.clone() };
        assert!(matches!(run(limited.clone()), Err(PullError::DeleteLimit { .. })));
        assert_eq!(files(&place.dest()), whole);
        assert_listed(&place);
        // What is new outside the slice does not come, and is not listed, although its directory remains.
        sender.publish(&archive.tree.clone().file("pool/main/new.deb", "new").file("project/trace/new", "new"));
        assert!(matches!(run(limited), Err(PullError::DeleteLimit { .. })));
        assert_eq!(files(&place.dest()), whole);
        assert_listed(&place);
        // A pull that trusts the store knows nothing of what an earlier one left.
        if check != Check::None {
            run(Options { delete: false, ..options.clone() }).unwrap();
            assert_eq!(files(&place.dest()), whole);
        }
        run(options.clone()).unwrap();
        assert_eq!(files(&place.dest()), archive.files(&["bookworm"], &[], &["amd64"]));
        assert_listed(&place);
        assert!(requested(&sender).is_empty());
        run(place.mirror(&sender)).unwrap();
        assert_eq!(files(&place.dest()).len(), whole.len() + 2);
    }
}

#[test]
fn what_leaves_a_slice_waits_for_the_grace_period() {
    let (archive, place) = (Archive::new(1), Place::new());
    let sender = Sender::of(&archive.tree);
    let grace = |millis| Options {
        slice: slice(&["bookworm"], &[], &["amd64"]),
        delete_grace: Some(Duration::from_millis(millis)),
        ..place.mirror(&sender)
    };
    run(grace(100_000)).unwrap();
    let next = Archive::new(2);
    sender.publish(&next.tree);
    assert!(run(grace(100_000)).unwrap().deletes_waiting > 0);
    let both = &archive.files(&["bookworm"], &[], &["amd64"]) | &next.files(&["bookworm"], &[], &["amd64"]);
    assert_eq!(files(&place.dest()), both);
    std::thread::sleep(Duration::from_millis(5));
    run(grace(1)).unwrap();
    assert_eq!(files(&place.dest()), next.files(&["bookworm"], &[], &["amd64"]));
    assert_listed(&place);
}

#[test]
fn an_index_that_cannot_be_read_ends_the_pull_and_nothing_changes() {
    let index = "dists/bookworm/main/binary-amd64/Packages";
    for (content, extension) in
        [(&b"<html>"[..], ".gz"), (b"\xfd7zXZ\0broken", ".xz"), (b"\x1f\x8b", ".gz"), (b"BZh9", ".bz2")]
    {
        let (archive, place) = (Archive::new(1), Place::new());
        let sender = Sender::of(&archive.tree);
        let options = Options { slice: slice(&["bookworm"], &[], &["amd64"]), ..place.mirror(&sender) };
        run(options.clone()).unwrap();
        let before = files(&place.dest());
        let without = Archive::new(2).tree.without(&format!("{index}.gz")).without(&format!("{index}.xz"));
        sender.publish(&without.file(&format!("{index}{extension}"), content));
        let error = run(options.clone()).unwrap_err();
        let PullError::Index { path, reason } = &error else { panic!("{error}") };
        assert_eq!(String::from_utf8_lossy(path), index);
        assert_eq!(extension == ".bz2", matches!(reason, IndexFault::NoForm(_)), "{error}");
        let kept = |path: &String| !path.starts_with(".stillmirror-stage/");
        assert_eq!(files(&place.dest()).into_iter().filter(kept).collect::<BTreeSet<_>>(), before);
        sender.publish(&archive.tree);
        assert!(run(options).unwrap().failed.is_empty());
        assert_eq!(files(&place.dest()), before);
    }
}

#[test]
fn an_index_that_cannot_be_brought_is_reported_and_the_next_pull_brings_only_what_is_missing() {
    let (archive, place) = (Archive::new(1), Place::new());
    let sender = Sender::of(&archive.tree);
    let options = Options { slice: slice(&["bookworm"], &[], &["amd64"]), ..place.mirror(&sender) };
    let failing: Vec<String> = archive.files(&["bookworm"], &["main"], &["amd64"]).into_iter().collect();
    let failing = failing.iter().filter(|path| path.contains("main/binary-amd64/")).map(String::as_str);
    sender.fail(&failing.map(|path| (path, ItemFailure::Unreadable)).collect::<Vec<_>>());
    let report = run(options.clone()).unwrap();
    assert!(report.has_failed(Failure::Unreadable) && report.published.is_none());
    assert!(!place.file("dists").exists());
    let first = requested(&sender);
    sender.fail(&[]);
    assert!(run(options).unwrap().failed.is_empty());
    assert_eq!(files(&place.dest()), archive.files(&["bookworm"], &[], &["amd64"]));
    let again: Vec<String> = requested(&sender).into_iter().filter(|path| first.contains(path)).collect();
    assert!(again.iter().all(|path| path.contains("main/binary-amd64/")), "{again:?}");
}

#[test]
fn an_index_that_was_replaced_comes_by_its_digest_or_with_the_newest_generation() {
    let (first, next, place) = (Archive::new(1), Archive::new(2), Place::new());
    let sender = Sender::of(&first.tree);
    let of = |archive: &Archive| archive.files(&["bookworm"], &[], &["amd64"]);
    let options = Options {
        slice: slice(&["bookworm"], &[], &["amd64"]),
        patience: Duration::from_secs(30),
        ..place.mirror(&sender)
    };
    let index = "dists/bookworm/main/binary-amd64/";
    let fail = |archive: &Archive, is_replaced: &dyn Fn(&str) -> bool| {
        let names = of(archive);
        let names = names.iter().filter(|path| path.starts_with(index) && is_replaced(path));
        sender.fail(&names.map(|path| (path.as_str(), ItemFailure::Stale)).collect::<Vec<_>>());
    };
    fail(&first, &|path| path.contains("/Packages."));
    assert!(run(options.clone()).unwrap().failed.is_empty());
    assert_eq!(files(&place.dest()), of(&first));
    let third = Archive::new(3);
    sender.publish(&third.tree);
    fail(&third, &|path| !path.ends_with("older"));
    let publisher = std::thread::spawn({
        let (sender, tree) = (sender.clone(), next.tree.clone());
        move || {
            std::thread::sleep(Duration::from_millis(300));
            sender.publish(&tree);
        }
    });
    let report = run(options).unwrap();
    publisher.join().unwrap();
    assert_eq!((report.failed.len(), report.generation), (0, 3));
    assert_eq!(files(&place.dest()), of(&next));
    assert!(staging_directory_is_removed(&place.dest()));
}

#[test]
fn a_pull_that_ends_between_the_indices_and_the_packages_fetches_nothing_twice() {
    for check in CHECKS {
        let (archive, place) = (Archive::new(1), Place::new());
        let sender = Sender::of(&archive.tree);
        let options = Options { slice: slice(&["bookworm"], &[], &["amd64"]), check, ..place.mirror(&sender) };
        let pool: BTreeSet<u32> = {
            let current = sender.current();
            let list = list::open(&current.encoded).unwrap();
            (0..list.len()).filter(|&row| list.path(row).starts_with(b"pool/")).collect()
        };
        sender.tamper(move |number, request, frames| match request {
            Request::Data { items, .. } if items.iter().any(|item| pool.contains(&item.row)) => {
                vec![Reply::Pinned { handle: 9, head: Vec::new() }.frame(number)]
            }
            _ => frames,
        });
        assert!(run(options.clone()).is_err());
        let first = requested(&sender);
        assert!(first.iter().any(|path| path.ends_with("Packages.gz") || path.ends_with("Packages.xz")), "{first:?}");
        sender.behave(crate::sender::Behaviour::default());
        assert!(run(options).unwrap().failed.is_empty());
        let again = requested(&sender);
        let indices: Vec<_> = again.iter().filter(|path| first.contains(path) && path.contains("Packages")).collect();
        assert!(indices.is_empty(), "{indices:?}");
        assert_eq!(files(&place.dest()), archive.files(&["bookworm"], &[], &["amd64"]));
    }
}

#[test]
fn a_part_that_an_earlier_pull_left_of_a_package_survives_the_fetch_of_the_indices() {
    let (archive, place) = (Archive::new(1), Place::new());
    let package =
        archive.files(&["bookworm"], &["main"], &["amd64"]).into_iter().find(|path| path.starts_with("pool/"));
    let (package, content) = (package.unwrap(), crate::tree::noise(3_000_000, 5));
    let sender = Sender::of(&archive.tree.clone().file(&package, content.clone()));
    let stage = place.file(".stillmirror-stage");
    fs::create_dir(&stage).unwrap();
    let digest = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    fs::write(stage.join(format!("{digest}.part")), &content[..2_900_000]).unwrap();
    let options = Options { slice: slice(&["bookworm"], &[], &["amd64"]), ..place.mirror(&sender) };
    assert!(run(options).unwrap().bytes_literal < 200_000);
    assert_eq!(fs::read(place.file(&package)).unwrap(), content);
}

#[test]
fn a_file_in_the_place_of_an_index_counts_only_if_it_is_the_index() {
    let (archive, place) = (Archive::new(1), Place::new());
    let sender = Sender::of(&archive.tree);
    let options = Options { slice: slice(&["bookworm"], &[], &["amd64"]), ..place.mirror(&sender) };
    run(options.clone()).unwrap();
    // It rots: size and time are right.
    for extension in ["gz", "xz"] {
        let path = place.file(&format!("dists/bookworm/main/binary-amd64/Packages.{extension}"));
        let (mut content, time) = (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().modified().unwrap());
        content[9] ^= 1;
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        (&file).write_all(&content).unwrap();
        file.set_modified(time).unwrap();
    }
    run(options.clone()).unwrap();
    assert_eq!(files(&place.dest()), archive.files(&["bookworm"], &[], &["amd64"]));
    assert!(staging_directory_is_removed(&place.dest()));
    run(Options { check: Check::Hash, ..options }).unwrap();
    let index = "dists/bookworm/main/binary-amd64/Packages.gz";
    assert_eq!(fs::read(place.file(index)).unwrap(), archive.tree.contents()[index.as_bytes()]);
}

#[test]
fn names_that_an_index_has_and_the_repository_has_not_are_counted_and_the_rest_comes() {
    let mut text = String::new();
    for name in
        ["pool/a.deb", "../../etc/passwd", "/etc/passwd", "pool/../pool/a.deb", "pool", "", "link/b.deb", "out/passwd"]
    {
        text += &format!("Package: x\nFilename: {name}\n\n");
    }
    (0..100).for_each(|number| text += &format!("Package: x\nFilename: pool/missing-{number}\n\n"));
    let tree = Tree::default()
        .file("r/dists/s/Release", "")
        .file("r/dists/s/main/binary-amd64/Packages", text)
        .file("r/pool/a.deb", "a")
        .file("r/other/b.deb", "b")
        .symlink("r/link", "./other")
        .symlink("r/out", "../../../etc")
        .symlink("r/loop", "loop");
    let (sender, place) = (Sender::of(&tree), Place::new());
    let options = Options { path: b"r".to_vec(), slice: slice(&["s"], &[], &["amd64"]), ..place.mirror(&sender) };
    for _ in 0..2 {
        let report = run(options.clone()).unwrap();
        assert_eq!((report.unlisted, report.failed.len()), (106, 20));
        assert!(report.failed.iter().all(|failed| failed.why == Failure::Missing));
        let expected = ["dists/s/Release", "dists/s/main/binary-amd64/Packages", "other/b.deb", "pool/a.deb"];
        assert_eq!(files(&place.dest()), expected.map(str::to_owned).into());
        assert_eq!(fs::read(place.file("link/b.deb")).unwrap(), b"b");
    }
}

#[test]
fn a_slice_and_names_from_a_file_are_one_tree_and_a_filter_applies_to_both() {
    let (archive, place) = (Archive::new(1), Place::new());
    let sender = Sender::of(&archive.tree);
    let names = Names::parse(b"project\nREADME\ndists/bookworm/main/installer-amd64\nnot/there\n", false).unwrap();
    let mut options =
        Options { slice: slice(&["bookworm"], &[], &["amd64"]), names: Some(names), ..place.mirror(&sender) };
    let mut expected = archive.files(&["bookworm"], &[], &["amd64"]);
    let image = "dists/bookworm/main/installer-amd64/current/image";
    expected.extend(["README", "project/trace/origin", image].map(str::to_owned));
    for _ in 0..2 {
        let report = run(options.clone()).unwrap();
        assert_eq!((report.unlisted, &report.failed[0].path[..]), (1, &b"not/there"[..]));
        assert_eq!(files(&place.dest()), expected);
    }
    // The indices are read although they are left out.
    options.filter.exclude(b"Packages*").unwrap();
    options.filter.exclude(b"by-hash").unwrap();
    let empty = Place::new();
    let options = Options { dest: empty.dest(), store: Some(empty.store()), ..options };
    expected.retain(|path| !path.contains("Packages") && !path.contains("by-hash"));
    for _ in 0..2 {
        run(options.clone()).unwrap();
        assert_eq!(files(&empty.dest()), expected);
        assert!(staging_directory_is_removed(&empty.dest()));
    }
}

#[test]
fn a_dry_run_of_a_slice_plans_it_and_writes_nothing() {
    let (archive, place) = (Archive::new(1), Place::new());
    let sender = Sender::of(&archive.tree);
    let options = Options { slice: slice(&["bookworm"], &[], &["amd64"]), ..place.mirror(&sender) };
    let report = run(Options { dry_run: true, ..options.clone() }).unwrap();
    let planned: BTreeSet<_> = report.planned.into_iter().map(|(_, path)| String::from_utf8(path).unwrap()).collect();
    assert!(archive.files(&["bookworm"], &[], &["amd64"]).is_subset(&planned));
    assert!(!planned.iter().any(|path| path.contains("arm64")));
    assert_eq!(fs::read_dir(place.dest()).unwrap().count(), 0);
    assert!(!place.store().exists());
}

#[test]
fn a_slice_is_switched_as_a_whole_tree_is() {
    let (archive, place) = (Archive::new(1), Place::new());
    let sender = Sender::of(&archive.tree);
    let keep_snapshots = Some(Duration::from_secs(1000));
    let slice_of = |place: &Place| Options {
        slice: slice(&["bookworm"], &[], &["amd64"]),
        keep_snapshots,
        ..place.mirror(&sender)
    };
    assert!(run(slice_of(&place)).unwrap().switched);
    let first = fs::canonicalize(place.dest()).unwrap();
    assert!(run(slice_of(&place)).unwrap().unchanged);
    let next = Archive::new(2);
    sender.publish(&next.tree);
    assert!(run(slice_of(&place)).unwrap().switched);
    assert_eq!(files(&place.dest()), next.files(&["bookworm"], &[], &["amd64"]));
    assert_eq!(files(&first), archive.files(&["bookworm"], &[], &["amd64"]));
    assert_listed(&place);
    // An index that does not come leaves the readers alone.
    let last = Archive::new(3);
    let failing = last.files(&["bookworm"], &[], &["amd64"]);
    let failing =
        failing.iter().filter(|path| path.contains("/binary-")).map(|path| (path.as_str(), ItemFailure::Stale));
    sender.publish_failing(&last.tree, &failing.collect::<Vec<_>>());
    assert!(!run(slice_of(&place)).unwrap().switched);
    assert_eq!(files(&place.dest()), next.files(&["bookworm"], &[], &["amd64"]));
    sender.fail(&[]);
    assert!(run(slice_of(&place)).unwrap().switched);
    assert_eq!(files(&place.dest()), last.files(&["bookworm"], &[], &["amd64"]));
}

/// An rpm repository with a package of each architecture.
fn rpms(tree: Tree, at: &str, architectures: &[&str]) -> Tree {
    let mut text = "<metadata>".to_owned();
    let mut tree = tree;
    for architecture in architectures {
        let name = format!("Packages/p-1.{architecture}.rpm");
        text += &format!("<package type='rpm'><arch>{architecture}</arch><location href='{name}'/></package>");
        tree = tree.file(&format!("{at}/{name}"), format!("{at} {architecture}"));
    }
    let repomd = "<repomd><data type='primary'><location href='repodata/1-primary.xml.gz'/></data></repomd>";
    tree.file(&format!("{at}/repodata/repomd.xml"), repomd)
        .file(&format!("{at}/repodata/1-primary.xml.gz"), gzip(&(text + "</metadata>")))
        .file(&format!("{at}/repodata/1-filelists.xml.gz"), gzip(at))
}

#[test]
fn a_slice_of_rpm_repositories_has_the_packages_of_an_architecture_and_those_for_all() {
    let tree = rpms(Tree::default(), "9/x86_64/os", &["x86_64", "i686", "noarch"]);
    let tree = rpms(tree, "9/aarch64/os", &["aarch64", "noarch"]);
    let tree = rpms(tree, "10", &["x86_64", "aarch64", "noarch", "src"]);
    let (sender, place) = (Sender::of(&tree), Place::new());
    let repodata =
        |at: &str| ["repomd.xml", "1-primary.xml.gz", "1-filelists.xml.gz"].map(|name| format!("{at}/repodata/{name}"));
    let package = |at: &str, architecture: &str| format!("{at}/Packages/p-1.{architecture}.rpm");
    for (suites, architectures, packages) in [
        (&["9"][..], &["x86_64"][..], &[("9/x86_64/os", "x86_64"), ("9/x86_64/os", "noarch")][..]),
        (
            &[],
            &["aarch64"],
            &[("9/aarch64/os", "aarch64"), ("9/aarch64/os", "noarch"), ("10", "aarch64"), ("10", "noarch")],
        ),
        (&["10"], &["source"], &[("10", "src")]),
        (&["10"], &[], &[("10", "src"), ("10", "x86_64"), ("10", "aarch64"), ("10", "noarch")]),
    ] {
        let options = Options { slice: slice(suites, &[], architectures), ..place.mirror(&sender) };
        for unchanged in [false, true] {
            assert_eq!(run(options.clone()).unwrap().unchanged, unchanged);
        }
        let mut expected: BTreeSet<String> = packages.iter().map(|(at, one)| package(at, one)).collect();
        packages.iter().for_each(|(at, _)| expected.extend(repodata(at)));
        assert_eq!(files(&place.dest()), expected);
    }
    for (suites, architectures, words) in [
        (&["11"][..], &[][..], "no suite '11'; it has 10, 9/aarch64/os, 9/x86_64/os"),
        (&[], &["ppc64le"], "no architecture"),
    ] {
        let error = run(Options { slice: slice(suites, &[], architectures), ..place.mirror(&sender) }).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    let lost = tree.without("10/repodata/1-primary.xml.gz");
    sender.publish(&lost);
    let error = run(Options { slice: slice(&["10"], &[], &[]), ..place.mirror(&sender) }).unwrap_err();
    assert!(matches!(&error, PullError::Index { path, .. } if path == b"10/repodata/repomd.xml"), "{error}");
}

#[test]
fn a_slice_of_everything_is_the_whole_repository_byte_for_byte() {
    let tree = rpms(Tree::default(), "9", &["x86_64", "noarch"]);
    let (sender, place) = (Sender::of(&tree), Place::new());
    run(Options { slice: slice(&["9"], &[], &["x86_64"]), ..place.mirror(&sender) }).unwrap();
    assert_same(&place.dest(), &tree);
    assert_eq!(Store::open(&place.store()).unwrap().current_head().unwrap().unwrap().head, sender.current().head);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 50, ..ProptestConfig::default() })]

    #[test]
    fn any_slice_after_any_other_is_what_the_indices_say(
        steps in prop::collection::vec(
            (
                prop::sample::subsequence(vec!["bookworm", "bookworm-updates", "old/updates"], 0..3),
                prop::sample::subsequence(vec!["main", "contrib"], 0..2),
                prop::sample::subsequence(vec!["amd64", "arm64", "kfreebsd-amd64", "source"], 0..4),
                1..3u32,
                prop::sample::select(CHECKS.to_vec()),
            ),
            1..4,
        ),
    ) {
        let (sender, place) = (Sender::of(&Archive::new(9).tree), Place::new());
        for (suites, components, architectures, version, check) in steps {
            let archive = Archive::new(version);
            sender.publish(&archive.tree);
            sender.requests();
            let before = files(&place.dest());
            let options = Options { slice: slice(&suites, &components, &architectures), check, ..place.mirror(&sender) };
            let report = run(options).unwrap();
            prop_assert!(report.failed.is_empty());
            let expected = archive.files(&suites, &components, &architectures);
            prop_assert_eq!(&files(&place.dest()), &expected);
            let fetched: BTreeSet<String> = requested(&sender).into_iter().collect();
            prop_assert!(fetched.is_subset(&expected), "{:?} before {:?}", fetched, before);
            assert_listed(&place);
        }
    }
}
