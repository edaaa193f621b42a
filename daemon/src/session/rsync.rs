//! The session of a stock rsync client.
//!
//! The stages of a session, in order, and their helpers:
//!
//! ```text
//! greet    text lines: the module, the login, the queue; then the client's arguments
//! select   the client's rules and names: what of the repository is listed
//! list     the file list, streamed; requests are answered between its pieces
//! answers  the answers to requests, in order: echoes, files, ends of phases
//! input    reads and parses what the client sends
//! window   how far the list is sent ahead of the client
//! refuse   options that the operator refuses
//! ```
//!
//! The session reads the client's half of the connection while it writes its own, so the two never wait for each other
//! forever.

mod answers;
mod greet;
mod input;
mod list;
mod refuse;
mod select;
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
use tokio::sync::{Mutex, mpsc};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::forced_shutdown;
use super::record::Record;
use crate::admission::IdleTimeout;
use crate::bandwidth::Bucket;
use crate::choosing::Effort;
use crate::config::Limits;
use crate::dialect::Dialect;
use crate::edition::Edition;
use crate::ended::Ended;
use crate::gate::Gate;
use crate::list_memory::Share;
use crate::networks::Network;
use crate::pinned::Pinned;
use crate::settings::Settings;
use crate::shared::ServerState;
use crate::strangers::Stranger;
use crate::stream::{Client, Lane, Writer};
use crate::transport::{ReadHalf, Transport};
use answers::Answers;
use greet::Welcome;
use input::{Input, LaneState};

/// How long a client older than rsync 3.1 may be silent. It cannot be told about a timeout, and may well be comparing a
/// million files with its own. While others wait for its slot, the ordinary idle timeout applies.
const OLD_CLIENT_TIMEOUT: Duration = Duration::from_secs(3600);
/// How often to check whether the client is still connected.
const PEER_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long the session may go on sending after the client has announced that it exits.
const EXIT_GRACE: Duration = Duration::from_secs(1);

/// The state of a session.
struct Session {
    shared: Arc<ServerState>,
    settings: Arc<Settings>,
    peer: SocketAddr,
    client: Client,
    writer: Arc<Mutex<Writer>>,
    /// The number of bytes received.
    received: Arc<AtomicU64>,
    lane: LaneState,
    /// The memory for the client's list, if the list is made for this client alone.
    list_memory: Mutex<Share>,
    /// The steps of the client's rules that are charged to its network so far.
    charged: AtomicU64,
    /// Cancelled when the session is over.
    closed: CancellationToken,
    record: std::sync::Mutex<Record>,
}

/// The parameters of a session, which are fixed once the setup is over.
struct Settled {
    pinned: Arc<Pinned>,
    options: Box<Options>,
    setup: Setup,
}

/// Serves a client whose first bytes are `begun`. `greeted` tells whether the daemon has sent its greeting already.
/// Returns the reading half of the connection; the other half is closed.
pub(crate) async fn serve(
    shared: &Arc<ServerState>,
    settings: Arc<Settings>,
    socket: Transport,
    peer: SocketAddr,
    begun: &[u8],
    greeted: bool,
    stranger: Stranger,
) -> ReadHalf {
    let _ = socket.socket().set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(socket.socket(), true);
    let client = Client { network: shared.networks.of(peer.ip()), is_encrypted: socket.is_encrypted() };
    let (input, output) = socket.into_split();
    let mut input = Input::new(input, begun);
    let session = Arc::new(Session {
        shared: Arc::clone(shared),
        peer,
        client,
        writer: Arc::new(Mutex::new(Writer::new(output, &shared.metrics, &settings, Dialect::Rsync))),
        received: input.received(),
        lane: LaneState::default(),
        list_memory: Mutex::new(shared.list_memory.share(client.network)),
        charged: AtomicU64::new(0),
        closed: CancellationToken::new(),
        record: std::sync::Mutex::new(Record::new(&shared.metrics, Dialect::Rsync, peer)),
        settings,
    });
    let result = session.run(&mut input, stranger, greeted).await;
    session.closed.cancel();
    let mut writer = session.writer.lock().await;
    writer.close().await;
    let mut record = session.record();
    record.received = session.received.load(Ordering::Relaxed);
    record.finish(writer.sent(), result.as_ref().err());
    drop(record);
    input.into_socket()
}

