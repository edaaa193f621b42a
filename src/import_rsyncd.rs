//! `stillmirror import-rsyncd`.

mod convert;
mod lines;

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use toml::Value;

use crate::config::Config;
use crate::exit::{Exit, UsageError};
use crate::output::{count, line};
use crate::path_args;
use convert::{Converted, Entry, Fate, convert};
use lines::Modules;

const EXAMPLES: &str = "\
Examples:
  stillmirror import-rsyncd /etc/rsyncd.conf
  stillmirror import-rsyncd /etc/rsyncd.conf --output /etc/stillmirror/mirror.toml

`stillmirror --help` lists the exit codes.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The configuration of a stock rsync daemon. What it includes is read, too
    #[arg(value_name = "FILE", value_parser = path_args::local())]
    file: PathBuf,
    /// Where to write the configuration; the file must not exist [default: standard output]
    #[arg(long, value_name = "FILE", value_parser = path_args::local())]
    output: Option<PathBuf>,
}

pub(crate) fn run(arguments: Arguments) -> Result<Exit> {
    let converted = convert(&Modules::read(&arguments.file)?);
    if converted.repositories.is_empty() {
        eprint!("{}", account(&converted.account));
        return Err(UsageError(format!("{}: it has no module that can be served", arguments.file.display())).into());
    }
    let text = to_toml(&converted, &arguments.file);
    check(&text, &arguments.file)?;
    match &arguments.output {
        Some(path) => write_new(path, &text)?,
        None => line!("{}", text.trim_end()),
    }
    eprint!("{}", account(&converted.account));
    Ok(Exit::Done)
}

/// Returns the text of a mirror.toml.
fn to_toml(converted: &Converted, from: &Path) -> String {
    let mut text = format!(
        "# Made from {} by `stillmirror import-rsyncd`. mirror.toml.example explains all keys.\n\n[daemon]\n",
        from.display()
    );
    let mut put = |key: &str, value: &Value| {
        let _ = writeln!(text, "{key} = {value}");
    };
    for (key, value) in &converted.daemon {
        if *key == "rsync_listen" {
            // Both daemons can run, as long as this one uses port 8730 alone.
            put("# When the stock daemon has left the port:\n#rsync_listen", value);
        } else {
            put(key, value);
        }
    }
    for repository in &converted.repositories {
        let name = &repository.name;
        put("\n[[repository]]\nname", &Value::from(&name[..]));
        put("root", &Value::from(repository.root.display().to_string()));
        put("store", &Value::from(format!("{STORES}/{name}")));
        repository.keys.iter().for_each(|(key, value)| put(key, value));
    }
    text
}

/// Checks that the result is a valid configuration.
fn check(text: &str, from: &Path) -> Result<()> {
    let base = from.parent().unwrap_or(Path::new("."));
    Config::parse(text, std::iter::empty(), base).map(drop).map_err(|error| {
        let message = format!("{}: a value is not accepted here: {error:#}", from.display());
        UsageError(message).into()
    })
}

fn write_new(path: &Path, text: &str) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(UsageError(format!("{} exists already: remove it, or choose another file", path.display())).into())
        }
        opened => opened.and_then(|mut file| file.write_all(text.as_bytes())).with_context(failed),
    }
}

/// Returns what became of each line.
fn account(entries: &[Entry]) -> String {
    let mut text = String::new();
    for Entry { at, text: line, fate } in entries {
        let fate = match fate {
            Fate::Taken(to) => format!("-> {to}"),
            Fate::Differs(to, how) => format!("-> {to}; {how}"),
            Fate::Unneeded(why) => format!("not needed: {why}"),
            Fate::Missing(why) => format!("NOT TAKEN: {why}"),
        };
        let _ = writeln!(text, "{at}: {line}\n    {fate}");
    }
    let missing = entries.iter().filter(|entry| matches!(entry.fate, Fate::Missing(_))).count() as u64;
    let _ = writeln!(text, "{}, {missing} of them not taken", count(entries.len() as u64, "line"));
    text
}

/// The directory of stores, as in the packaged units.
const STORES: &str = "/var/lib/stillmirror";

#[cfg(test)]
mod tests {
    use super::*;

    fn import(text: &str) -> (String, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rsyncd.conf");
        std::fs::write(&path, text).unwrap();
        let converted = convert(&Modules::read(&path).unwrap());
        let toml = to_toml(&converted, &path);
        check(&toml, &path).unwrap();
        (toml, account(&converted.account).replace(&format!("{}:", path.display()), "line "))
    }

