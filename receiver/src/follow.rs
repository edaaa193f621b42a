//! What happens between two pulls with `--follow`: senders are asked to tell what becomes current, and the next pull begins
//! when there is news, when the last one is to be repeated, or when something that waits is due.
//!
//! Nothing is locked meanwhile, and nothing that a sender tells is believed: it is only a reason to pull. Each sender is
//! asked on a connection of its own. One that does not tell (an older one, or one with too many followers) is asked for
//! its head from time to time.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::wire::ErrorCode;
use stillmirror_store::{SenderSeen, StoreError};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::address::Address;
use crate::error::PullError;
use crate::report::{Notice, Options, Phase, Progress, Report};
use crate::source::{self, NativeSource, SourceOptions};
use crate::trust;

/// Decides when to pull again.
pub struct Follower {
    senders: Vec<Arc<Sender>>,
    pauses: Pauses,
    cancel: CancellationToken,
    held: Held,
    /// The newest generation that a sender told of.
    told: u64,
    /// Number of pulls in a row that were not whole.
    failures: u32,
    /// When to pull again without news.
    due: Option<Duration>,
}

/// How the last pull ended.
#[derive(Debug, Clone, Copy)]
pub enum Last<'a> {
    /// With a report.
    Pulled(&'a Report),
    /// With an error.
    Failed(&'a PullError),
    /// It did not begin, or the reason is not known.
    Prevented,
}

/// The pauses of a follower. Each is varied at random, so that followers do not act all at once.
#[derive(Debug, Clone, Copy)]
pub struct Pauses {
    /// Before a connection is made again. It doubles with each failure.
    pub reconnect: Duration,
    /// The longest pause before a connection is made again.
    pub max_reconnect: Duration,
    /// Between two questions to a sender that does not tell.
    pub ask: Duration,
    /// Before a pull that failed is repeated. It doubles with each failure.
    pub retry: Duration,
    /// The longest pause before a pull that failed is repeated.
    pub max_retry: Duration,
    /// The longest pause before a pull is repeated that ended, but left something out: more often it needs the operator or
    /// a newer generation, which is told.
    pub max_incomplete: Duration,
    /// The shortest pause before a pull for what is due.
    pub due: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self {
            reconnect: Duration::from_secs(4),
            max_reconnect: Duration::from_secs(300),
            ask: Duration::from_secs(60),
            retry: Duration::from_secs(10),
            max_retry: Duration::from_secs(600),
            max_incomplete: Duration::from_secs(3600),
            due: Duration::from_secs(60),
        }
    }
}

/// The head that the last pull found.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    fingerprint: Digest,
    generation: u64,
}

/// Why to pull.
struct Heard {
    generation: u64,
    /// The time over which pulls are spread.
    spread: Duration,
}

struct Sender {
    address: Address,
    repository: String,
    options: SourceOptions,
    pauses: Pauses,
    /// Whether there is no other.
    is_alone: bool,
    /// The receiver's store.
    store: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The head of which the sender told last.
    told: Option<Digest>,
    /// Why it could not be followed the last time.
    why: Option<String>,
    /// Whether it was noticed that the sender does not tell.
    asks: bool,
}

impl Follower {
    /// Follows the senders of these options. If it is cancelled, it ends with [`PullError::Interrupted`].
    pub fn new(options: &Options, pauses: Pauses, cancel: CancellationToken) -> Self {
        let connection = SourceOptions {
            connect_timeout: options.connect_timeout,
            timeout: SILENCE,
            authorities: options.authorities.clone(),
            cancel: cancel.clone(),
            ..SourceOptions::default()
        };
        let sender = |address: &Address| {
            Arc::new(Sender {
                address: address.clone(),
                repository: options.repository.clone(),
                options: connection.clone(),
                pauses,
                is_alone: options.alternatives.is_empty(),
                store: options.store.clone(),
                state: Mutex::default(),
            })
        };
        let senders = std::iter::once(&options.address).chain(&options.alternatives).map(sender).collect();
        Self { senders, pauses, cancel, held: Held::default(), told: 0, failures: 0, due: None }
    }

