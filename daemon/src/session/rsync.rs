//! One session of a stock rsync client.
//!
//! ```text
//! greet    text lines: which module, who may have it, who waits; then the client's arguments
//! input    what the client sends from there on, taken apart
//! select   rules and names: what of the repository is wanted
//! list     the file list, streamed; requests that come meanwhile are answered between two sub-lists
//! answers  requests in order: echoes, files, ends of phases
//! refuse   options that the operator does not want
//! tally    the log line
//! ```
//!
//! The client's half is read beside the daemon's being written, so that neither waits for the other for good.

mod answers;
mod greet;
mod input;
mod list;
mod refuse;
mod select;
mod tally;
mod window;

use std::future::{Future, pending};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use stillmirror_protocol::list::ListRef;
use stillmirror_protocol::rsync::arguments::{self, Options};
use stillmirror_protocol::rsync::exit::Exit;
use stillmirror_protocol::rsync::mux::Severity;
use stillmirror_protocol::rsync::replies::{self, Replies};
use stillmirror_protocol::rsync::requests::Requests;
use stillmirror_protocol::rsync::rules::Rules;
use stillmirror_protocol::rsync::setup::{Offer, Setup};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::out_of_time;
use crate::admission::Patience;
use crate::bandwidth::Bucket;
use crate::choosing::Effort;
use crate::config::Limits;
use crate::edition::Edition;
use crate::ended::Ended;
use crate::gate::Gate;
use crate::list_memory::Share;
use crate::networks::Network;
use crate::pinned::Pinned;
use crate::shared::Shared;
use crate::strangers::Stranger;
use crate::stream::{Lane, Writer};
use answers::Answers;
use greet::Welcome;
use input::{Input, LaneState};
use tally::Tally;

/// How long a client of before 3.1 may be silent: it cannot be told of a limit, and may well be comparing
/// a million files with its own. While others wait for its place it is given what others are given always.
const PATIENCE: Duration = Duration::from_secs(3600);
/// How often it is looked at whether the client is still there.
const PEER_CHECK: Duration = Duration::from_secs(1);
/// How long what is being sent may take once the client has said that it ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// One client.
struct Session {
    shared: Arc<Shared>,
    peer: SocketAddr,
    writer: Arc<Mutex<Writer>>,
    /// Bytes.
    received: Arc<AtomicU64>,
    lane: LaneState,
    /// What its list takes, if that is its own.
    list_memory: Mutex<Share>,
    /// Steps of its rules that are charged to its network.
    charged: AtomicU64,
    /// It is over.
    over: CancellationToken,
    tally: std::sync::Mutex<Tally>,
}

/// What is settled once the setup is over.
struct Settled {
    pinned: Arc<Pinned>,
    options: Box<Options>,
    setup: Setup,
}

/// Serves a client whose first bytes are `begun`, and that was `greeted` or not. Gives back what is left of the
/// connection: its reading half.
pub(crate) async fn serve(
    shared: &Arc<Shared>,
    socket: TcpStream,
    peer: SocketAddr,
    begun: &[u8],
    greeted: bool,
    stranger: Stranger,
) -> OwnedReadHalf {
    let _ = socket.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(&socket, true);
    let (input, output) = socket.into_split();
    let mut input = Input::new(input, begun);
    let session = Arc::new(Session {
        shared: Arc::clone(shared),
        peer,
        writer: Arc::new(Mutex::new(Writer::new(output, shared))),
        received: input.received(),
        lane: LaneState::default(),
        list_memory: Mutex::new(shared.list_memory.share(shared.networks.of(peer.ip()))),
        charged: AtomicU64::new(0),
        over: CancellationToken::new(),
        tally: std::sync::Mutex::new(Tally::new(peer)),
    });
    let result = session.run(&mut input, stranger, greeted).await;
    session.over.cancel();
    let mut writer = session.writer.lock().await;
    writer.close().await;
    session.tally().report(writer.sent(), session.received.load(Ordering::Relaxed), result.as_ref().err());
    input.into_socket()
}

