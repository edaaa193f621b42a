//! What commands print: their options for it, and numbers and errors as text.

use std::io::IsTerminal;

use clap::Args;
use indicatif::ProgressBar;
use stillmirror_protocol::entry::Time;

use crate::progress;

/// What a command prints on standard output.
#[derive(Args)]
pub(crate) struct OutputArgs {
    /// Print one JSON object per repository instead of a summary
    #[arg(long)]
    pub(crate) json: bool,
    /// Print no summary and no progress
    #[arg(long, short)]
    quiet: bool,
    /// Print the summary even if standard output is not a terminal
    #[arg(long, short, conflicts_with = "quiet")]
    verbose: bool,
}

impl OutputArgs {
    /// Returns whether to print the summary: on a terminal, or if it is asked for.
    pub(crate) fn summary(&self) -> bool {
        self.text() && (self.verbose || std::io::stdout().is_terminal())
    }

    /// Returns whether to print text that is the purpose of the command, such as the plan of a dry run.
    pub(crate) fn text(&self) -> bool {
        !self.json && !self.quiet
    }

    /// Creates the command's progress bar.
    pub(crate) fn bar(&self) -> ProgressBar {
        progress::bar(!self.text())
    }
}

/// Returns an error with its causes. A cause that an earlier message contains is not repeated.
pub(crate) fn error(error: &anyhow::Error) -> String {
    // Some libraries end their messages with a newline.
    let mut causes = error.chain().map(|cause| cause.to_string().trim_end().to_owned());
    let first = causes.next().unwrap_or_default();
    causes.fold(first, |text, cause| if text.contains(&cause) { text } else { text + ": " + &cause })
}

/// Formats a number of bytes with a decimal unit: `1.5 GB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count} bytes");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Formats a count with its noun: `1 file`, `2,000 files`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    let plural = match (noun, noun.strip_suffix('y')) {
        ("address", _) => "addresses".to_owned(),
        (_, Some(stem)) => format!("{stem}ies"),
        (noun, None) => format!("{noun}s"),
    };
    format!("{} {}", grouped(number), if number == 1 { noun } else { &plural })
}

/// Formats a number with its digits in groups of three: `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Formats a time as `2026-01-31 12:00:00Z`, or in seconds if it is beyond the calendar.
pub(crate) fn time(time: Time) -> String {
    jiff::Timestamp::new(time.sec, 0)
        .map_or_else(|_| format!("{}s", time.sec), |stamp| stamp.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
}

/// Prints one line of a command's result. Ignores a reader that is gone (`| head`).
macro_rules! line {
    ($($arguments:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($arguments)*);
    }};
}
pub(crate) use line;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_its_error_contains_is_not_repeated() {
        use anyhow::Context as _;
        let system = || std::io::Error::from_raw_os_error(28);
        let store = || stillmirror_store::StoreError::Io { action: "write", path: "store".into(), source: system() };
        let text = "cannot write store: No space left on device (os error 28)";
        assert_eq!(error(&store().into()), text);
        assert_eq!(error(&anyhow::Error::from(store()).context("repository 'x'")), format!("repository 'x': {text}"));
        let plain = Err::<(), _>(system()).context("cannot write").unwrap_err();
        assert_eq!(error(&plain), "cannot write: No space left on device (os error 28)");
    }

    #[test]
    fn times_before_1970_and_beyond_the_calendar_are_shown() {
        assert_eq!(time(Time { sec: -1, nsec: 5 }), "1969-12-31 23:59:59Z");
        assert_eq!(time(Time { sec: i64::MAX, nsec: 0 }), "9223372036854775807s");
    }

    #[test]
    fn numbers_have_units_groups_and_plurals() {
        assert_eq!(bytes(999), "999 bytes");
        assert_eq!(bytes(999_949), "999.9 kB");
        assert_eq!(bytes(999_999), "1.0 MB");
        assert_eq!(bytes(1_234_567_890), "1.2 GB");
        assert_eq!(count(1, "file"), "1 file");
        assert_eq!(count(1_234_567, "directory"), "1,234,567 directories");
    }
}