impl Session {
    async fn run(self: &Arc<Self>, input: &mut Input, stranger: Stranger, greeted: bool) -> Result<(), Ended> {
        let result = match self.greet(input, stranger, greeted).await {
            Ok(Some(Welcome { options, pinned, places })) => {
                let result = self.serve_module(input, pinned, options).await;
                // Others need not wait until this client has received the reason why its session ended.
                drop(places);
                self.list_memory.lock().await.keep(0);
                result
            }
            Ok(None) => Ok(()),
            // The refusal was sent as a line, and the client sends nothing before it has read that.
            Err(refused @ Ended::Refused(..)) => return Err(refused),
            Err(ended) => Err(ended),
        };
        if result.as_ref().is_err_and(Ended::is_told_in_frames) {
            tokio::select! {
                () = input.drain() => {}
                () = self.shared.stopping.cancelled() => {}
            }
        }
        result
    }

    /// Serves the client after the greeting: setup, list, and answers.
    async fn serve_module(
        self: &Arc<Self>,
        input: &mut Input,
        pinned: Arc<Pinned>,
        options: Box<Options>,
    ) -> Result<(), Ended> {
        let version = options.version;
        self.record().protocol = version.number();
        let limit = ClientLimit::of(options.bwlimit, self.settings.limits());
        self.writer.lock().await.draw_on(Bucket::new(limit.rate).as_ref());
        let setup = match self.set_up(input, &pinned, &options).await {
            Ok(setup) => setup,
            Err(ended) => {
                return Err(self.report_end(ended, |out, text, exit| replies::fatal(out, version, text, exit)).await);
            }
        };
        let settled = Arc::new(Settled { pinned, options, setup });
        let replies = Replies::new(&settled.setup);
        if let Some(text) = limit.message() {
            let mut message = replies.clone();
            message.message(Severity::Info, text);
            self.writer.lock().await.send_bytes(&message.take()).await?;
        }
        let requests = Requests::new(&settled.setup, &settled.options).limit_rules(self.settings.rsync().rule_limits);
        input.begin_requests(requests, self.idle_timeout(&settled));
        let ended = tokio::select! {
            ended = self.transfer(input, &settled, replies.clone()) => ended,
            ended = self.keep_alive(&settled) => ended,
            ended = forced_shutdown(&self.shared, &self.writer) => Err(ended),
        };
        match ended {
            Ok(()) => Ok(()),
            Err(ended) => {
                let final_frames = |out: &mut Vec<u8>, text: &str, exit: Exit| {
                    let mut replies = replies;
                    replies.fatal(text, exit);
                    out.append(replies.buffer());
                };
                Err(self.report_end(ended, final_frames).await)
            }
        }
    }

    /// Exchanges the parameters that must be known before the first frame.
    async fn set_up(&self, input: &mut Input, pinned: &Pinned, options: &Options) -> Result<Setup, Ended> {
        let configured = pinned.repository.module.timeout;
        let limit = if configured.is_zero() { self.settings.limits().idle } else { configured };
        let offer = Offer {
            digests: &answers::indexed(pinned.edition.generation.list_sparsely()).offer(options.checksum),
            compressions: &arguments::Compression::NAMED,
            // A fixed seed: nothing that clients compare depends on it, and nothing has to store it.
            seed: 0,
            // An incremental list cannot mark a directory as closed.
            incremental: !pinned.edition.has_closed_dirs,
            timeout: u32::try_from(limit.as_secs()).ok().filter(|&seconds| seconds > 0),
        };
        let (block, mut negotiation) = Setup::begin(options, &offer);
        self.writer.lock().await.send_bytes(&block).await?;
        refuse::check(options, &pinned.repository.module.refuse_options, self.settings.rsync().compression)?;
        let agree = async {
            loop {
                negotiation.receive(&input.take());
                if let Some(setup) = negotiation.next()? {
                    return Ok::<_, Ended>(setup);
                }
                input.read().await?;
            }
        };
        let setup = timeout(self.settings.limits().handshake, agree).await.map_err(|_| Ended::HalfRequest)??;
        input.put_back(negotiation.into_rest());
        Ok(setup)
    }

