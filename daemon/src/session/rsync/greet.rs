//! The greeting, as text lines: the choice of a module, the login, the wait for a slot, and the client's arguments.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stillmirror_protocol::path;
use stillmirror_protocol::rsync::arguments::Options;
use stillmirror_protocol::rsync::auth::{self, CHALLENGE_BYTES, Proof};
use stillmirror_protocol::rsync::fault::{Farewell, Fault};
use stillmirror_protocol::rsync::greeting::{Event, Greeting, GreetingOffer};
use stillmirror_protocol::rsync::version::Version;
use stillmirror_protocol::rsync::{replies, setup};
use tokio::time::{sleep, timeout};

use super::{Input, Session};
use crate::admission::{Admission, Arrival, Slot, Turn};
use crate::cause::Cause;
use crate::dialect::Dialect;
use crate::ended::Ended;
use crate::logins::MAX_DELAY;
use crate::operator_file;
use crate::pinned::Pinned;
use crate::repository::Repository;
use crate::strangers::Stranger;
use crate::visible::{Unavailable, Visible};

/// How long a client may take to log in. Its user may be typing.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a waiting client is sent something. It is shorter than the shortest timeout of a client.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(700);
/// How long to wait for the message of the day. After that, clients do not get it.
const MOTD_TIMEOUT: Duration = Duration::from_secs(1);
/// The maximum size (bytes) of the message of the day.
const MAX_MOTD: u64 = 64 << 10;

/// The user name that a client claims, and its proof that it knows the password.
struct Credentials {
    user: Vec<u8>,
    proof: Proof,
}

/// The arguments of a client that was let in, and what it holds.
pub(super) struct Welcome {
    pub(super) options: Box<Options>,
    pub(super) pinned: Arc<Pinned>,
    /// The slots in the module and in the daemon.
    pub(super) places: [Option<Slot>; 2],
}

