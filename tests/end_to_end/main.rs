//! Tests of the real binary on real trees, with the real rsync as the judge.
//!
//! One test binary with a module per topic: `pull` (downstream mirrors), `deletions` (what their pulls delete), `guards`
//! (what keeps a pull from harm, and commands around it), `index` (publishers), `hierarchy` (mirrors of mirrors),
//! `slices` (suites and architectures of package repositories),
//! `senders` (several daemons, behind connections that fail), `signing` (signed heads, with the real minisign as the judge),
//! `rsync` (stock clients), `shadow` (a stock daemon beside ours), `terminal` (output), `bad_input` (errors and their exit codes), `kills` (runs that are killed
//! at any moment), `status` (what operators see, with the real promtool as the judge), `shortage` (few file descriptors),
//! `pinned` (contents that outlive the files), `reload` (SIGHUP), `service_manager` (systemd), `upgrade` (SIGUSR2),
//! `check` (faults that are found before they matter), `packaging` (units, manual pages),
//! `tls` (encrypted connections, with certificates of openssl). `support` creates trees
//! and runs commands.

mod bad_input;
mod check;
mod deletions;
mod follow;
mod guards;
mod hierarchy;
mod index;
mod kills;
mod packaging;
mod pinned;
mod pull;
mod reload;
mod rsync;
mod sandbox;
mod senders;
mod service_manager;
mod shadow;
mod shortage;
mod signing;
mod slices;
mod status;
mod support;
mod terminal;
mod tls;
mod upgrade;
