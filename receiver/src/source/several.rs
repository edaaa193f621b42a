//! Several senders of one repository. One of them is asked at a time, and left if it fails.
//!
//! For each connection, all senders are asked for their heads at once, and the newest acceptable one wins. If several
//! senders have it, the one that has failed least often is taken, and among these the first in the caller's order.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stillmirror_protocol::wire::Request;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::native::Counters;
use super::{Answer, NativeSource, Pinned, Renewing, Source, SourceOptions, Traffic, head};
use crate::address::Address;
use crate::error::PullError;
use crate::report::Served;

/// A connection to one of several senders.
pub struct SeveralSources {
    connection: NativeSource,
    senders: Arc<Senders>,
}

/// Decides whether a head may be pulled.
pub type Accept = Box<dyn Fn(&Pinned) -> Result<(), PullError> + Send + Sync>;

struct Senders {
    repository: String,
    options: SourceOptions,
    accept: Accept,
    all: Vec<Sender>,
    /// The number of the sender that was chosen last.
    chosen: AtomicUsize,
}

struct Sender {
    address: Address,
    counters: Arc<Counters>,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Default)]
struct State {
    failures: u32,
    /// Why it failed the last time.
    why: Option<String>,
    /// The generation that it had when it was last asked.
    generation: Option<u64>,
    /// The generation of which it could not deliver all files.
    incomplete: Option<u64>,
}

impl SeveralSources {
    /// Asks all senders, and connects to the one that has the newest head that `accept` accepts.
    pub async fn connect(
        addresses: impl IntoIterator<Item = Address>,
        repository: &str,
        options: SourceOptions,
        accept: Accept,
    ) -> Result<Self, PullError> {
        let sender = |address| Sender { address, counters: Arc::default(), state: Mutex::default() };
        let all = addresses.into_iter().map(sender).collect();
        let (repository, chosen) = (repository.to_owned(), AtomicUsize::new(0));
        Senders::choose(&Arc::new(Senders { repository, options, accept, all, chosen })).await
    }
}

impl Source for SeveralSources {
    fn ask(&self, request: Request) -> Result<Answer, PullError> {
        self.connection.ask(request)
    }

    fn traffic(&self) -> Traffic {
        let all = self.senders.all.iter().map(|sender| sender.counters.traffic());
        all.fold(Traffic::default(), |sum, one| Traffic {
            received: sum.received + one.received,
            sent: sum.sent + one.sent,
            round_trips: sum.round_trips + one.round_trips,
        })
    }

    fn close(&self) {
        self.connection.close();
    }

    fn renew(&self) -> Renewing<'_> {
        Box::pin(async { Ok(Arc::new(Senders::choose(&self.senders).await?) as Arc<dyn Source>) })
    }

    fn leave(&self, why: &str, incomplete: Option<u64>) -> bool {
        if let Some(sender) = self.senders.all.get(self.senders.chosen.load(Ordering::Relaxed)) {
            tracing::warn!(sender = %sender.address, "leaving this sender: {why}");
            match incomplete {
                None => sender.fail(why.to_owned()),
                Some(generation) => sender.lacks(generation, why.to_owned()),
            }
        }
        self.senders.all.iter().any(|sender| sender.is_usable() && sender.may_complete(incomplete))
    }

    fn older(&self, generation: u64) -> Option<Renewing<'_>> {
        let number = self.senders.older(generation)?;
        Some(Box::pin(async move {
            let (connection, _) = self.senders.ask(number).await?;
            tracing::info!(sender = %self.senders.all[number].address, "fetching from this sender, too");
            Ok(Arc::new(connection) as Arc<dyn Source>)
        }))
    }

    fn served(&self) -> Vec<Served> {
        self.senders.all.iter().map(Sender::served).collect()
    }
}

