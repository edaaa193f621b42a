//! Pulls of suites and architectures, and mirrors of such mirrors.

use std::collections::BTreeSet;

use crate::support::*;

/// Publishes an archive with two suites and two architectures.
fn archive(world: &World) {
    for suite in ["bookworm", "trixie"] {
        let put = |path: &str, content: &str| write(&world.src().join(path), content.as_bytes());
        put(&format!("dists/{suite}/InRelease"), suite);
        for architecture in ["amd64", "arm64"] {
            let package = format!("pool/main/{suite}_{architecture}.deb");
            put(&package, &package);
            let index = format!("dists/{suite}/main/binary-{architecture}/Packages");
            put(&index, &format!("Package: a\nFilename: {package}\n\n"));
        }
    }
    write(&world.src().join("README"), b"readme");
    world.index();
}

fn paths(dir: &std::path::Path) -> BTreeSet<String> {
    files(dir).into_keys().map(|path| path.to_str().unwrap().to_owned()).collect()
}

#[test]
fn a_slice_is_pulled_marked_and_pulled_on() {
    let world = World::new();
    archive(&world);
    let server = world.serve();
    let pull = |arguments: &[&str]| world.pull_command(&server).args(arguments).output().unwrap();
    let slice = ["--suite", "bookworm", "--arch", "amd64,source", "--delete"];
    assert_fails(&pull(&slice), 1, &["no architecture 'source'", "amd64, arm64"]);
    assert_fails(&pull(&["--suite", "sid"]), 1, &["no suite 'sid'", "bookworm, trixie"]);
    assert_fails(&pull(&["--suite", "../x"]), 1, &["'../x' cannot be the name"]);
    let slice = ["--suite", "bookworm", "--arch", "amd64", "--delete"];
    json(&pull(&slice));
    let expected =
        ["dists/bookworm/InRelease", "dists/bookworm/main/binary-amd64/Packages", "pool/main/bookworm_amd64.deb"];
    assert_eq!(paths(&world.dest()), expected.map(str::to_owned).into());
    assert!(json(&pull(&slice))["unchanged"].as_bool().unwrap());

    let middle = Server::start(&world.dest(), &world.path("dest-store"));
    let shown = stillmirror(&["list", &middle.url("")]).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("only a slice: suite bookworm; architecture amd64"), "{shown}");
    let mut leaf = stillmirror(&["pull", "--json", "--delete", &middle.url("repo")]);
    json(&leaf.arg(world.path("leaf")).arg("--store").arg(world.path("leaf-store")).output().unwrap());
    assert_same_tree(&world.dest(), &world.path("leaf"));
}

#[test]
fn an_index_that_is_broken_or_names_what_is_missing_has_an_exit_code_of_its_own() {
    let world = World::new();
    archive(&world);
    let server = world.serve();
    let slice = ["--suite", "bookworm", "--arch", "amd64", "--delete"];
    let pull = || world.pull_command(&server).args(slice).output().unwrap();
    json(&pull());
    let index = "dists/bookworm/main/binary-amd64/Packages";
    write(&world.src().join(index), b"<html>");
    world.index();
    crate::pull::wait_for_generation(&server, 2);
    assert_fails(&pull(), 12, &[&format!("the index '{index}' cannot be read: line 1")]);
    assert!(world.dest().join("pool/main/bookworm_amd64.deb").exists());
    write(&world.src().join(index), b"Filename: pool/main/bookworm_amd64.deb\n\nFilename: pool/gone.deb\n");
    world.index();
    crate::pull::wait_for_generation(&server, 3);
    assert_fails(&pull(), 23, &["pool/gone.deb: is not in the repository"]);
    assert_eq!(std::fs::read(world.dest().join(index)).unwrap(), std::fs::read(world.src().join(index)).unwrap());
}