    /// Decides when to pull again without news. Returns the error if it ends the following, because no later pull can
    /// succeed.
    pub fn decide(&mut self, last: Last<'_>) -> Result<(), PullError> {
        let mut max = self.pauses.max_retry;
        match last {
            Last::Pulled(report) => {
                self.held = Held { fingerprint: report.head, generation: report.generation };
                let is_behind = report.generation < self.told && self.failures < BEHIND;
                if report.failed.is_empty() && report.deletes_held == 0 && !is_behind {
                    (self.failures, self.told) = (0, 0);
                    self.due = report.next_due.map(|due| due.max(self.pauses.due));
                    return Ok(());
                }
                max = self.pauses.max_incomplete;
            }
            Last::Failed(error) if is_final(error) => return Err(error.clone()),
            Last::Failed(_) | Last::Prevented => {}
        }
        self.due = Some(growing(self.pauses.retry, max, self.failures));
        self.failures = self.failures.saturating_add(1);
        Ok(())
    }

    /// Waits until the next pull should begin.
    pub async fn next_pull(&mut self, progress: &Arc<dyn Progress>) -> Result<(), PullError> {
        progress.phase(Phase::Follow, 0, 0);
        if let Some(pause) = self.due.filter(|_| self.failures > 0) {
            progress.notice(&Notice::Repeats { pause });
        }
        let heard = tokio::select! {
            () = self.cancel.cancelled() => return Err(PullError::Interrupted),
            () = sleep_or_never(self.due) => return Ok(()),
            heard = self.listen(progress) => heard,
        };
        self.told = self.told.max(heard.generation);
        let least = if self.failures > 0 { self.pauses.retry / 2 } else { Duration::ZERO };
        tokio::select! {
            () = self.cancel.cancelled() => Err(PullError::Interrupted),
            () = sleep(part_of(heard.spread.min(MAX_SPREAD)).max(least)) => Ok(()),
        }
    }

    /// Waits until a sender tells of a head that is worth a pull.
    async fn listen(&self, progress: &Arc<dyn Progress>) -> Heard {
        let mut listening = JoinSet::new();
        for sender in &self.senders {
            let (sender, held, progress) = (Arc::clone(sender), self.held, Arc::clone(progress));
            listening.spawn(async move { sender.listen(held, &*progress).await });
        }
        while let Some(heard) = listening.join_next().await {
            if let Ok(heard) = heard {
                return heard;
            }
        }
        std::future::pending().await
    }
}

impl Sender {
    async fn listen(&self, held: Held, progress: &dyn Progress) -> Heard {
        let mut failures = 0;
        loop {
            match self.connect_and_listen(held, progress, &mut failures).await {
                Ok(Some(heard)) => return heard,
                Ok(None) => sleep(varied(self.pauses.ask)).await,
                // Whoever waits for this ends, too.
                Err(PullError::Interrupted) => std::future::pending().await,
                Err(error) => {
                    self.note_failure(&error, progress);
                    sleep(growing(self.pauses.reconnect, self.pauses.max_reconnect, failures)).await;
                    failures = failures.saturating_add(1);
                }
            }
        }
    }

    /// Returns what the sender tells. `None` if it has to be asked again.
    async fn connect_and_listen(
        &self,
        held: Held,
        progress: &dyn Progress,
        failures: &mut u32,
    ) -> Result<Option<Heard>, PullError> {
        let (connection, follows) = NativeSource::connect_following(&self.address, self.options.clone()).await?;
        if !follows {
            return self.ask(&connection, held, progress).await;
        }
        loop {
            let known = self.state().told.unwrap_or(held.fingerprint);
            let news = match source::follow(&connection, &self.repository, known).await {
                Err(PullError::Refused { code: ErrorCode::Refused, .. }) => {
                    let connection = NativeSource::connect(&self.address, self.options.clone()).await?;
                    return self.ask(&connection, held, progress).await;
                }
                news => news?,
            };
            *failures = 0;
            self.note_success(false, progress);
            let Some(news) = news else {
                self.note_no_news();
                continue;
            };
            if news.fingerprint == known {
                return Err(PullError::protocol("news of the head that is known already"));
            }
            if self.is_new(news.head.generation, news.fingerprint, held) {
                return Ok(Some(Heard { generation: news.head.generation, spread: news.spread }));
            }
            if news.fingerprint != held.fingerprint {
                sleep(UNWANTED).await;
            }
        }
    }

    /// Asks for the head.
    async fn ask(
        &self,
        connection: &NativeSource,
        held: Held,
        progress: &dyn Progress,
    ) -> Result<Option<Heard>, PullError> {
        let pinned = source::head(connection, &self.repository).await?;
        self.note_success(true, progress);
        let generation = pinned.head.generation;
        let is_new = self.is_new(generation, pinned.fingerprint(), held);
        if !is_new {
            self.note_no_news();
        }
        Ok(is_new.then_some(Heard { generation, spread: Duration::ZERO }))
    }

