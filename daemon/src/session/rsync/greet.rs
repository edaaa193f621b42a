//! The text lines: a module, who may have it, and whose turn it is.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stillmirror_protocol::rsync::arguments::Options;
use stillmirror_protocol::rsync::auth::{self, CHALLENGE_BYTES, Proof};
use stillmirror_protocol::rsync::fault::{Farewell, Fault};
use stillmirror_protocol::rsync::greeting::{Event, Greeting, GreetingOffer};
use stillmirror_protocol::rsync::version::Version;
use stillmirror_protocol::rsync::{replies, setup};
use tokio::time::{sleep, timeout};

use super::{Input, Session};
use crate::admission::{Admission, Arrival, Slot, Turn};
use crate::ended::Ended;
use crate::logins::LONGEST_DELAY;
use crate::operator_file;
use crate::pinned::Pinned;
use crate::repository::Repository;
use crate::strangers::Stranger;
use crate::visible::{Unavailable, Visible};

/// How long a client may take to say who it is: its user may be typing.
const LOGIN: Duration = Duration::from_secs(60);
/// How often a client that waits is sent something: none has a shorter timeout.
const SIGN: Duration = Duration::from_millis(700);
/// How long the message of the day is waited for. Clients do without it then.
const MOTD_PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of a message of the day.
const MOTD_BYTES: u64 = 64 << 10;

/// Who a client says that its user is.
struct Credentials {
    user: Vec<u8>,
    proof: Proof,
}

/// A client that was let in, and what it asked for.
pub(super) struct Welcome {
    pub(super) options: Box<Options>,
    pub(super) pinned: Arc<Pinned>,
    pub(super) places: [Option<Slot>; 2],
}

impl Session {
    /// Goes on until the client's arguments are there; `None` when it wanted no more than the list of modules.
    pub(super) async fn greet(
        &self,
        input: &mut Input,
        stranger: Stranger,
        greeted: bool,
    ) -> Result<Option<Welcome>, Ended> {
        let motd = self.motd().await;
        let mut greeting = Greeting::new(GreetingOffer { version: Version::NEWEST, greeted, motd: &motd });
        greeting.receive(&input.take());
        let wanted = {
            let limit = timeout(self.shared.limits.handshake, self.event(&mut greeting, input));
            tokio::select! {
                event = limit => event.map_err(|_| Ended::HalfRequest)??,
                () = stranger.evicted() => return Err(Ended::HalfRequest),
                () = self.shared.stopping.cancelled() => return Err(Ended::Stopping),
            }
        };
        let Event::Module(name) = wanted else {
            let listed: Vec<&Arc<Repository>> = self.shared.registry.listed().collect();
            greeting.list(listed.iter().map(|repository| (&*repository.name, &*repository.comment)));
            self.say(&mut greeting).await?;
            return Ok(None);
        };
        let welcome = self.let_in(&mut greeting, input, &name, stranger).await;
        match welcome {
            Ok((pinned, places, options)) => {
                input.put_back(greeting.into_rest());
                Ok(Some(Welcome { options, pinned, places }))
            }
            Err(ended) => {
                if matches!(ended, Ended::Refused(_) | Ended::Stopping) {
                    greeting.refuse(&ended.to_string());
                    self.say(&mut greeting).await?;
                }
                Err(ended)
            }
        }
    }

