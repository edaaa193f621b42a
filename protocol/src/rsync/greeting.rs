//! The text lines before `@RSYNCD: OK`, and the arguments after it.
//!
//! [`Greeting::receive`] takes all bytes that arrive, and [`Greeting::output`] returns all bytes to send. The
//! exchange is, in order:
//!
//! 1. Both sides greet without waiting for the other.
//! 2. The client names a module or asks for the list of modules.
//! 3. The caller lists the modules, refuses, challenges or accepts.
//! 4. An accepted client sends its arguments.
//!
//! Source: stock releases 2.6.0 to 3.5.0 on both ends.

use crate::limits;
use crate::rsync::arguments::{self, Options};
use crate::rsync::auth::{Method, Proof};
use crate::rsync::fault::Fault;
use crate::rsync::version::Version;

/// The beginning of every greeting, in both directions. It distinguishes stock clients from others.
pub const MAGIC: &[u8] = b"@RSYNCD: ";
/// Maximum length of `#early_input`, in bytes. It is the limit of stock clients.
pub const EARLY_INPUT: usize = 5120;

/// The parameters of this server's greeting.
#[derive(Debug, Clone, Copy)]
pub struct GreetingOffer<'a> {
    /// The newest version to offer.
    pub version: Version,
    /// Whether the [`hello`] of this version has been sent already.
    pub greeted: bool,
    /// Message of the day, sent before anything is known about the client. It may be empty.
    pub motd: &'a [u8],
}

/// A request from the client.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// The client asks for the list of modules. Answer with [`Greeting::list`], then close.
    ListModules,
    /// The client asks for this module. Answer with `refuse`, `challenge` or `accept`.
    Module(Vec<u8>),
    /// The response to a challenge. Answer with `refuse` or `accept`.
    Credentials {
        /// The user's name.
        user: Vec<u8>,
        /// The client's proof, to check against the user's password.
        proof: Proof,
    },
    /// The client's complete arguments. The greeting is over; see [`Greeting::into_rest`].
    Arguments(Box<Options>),
}

/// The state of a connection up to its setup.
#[derive(Debug)]
pub struct Greeting {
    input: Vec<u8>,
    output: Vec<u8>,
    /// The newest version to offer. Once the client has greeted, the negotiated version.
    version: Version,
    /// The digest of a response. `None` if there is none in common.
    method: Option<Method>,
    module: Vec<u8>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Waiting for the client's greeting.
    Hello,
    /// Waiting for a module's name or a command.
    Module,
    /// Skipping this many bytes.
    EarlyInput(usize),
    /// Waiting for the caller's answer.
    WaitingForAnswer,
    /// Waiting for the response to this challenge.
    Response(String),
    /// Waiting for the arguments.
    Arguments(arguments::Collector),
    /// The greeting is over.
    Over,
}

impl Greeting {
    /// Starts a greeting. The output holds this server's greeting line, unless it has been sent already.
    pub fn new(offer: GreetingOffer<'_>) -> Self {
        let mut output = if offer.greeted { Vec::new() } else { hello(offer.version) };
        if !offer.motd.is_empty() {
            output.extend_from_slice(offer.motd);
            if !offer.motd.ends_with(b"\n") {
                output.push(b'\n');
            }
            // Stock servers end the message with an empty line.
            output.push(b'\n');
        }
        let (input, module) = (Vec::new(), Vec::new());
        Self { input, output, version: offer.version, method: None, module, state: State::Hello }
    }