impl Session {
    async fn run(self: &Arc<Self>, input: &mut Input, stranger: Stranger, greeted: bool) -> Result<(), Ended> {
        let result = match self.greet(input, stranger, greeted).await {
            Ok(Some(Welcome { options, pinned, places })) => {
                let result = self.serve_module(input, pinned, options).await;
                // Others need not wait until this client has heard how its session ended.
                drop(places);
                self.list_memory.lock().await.keep(0);
                result
            }
            Ok(None) => Ok(()),
            // A line said it, and the client sends nothing before it has read that.
            Err(refused @ Ended::Refused(_)) => return Err(refused),
            Err(ended) => Err(ended),
        };
        if result.as_ref().is_err_and(Ended::is_told_in_frames) {
            tokio::select! {
                () = input.hear_out() => {}
                () = self.shared.stopping.cancelled() => {}
            }
        }
        result
    }

    /// Serves what a client asked for.
    async fn serve_module(
        self: &Arc<Self>,
        input: &mut Input,
        pinned: Arc<Pinned>,
        options: Box<Options>,
    ) -> Result<(), Ended> {
        let version = options.version;
        self.tally().protocol = version.number();
        let limit = OwnLimit::of(options.bwlimit, &self.shared.limits);
        self.writer.lock().await.draw_on(Bucket::new(limit.rate).as_ref());
        let setup = match self.set_up(input, &pinned, &options).await {
            Ok(setup) => setup,
            Err(ended) => {
                return Err(self.dismiss(ended, |out, text, exit| replies::fatal(out, version, text, exit)).await);
            }
        };
        let settled = Arc::new(Settled { pinned, options, setup });
        let replies = Replies::new(&settled.setup);
        if let Some(text) = limit.told() {
            let mut told = replies.clone();
            told.message(Severity::Info, text);
            self.writer.lock().await.send_bytes(&told.take()).await?;
        }
        let requests = Requests::new(&settled.setup, &settled.options).limit_rules(self.shared.rsync.rule_limits);
        input.begin_requests(requests, settled.patience(&self.shared));
        let ended = tokio::select! {
            ended = self.transfer(input, &settled, replies.clone()) => ended,
            ended = self.keep_alive(&settled) => ended,
            ended = out_of_time(&self.shared, &self.writer) => Err(ended),
        };
        match ended {
            Ok(()) => Ok(()),
            Err(ended) => {
                let last_words = |out: &mut Vec<u8>, text: &str, exit: Exit| {
                    let mut replies = replies;
                    replies.fatal(text, exit);
                    out.append(replies.buffer());
                };
                Err(self.dismiss(ended, last_words).await)
            }
        }
    }

    /// Exchanges what must be known before the first frame.
    async fn set_up(&self, input: &mut Input, pinned: &Pinned, options: &Options) -> Result<Setup, Ended> {
        let configured = pinned.repository.module.timeout;
        let limit = if configured.is_zero() { self.shared.limits.idle } else { configured };
        let offer = Offer {
            digests: &answers::indexed(pinned.edition.generation.list_sparsely()).offer(options.checksum),
            compressions: &arguments::Compression::NAMED,
            // A fixed seed: nothing that clients compare depends on it, and nobody need remember it.
            seed: 0,
            // Where an incremental list would go on in a directory, there is no saying that it is closed.
            incremental: !pinned.edition.has_closed_dirs,
            timeout: u32::try_from(limit.as_secs()).ok().filter(|&seconds| seconds > 0),
        };
        let (block, mut negotiation) = Setup::begin(options, &offer);
        self.writer.lock().await.send_bytes(&block).await?;
        refuse::check(options, &pinned.repository.module.refuse_options, self.shared.rsync.compression)?;
        let agree = async {
            loop {
                negotiation.receive(&input.take());
                if let Some(setup) = negotiation.next()? {
                    return Ok::<_, Ended>(setup);
                }
                input.read().await?;
            }
        };
        let setup = timeout(self.shared.limits.handshake, agree).await.map_err(|_| Ended::HalfRequest)??;
        input.put_back(negotiation.into_rest());
        Ok(setup)
    }

