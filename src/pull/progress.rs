//! The progress of a pull on a terminal.

use indicatif::ProgressBar;
use stillmirror_receiver::{self as receiver, Notice, Phase};

use crate::progress::{self, FilesDone};

/// Shows the receiver's progress on the bar.
pub(crate) struct BarProgress {
    bar: ProgressBar,
    files: FilesDone,
}

impl BarProgress {
    pub(crate) fn new(bar: &ProgressBar) -> Self {
        Self { bar: bar.clone(), files: FilesDone::default() }
    }
}

impl receiver::Progress for BarProgress {
    fn phase(&self, phase: Phase, files: u64, bytes: u64) {
        let bar = &self.bar;
        bar.set_position(0);
        bar.set_message("");
        match phase {
            Phase::Turn => progress::counting(bar, "waiting for another pull into the same tree"),
            Phase::Queued(place) => {
                progress::counting(bar, "waiting for the sender");
                bar.set_message(format!("{place} ahead in its queue"));
            }
            Phase::List => progress::counting(bar, "requesting the list"),
            Phase::Snapshot => progress::counting(bar, "linking the next snapshot"),
            Phase::Check => progress::counting(bar, "checking the local tree"),
            Phase::Fetch => progress::measuring(bar, "fetching", &self.files, files, bytes),
            Phase::Commit => progress::counting(bar, "renaming into place"),
            Phase::Publish => progress::counting(bar, "writing the generation"),
            Phase::Follow => progress::counting(bar, "waiting for the next generation"),
            Phase::Verify => progress::measuring(bar, "verifying", &self.files, files, bytes),
        }
    }

    fn advance(&self, files: u64, bytes: u64) {
        self.files.add(files);
        self.bar.inc(bytes);
    }

    fn notice(&self, notice: &Notice<'_>) {
        let text = match notice {
            Notice::CannotFollow { address, why } => format!("cannot follow {address}: {why}; trying again"),
            Notice::Asks { address, pause } => {
                format!("{address} does not tell of new generations; asking it every {} s", pause.as_secs())
            }
            Notice::FollowsAgain { address } => format!("following {address} again"),
            Notice::Repeats { pause } => format!("pulling again in {} s, or when there is news", pause.as_secs()),
        };
        self.bar.suspend(|| eprintln!("stillmirror: {text}"));
    }
}
