//! Reading requests and handing them to their lanes.

use std::sync::Arc;

use stillmirror_protocol::codec::DecodeError;
use stillmirror_protocol::limits;
use stillmirror_protocol::wire::{ErrorCode, FRAME_HEADER_BYTES, FrameHeader, Request, WireError};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::control::{self, Answer};
use super::{Session, UnderWay, data};
use crate::ended::Ended;
use crate::pinned::Pinned;
use crate::visible::{Unavailable, Visible};

/// Bytes read ahead of the requests: many small ones.
const READ_AHEAD: usize = 4 << 10;
/// Generations that one session may hold on to.
const PINS: usize = 64;

/// Where requests go.
pub(super) struct Lanes {
    pub(super) control: mpsc::Sender<control::Job>,
    pub(super) data: mpsc::Sender<data::Job>,
}

impl Session {
    /// Reads requests until the peer has no more or the daemon stops. Reads none while as many are
    /// under way as may be.
    pub(super) async fn read(&self, input: &mut OwnedReadHalf, lanes: Lanes) -> Result<(), Ended> {
        let mut input = BufReader::with_capacity(READ_AHEAD, input);
        let mut pins = Pins(Vec::new());
        loop {
            let Ok(permit) = Arc::clone(&self.under_way).acquire_owned().await else { return Ok(()) };
            let arrived = match self.await_request(&mut input).await {
                Ok(true) => self.read_request(&mut input).await,
                Ok(false) => return Ok(()),
                Err(error) => Err(error),
            };
            let (number, request, payload) = match arrived {
                Ok(arrived) => arrived,
                Err(ended) => return Err(self.explain(ended).await),
            };
            self.tally().requests += 1;
            let request = self.resolve(&mut pins, request, payload);
            let under_way = UnderWay { number, _permit: permit };
            // A lane that is gone has ended the session already.
            let sent = match request {
                Resolved::Control(answer) => lanes.control.send(control::Job { under_way, answer }).await.is_ok(),
                Resolved::Data(pinned, items) => {
                    lanes.data.send(data::Job { under_way, pinned, request: items }).await.is_ok()
                }
            };
            if !sent {
                return Ok(());
            }
        }
    }

    /// Waits for the first byte of a request; false when there will be none.
    async fn await_request(&self, input: &mut BufReader<&mut OwnedReadHalf>) -> Result<bool, Ended> {
        let patience = self.patience();
        loop {
            tokio::select! {
                biased;
                () = self.shared.stopping.cancelled() => return Ok(false),
                bytes = input.fill_buf() => return Ok(!bytes?.is_empty()),
                () = patience.over() => {
                    // One permit is the caller's.
                    if self.under_way.available_permits() + 1 == limits::REQUESTS_UNDER_WAY {
                        return Err(Ended::Idle);
                    }
                }
            }
        }
    }

    async fn read_request(
        &self,
        input: &mut BufReader<&mut OwnedReadHalf>,
    ) -> Result<(u32, Request, Box<[u8]>), Ended> {
        let read = async {
            let mut header = [0; FRAME_HEADER_BYTES];
            input.read_exact(&mut header).await?;
            let header = FrameHeader::decode(&header, limits::REQUEST_PAYLOAD)?;
            let mut payload = vec![0; header.len as usize].into_boxed_slice();
            input.read_exact(&mut payload).await?;
            Ok::<_, Ended>((header, payload))
        };
        let (header, payload) = timeout(self.shared.limits.handshake, read).await.map_err(|_| Ended::HalfRequest)??;
        if header.request == 0 {
            return Err(WireError::from(DecodeError::Invalid("request number")).into());
        }
        let request = Request::decode(header.kind, &payload)?;
        Ok((header.request, request, payload))
    }

    /// Tells the peer why its session ends, between two frames.
    async fn explain(&self, ended: Ended) -> Ended {
        let code = match ended {
            Ended::Malformed(_) => ErrorCode::Malformed,
            Ended::Idle | Ended::HalfRequest => ErrorCode::Refused,
            _ => return ended,
        };
        let _ = self.refuse(code, &ended.to_string()).await;
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
        }
    }

    fn pin(&self, pins: &mut Pins, name: &str) -> Result<Answer, Answer> {
        let visible = Visible::new(&self.shared.registry, self.peer.ip());
        let repository = visible.find_native(name).map_err(|why| refusal(name, why))?;
        let edition = repository.current().ok_or_else(|| {
            Answer::Refusal(ErrorCode::NotIndexed, format!("the repository '{name}' {}", repository.absence()))
        })?;
        self.tally().pinned(name, edition.generation.head().generation);
        let pinned = Pinned { repository: Arc::clone(repository), edition };
        let (handle, pinned) = pins.add(pinned)?;
        Ok(Answer::Head(handle, pinned))
    }
}

/// What a client hears of a repository that it does not get.
fn refusal(name: &str, why: Unavailable) -> Answer {
    let (code, message) = match why {
        Unavailable::Unknown => (ErrorCode::UnknownRepository, format!("there is no repository '{name}' here")),
        Unavailable::Denied => (ErrorCode::Refused, format!("access to the repository '{name}' is denied")),
        Unavailable::HidesNames => {
            let why = "hides names by rules that only rsync clients can be held to: use rsync:// for it";
            (ErrorCode::Refused, format!("the repository '{name}' {why}"))
        }
    };
    Answer::Refusal(code, message)
}

enum Resolved {
    Control(Answer),
    /// The generation, and the payload of a request that decodes.
    Data(Arc<Pinned>, Box<[u8]>),
}

/// The generations that a session holds on to; a handle is a place among them.
struct Pins(Vec<Arc<Pinned>>);

impl Pins {
    fn get(&self, handle: u32) -> Result<Arc<Pinned>, Answer> {
        let unknown = || Answer::Refusal(ErrorCode::NotThere, format!("there is no handle {handle} in this session"));
        self.0.get(handle as usize).cloned().ok_or_else(unknown)
    }

    /// The same generation keeps its handle.
    fn add(&mut self, pinned: Pinned) -> Result<(u32, Arc<Pinned>), Answer> {
        let same = |other: &Arc<Pinned>| Arc::ptr_eq(&other.edition, &pinned.edition);
        if let Some(at) = self.0.iter().position(same) {
            return Ok((at as u32, Arc::clone(&self.0[at])));
        }
        if self.0.len() == PINS {
            let message = format!("this session holds {PINS} generations already; begin a new one");
            return Err(Answer::Refusal(ErrorCode::Refused, message));
        }
        let pinned = Arc::new(pinned);
        self.0.push(Arc::clone(&pinned));
        Ok((self.0.len() as u32 - 1, pinned))
    }
}
