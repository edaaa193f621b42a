//! Reads requests and hands them to their lanes.

use std::sync::Arc;

use stillmirror_protocol::codec::DecodeError;
use stillmirror_protocol::limits;
use stillmirror_protocol::wire::{ErrorCode, FRAME_HEADER_BYTES, FrameHeader, Request, WireError};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::control::{self, Answer};
use super::{InFlight, Session, data};
use crate::ended::Ended;
use crate::pinned::Pinned;
use crate::transport::ReadHalf;
use crate::visible::Visible;

/// The size (bytes) of the read buffer. It holds many small requests.
const READ_AHEAD: usize = 4 << 10;
/// The maximum number of generations that one session may pin.
const MAX_PINS: usize = 64;

/// The queues of the two lanes.
pub(super) struct Lanes {
    pub(super) control: mpsc::Sender<control::Job>,
    pub(super) data: mpsc::Sender<data::Job>,
}

impl Session {
    /// Reads requests until the peer has no more or the daemon stops. While the maximum number of requests is
    /// in flight, it reads none.
    pub(super) async fn read(&self, input: &mut ReadHalf, lanes: Lanes) -> Result<(), Ended> {
        let mut input = BufReader::with_capacity(READ_AHEAD, input);
        let mut pins = Pins(Vec::new());
        loop {
            let Ok(permit) = Arc::clone(&self.request_permits).acquire_owned().await else { return Ok(()) };
            let arrived = match self.await_request(&mut input).await {
                Ok(true) => self.read_request(&mut input).await,
                Ok(false) => return Ok(()),
                Err(error) => Err(error),
            };
            let (number, request, payload) = match arrived {
                Ok(arrived) => arrived,
                Err(ended) => return Err(self.explain(ended).await),
            };
            let request = self.resolve(&mut pins, request, payload);
            let in_flight = InFlight { number, _permit: permit };
            // If a lane is gone, it has ended the session already.
            let sent = match request {
                Resolved::Control(answer) => lanes.control.send(control::Job { in_flight, answer }).await.is_ok(),
                Resolved::Data(pinned, items) => {
                    lanes.data.send(data::Job { in_flight, pinned, request: items }).await.is_ok()
                }
            };
            if !sent {
                return Ok(());
            }
        }
    }

    /// Waits for the first byte of a request. Returns false if the peer sends no more, or the daemon stops.
    async fn await_request(&self, input: &mut BufReader<&mut ReadHalf>) -> Result<bool, Ended> {
        let idle_timeout = self.idle_timeout();
        loop {
            tokio::select! {
                biased;
                () = self.shared.stopping.cancelled() => return Ok(false),
                bytes = input.fill_buf() => return Ok(!bytes?.is_empty()),
                () = idle_timeout.expired() => {
                    if self.is_idle() {
                        return Err(Ended::Idle);
                    }
                }
                () = self.should_leave() => {
                    if self.is_idle() {
                        return Err(Ended::Stopping);
                    }
                }
            }
        }
    }

    /// Returns whether no request is in flight.
    fn is_idle(&self) -> bool {
        // The caller holds one permit itself.
        self.request_permits.available_permits() + 1 == limits::REQUESTS_UNDER_WAY
    }

    async fn read_request(&self, input: &mut BufReader<&mut ReadHalf>) -> Result<(u32, Request, Box<[u8]>), Ended> {
        let read = async {
            let mut header = [0; FRAME_HEADER_BYTES];
            input.read_exact(&mut header).await?;
            let header = FrameHeader::decode(&header, limits::REQUEST_PAYLOAD)?;
            let mut payload = vec![0; header.len as usize].into_boxed_slice();
            input.read_exact(&mut payload).await?;
            Ok::<_, Ended>((header, payload))
        };
        let (header, payload) =
            timeout(self.settings.limits().handshake, read).await.map_err(|_| Ended::HalfRequest)??;
        self.record().count_request((FRAME_HEADER_BYTES + payload.len()) as u64);
        if header.request == 0 {
            return Err(WireError::from(DecodeError::Invalid("request number")).into());
        }
        let request = Request::decode(header.kind, &payload)?;
        Ok((header.request, request, payload))
    }