    async fn let_in(
        &self,
        greeting: &mut Greeting,
        input: &mut Input,
        name: &[u8],
        stranger: Stranger,
    ) -> Result<(Arc<Pinned>, [Option<Slot>; 2], Box<Options>), Ended> {
        let visible = Visible::new(&self.shared.registry, self.peer.ip());
        let coming_in = async {
            let repository = match visible.find_module(name) {
                Ok(repository) => Arc::clone(repository),
                Err(why) => return Err(self.refuse(greeting, input, name, why, &visible).await?),
            };
            let user = self.log_in(greeting, input, &repository).await?;
            Ok((repository, user))
        };
        let (repository, user) = tokio::select! {
            known = timeout(LOGIN.max(self.shared.limits.handshake) + LONGEST_DELAY, coming_in) => {
                known.map_err(|_| Ended::HalfRequest)??
            }
            () = stranger.evicted() => return Err(Ended::HalfRequest),
            () = self.shared.stopping.cancelled() => return Err(Ended::Stopping),
        };
        drop(stranger);
        self.tally().begin(&repository.name, user);
        let places = self.wait_for_turn(&repository).await?;
        self.writer.lock().await.draw_on(repository.bandwidth.as_ref());
        // What is current now, not when the client began to wait.
        let edition = repository
            .current()
            .ok_or_else(|| Ended::Refused(format!("module '{}' {}", repository.name, repository.absence())))?;
        self.tally().pinned(edition.generation.head().generation);
        greeting.accept();
        let event = timeout(self.shared.limits.handshake, self.event(greeting, input));
        match event.await.map_err(|_| Ended::HalfRequest)?? {
            Event::Arguments(options) => Ok((Arc::new(Pinned { repository, edition }), places, options)),
            _ => Err(Ended::HalfRequest),
        }
    }

    /// What a client hears of a module that it does not get. Where a module that is not listed would ask for its user, it
    /// is asked for all the same.
    async fn refuse(
        &self,
        greeting: &mut Greeting,
        input: &mut Input,
        name: &[u8],
        why: Unavailable,
        visible: &Visible<'_>,
    ) -> Result<Ended, Ended> {
        let shown = String::from_utf8_lossy(name);
        if why == Unavailable::Denied {
            let address = self.peer.ip().to_canonical();
            return Ok(Ended::Refused(format!("access denied to {shown} from {address} ({address})")));
        }
        let Some(unlisted) = visible.unlisted_with_users() else {
            return Ok(Ended::Refused(format!("Unknown module '{shown}'")));
        };
        let Credentials { user, proof } = self.ask_for_user(greeting, input).await?;
        self.is_known(unlisted, &user, proof).await?;
        Ok(self.login_failed(&shown, &user))
    }

    /// The user's name, where one is asked for.
    async fn log_in(
        &self,
        greeting: &mut Greeting,
        input: &mut Input,
        repository: &Arc<Repository>,
    ) -> Result<Option<String>, Ended> {
        if repository.users.is_everybody() {
            return Ok(None);
        }
        let Credentials { user, proof } = self.ask_for_user(greeting, input).await?;
        if !self.is_known(repository, &user, proof).await? {
            return Err(self.login_failed(&repository.name, &user));
        }
        self.shared.logins.succeeded(self.network());
        Ok(Some(String::from_utf8_lossy(&user).into_owned()))
    }