    /// Sends the list, and answers the client's requests.
    async fn transfer(
        self: &Arc<Self>,
        input: &mut Input,
        settled: &Arc<Settled>,
        mut replies: Replies,
    ) -> Result<(), Ended> {
        let selected = self.select(input, settled, &mut replies).await?;
        let queue = if settled.setup.incremental { window::MAX_SIZE + answers::QUEUE } else { answers::QUEUE };
        let (to_lane, requests) = mpsc::channel(queue as usize);
        let answers = Answers::new(Arc::clone(self), Arc::clone(settled), requests, replies);
        let lane = Lane::new(Arc::clone(&self.shared), Arc::clone(&self.writer), self.client, answers);
        let answer = async {
            let lane = self.send_list(lane, settled, selected).await?;
            // A stock sender exits after an empty list, and some clients wait for that.
            if lane.framing.is_empty() { Ok(()) } else { lane.run().await.map(drop) }
        };
        tokio::select! {
            result = answer => result,
            ended = end_after_exit(input.forward(to_lane, &self.lane)) => Err(ended),
        }
    }

    /// Sends a keep-alive whenever nothing else was sent for a while, if the client has a timeout. Fails when the client
    /// disconnects, even if the session neither reads nor sends at that time, so that no work is done for a client that
    /// has left. Frames are sent as a whole, so the holder of the writer is always between two of them.
    async fn keep_alive(&self, settled: &Settled) -> Result<(), Ended> {
        // With a check every quarter of the timeout, no silence is longer than half of it.
        let pause = settled.setup.timeout.map(|seconds| Duration::from_secs(u64::from(seconds)) / 4);
        let mut frame = Replies::new(&settled.setup);
        frame.keep_alive();
        let frame = frame.take();
        let (mut sent, mut due) = (0, pause.map(|pause| Instant::now() + pause));
        loop {
            sleep(pause.map_or(PEER_CHECK_INTERVAL, |pause| pause.min(PEER_CHECK_INTERVAL))).await;
            let Ok(mut writer) = self.writer.try_lock() else { continue };
            let is_due = due.is_some_and(|due| due <= Instant::now());
            // A client that has closed its sending half may still receive. If it does not, sending something makes the
            // kernel report that.
            let has_left = writer.has_peer_left()?;
            if writer.sent() == sent && (is_due || has_left) {
                writer.send_bytes(&frame).await?;
            }
            if is_due || has_left {
                sent = writer.sent();
                due = pause.map(|pause| Instant::now() + pause);
            }
        }
    }