    /// Tells the peer why its session ends, if the peer is to blame.
    async fn explain(&self, ended: Ended) -> Ended {
        let code = match ended {
            Ended::Malformed(_) => ErrorCode::Malformed,
            Ended::Idle | Ended::HalfRequest => ErrorCode::Refused,
            _ => return ended,
        };
        let _ = self.end_with(code, &ended.to_string()).await;
        ended
    }

    fn resolve(&self, pins: &mut Pins, request: Request, payload: Box<[u8]>) -> Resolved {
        let control = |answer: Result<Answer, Answer>| Resolved::Control(answer.unwrap_or_else(|refusal| refusal));
        match request {
            Request::Repositories => Resolved::Control(Answer::Repositories),
            Request::Head { repository } => control(self.pin(pins, &repository)),
            Request::List { handle, have } => control(pins.get(handle).map(|pinned| Answer::List(pinned, have))),
            Request::Dir { handle, path } => control(pins.get(handle).map(|pinned| Answer::Dir(pinned, path))),
            Request::Sums { handle, .. } => control(pins.get(handle).map(|pinned| Answer::Sums(pinned, payload))),
            Request::Data { handle, .. } => match pins.get(handle) {
                Ok(pinned) => Resolved::Data(pinned, payload),
                Err(refusal) => Resolved::Control(refusal),
            },
            Request::Follow { .. } => {
                let why = "this connection does not follow: its hello does not say so".to_owned();
                Resolved::Control(Answer::Refusal(ErrorCode::Malformed, why))
            }
        }
    }

    fn pin(&self, pins: &mut Pins, name: &str) -> Result<Answer, Answer> {
        // Those in force now: a session may last for days, and this may be the head of its next pull.
        let settings = self.shared.settings();
        let visible = Visible::new(&settings.registry, self.peer.ip());
        let repository = visible.find_native(name).map_err(|why| {
            let (code, message) = why.refusal(name);
            Answer::Refusal(code, message)
        })?;
        let edition = repository.current().ok_or_else(|| {
            Answer::Refusal(ErrorCode::NotIndexed, format!("the repository '{name}' {}", repository.absence()))
        })?;
        {
            let mut record = self.record();
            record.enter(name, None);
            record.pin(edition.generation.head().generation);
        }
        let pinned = Pinned { repository: Arc::clone(repository), edition };
        let (handle, pinned) = pins.add(pinned)?;
        Ok(Answer::Head(handle, pinned))
    }
}

/// A request, assigned to its lane.
enum Resolved {
    Control(Answer),
    /// The edition, and the payload of a data request, which is known to decode.
    Data(Arc<Pinned>, Box<[u8]>),
}

/// The editions that a session has pinned. A handle is an index into this list.
struct Pins(Vec<Arc<Pinned>>);

impl Pins {
    fn get(&self, handle: u32) -> Result<Arc<Pinned>, Answer> {
        let unknown = || Answer::Refusal(ErrorCode::NotThere, format!("unknown handle {handle}"));
        self.0.get(handle as usize).cloned().ok_or_else(unknown)
    }

    /// Adds an edition and returns its handle. An edition that is pinned already keeps its handle. Fails if the session
    /// holds too many.
    fn add(&mut self, pinned: Pinned) -> Result<(u32, Arc<Pinned>), Answer> {
        let same = |other: &Arc<Pinned>| Arc::ptr_eq(&other.edition, &pinned.edition);
        if let Some(at) = self.0.iter().position(same) {
            return Ok((at as u32, Arc::clone(&self.0[at])));
        }
        if self.0.len() == MAX_PINS {
            let message = format!("this session already holds {MAX_PINS} generations; begin a new session");
            return Err(Answer::Refusal(ErrorCode::Refused, message));
        }
        let pinned = Arc::new(pinned);
        self.0.push(Arc::clone(&pinned));
        Ok((self.0.len() as u32 - 1, pinned))
    }
}
