//! Compares the order of a list with stock rsync's.

mod common;

use std::process::Command;

use common::Site;
use proptest::prelude::*;

/// Returns the names that rsync lists, in its order.
fn rsync_order(site: &Site) -> Vec<Vec<u8>> {
    let output = Command::new("rsync")
        .args(["-r", "-8", "--list-only", "--no-inc-recursive"])
        .arg(format!("{}/", site.options.root.display()))
        .output()
        .expect("this test compares with rsync, which must be installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = output.stdout.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines.map(after_columns).filter(|name| name != b".").collect()
}

/// Returns the name in a line such as `-rw-r--r--  1 2026/01/01 00:00:00 name`.
fn after_columns(line: &[u8]) -> Vec<u8> {
    let mut rest = line;
    for _ in 0..4 {
        rest = rest.trim_ascii_start();
        rest = &rest[rest.iter().position(|&byte| byte == b' ').expect("a column")..];
    }
    rest[1..].to_vec()
}

/// Returns the list's paths depth first: a directory's files, then each directory followed by its contents.
fn depth_first(site: &Site) -> Vec<Vec<u8>> {
    let generation = site.current();
    let list = generation.list();
    let mut paths = Vec::new();
    let mut stack = vec![list.dir(0)];
    while let Some(dir) = stack.pop() {
        if dir.number() > 0 {
            paths.push(dir.path());
        }
        paths.extend(dir.files().map(|row| list.path(row)));
        stack.extend(dir.subdirs().rev().filter_map(|row| list.row(row).dir_number()).map(|number| list.dir(number)));
    }
    paths
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn a_list_walked_depth_first_is_in_rsyncs_order(
        paths in prop::collection::btree_set("[ -.0A_a~\u{e9}]{1,3}(/[ -.0A_a~\u{e9}]{1,2}){0,3}", 1..40)
    ) {
        let site = Site::new();
        for path in &paths {
            // Skip names that are already directories, and `.` and `..`.
            let full = site.path(path);
            let parent_made = full.parent().is_some_and(|parent| std::fs::create_dir_all(parent).is_ok());
            if parent_made && !path.split('/').any(|name| name == "." || name == "..") {
                let _ = std::fs::write(full, "x");
            }
        }
        site.index();
        prop_assert_eq!(depth_first(&site), rsync_order(&site));
    }
}