    /// Tells the client why its session ends, unless it is past hearing it. `frames` appends the message to the buffer.
    async fn report_end(&self, ended: Ended, frames: impl FnOnce(&mut Vec<u8>, &str, Exit)) -> Ended {
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

    /// Runs work that may wait for the disk, on a thread for blocking work.
    async fn blocking<T>(&self, gate: &Gate, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Ended>
    where
        T: Send + 'static,
    {
        gate.run(work).await.ok_or(Ended::Panicked)
    }

    /// Runs work that takes a core for a while and serves this client alone. It queues with other work of its kind, and
    /// no read waits for it.
    async fn choosing<T: Send + 'static>(
        &self,
        edition: &Edition,
        effort: Effort,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Ended> {
        edition.gates.choosing.run(self.network(), effort, work).await.ok_or(Ended::Panicked)
    }

    /// Charges the client's network for what the client's rules have cost since the last call. Fails if that is too much.
    fn charge(&self, rules: &Rules) -> Result<(), Ended> {
        let counted = rules.counted();
        let more = counted.saturating_sub(self.charged.swap(counted, Ordering::Relaxed));
        let is_within_budget = self.shared.accounts.charge(self.network(), more, Instant::now());
        if is_within_budget && !rules.exhausted() { Ok(()) } else { Err(Ended::RulesTooCostly) }
    }

    /// Sends the contents of the reply buffer.
    async fn flush(&self, replies: &mut Replies) -> Result<(), Ended> {
        let out = replies.take();
        if out.is_empty() { Ok(()) } else { self.writer.lock().await.send_bytes(&out).await }
    }

    /// Returns how long the client may be silent.
    fn idle_timeout(&self, settled: &Settled) -> IdleTimeout {
        let (configured, idle) = (settled.pinned.repository.module.timeout, self.settings.limits().idle);
        let (most, in_demand) = match settled.setup.timeout {
            _ if !configured.is_zero() => (configured, configured),
            Some(_) if settled.setup.version.facts().exit_messages => (idle, idle),
            _ => (idle.max(OLD_CLIENT_TIMEOUT), idle),
        };
        IdleTimeout { max: most, in_demand, admission: Arc::clone(&self.shared.admission) }
    }

    fn network(&self) -> Network {
        self.client.network
    }

    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The bandwidth limit that a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ClientLimit {
    /// The limit that the client asked for, in bytes a second; 0 for no limit.
    wanted: u64,
    /// The limit in force.
    rate: u64,
}

impl ClientLimit {
    /// Raises a limit that is too low to the minimum. Otherwise the client would hold its slot for days.
    fn of(bwlimit: Option<u64>, limits: &Limits) -> Self {
        let wanted = bwlimit.map_or(0, |kib| kib.saturating_mul(1024));
        let minimum = limits.minimum_bwlimit.max(limits.minimum_rate);
        Self { wanted, rate: if wanted == 0 { 0 } else { wanted.max(minimum) } }
    }

    /// Returns the message for the client. `None` if the client gets the limit that it asked for.
    fn message(self) -> Option<String> {
        let Self { wanted, rate } = self;
        let text = || format!("--bwlimit of {wanted} bytes a second is raised to {rate}, the minimum of this server\n");
        (rate != wanted).then(text)
    }
}

impl Settled {
    /// Returns the list, mapped for the work up to and including the first piece that is sent.
    fn list_at_first(&self) -> ListRef<'_> {
        let generation = &self.pinned.edition.generation;
        if self.options.wanted().is_plain() { generation.list_sparsely() } else { generation.list() }
    }
}

/// Waits until a while after the client has announced that it exits, and now waits for the connection to close. Never
/// returns if the client's half ends in any other way: the lane then ends the session when it comes to that.
async fn end_after_exit(reading: impl Future<Output = Option<Ended>>) -> Ended {
    match reading.await {
        Some(ended) => {
            sleep(EXIT_GRACE).await;
            ended
        }
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_s_bandwidth_limit_below_the_minimum_is_raised_to_it() {
        let limits = Limits { minimum_bwlimit: 16 << 10, minimum_rate: 1024, ..Limits::default() };
        let rate = |bwlimit| ClientLimit::of(bwlimit, &limits).rate;
        assert_eq!([None, Some(1), Some(16), Some(17)].map(rate), [0, 16 << 10, 16 << 10, 17 << 10]);
        assert_eq!(ClientLimit::of(Some(u64::MAX), &limits).rate, u64::MAX);
        let is_told = |bwlimit| ClientLimit::of(bwlimit, &limits).message().is_some();
        assert_eq!([None, Some(1), Some(16), Some(17)].map(is_told), [false, true, false, false]);
        let strict = Limits { minimum_rate: 1 << 20, ..limits };
        assert_eq!(
            ClientLimit::of(Some(17), &strict).rate,
            1 << 20,
            "below it, the session would be ended as too slow"
        );
    }
}
