//! What packages install: units, as systemd sees them, manual pages and completions.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::*;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

/// Returns the names and texts of the units.
fn units() -> Vec<(String, String)> {
    let endings = [".service", ".timer", ".path", ".socket"];
    let entries = std::fs::read_dir(deploy()).unwrap().map(|entry| entry.unwrap().path());
    let mut units: Vec<_> = entries
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path))
        .filter(|(name, _)| endings.iter().any(|ending| name.ends_with(ending)))
        .map(|(name, path)| (name, std::fs::read_to_string(path).unwrap()))
        .collect();
    units.sort();
    assert!(units.len() > 5);
    units
}

fn unit(name: &str) -> String {
    units().into_iter().find(|(found, _)| found == name).unwrap_or_else(|| panic!("{name}")).1
}

#[test]
fn systemd_finds_no_fault_in_the_units() {
    let world = World::new();
    let dir = world.path("units");
    // The binary under test stands for the installed one.
    let binary = stillmirror(&[]).get_program().to_str().unwrap().to_owned();
    for (name, text) in units() {
        write(&dir.join(&name), text.replace("/usr/bin/stillmirror", &binary).as_bytes());
    }
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no", "--recursive-errors=yes"]);
    for (name, _) in units() {
        command.arg(dir.join(name.replace('@', "@debian")));
    }
    // An instance is found by its template.
    for (name, text) in units().iter().filter(|(name, _)| name.contains('@')) {
        let text = text.replace("/usr/bin/stillmirror", &binary);
        write(&dir.join(name.replace('@', "@debian")), text.as_bytes());
    }
    let output = command.output().expect("systemd-analyze judges the units: install systemd (tests/prepare)");
    let said = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<_> = said.lines().filter(|line| line.contains("stillmirror")).collect();
    assert!(output.status.success() && ours.is_empty(), "{said}");
}

#[test]
fn the_units_are_exposed_no_more_than_the_documentation_says() {
    let page = std::fs::read_to_string(deploy().join("../docs/operations.md")).unwrap();
    let rows = page.lines().filter_map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let unit = cells.first()?.strip_prefix('`')?.strip_suffix(".service`")?.to_owned();
        Some((unit, cells.last()?.parse::<f64>().ok()?))
    });
    let documented: Vec<(String, f64)> = rows.collect();
    let services = units().into_iter().filter_map(|(name, _)| Some(name.strip_suffix(".service")?.to_owned()));
    let named: BTreeSet<String> = documented.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(named, services.collect(), "the table of units in docs/operations.md");
    for (name, exposure) in documented {
        let output = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .arg(deploy().join(format!("{name}.service")))
            .output()
            .expect("systemd-analyze judges the units: install systemd (tests/prepare)");
        let text = String::from_utf8_lossy(&output.stdout);
        let (_, overall) = text.rsplit_once("exposure level for ").unwrap_or_else(|| panic!("{text}"));
        let measured: f64 = overall.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(measured <= exposure, "{name}: {measured}, and docs/operations.md says {exposure}");
    }
}

#[test]
fn no_unit_forbids_the_call_by_which_files_are_opened_beneath_their_root() {
    for (name, text) in units() {
        assert!(!settings(&text).contains(&"RestrictSUIDSGID=yes"), "{name}: systemd forbids openat2(2) with it");
    }
}

/// Returns the settings of a unit, without comments and empty lines.
fn settings(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

#[test]
fn units_that_do_the_same_are_confined_in_the_same_way() {
    for (one, other, own) in [
        ("stillmirror-index.service", "stillmirror-index@.service", "ReadWritePaths="),
        ("stillmirror-follow@.service", "stillmirror-pull@.service", "WantedBy="),
    ] {
        let (one, other) = (unit(one), unit(other));
        let confinement = |text: &str| -> Vec<String> {
            let of_user = settings(text).into_iter().skip_while(|line| !line.starts_with("User="));
            let shared = of_user.filter(|line| !line.starts_with(own) && !line.starts_with('['));
            shared.map(str::to_owned).collect()
        };
        assert_eq!(confinement(&one), confinement(&other));
    }
}

#[test]
fn every_line_that_confines_a_service_has_its_reason_above_it() {
    for name in ["stillmirror-index@.service", "stillmirror-pull@.service"] {
        let text = unit(name);
        let (_, service) = text.split_once("User=").unwrap();
        for block in service.split("\n\n").skip(1) {
            assert!(block.trim_start().starts_with('#'), "{name}: no reason for\n{block}");
        }
    }
}

#[test]
fn there_is_a_page_for_each_command_with_its_options_and_examples() {
    let world = World::new();
    assert_exit(&stillmirror(&["man"]).arg(world.path("man")).output().unwrap(), 0);
    let pages = files(&world.path("man"));
    let page = |name: &str| {
        let page = pages.get(Path::new(name)).unwrap_or_else(|| panic!("{name}: {:?}", pages.keys()));
        String::from_utf8(page.clone()).unwrap()
    };
    for command in ["index", "serve", "pull", "list", "verify", "sign", "keygen", "import-rsyncd", "check", "demo"] {
        let page = page(&format!("stillmirror-{command}.1"));
        for part in [".SH NAME", ".SH SYNOPSIS", ".SH OPTIONS", ".SH EXAMPLES", ".SH \"SEE ALSO\""] {
            assert!(page.contains(part), "{command}: {part}\n{page}");
        }
    }
    let main = page("stillmirror.1");
    for part in [".SH \"EXIT STATUS\"", ".SH FILES", ".SH ENVIRONMENT", "stillmirror\\-pull(1)"] {
        assert!(main.contains(part), "{part}\n{main}");
    }
    assert!(!pages.keys().any(|name| name.to_str().unwrap().contains("completions")), "{:?}", pages.keys());
    // The units refer to pages that exist.
    for (name, text) in units() {
        for line in text.lines().filter_map(|line| line.strip_prefix("Documentation=man:")) {
            page(&line.replace("(1)", ".1"));
            assert!(line.ends_with("(1)"), "{name}: {line}");
        }
    }
}

#[test]
fn completions_for_bash_are_accepted_by_bash() {
    let output = stillmirror(&["completions", "bash"]).output().unwrap();
    assert_exit(&output, 0);
    let world = World::new();
    write(&world.path("completions"), &output.stdout);
    let script = "source \"$1\" && COMP_WORDS=(stillmirror pull --swi) COMP_CWORD=2 && \
                  _stillmirror stillmirror --swi pull && echo \"${COMPREPLY[*]}\"";
    let output = Command::new("bash").args(["-c", script, "bash"]).arg(world.path("completions")).output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "--switch",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
