//! What the kernel knows about this process.

use rustix::process::{Resource, getrlimit};

use crate::direct::page_size;

/// The state of this process.
pub(super) struct Process {
    /// User and system time.
    pub(super) cpu_seconds: f64,
    pub(super) resident_bytes: u64,
    pub(super) threads: u64,
    pub(super) open_fds: u64,
    pub(super) max_fds: u64,
}

impl Process {
    /// Returns the state of this process. `None` if `/proc` is not there.
    pub(super) fn now() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let Stat { ticks, threads, pages } = Stat::parse(&stat)?;
        let open_fds = std::fs::read_dir("/proc/self/fd").ok()?.count() as u64;
        Some(Self {
            cpu_seconds: ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
            resident_bytes: pages * page_size(),
            threads,
            // The directory itself is open while it is read.
            open_fds: open_fds.saturating_sub(1),
            max_fds: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
        })
    }
}

/// Fields of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    ticks: u64,
    threads: u64,
    pages: u64,
}

impl Stat {
    /// The name of the program, which may contain anything, is in parentheses before the fields.
    fn parse(text: &str) -> Option<Self> {
        let (_, fields) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // The first field here is the third of proc(5).
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self { ticks: field(14)? + field(15)?, threads: field(20)?, pages: field(24)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_have_any_name() {
        let text = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 30 12 0 0 20 0 5 0 1000 2000000 345 1 1";
        assert_eq!(Stat::parse(text), Some(Stat { ticks: 42, threads: 5, pages: 345 }));
        assert_eq!(Stat::parse("7 (a) S"), None);
        assert!(Process::now().is_some_and(|process| process.resident_bytes > 0 && process.open_fds > 0));
    }
}