impl Session {
    /// Conducts the greeting up to the client's arguments. `None` if the client only wanted the list of modules.
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
            let limit = timeout(self.settings.limits().handshake, self.event(&mut greeting, input));
            tokio::select! {
                event = limit => event.map_err(|_| Ended::HalfRequest)??,
                () = stranger.evicted() => return Err(Ended::Evicted),
                () = self.shared.stopping.cancelled() => return Err(Ended::Stopping),
            }
        };
        let Event::Module(name) = wanted else {
            let listed: Vec<&Arc<Repository>> = self.settings.registry.listed().collect();
            greeting.list(listed.iter().map(|repository| (&*repository.name, &*repository.comment)));
            self.send_output(&mut greeting).await?;
            return Ok(None);
        };
        let welcome = self.admit(&mut greeting, input, &name, stranger).await;
        match welcome {
            Ok((pinned, places, options)) => {
                input.put_back(greeting.into_rest());
                Ok(Some(Welcome { options, pinned, places }))
            }
            Err(ended) => {
                if matches!(ended, Ended::Refused(..) | Ended::Stopping) {
                    greeting.refuse(&ended.to_string());
                    self.send_output(&mut greeting).await?;
                }
                Err(ended)
            }
        }
    }

    async fn admit(
        &self,
        greeting: &mut Greeting,
        input: &mut Input,
        name: &[u8],
        stranger: Stranger,
    ) -> Result<(Arc<Pinned>, [Option<Slot>; 2], Box<Options>), Ended> {
        self.record().name(&path::Escaped(name).to_string());
        let visible = Visible::new(&self.settings.registry, self.peer.ip());
        let login = async {
            let repository = match visible.find_module(name) {
                Ok(repository) => Arc::clone(repository),
                Err(why) => return Err(self.refuse(greeting, input, name, why, &visible).await?),
            };
            let user = self.log_in(greeting, input, &repository).await?;
            Ok((repository, user))
        };
        let (repository, user) = tokio::select! {
            known = timeout(LOGIN_TIMEOUT.max(self.settings.limits().handshake) + MAX_DELAY, login) => {
                known.map_err(|_| Ended::HalfRequest)??
            }
            () = stranger.evicted() => return Err(Ended::Evicted),
            () = self.shared.stopping.cancelled() => return Err(Ended::Stopping),
        };
        drop(stranger);
        let meter = self.record().enter(&repository.name, user);
        self.writer.lock().await.count_for(meter);
        let places = self.wait_for_turn(&repository).await?;
        // Meanwhile a reload may have replaced or removed it.
        let repository = self.shared.settings().registry.find(&repository.name).cloned();
        let repository = repository.ok_or_else(|| unknown(&String::from_utf8_lossy(name)))?;
        self.record().admit();
        self.writer.lock().await.draw_on(repository.bandwidth.as_ref());
        // The edition is chosen only now, because it may have changed while the client waited.
        let edition = repository.current().ok_or_else(|| {
            Ended::Refused(Cause::Unavailable, format!("module '{}' {}", repository.name, repository.absence()))
        })?;
        self.record().pin(edition.generation.head().generation);
        greeting.accept();
        let event = timeout(self.settings.limits().handshake, self.event(greeting, input));
        match event.await.map_err(|_| Ended::HalfRequest)?? {
            Event::Arguments(options) => Ok((Arc::new(Pinned { repository, edition }), places, options)),
            _ => Err(Ended::HalfRequest),
        }
    }

    /// Returns the refusal for a client that does not get a module. If there is an unlisted module that requires a login,
    /// an unknown module asks for one too, so that the client cannot tell which of the two it named.
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
            let text = format!("access denied to {shown} from {address} ({address})");
            return Ok(Ended::Refused(Cause::AccessDenied, text));
        }
        let Some(unlisted) = visible.unlisted_with_users() else {
            return Ok(unknown(&shown));
        };
        let Credentials { user, proof } = self.ask_for_user(greeting, input).await?;
        self.is_known(unlisted, &user, proof).await?;
        Ok(self.login_failed(&shown, &user))
    }

    /// Logs the client in, and returns the user's name. `None` if the module requires no login.
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

    /// Asks the client for its user and proof. A client whose logins failed before is delayed here, before it is known
    /// whether this one fails too.
    async fn ask_for_user(&self, greeting: &mut Greeting, input: &mut Input) -> Result<Credentials, Ended> {
        let mut random = [0; CHALLENGE_BYTES];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).map_err(std::io::Error::from)?;
        greeting.challenge(auth::challenge(&random))?;
        let Event::Credentials { user, proof } = self.event(greeting, input).await? else {
            return Err(Ended::HalfRequest);
        };
        let Some(wait) = self.shared.logins.begin(self.network(), Instant::now()) else {
            tracing::warn!(address = %self.peer.ip().to_canonical(), user = %user.escape_ascii(), "login refused: too many earlier ones failed");
            let text = "too many failed logins from your address -- try again later".to_owned();
            return Err(Ended::Refused(Cause::LoginFailed, text));
        };
        tokio::select! {
            () = sleep(wait) => Ok(Credentials { user, proof }),
            () = self.shared.stopping.cancelled() => Err(Ended::Stopping),
        }
    }

    fn login_failed(&self, module: &str, user: &[u8]) -> Ended {
        self.shared.logins.failed(self.network(), Instant::now());
        tracing::warn!(address = %self.peer.ip().to_canonical(), repository = module, user = %user.escape_ascii(), "login failed");
        Ended::Refused(Cause::LoginFailed, format!("auth failed on module {module}"))
    }

    async fn is_known(&self, repository: &Arc<Repository>, user: &[u8], proof: Proof) -> Result<bool, Ended> {
        let (users, user) = (Arc::clone(repository), user.to_vec());
        let looking = self.blocking(&repository.logins, move || users.users.password(&user));
        let Ok(found) = timeout(self.settings.limits().handshake, looking).await else {
            tracing::error!(module = repository.name, "nobody can log in: timeout while reading the secrets file");
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

    /// Waits for a slot in the module, and then for one in the daemon.
    async fn wait_for_turn(&self, repository: &Repository) -> Result<[Option<Slot>; 2], Ended> {
        let since = Instant::now();
        let own = match &repository.admission {
            Some(admission) => Some(self.wait_for_place(admission).await?),
            None => None,
        };
        let place = self.wait_for_place(&self.shared.admission).await?;
        self.shared.metrics.waited(Dialect::Rsync, since);
        Ok([own, Some(place)])
    }

    /// Waits for a slot. Any byte keeps a client's timeout from expiring, but clients only show whole lines. So between
    /// the messages about its place, a client is sent a line dot by dot.
    async fn wait_for_place(&self, admission: &Arc<Admission>) -> Result<Slot, Ended> {
        let mut ticket = match admission.arrive(self.network()) {
            Arrival::Admitted(place) => return Ok(place),
            Arrival::Queued(ticket) => ticket,
            Arrival::Refused => return Err(too_many()),
        };
        let mut is_begun = false;
        loop {
            let turn = timeout(PROGRESS_INTERVAL, ticket.turn(&self.shared.stopping)).await;
            let end = if turn.is_ok() && std::mem::take(&mut is_begun) { "\n" } else { "" };
            let text = match &turn {
                Ok(Turn::Waiting(place)) => {
                    format!("{end}All connections are in use: {place} others are waiting ahead of you.\n")
                }
                Ok(_) => end.to_owned(),
                Err(_) => {
                    is_begun = true;
                    ".".to_owned()
                }
            };
            self.writer.lock().await.send_bytes(text.as_bytes()).await?;
            match turn {
                Ok(Turn::Admitted(place)) => return Ok(place),
                Ok(Turn::Displaced) => return Err(too_many()),
                Ok(Turn::Stopping) => return Err(Ended::Stopping),
                Ok(Turn::Waiting(_)) | Err(_) => {}
            }
        }
    }

    /// Sends all pending output, and waits for the client's next event.
    async fn event(&self, greeting: &mut Greeting, input: &mut Input) -> Result<Event, Ended> {
        loop {
            self.send_output(greeting).await?;
            match greeting.next() {
                Ok(Some(event)) => return Ok(event),
                Ok(None) => {}
                Err(fault) => {
                    self.report_fault(greeting, &fault).await?;
                    return Err(fault.into());
                }
            }
            self.send_output(greeting).await?;
            input.read().await?;
            greeting.receive(&input.take());
        }
    }

    /// Reports a fault to the client, as a line or in frames, depending on the stage of the greeting.
    async fn report_fault(&self, greeting: &mut Greeting, fault: &Fault) -> Result<(), Ended> {
        match fault.farewell() {
            Farewell::Line => {
                greeting.refuse(&fault.to_string());
                self.send_output(greeting).await
            }
            Farewell::Frames => {
                let mut out = setup::bare(greeting.version());
                replies::fatal(&mut out, greeting.version(), fault.to_string(), fault.exit());
                self.writer.lock().await.send_bytes(&out).await
            }
        }
    }

    async fn send_output(&self, greeting: &mut Greeting) -> Result<(), Ended> {
        let out = greeting.output();
        if out.is_empty() { Ok(()) } else { self.writer.lock().await.send_bytes(&out).await }
    }

    async fn motd(&self) -> Vec<u8> {
        let Some(path) = self.settings.rsync().motd.clone() else { return Vec::new() };
        let reading = self.blocking(&self.shared.messages, move || read_motd(&path));
        timeout(MOTD_TIMEOUT, reading).await.ok().and_then(Result::ok).unwrap_or_default()
    }
}

fn unknown(module: &str) -> Ended {
    Ended::Refused(Cause::UnknownRepository, format!("Unknown module '{module}'"))
}

fn too_many() -> Ended {
    let text = "max connections reached, and the queue is full -- try again later";
    Ended::Refused(Cause::QueueFull, text.to_owned())
}

fn read_motd(path: &Path) -> Vec<u8> {
    operator_file::read(path, MAX_MOTD).unwrap_or_else(|error| {
        tracing::warn!(file = %path.display(), %error, "cannot read the message of the day");
        Vec::new()
    })
}