    /// The list, and what is asked for in it.
    async fn transfer(
        self: &Arc<Self>,
        input: &mut Input,
        settled: &Arc<Settled>,
        mut replies: Replies,
    ) -> Result<(), Ended> {
        let selected = self.select(input, settled, &mut replies).await?;
        let queue = if settled.setup.incremental { window::MOST + answers::QUEUE } else { answers::QUEUE };
        let (to_lane, requests) = mpsc::channel(queue as usize);
        let answers = Answers::new(Arc::clone(self), Arc::clone(settled), requests, replies);
        let lane = Lane::new(Arc::clone(&self.shared), Arc::clone(&self.writer), self.network(), answers);
        let answer = async {
            let lane = self.send_list(lane, settled, selected).await?;
            // A stock sender leaves after an empty list, and there are clients that wait for that.
            if lane.framing.is_empty() { Ok(()) } else { lane.run().await.map(drop) }
        };
        tokio::select! {
            result = answer => result,
            ended = cut_off(input.pass_on(to_lane, &self.lane)) => Err(ended),
        }
    }

    /// Sends signs of life whenever nothing else was sent for a while, for clients with a timeout. Ends with the
    /// connection, although nothing may have to be read or sent: no work is done for a client that has left. Frames go out
    /// whole, so whoever has the writer is between two of them.
    async fn keep_alive(&self, settled: &Settled) -> Result<(), Ended> {
        // Looked at four times in that time, nobody is left without one for longer than half of it.
        let pause = settled.setup.timeout.map(|seconds| Duration::from_secs(u64::from(seconds)) / 4);
        let mut sign = Replies::new(&settled.setup);
        sign.keep_alive();
        let sign = sign.take();
        let (mut sent, mut due) = (0, pause.map(|pause| Instant::now() + pause));
        loop {
            sleep(pause.map_or(PEER_CHECK, |pause| pause.min(PEER_CHECK))).await;
            let Ok(mut writer) = self.writer.try_lock() else { continue };
            let is_due = due.is_some_and(|due| due <= Instant::now());
            // Who says no more may still listen. If not, what it is sent next makes the kernel say so.
            let has_left = writer.has_peer_left()?;
            if writer.sent() == sent && (is_due || has_left) {
                writer.send_bytes(&sign).await?;
            }
            if is_due || has_left {
                sent = writer.sent();
                due = pause.map(|pause| Instant::now() + pause);
            }
        }
    }

    /// Tells the client why its session ends, if it can be told, between two frames.
    async fn dismiss(&self, ended: Ended, frames: impl FnOnce(&mut Vec<u8>, &str, Exit)) -> Ended {
        let exit = match &ended {
            Ended::Broken(_)
            | Ended::CutOff
            | Ended::TooSlow
            | Ended::Torn
            | Ended::Panicked
            | Ended::ClientExit(_) => return ended,
            ended => ended.exit(),
        };
        let mut out = Vec::new();
        frames(&mut out, &ended.to_string(), exit);
        let _ = self.writer.lock().await.send_bytes(&out).await;
        ended
    }

