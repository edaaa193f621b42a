//! The user that the daemon runs as, and a process that becomes it to see what it may do.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::unistd::{Uid, User, geteuid};

use super::files;
use super::finding::{Finding, Report};
use crate::config::Config;
use crate::privileges;

/// The user of the packaged `stillmirror.service`.
const PACKAGED: &str = "stillmirror";

/// Who the daemon runs as.
pub(super) struct ServiceUser {
    name: String,
    source: Source,
}

/// Why the daemon is thought to run as this user.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// `--user` says so.
    Given,
    /// The configuration says so: the daemon starts as root, and reads the configuration as root.
    Configured,
    /// The packaged service says so, and this host has its user.
    Packaged,
    /// Nothing says anything else.
    Current,
}

impl ServiceUser {
    /// Returns the user that `--user`, the configuration or the packaged service names, or this process's.
    pub(super) fn of(given: Option<String>, config: &Config) -> Self {
        let packaged = || User::from_name(PACKAGED).ok().flatten().map(|user| (user.name, Source::Packaged));
        let current = || {
            let uid = geteuid();
            let known = User::from_uid(uid).ok().flatten();
            (known.map_or_else(|| uid.to_string(), |user| user.name), Source::Current)
        };
        let is_configured = |name: &String| config.daemon.user.as_ref() == Some(name);
        let (name, source) = given
            .filter(|name| !is_configured(name))
            .map(|name| (name, Source::Given))
            .or_else(|| config.daemon.user.clone().map(|name| (name, Source::Configured)))
            .or_else(|| packaged().filter(|_| geteuid().is_root()))
            .unwrap_or_else(current);
        Self { name, source }
    }

    /// Checks what the daemon opens, as this user. Becoming another one needs root, and is done in a process of its own.
    pub(super) fn check(&self, config: &Config, path: &Path, report: &mut Report) {
        report.section("user");
        let why = match self.source {
            Source::Given => "as --user says",
            Source::Configured => "`user` in [daemon]",
            Source::Packaged => "the user of the packaged stillmirror.service",
            Source::Current => "which runs this check",
        };
        if !self.is_current() && !geteuid().is_root() {
            let remedy = format!("run `check` as root or as '{}'", self.name);
            report.warning(
                format!("the daemon runs as '{}' ({why}), and only root can see what it may do", self.name),
                &remedy,
            );
            return files::check(config, report);
        }
        match self.run_files_only(path) {
            Ok(findings) => {
                report.ok(format!("what the daemon opens is opened as '{}' ({why})", self.name));
                report.findings.extend(findings);
            }
            Err(error) => report.error(format!("cannot check as '{}': {error:#}", self.name), ""),
        }
    }

    /// Becomes this user, and checks what the daemon opens.
    pub(super) fn check_here(&self, config: &Config, path: &Path, report: &mut Report) {
        report.section("user");
        if let Err(error) = self.become_it(config) {
            return report.error(format!("{error:#}"), "name a user that this host has");
        }
        if let Err(error) = std::fs::File::open(path) {
            let text = format!("'{}' cannot read {}: {error}", self.name, path.display());
            let remedy = format!("let the group of '{}' read it, and pass the directories above it", self.name);
            match self.source {
                Source::Configured => report.warning(format!("{text}: a reload will fail"), &remedy),
                _ => report.error(text, &remedy),
            }
        }
        files::check(config, report);
    }

    fn become_it(&self, config: &Config) -> Result<()> {
        if self.is_current() {
            return Ok(());
        }
        let group = config.daemon.group.as_deref().filter(|_| config.daemon.user.as_deref() == Some(&self.name));
        privileges::become_user(&self.name, group)
    }

    fn is_current(&self) -> bool {
        let named = self.name.parse().ok().map(Uid::from_raw);
        let named = named.or_else(|| User::from_name(&self.name).ok().flatten().map(|user| user.uid));
        self.source == Source::Current || named == Some(geteuid())
    }

    fn run_files_only(&self, path: &Path) -> Result<Vec<Finding>> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let output = Command::new(program)
            .args(["check", "--files-only", "--user", &self.name, "--config"])
            .arg(path)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start this program")?;
        if !output.status.success() {
            bail!("{}", output.status);
        }
        serde_json::from_slice(&output.stdout).context("the findings cannot be read")
    }
}