    /// Asks a client who its user is. Who failed before waits here, before it is known whether it fails again.
    async fn ask_for_user(&self, greeting: &mut Greeting, input: &mut Input) -> Result<Credentials, Ended> {
        let mut random = [0; CHALLENGE_BYTES];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).map_err(std::io::Error::from)?;
        greeting.challenge(auth::challenge(&random))?;
        let Event::Credentials { user, proof } = self.event(greeting, input).await? else {
            return Err(Ended::HalfRequest);
        };
        let Some(wait) = self.shared.logins.begin(self.network(), Instant::now()) else {
            tracing::warn!(peer = %self.peer, user = %user.escape_ascii(), "login refused: too many before it failed");
            return Err(Ended::Refused("too many logins from your address failed -- try again later".to_owned()));
        };
        tokio::select! {
            () = sleep(wait) => Ok(Credentials { user, proof }),
            () = self.shared.stopping.cancelled() => Err(Ended::Stopping),
        }
    }

    fn login_failed(&self, module: &str, user: &[u8]) -> Ended {
        self.shared.logins.failed(self.network(), Instant::now());
        tracing::warn!(peer = %self.peer, module, user = %user.escape_ascii(), "login failed");
        Ended::Refused(format!("auth failed on module {module}"))
    }

    async fn is_known(&self, repository: &Arc<Repository>, user: &[u8], proof: Proof) -> Result<bool, Ended> {
        let (users, user) = (Arc::clone(repository), user.to_vec());
        let looking = self.blocking(&repository.logins, move || users.users.password(&user));
        let Ok(found) = timeout(self.shared.limits.handshake, looking).await else {
            tracing::error!(module = repository.name, "nobody can log in: the secrets file does not come");
            return Ok(false);
        };
        match found? {
            Ok(Some(password)) => Ok(proof.knows(password.bytes())),
            Ok(None) => Ok(false),
            Err(error) => {
                tracing::error!(module = repository.name, %error, "nobody can log in");
                Ok(false)
            }
        }
    }

    /// A place among the module's sessions, and one among all.
    async fn wait_for_turn(&self, repository: &Repository) -> Result<[Option<Slot>; 2], Ended> {
        let own = match &repository.admission {
            Some(admission) => Some(self.wait_for_place(admission).await?),
            None => None,
        };
        Ok([own, Some(self.wait_for_place(&self.shared.admission).await?)])
    }

    /// Any byte keeps a client with a timeout from leaving, and none shows less than a line: so between the news
    /// of its place a line is written dot by dot.
    async fn wait_for_place(&self, admission: &Arc<Admission>) -> Result<Slot, Ended> {
        let mut ticket = match admission.arrive(self.network()) {
            Arrival::Admitted(place) => return Ok(place),
            Arrival::Queued(ticket) => ticket,
            Arrival::Refused => return Err(too_many()),
        };
        let mut is_begun = false;
        loop {
            let turn = timeout(SIGN, ticket.turn(&self.shared.stopping)).await;
            let end = if turn.is_ok() && std::mem::take(&mut is_begun) { "\n" } else { "" };
            let text = match &turn {
                Ok(Turn::Waiting(place)) => {
                    format!("{end}All connections are taken: you wait for one behind {place} others.\n")
                }
                Ok(_) => end.to_owned(),
                Err(_) => {
                    is_begun = true;
                    ".".to_owned()
                }
            };
            self.writer.lock().await.send_bytes(text.as_bytes()).await?;
            match turn {
                Ok(Turn::Come(place)) => return Ok(place),
                Ok(Turn::Displaced) => return Err(too_many()),
                Ok(Turn::Stopping) => return Err(Ended::Stopping),
                Ok(Turn::Waiting(_)) | Err(_) => {}
            }
        }
    }

    /// The client's next event, with everything said that is to be said before.
    async fn event(&self, greeting: &mut Greeting, input: &mut Input) -> Result<Event, Ended> {
        loop {
            self.say(greeting).await?;
            match greeting.next() {
                Ok(Some(event)) => return Ok(event),
                Ok(None) => {}
                Err(fault) => {
                    self.tell(greeting, &fault).await?;
                    return Err(fault.into());
                }
            }
            self.say(greeting).await?;
            input.read().await?;
            greeting.receive(&input.take());
        }
    }

    /// Tells a client of its fault in the words of its stage.
    async fn tell(&self, greeting: &mut Greeting, fault: &Fault) -> Result<(), Ended> {
        match fault.farewell() {
            Farewell::Line => {
                greeting.refuse(&fault.to_string());
                self.say(greeting).await
            }
            Farewell::Frames => {
                let mut out = setup::bare(greeting.version());
                replies::fatal(&mut out, greeting.version(), fault.to_string(), fault.exit());
                self.writer.lock().await.send_bytes(&out).await
            }
        }
    }

    async fn say(&self, greeting: &mut Greeting) -> Result<(), Ended> {
        let out = greeting.output();
        if out.is_empty() { Ok(()) } else { self.writer.lock().await.send_bytes(&out).await }
    }

    async fn motd(&self) -> Vec<u8> {
        let Some(path) = self.shared.rsync.motd.clone() else { return Vec::new() };
        let reading = self.blocking(&self.shared.messages, move || read_motd(&path));
        timeout(MOTD_PATIENCE, reading).await.ok().and_then(Result::ok).unwrap_or_default()
    }
}

fn too_many() -> Ended {
    Ended::Refused("max connections reached, and too many wait -- try again later".to_owned())
}

fn read_motd(path: &Path) -> Vec<u8> {
    operator_file::read(path, MOTD_BYTES).unwrap_or_else(|error| {
        tracing::warn!(file = %path.display(), %error, "cannot read the message of the day");
        Vec::new()
    })
}
