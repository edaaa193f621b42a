//! The progress bar on a terminal.

use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

/// Creates a bar on standard error if that is a terminal; otherwise, or if `quiet` is set, a hidden one.
pub(crate) fn bar(quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Shows a phase of unknown length. The bar's message is free for a count.
pub(crate) fn counting(bar: &ProgressBar, phase: &'static str) {
    bar.set_style(style("{spinner} {prefix} {wide_msg}"));
    bar.set_prefix(phase);
}

/// Shows a phase of known length: `files` files of `bytes` bytes. `done` counts the finished files from here on.
///
/// The two lines fit into 60 columns, so that the terminal wraps neither.
pub(crate) fn measuring(bar: &ProgressBar, phase: &'static str, done: &FilesDone, files: u64, bytes: u64) {
    done.0.store(0, Ordering::Relaxed);
    let counter = done.clone();
    let counts = move |_: &ProgressState, out: &mut dyn Write| {
        let _ = write!(out, "{}/{files} files", counter.0.load(Ordering::Relaxed));
    };
    let lines = style(
        "{prefix} {files} {wide_bar} {percent:>3}%\n\
         {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left",
    );
    bar.set_style(lines.with_key("files", counts));
    bar.set_prefix(phase);
    bar.set_length(bytes);
    bar.reset_elapsed();
    bar.reset_eta();
}

/// The number of files that a phase has finished. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct FilesDone(Arc<AtomicU64>);

impl FilesDone {
    pub(crate) fn add(&self, files: u64) {
        self.0.fetch_add(files, Ordering::Relaxed);
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
