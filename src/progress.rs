//! Progress on a terminal; silence in cron.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar on standard error when that is a terminal and nobody asked for quiet; else nothing.
pub(crate) fn bar(quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Shows a phase whose end is not known: what is counted is in the message.
pub(crate) fn counting(bar: &ProgressBar, phase: &'static str) {
    bar.set_style(style("{spinner} {prefix} {msg}"));
    bar.set_prefix(phase);
}

/// Shows a phase of so many bytes: done, rate, time left.
pub(crate) fn measuring(bar: &ProgressBar, phase: &'static str, bytes: u64) {
    bar.set_style(style("{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left {msg}"));
    bar.set_prefix(phase);
    bar.set_length(bytes);
    bar.reset_elapsed();
    bar.reset_eta();
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
