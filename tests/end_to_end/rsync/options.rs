//! Options do the same as with a stock daemon.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::peers::{Pair, copy, pull, stock_version};
use super::tree;
use crate::support::*;

/// Runs cases against both daemons. A case has options and paths. The protocols take turns, from `first` on.
fn each(pair: &Pair, first: u8, cases: &[(&str, &[&str])]) {
    for ((options, paths), protocol) in cases.iter().zip((27..=32).cycle().skip(usize::from(first - 27))) {
        let words: Vec<_> = options.split_whitespace().chain(paths.iter().copied()).collect();
        pair.same(options, protocol, &words);
    }
}

const ALL: &[&str] = &["{M}/", "{D}/"];
const LIST: &[&str] = &["{M}/"];

#[test]
fn every_protocol_transfers_the_tree_with_links_and_checksums() {
    let pair = Pair::new();
    for protocol in 27..=32 {
        for options in ["-aH", "-aHc --delete", "-rlptH --no-inc-recursive"] {
            let words: Vec<_> = options.split_whitespace().chain(ALL.iter().copied()).collect();
            let pulled = pair.same(options, protocol, &words);
            assert_eq!(pulled.code, Some(0), "{}", pulled.errors);
            assert!(pulled.tree.len() > 120, "only {} names", pulled.tree.len());
        }
    }
}

#[test]
fn requested_attributes_are_sent() {
    let cases = [
        "-a",
        "-rltH",
        "-rlptHS",
        "-rt",
        "-r",
        "-rl",
        "-rlto",
        "-rltg",
        "-a --no-D",
        "-aH --no-specials",
        "-rt --devices",
        "-a --numeric-ids",
        "-a --no-links",
    ];
    each(&Pair::new(), 27, &cases.map(|options| (options, ALL)));
    let later = [
        "-aU",
        "-aUU",
        "-aO -J",
        "-aA",
        "-aX",
        "-aAHX --no-inc-recursive",
        "-rltA --no-inc-recursive",
        "-a --safe-links",
        "-a --chmod=D755,F644",
        "-a --open-noatime",
    ];
    each(&Pair::new(), 30, &later.map(|options| (options, ALL)));
}

#[test]
fn checksums_and_compression_are_negotiated() {
    let pair = Pair::new();
    for choice in ["xxh128", "xxh3", "xxh64", "md5", "md4", "sha1"] {
        pair.same(choice, 31, &[&["-ac", &format!("--checksum-choice={choice}")], ALL].concat());
    }
    each(
        &pair,
        29,
        &[
            "-a --checksum-choice=none",
            "-ac --checksum-choice=md4",
            "-ac --checksum-choice=md4,md5",
            "-ac --checksum-seed=7",
        ]
        .map(|options| (options, ALL)),
    );
    for choice in ["zstd", "lz4", "zlibx", "zlib", "none"] {
        pair.same(choice, 32, &[&["-az", &format!("--compress-choice={choice}")], ALL].concat());
    }
    each(
        &pair,
        27,
        &["-az", "-az", "-az", "-az", "-a --old-compress", "-a --new-compress"].map(|options| (options, ALL)),
    );
    let level_0 =
        ["-az", "-az", "-a --new-compress", "-a --old-compress", "-az"].map(|how| format!("{how} --compress-level=0"));
    each(&pair, 28, &level_0.each_ref().map(|options| (options.as_str(), ALL)));
}

#[test]
fn checksums_are_compared_if_the_index_has_their_kind() {
    let world = World::with_tree();
    assert_exit(&world.index_command().arg("--md5").output().expect("index runs"), 0);
    let (server, dest) = (world.serve(), world.path("dest"));
    let pull = |options: &[&str]| pull(&server.address, &[options, ALL].concat(), &dest);
    assert_eq!(pull(&["-a"]).code, Some(0));
    let compared = pull(&["-acni"]);
    assert_eq!((compared.code, compared.out), (Some(0), vec![]), "nothing differs");
    assert!(!pull(&["-acni", "--checksum-choice=xxh64"]).out.is_empty(), "a digest that is not indexed proves nothing");
}

