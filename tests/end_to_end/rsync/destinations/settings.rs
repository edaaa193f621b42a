//! How long a run is, and what it judges, by environment variables.

use std::path::PathBuf;
use std::str::FromStr;

use super::report::Report;

/// For all variables there are defaults, those of the short run.
pub(super) struct Settings {
    /// `DESTINATIONS_CASES`
    pub(super) cases: usize,
    /// `DESTINATIONS_SEED`: that of the first source tree; the others follow it.
    pub(super) seed: u64,
    /// `DESTINATIONS_PROTOCOL`: only this one.
    pub(super) protocol: Option<u8>,
    /// `DESTINATIONS_WITHOUT`: options that are not to be drawn, separated by spaces.
    pub(super) without: Vec<String>,
    /// `DESTINATIONS_JOBS`: how many source trees are served at once.
    pub(super) jobs: usize,
    /// `DESTINATIONS_SHRUNK`: how many failures are shrunk.
    pub(super) shrunk: usize,
    /// `DESTINATIONS_JUDGED=stock` judges a second stock daemon.
    pub(super) judged: Judged,
    /// `DESTINATIONS_REPORT`: where a report goes as JSON.
    report: Option<PathBuf>,
}

/// Which daemon is judged. `STILLMIRROR_BINARY` names another build of ours.
pub(super) enum Judged {
    Ours,
    StockAgain,
}

impl Settings {
    pub(super) fn from_environment() -> Self {
        let without = std::env::var("DESTINATIONS_WITHOUT").unwrap_or_default();
        Self {
            cases: number("CASES").unwrap_or(96),
            seed: number("SEED").unwrap_or(1),
            protocol: number("PROTOCOL"),
            without: without.split_whitespace().map(str::to_owned).collect(),
            jobs: number("JOBS").unwrap_or(4),
            shrunk: number("SHRUNK").unwrap_or(3),
            judged: match std::env::var("DESTINATIONS_JUDGED").as_deref() {
                Ok("stock") => Judged::StockAgain,
                _ => Judged::Ours,
            },
            report: std::env::var_os("DESTINATIONS_REPORT").map(PathBuf::from),
        }
    }

    pub(super) fn save(&self, report: &Report) {
        if let Some(path) = &self.report {
            std::fs::write(path, report.json().to_string()).expect("the report is written");
        }
    }
}

fn number<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(format!("DESTINATIONS_{name}")).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("DESTINATIONS_{name} is no number: {text}")))
}
