//! The command lines of public mirror scripts, stage by stage.

use super::peers::{Pair, copy, index};
use super::{changes, tree};

const FTPSYNC: &str = "-prltvHSB8192 --safe-links --chmod=D755,F644 --timeout=3600 --stats --no-human-readable --no-inc-recursive \
                       --exclude=Archive-Update-in-Progress-x --filter=protect_project/trace/x*";
const PAYLOAD_FIRST: &str = "--include=*.diff/ --include=by-hash/ --exclude=*.diff/Index --exclude=Contents* --exclude=Packages* --exclude=Sources* \
                             --exclude=Release* --exclude=InRelease --include=i18n/by-hash --exclude=i18n/* --exclude=dep11/* \
                             --exclude=installer-*/current --exclude=ls-lR*";
const FTPSYNC_LAST: &str = "--max-delete=40000 --delay-updates --delete --delete-delay --delete-excluded";
const UBUNTU: &str = "--recursive --times --links --safe-links --hard-links --stats";
const TUNASYNC: &str = "-aHvh --no-o --no-g --stats --filter=risk_.~tmp~/ --exclude=.~tmp~/ --safe-links --timeout=120";

/// Runs the first stage from nothing. Then changes the tree, and runs each stage over an old copy and from nothing.
fn stages(script: &str, stages: &[String]) {
    let pair = Pair::new();
    let words = |stage: usize| [stages[stage].split_whitespace().collect::<Vec<_>>(), vec!["{M}/", "{D}/"]].concat();
    let first = pair.same(script, 32, &words(0));
    assert_eq!(first.code, Some(0), "{}", first.errors);
    let old = pair.world.path("old");
    copy(&pair.world.src(), &old);
    tree::damage(&old);
    tree::change(&pair.world.src());
    index(&pair.world);
    changes::wait_for(&pair, "brand/new/file");
    for stage in 0..stages.len() {
        pair.same_over(&old, script, 31, &words(stage));
        pair.same(script, 32, &words(stage));
    }
}

#[test]
fn debians_ftpsync() {
    stages("ftpsync", &[format!("{FTPSYNC} {PAYLOAD_FIRST}"), format!("{FTPSYNC} {FTPSYNC_LAST}")]);
}

#[test]
fn archs_syncrepo() {
    let options = "-rlptH --safe-links --delete-delay --delay-updates --timeout=600 --contimeout=60 -p --no-motd --exclude=*.links.tar.gz* --exclude=/other --exclude=/sources";
    stages("Arch syncrepo", &[options.to_owned()]);
}

#[test]
fn the_two_stages_of_ubuntus_wiki() {
    let payload = "--exclude=Packages* --exclude=Sources* --exclude=Release* --exclude=InRelease";
    stages("Ubuntu wiki", &[format!("{UBUNTU} {payload}"), format!("{UBUNTU} --delete --delete-after")]);
}

#[test]
fn tunasync() {
    stages(
        "tunasync, two stages",
        &[format!("{TUNASYNC} {PAYLOAD_FIRST}"), format!("{TUNASYNC} --delete --delete-after --delay-updates")],
    );
}

#[test]
fn quick_fedora_mirror() {
    let pair = Pair::new();
    let list = pair.world.path("transfer");
    std::fs::write(&list, "README\npool/a/alpha_1.0.dsc\nlinks\nlinks/leader\nlinks/second\naa\naa/fourth\nspecial/fifo\nempty/nested\nsizes/300001\n").unwrap();
    let list = format!("--files-from={}", list.display());
    let words = [
        "-aSH",
        "-f",
        "R .~tmp~",
        "--stats",
        "--preallocate",
        "--delay-updates",
        "--out-format=@ %i %10l  %n%L",
        &list,
        "{M}/",
        "{D}/",
    ];
    let pulled = pair.same("quick-fedora-mirror", 32, &words);
    assert_eq!((pulled.code, pulled.tree.len()), (Some(0), 16), "{}", pulled.errors);
}