#[test]
fn listings_and_dry_runs_show_the_same() {
    let cases: [(&str, &[&str]); 12] = [
        ("-aH --list-only", LIST),
        ("-r --list-only", LIST),
        ("-rc --list-only", &["{M}/sizes/"]),
        ("-v", LIST),
        ("", &["{M}/odd/"]),
        ("", &["{M}/odd"]),
        ("", &["{M}/README"]),
        ("-aHni", ALL),
        ("-aHnic --delete", ALL),
        ("-rn", ALL),
        ("-a --list-only", &["{M}/README", "{M}/links/"]),
        ("-r --list-only --no-inc-recursive", LIST),
    ];
    each(&Pair::new(), 27, &cases);
}

#[test]
fn paths_select_the_same_names() {
    let cases: [(&str, &[&str]); 24] = [
        ("-a", &["{M}/README", "{D}/"]),
        ("-a", &["{M}/README", "{D}"]),
        ("-aH", &["{M}/links", "{D}/"]),
        ("-aH", &["{M}/links/", "{D}/"]),
        ("-aH", &["{M}/links", "{M}/aa", "{D}/"]),
        ("-aH", &["{M}/links/", "{M}/aa/", "{M}/README", "{D}/"]),
        ("-aH", &["{M}/links", "{M}/links", "{D}/"]),
        ("-a", &["{M}/dists", "{M}/dists/stable/", "{D}/"]),
        ("-aR", &["{M}/dists/stable/main/", "{D}/"]),
        ("-aR", &["{M}/dists/./stable/main", "{D}/"]),
        ("-aR --no-implied-dirs", &["{M}/dists/stable/main", "{D}/"]),
        ("-aHR --delete", &["{M}/links/z", "{M}/sizes/./1", "{D}/"]),
        ("-a", &["{M}/s*", "{D}/"]),
        ("-a", &["{M}/[a-l]*", "{D}/"]),
        ("-aR", &["{M}/dists/*/main/b*", "{D}/"]),
        ("-a", &["{M}/odd/sp ace", "{M}/odd/?ewline*", "{D}/"]),
        ("-as", &["{M}/odd/sp ace", "{D}/"]),
        ("-a", &["{M}/no/such", "{D}/"]),
        ("-a", &["{M}/no/such", "{M}/README", "{D}/"]),
        ("-a --ignore-missing-args", &["{M}/no/such", "{M}/README", "{D}/"]),
        ("-dlt", ALL),
        ("-dlt", &["{M}/odd", "{D}/"]),
        ("-lt", &["{M}/README", "{M}/sizes", "{D}/"]),
        ("-a", &["{M}/README/x", "{D}/"]),
    ];
    each(&Pair::new(), 28, &cases);
}

#[test]
fn files_from_selects_the_same_names() {
    let pair = Pair::new();
    let lines = "README\nsizes\nsizes/1\nlinks/\naa/fourth\nodd/sp ace\n./dists/./stable/Release\n/text\nREADME\nspecial/fifo\n\nempty\n";
    let (names, missing) = (pair.world.path("names"), pair.world.path("missing"));
    std::fs::write(&names, lines).unwrap();
    std::fs::write(&missing, "README\nno/such/file\nsizes/none\nsizes/1\n").unwrap();
    let (names, missing) = (format!("--files-from={}", names.display()), format!("--files-from={}", missing.display()));
    for (protocol, options) in (27..=32).cycle().zip([
        "-a",
        "-ar",
        "-aH",
        "-aHc --no-relative",
        "-ar --delete",
        "-a --no-implied-dirs",
        "-ani",
    ]) {
        let words = [&options.split(' ').collect::<Vec<_>>()[..], &[names.as_str()], ALL].concat();
        pair.same(&format!("files-from {options}"), protocol, &words);
    }
    for protocol in 29..=31 {
        pair.same("files-from missing", protocol, &[&["-a", missing.as_str()], ALL].concat());
    }
}

