//! Mirrors of mirrors: a pulled generation can be served like an indexed one.

use std::path::Path;

use crate::support::*;

fn list_digest(store: &Path) -> String {
    let output = stillmirror(&["list", "--json", "--store"]).arg(store).output().unwrap();
    json(&output)["list_digest"].as_str().expect("a digest").to_owned()
}

#[test]
fn a_downstream_serves_a_pulled_generation_without_indexing() {
    let world = World::with_tree();
    world.index();
    let origin = world.serve();
    world.pull(&origin);
    assert_eq!(list_digest(&world.path("store")), list_digest(&world.path("dest-store")));

    let middle = Server::start(&world.dest(), &world.path("dest-store"));
    let mut command = stillmirror(&["pull", "--json", &middle.url("repo")]);
    command.arg(world.path("third")).arg("--store").arg(world.path("third-store"));
    json(&command.output().unwrap());
    assert_same_tree(&world.src(), &world.path("third"));
    assert_eq!(list_digest(&world.path("store")), list_digest(&world.path("third-store")));
}

#[test]
fn a_filtered_pull_is_served_with_the_pulled_files_only() {
    let world = World::with_tree();
    world.index();
    let origin = world.serve();
    json(&world.pull_command(&origin).args(["--exclude", "*.tar"]).output().unwrap());
    let middle = Server::start(&world.dest(), &world.path("dest-store"));
    let mut command = stillmirror(&["pull", "--json", &middle.url("repo")]);
    json(&command.arg(world.path("third")).output().unwrap());
    assert_same_tree(&world.dest(), &world.path("third"));
}