impl Senders {
    async fn choose(senders: &Arc<Self>) -> Result<SeveralSources, PullError> {
        let mut asked = JoinSet::new();
        for number in (0..senders.all.len()).filter(|&number| senders.all[number].is_usable()) {
            let senders = senders.clone();
            asked.spawn(async move { (number, senders.ask(number).await) });
        }
        let (mut answers, mut errors) = (Vec::new(), Vec::new());
        let mut waiting: Vec<usize> =
            (0..senders.all.len()).filter(|&number| senders.all[number].is_usable()).collect();
        let mut deadline: Option<Instant> = None;
        loop {
            let next = tokio::select! {
                next = asked.join_next() => next,
                () = until(deadline) => break,
            };
            let Some(next) = next else { break };
            // A task that panicked or was aborted has no answer.
            let Ok((number, answer)) = next else { continue };
            waiting.retain(|&other| other != number);
            match answer {
                Ok((connection, generation)) => {
                    deadline.get_or_insert_with(|| Instant::now() + GATHERING);
                    answers.push((number, connection, generation));
                }
                Err(error) => {
                    senders.all[number].fail(error.to_string());
                    tracing::warn!(sender = %senders.all[number].address, %error, "this sender cannot be used now");
                    errors.push((number, error));
                }
            }
        }
        for number in waiting {
            senders.all[number].fail(format!("no head within {} seconds of another sender's", GATHERING.as_secs()));
        }
        answers.sort_by_key(|&(number, _, generation)| {
            let state = senders.all[number].state();
            (Reverse(generation), state.incomplete == Some(generation), state.failures, number)
        });
        match answers.into_iter().next() {
            Some((number, connection, _)) => {
                tracing::info!(sender = %senders.all[number].address, "pulling from this sender");
                senders.chosen.store(number, Ordering::Relaxed);
                Ok(SeveralSources { connection, senders: senders.clone() })
            }
            None => {
                errors.sort_by_key(|&(number, _)| number);
                let first = errors.into_iter().next().map(|(_, error)| error);
                Err(first.unwrap_or_else(|| PullError::usage("no sender is left to pull from")))
            }
        }
    }

    /// Returns the number of the sender with the newest generation that is older than this one. `None` if a sender that was
    /// not chosen may deliver this one.
    fn older(&self, generation: u64) -> Option<usize> {
        let chosen = self.chosen.load(Ordering::Relaxed);
        let usable: Vec<usize> = (0..self.all.len()).filter(|&number| self.all[number].is_usable()).collect();
        if usable.iter().any(|&number| number != chosen && self.all[number].may_complete(Some(generation))) {
            return None;
        }
        let known = usable.into_iter().filter_map(|number| Some((self.all[number].state().generation?, number)));
        known.filter(|(older, _)| *older < generation).max_by_key(|&(older, _)| older).map(|(_, number)| number)
    }

    /// Connects to one sender, and asks for its head. Returns the head's generation.
    async fn ask(&self, number: usize) -> Result<(NativeSource, u64), PullError> {
        let sender = &self.all[number];
        let counters = sender.counters.clone();
        let connection = NativeSource::connect_counting(&sender.address, self.options.clone(), counters).await?;
        let pinned = head(&connection, &self.repository).await?;
        sender.state().generation = Some(pinned.head.generation);
        (self.accept)(&pinned)?;
        Ok((connection, pinned.head.generation))
    }
}

impl Sender {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, why: String) {
        let mut state = self.state();
        state.failures += 1;
        state.why = Some(why);
    }

    fn lacks(&self, generation: u64, why: String) {
        let mut state = self.state();
        state.incomplete = Some(generation);
        state.why = Some(why);
    }

    /// Returns whether it may have all files of a generation.
    fn may_complete(&self, generation: Option<u64>) -> bool {
        let state = self.state();
        generation.is_none() || (state.generation == generation && state.incomplete != generation)
    }

    fn is_usable(&self) -> bool {
        self.state().failures < MAX_FAILURES
    }

    fn served(&self) -> Served {
        let State { why, generation, .. } = self.state().clone();
        Served {
            address: self.address.to_string(),
            received: self.counters.traffic().received,
            generation,
            failure: why,
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// How long to wait for the heads of the other senders once one has answered.
const GATHERING: Duration = Duration::from_secs(3);
/// Number of failures after which a sender is not asked again in this pull.
const MAX_FAILURES: u32 = 3;