#[test]
fn missing_names_are_deleted_with_delete_missing_args() {
    let pair = Pair::new();
    let (old, names) = (pair.world.path("old"), pair.world.path("names"));
    copy(&pair.world.src(), &old);
    for name in ["extra", "sizes/none", "no/such/file"] {
        write(&old.join(name), b"to be deleted");
    }
    for dir in ["", "sizes", "no/such", "no"] {
        let dir = std::fs::File::open(old.join(dir)).unwrap();
        dir.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).unwrap();
    }
    std::fs::write(&names, "README\nno/such/file\nsizes/none\nextra\nlinks/leader\n").unwrap();
    let names = format!("--files-from={}", names.display());
    for protocol in 27..=32 {
        for words in [
            &["-aHi", names.as_str(), "{M}/"][..],
            &["-ar", "--no-inc-recursive", names.as_str(), "{M}/"],
            &["-ai", "{M}/extra", "{M}/README"],
            &["-a", "{M}/extra"],
            &["-a", "{M}/no/extra"],
        ] {
            let pulled =
                pair.same_over(&old, "missing", protocol, &[&["--delete-missing-args"], words, &["{D}/"]].concat());
            // Some clients of 3.2 refuse a list in which a name to delete is not the first.
            if !stock_version().starts_with("3.2.") {
                let remains = pulled.tree.contains_key(Path::new("extra"));
                assert_eq!(remains, words.contains(&"{M}/no/extra"), "{protocol} {words:?}");
            }
        }
    }
}

#[test]
fn filters_select_the_same_names() {
    let cases = [
        "--exclude=*.gz --exclude=/sizes/",
        "--include=*/ --include=*.deb --exclude=*",
        "-m --include=*/ --include=*.gz --exclude=*",
        "-C",
        "--exclude=odd/***  --include=x.o",
        "--exclude=[a-l]*/ --exclude=**/b*",
        "--filter=-/_dists/stable --filter=-p_.~tmp~/",
        "--filter=-!_*/ --filter=H_*.deb --filter=P_README",
        "--filter=:C",
        "--exclude=li*/**/t?ird --exclude=\\[class\\] --exclude=[[]class]",
        "--filter=merge,-_/dev/null --filter=hide,!_*e* --include=!",
        "--filter=dir-merge_.nothing-of-that-name -F",
    ];
    let pair = Pair::new();
    for (rules, protocol) in cases.iter().zip([27, 28, 29, 30, 31, 32, 29, 30, 31, 32, 31, 32]) {
        let rules: Vec<_> = rules.split_whitespace().collect();
        pair.same("filters", protocol, &[&["-r", "--list-only"], &rules[..], LIST].concat());
        pair.same("filters", protocol, &[&["-rlt", "--delete-excluded"], &rules[..], ALL].concat());
    }
}

#[test]
fn an_old_copy_becomes_the_new_tree() {
    let pair = Pair::new();
    let old = pair.world.path("old");
    super::peers::copy(&pair.world.src(), &old);
    tree::damage(&old);
    tree::change(&pair.world.src());
    super::peers::index(&pair.world);
    super::changes::wait_for(&pair, "brand/new/file");
    let cases = [
        "-aH --delete",
        "-aHc --delete-after",
        "-a --delete-before --delete-excluded --exclude=*.gz",
        "-a --delete-delay --delay-updates",
        "-a",
        "-aH --delete --no-inc-recursive",
        "-a --inplace",
        "-a --partial --partial-dir=.p",
        "-a --fuzzy --delete-after",
        "-a --append",
        "-a --append-verify",
        "-a --no-whole-file --block-size=700",
        "-a -B131072 --inplace",
        "-aS",
        "-au",
        "-a --existing",
        "-a --ignore-existing",
        "-a --size-only",
        "-aI",
        "-ab --suffix=.old",
        "-aHX --delete",
        "-az --no-whole-file",
        "-aHni --delete",
        "-a --max-delete=2 --delete",
        "-a --modify-window=100000000",
        "-a --checksum-choice=sha1 --inplace",
        "-ayy --delete-after",
        "-aK --force --delete",
    ];
    for (options, protocol) in cases.iter().zip((27..=32).cycle().skip(3)) {
        let words: Vec<_> = options.split(' ').chain(ALL.iter().copied()).collect();
        pair.same_over(&old, options, protocol, &words);
    }
}