    /// Takes the bytes to send.
    pub fn output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Takes bytes from the client. Call [`Self::next`] until it returns `None` before passing more bytes;
    /// the buffered input then stays within the limits of a line and of the arguments.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// Returns the next event. `None` until more bytes arrive or the caller answers the last event. After an
    /// error, end the session as its [`Fault::farewell`] says.
    #[allow(clippy::should_implement_trait, reason = "an event may follow after `None`")]
    pub fn next(&mut self) -> Result<Option<Event>, Fault> {
        loop {
            let event = match &mut self.state {
                State::WaitingForAnswer | State::Over => return Ok(None),
                State::EarlyInput(left) => {
                    let skipped = (*left).min(self.input.len());
                    self.input.drain(..skipped);
                    *left -= skipped;
                    if *left > 0 {
                        return Ok(None);
                    }
                    self.state = State::Module;
                    None
                }
                State::Arguments(collector) => {
                    let Some(options) = collector.take(&mut self.input, self.version, &self.module)? else {
                        return Ok(None);
                    };
                    self.state = State::Over;
                    Some(Event::Arguments(Box::new(options)))
                }
                State::Hello | State::Module | State::Response(_) => {
                    let Some(line) = take_line(&mut self.input)? else { return Ok(None) };
                    self.handle_line(&line)?
                }
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// Answers with the modules' names and comments, and ends the greeting.
    pub fn list<'m>(&mut self, modules: impl IntoIterator<Item = (&'m str, &'m str)>) {
        for (name, comment) in modules {
            let (name, comment) = (printable(name), printable(comment));
            self.output.extend_from_slice(format!("{name:<15}\t{comment}\n").as_bytes());
        }
        self.output.extend_from_slice(b"@RSYNCD: EXIT\n");
        self.state = State::Over;
    }

    /// Answers with `@ERROR: text`. The caller sends the output and closes.
    pub fn refuse(&mut self, text: &str) {
        self.output.extend_from_slice(format!("@ERROR: {}\n", printable(text)).as_bytes());
        self.state = State::Over;
    }

    /// Asks for a user's name and proof. `challenge` comes from [`super::auth::challenge`]. Fails if there is
    /// no authentication digest in common.
    pub fn challenge(&mut self, challenge: String) -> Result<(), Fault> {
        if self.method.is_none() {
            return Err(Fault::AuthDigest);
        }
        self.output.extend_from_slice(format!("@RSYNCD: AUTHREQD {challenge}\n").as_bytes());
        self.state = State::Response(challenge);
        Ok(())
    }

    /// Accepts the client.
    pub fn accept(&mut self) {
        self.output.extend_from_slice(b"@RSYNCD: OK\n");
        self.state = State::Arguments(arguments::Collector::new(self.version));
    }

    /// Returns whether the last answer was final. If so, the caller sends the output and closes.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Returns the negotiated version. It is known from the first event on.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Returns the bytes that the client sent after its arguments. They belong to the setup.
    pub fn into_rest(self) -> Vec<u8> {
        self.input
    }

    fn handle_line(&mut self, line: &[u8]) -> Result<Option<Event>, Fault> {
        match std::mem::replace(&mut self.state, State::WaitingForAnswer) {
            State::Hello => {
                (self.version, self.method) = read_hello(line, self.version)?;
                self.state = State::Module;
                Ok(None)
            }
            State::Response(challenge) => {
                let method = self.method.ok_or(Fault::AuthDigest)?;
                let space = line.iter().position(|&byte| byte == b' ').ok_or(Fault::Credentials)?;
                let (user, response) = (line[..space].to_vec(), line[space + 1..].to_vec());
                Ok(Some(Event::Credentials { user, proof: Proof { method, challenge, response } }))
            }
            _ => self.handle_command(line),
        }
    }

    fn handle_command(&mut self, line: &[u8]) -> Result<Option<Event>, Fault> {
        if let Some(bytes) = line.strip_prefix(b"#early_input=") {
            let bytes = number(bytes).filter(|&bytes| bytes as usize <= EARLY_INPUT).ok_or(Fault::EarlyInput)?;
            self.state = State::EarlyInput(bytes as usize);
            return Ok(None);
        }
        match line {
            b"" | b"#list" => Ok(Some(Event::ListModules)),
            [b'#', ..] => Err(Fault::Command(printable(&String::from_utf8_lossy(line)))),
            name => {
                self.module = name.to_vec();
                Ok(Some(Event::Module(self.module.clone())))
            }
        }
    }
}

/// Returns the greeting line of a server that speaks versions up to `version`. The digest names are mandatory
/// from 32 on, known to clients since 3.2.7, and harmless for all clients that know a sub-version.
pub fn hello(version: Version) -> Vec<u8> {
    if !version.facts().sub_version {
        return format!("@RSYNCD: {version}\n").into_bytes();
    }
    let names = Method::NAMED.map(Method::name).join(" ");
    format!("@RSYNCD: {version}.0 {names}\n").into_bytes()
}

/// Returns the negotiated version and the authentication digest from a line like `@RSYNCD: 32.0 sha512 …`.
fn read_hello(line: &[u8], ours: Version) -> Result<(Version, Option<Method>), Fault> {
    let rest = line.strip_prefix(MAGIC).ok_or(Fault::Greeting)?;
    let space = rest.iter().position(|&byte| byte == b' ');
    let (numbers, names) = space.map_or((rest, None), |at| (&rest[..at], Some(&rest[at + 1..])));
    let mut numbers = numbers.split(|&byte| byte == b'.').map(number);
    let theirs = numbers.next().flatten().ok_or(Fault::Greeting)?;
    let sub = numbers.next().flatten();
    let omitted = |what| Fault::Omitted { what, greeting: String::from_utf8_lossy(line).into_owned() };
    if theirs >= 30 && sub.is_none() {
        return Err(omitted("subprotocol value"));
    }
    if theirs >= 32 && names.is_none() {
        return Err(omitted("digest name list"));
    }
    // A pre-release of a version speaks the previous version with every peer except the same pre-release.
    let pre_release = theirs <= ours.number() && sub.is_some_and(|sub| sub > 0);
    let number = theirs.min(ours.number()).saturating_sub(u32::from(pre_release));
    let version = Version::new(number).ok_or(Fault::Version(theirs))?;
    let method = names.map_or_else(|| Some(version.facts().implied_method), Method::choose);
    Ok((version, method))
}

/// Takes a line off the front of the input, without its line ending. `None` if the line is not complete.
fn take_line(input: &mut Vec<u8>) -> Result<Option<Vec<u8>>, Fault> {
    let window = &input[..input.len().min(limits::RSYNC_LINE + 1)];
    let Some(end) = window.iter().position(|&byte| byte == b'\n') else {
        return if input.len() > limits::RSYNC_LINE { Err(Fault::Line) } else { Ok(None) };
    };
    let mut line: Vec<u8> = input.drain(..=end).collect();
    line.pop();
    if line.ends_with(b"\r") {
        line.pop();
    }
    if line.contains(&0) { Err(Fault::Line) } else { Ok(Some(line)) }
}

/// Parses an unsigned decimal number of up to nine digits.
fn number(digits: &[u8]) -> Option<u32> {
    let plain = (1..=9).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    plain.then(|| digits.iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0')))
}

/// Replaces control characters, so that the text stays on one line, and cuts it at 1000 characters.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1000).collect()
}

#[cfg(test)]
mod tests;