    /// Remembers the head of which the sender told. Returns whether it is worth a pull: one of several senders may be behind
    /// another.
    fn is_new(&self, generation: u64, fingerprint: Digest, held: Held) -> bool {
        let before = self.state().told.replace(fingerprint);
        let is_newer = self.is_alone || generation >= held.generation;
        before != Some(fingerprint) && fingerprint != held.fingerprint && is_newer
    }

    /// Leaves in the store that the sender was asked now, and has what the last pull found.
    fn note_no_news(&self) {
        let Some(store) = self.store.clone().filter(|_| self.is_alone) else { return };
        tokio::task::spawn_blocking(move || {
            let seen = SenderSeen::read(&store).map(|seen| SenderSeen { asked: trust::now().sec, ..seen });
            // It is only a hint.
            seen.map(|seen| seen.write(&store))
        });
    }

    fn note_failure(&self, error: &PullError, progress: &dyn Progress) {
        let why = error.to_string();
        let before = self.state().why.replace(why.clone());
        if before.as_ref() != Some(&why) {
            progress.notice(&Notice::CannotFollow { address: &self.address.host_port, why: &why });
        }
    }

    fn note_success(&self, asks: bool, progress: &dyn Progress) {
        let (failed, asked) = {
            let mut state = self.state();
            (state.why.take().is_some(), std::mem::replace(&mut state.asks, asks))
        };
        if asks && !asked {
            progress.notice(&Notice::Asks { address: &self.address.host_port, pause: self.pauses.ask });
        } else if failed || asks != asked {
            progress.notice(&Notice::FollowsAgain { address: &self.address.host_port });
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether no later pull can succeed, because what the operator asks for cannot work.
fn is_final(error: &PullError) -> bool {
    match error {
        PullError::Usage(_) | PullError::Interrupted => true,
        PullError::Store(error) => {
            matches!(**error, StoreError::NotAStore(_) | StoreError::OtherRepository { .. } | StoreError::Name(_))
        }
        _ => false,
    }
}

/// Returns a pause that doubles with each failure, varied.
fn growing(first: Duration, max: Duration, failures: u32) -> Duration {
    varied(first.saturating_mul(1 << failures.min(DOUBLINGS)).min(max))
}

/// Returns a random time between half of `pause` and all of it.
fn varied(pause: Duration) -> Duration {
    pause / 2 + part_of(pause / 2)
}

/// Returns a random part of a time.
fn part_of(time: Duration) -> Duration {
    time.mul_f64(fastrand::f64())
}

async fn sleep_or_never(pause: Option<Duration>) {
    match pause {
        Some(pause) => sleep(pause).await,
        None => std::future::pending().await,
    }
}

/// How long a sender that is followed may be silent. It has something to say every 45 s.
const SILENCE: Duration = Duration::from_secs(120);
/// The maximum time over which pulls are spread, whatever a sender wants.
const MAX_SPREAD: Duration = Duration::from_secs(300);
/// The pause after news that is not worth a pull.
const UNWANTED: Duration = Duration::from_secs(1);
/// The maximum number of times that a pause doubles.
const DOUBLINGS: u32 = 16;
/// The number of failures after which a generation that a sender told of, and that no pull found, is forgotten.
const BEHIND: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_their_limit_and_vary_by_half() {
        let (first, max) = (Duration::from_secs(10), Duration::from_secs(600));
        for (failures, longest) in [(0, 10), (1, 20), (5, 320), (6, 600), (u32::MAX, 600)] {
            let longest = Duration::from_secs(longest);
            let pauses: Vec<_> = (0..100).map(|_| growing(first, max, failures)).collect();
            assert!(pauses.iter().all(|&pause| pause >= longest / 2 && pause <= longest), "{failures}");
            assert!(pauses.iter().any(|&pause| pause != pauses[0]));
        }
    }

    #[test]
    fn a_generation_that_a_sender_only_claims_to_have_is_forgotten_after_some_pulls() {
        let options = Options::new("localhost:1", "demo", "dest");
        let mut follower = Follower::new(&options, Pauses::default(), CancellationToken::new());
        follower.told = u64::MAX;
        let report = Report { generation: 7, ..Report::default() };
        for _ in 0..BEHIND {
            follower.decide(Last::Pulled(&report)).unwrap();
            assert!(follower.due.is_some());
        }
        follower.decide(Last::Pulled(&report)).unwrap();
        assert_eq!((follower.due, follower.failures), (None, 0));
    }
}
