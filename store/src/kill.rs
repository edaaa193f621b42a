//! Kill points: places where a crash test can kill the process.

/// The names of all kill points, in the order in which a publication passes them.
pub const KILL_POINTS: &[&str] = &[
    "draft-made",
    "list-written",
    "before-pack-sync",
    "after-pack-sync",
    "before-generation-sync",
    "after-generation-sync",
    "after-generation-rename",
    "after-generations-sync",
    "before-current-rename",
    "after-current-rename",
    "after-current-sync",
    "before-retention",
    "after-retention-rename",
    "after-retention",
];

/// The names of the kill points that only a run with a pool passes, in their order.
pub const POOL_KILL_POINTS: &[&str] =
    &["pool-marked", "pool-content-added", "before-pool-sync", "before-unpooling", "before-pool-settled"];

/// Kills the process with SIGKILL if the environment variable `STILLMIRROR_KILL_AT` names this point. Does
/// nothing in release builds without the feature `kill-points`.
pub fn kill_point(name: &str) {
    #[cfg(any(debug_assertions, feature = "kill-points"))]
    {
        debug_assert!(
            KILL_POINTS.contains(&name) || POOL_KILL_POINTS.contains(&name),
            "{name} is not among the kill points"
        );
        if std::env::var_os("STILLMIRROR_KILL_AT").is_some_and(|at| at == name) {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
    #[cfg(not(any(debug_assertions, feature = "kill-points")))]
    let _ = name;
}