    /// Does what may wait for the disk on a thread of its own.
    async fn blocking<T>(&self, gate: &Gate, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Ended>
    where
        T: Send + 'static,
    {
        gate.run(work).await.ok_or(Ended::Panicked)
    }

    /// Does what takes a core for a while, for this client alone. It waits for more of its kind, and no read waits
    /// for it.
    async fn choosing<T: Send + 'static>(
        &self,
        edition: &Edition,
        effort: Effort,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Ended> {
        edition.gates.choosing.run(self.network(), effort, work).await.ok_or(Ended::Panicked)
    }

    /// Charges what the client's rules have cost since this was asked last.
    fn charge(&self, rules: &Rules) -> Result<(), Ended> {
        let counted = rules.counted();
        let more = counted.saturating_sub(self.charged.swap(counted, Ordering::Relaxed));
        let has_more = self.shared.accounts.charge(self.network(), more, Instant::now());
        if has_more && !rules.exhausted() { Ok(()) } else { Err(Ended::RulesTooCostly) }
    }

    /// Sends what is in the buffer of replies.
    async fn flush(&self, replies: &mut Replies) -> Result<(), Ended> {
        let out = replies.take();
        if out.is_empty() { Ok(()) } else { self.writer.lock().await.send_bytes(&out).await }
    }

    fn network(&self) -> Network {
        self.shared.networks.of(self.peer.ip())
    }

    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A client's own limit on what it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OwnLimit {
    /// What it wants, bytes a second; 0 for no limit.
    wanted: u64,
    /// What it gets.
    rate: u64,
}

impl OwnLimit {
    /// Who wants less than the least would hold its place for days.
    fn of(bwlimit: Option<u64>, limits: &Limits) -> Self {
        let wanted = bwlimit.map_or(0, |kib| kib.saturating_mul(1024));
        let least = limits.minimum_bwlimit.max(limits.minimum_rate);
        Self { wanted, rate: if wanted == 0 { 0 } else { wanted.max(least) } }
    }

    /// What the client is told of it, if it is not what it wants.
    fn told(self) -> Option<String> {
        let Self { wanted, rate } = self;
        let text = || {
            format!("--bwlimit of {wanted} bytes a second is raised to {rate}, the least that this server keeps to\n")
        };
        (rate != wanted).then(text)
    }
}

impl Settled {
    /// The list, for what comes before its first piece has gone out, and for that.
    fn list_at_first(&self) -> ListRef<'_> {
        let generation = &self.pinned.edition.generation;
        if self.options.wanted().is_plain() { generation.list_sparsely() } else { generation.list() }
    }

    /// How long the client may be silent.
    fn patience(&self, shared: &Shared) -> Patience {
        let (configured, idle) = (self.pinned.repository.module.timeout, shared.limits.idle);
        let (most, in_demand) = match self.setup.timeout {
            _ if !configured.is_zero() => (configured, configured),
            Some(_) if self.setup.version.facts().exit_messages => (idle, idle),
            _ => (idle.max(PATIENCE), idle),
        };
        Patience { most, in_demand, admission: Arc::clone(&shared.admission) }
    }
}

/// Ends a while after a client that says that it ends: it waits for the connection to close. What else there
/// is to say of the client's half is said by the lane, in its turn.
async fn cut_off(reading: impl Future<Output = Option<Ended>>) -> Ended {
    match reading.await {
        Some(ended) => {
            sleep(LAST_WORDS).await;
            ended
        }
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_s_own_limit_is_kept_from_the_least_on_and_raised_to_it_below() {
        let limits = Limits { minimum_bwlimit: 16 << 10, minimum_rate: 1024, ..Limits::default() };
        let rate = |bwlimit| OwnLimit::of(bwlimit, &limits).rate;
        assert_eq!([None, Some(1), Some(16), Some(17)].map(rate), [0, 16 << 10, 16 << 10, 17 << 10]);
        assert_eq!(OwnLimit::of(Some(u64::MAX), &limits).rate, u64::MAX);
        let is_told = |bwlimit| OwnLimit::of(bwlimit, &limits).told().is_some();
        assert_eq!([None, Some(1), Some(16), Some(17)].map(is_told), [false, true, false, false]);
        let strict = Limits { minimum_rate: 1 << 20, ..limits };
        assert_eq!(OwnLimit::of(Some(17), &strict).rate, 1 << 20, "it would be ended for it");
    }
}