    #[track_caller]
    fn assert_has(text: &str, parts: &[&str]) {
        for part in parts {
            assert!(text.contains(part), "{part:?} is missing in:\n{text}");
        }
    }

    #[test]
    fn each_line_of_a_usual_configuration_has_its_counterpart_or_a_reason() {
        let text = "port = 8873\naddress = 192.0.2.1\nmotd file = /etc/motd\npid file = /run/x\nuid = nobody\n\
                    max connections = 20\ntimeout = 600\n[debian]\npath = /srv/./debian\ncomment = The \"archive\"\n\
                    exclude = /a *.tmp\nhosts allow = 10.0.0.0/8 192.0.2.7\nread only = yes\nlist = no\n\
                    refuse options = delete, c\ntransfer logging = yes\npost-xfer exec = /bin/true\n";
        let (toml, account) = import(text);
        let expected = [
            "motd_file = \"/etc/motd\"",
            "#rsync_listen = \"192.0.2.1:8873\"",
            "[[repository]]\nname = \"debian\"\nroot = \"/srv/debian\"\nstore = \"/var/lib/stillmirror/debian\"",
            "comment = 'The \"archive\"'",
            "exclude = [\"/a *.tmp\"]",
            "hosts_allow = [\"10.0.0.0/8\", \"192.0.2.7\"]",
            "list = false",
            "max_connections = 20",
            "numeric_ids = true",
            "refuse_options = [\"delete\", \"c\"]",
            "timeout = 600",
        ];
        assert_has(&toml, &expected);
        let expected = [
            "line 4: pid file = /run/x\n    not needed",
            "line 6: max connections = 20 (for [debian])\n    -> max_connections = 20; a client over the limit waits",
            "line 17: post-xfer exec = /bin/true\n    NOT TAKEN: no command",
            "19 lines, 1 of them not taken",
        ];
        assert_has(&account, &expected);
        for number in 1..=17 {
            assert!(account.contains(&format!("line {number}: ")), "line {number} in:\n{account}");
        }
    }

    #[test]
    fn whoever_was_kept_out_stays_out() {
        let (toml, account) = import(
            "[names]\npath = /a\nhosts allow = *.example.org\n[deny]\npath = /b\nhosts deny = evil.example 10.0.0.1\n\
             [some]\npath = /c\nhosts allow = 10.0.0.1 friend.example\n[groups]\npath = /d\nauth users = @staff\n\
             [off]\npath = /e\nmax connections = -1\n[mixed]\npath = /f\nauth users = ann, @staff bob:ro\nsecrets file = /s\n\
             [both]\npath = /g\nhosts deny = *\nhosts allow = x.example\n[secret]\npath = /h\n\
             auth users = eve\nhosts allow = 10.0.0.1\n",
        );
        let repositories: Vec<&str> = toml.split("[[repository]]").skip(1).collect();
        for closed in [0, 1, 3, 4, 6, 7] {
            assert_has(repositories[closed], &["hosts_deny = [\"*\"]"]);
            assert!(!repositories[closed].contains("hosts_allow"));
        }
        assert_has(repositories[2], &["hosts_allow = [\"10.0.0.1\"]"]);
        assert_has(repositories[5], &["auth_users = [\"ann\"]"]);
        assert_has(&account, &["they were left out", "groups, rights and wildcards were left out"]);
    }

    #[test]
    fn modules_that_cannot_be_served_are_left_out_and_named() {
        let (toml, account) = import(
            "[a b]\npath = /a\n[in]\npath = /b\nwrite only = yes\n[home]\npath = /home/%RSYNC_USER_NAME%\n[none]\n\
             [twice]\npath = /t\n[twice]\npath = /u\n[up]\npath = /v\nRead-Only = no\nuse chroot = false\n",
        );
        assert_eq!(toml.matches("[[repository]]").count(), 2);
        assert_eq!(account.matches("NOT TAKEN: left out").count(), 5);
        assert_has(&account, &["NOT TAKEN: clients cannot write here"]);
        let (twice, up) = toml.split_once("name = \"up\"").unwrap();
        assert_has(twice, &["numeric_ids = true"]);
        assert_has(up, &["munge_symlinks = true"]);
        assert!(!up.contains("numeric_ids"));
    }
}
