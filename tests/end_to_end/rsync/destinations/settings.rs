//! Environment variables for the length of a run and the judged daemon.

use std::path::PathBuf;
use std::str::FromStr;

use super::report::Report;

/// The settings. The defaults are those of the short run.
pub(super) struct Settings {
    /// `DESTINATIONS_CASES`: the number of cases.
    pub(super) cases: usize,
    /// `DESTINATIONS_SEED`: the seed of the first source tree. The other trees have the following seeds.
    pub(super) seed: u64,
    /// `DESTINATIONS_PROTOCOL`: the only protocol to test.
    pub(super) protocol: Option<u8>,
    /// `DESTINATIONS_WITHOUT`: options to leave out, separated by spaces.
    pub(super) without: Vec<String>,
    /// `DESTINATIONS_JOBS`: the number of source trees that are served at once.
    pub(super) jobs: usize,
    /// `DESTINATIONS_SHRUNK`: the maximum number of failures to shrink.
    pub(super) shrunk: usize,
    /// `DESTINATIONS_JUDGED=stock`: judge a second stock daemon.
    pub(super) judged: Judged,
    /// `DESTINATIONS_REPORT`: the file for a report as JSON.
    report: Option<PathBuf>,
}

/// The judged daemon. `STILLMIRROR_BINARY` selects another build of ours.
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
    Some(text.parse().unwrap_or_else(|_| panic!("DESTINATIONS_{name} is not a number: {text}")))
}
