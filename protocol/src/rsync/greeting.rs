//! The text lines before `@RSYNCD: OK`, and the arguments after it.
//!
//! Both sides greet without waiting; the client names a module (or asks for the list of them); the
//! caller lists, refuses, challenges or accepts; an accepted client sends its arguments. All bytes that
//! come in are given to [`Greeting::receive`], all that go out are taken from [`Greeting::output`].
//!
//! Source: stock releases 2.6.0 to 3.5.0 on both ends.

use crate::limits;
use crate::rsync::arguments::{self, Options};
use crate::rsync::auth::{Method, Proof};
use crate::rsync::fault::Fault;
use crate::rsync::version::Version;

/// What every greeting begins with, a client's too: by it a stock client is told from others.
pub const MAGIC: &[u8] = b"@RSYNCD: ";
/// Bytes of `#early_input`, the bound of stock clients.
pub const EARLY_INPUT: usize = 5120;

/// What this server says of itself.
#[derive(Debug, Clone, Copy)]
pub struct GreetingOffer<'a> {
    /// The newest version to speak.
    pub version: Version,
    /// The client has had the [`hello`] of this version.
    pub greeted: bool,
    /// Message of the day, sent before anything is known about the client; may be empty.
    pub motd: &'a [u8],
}

/// What a client wants.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// The list of modules: answer with [`Greeting::list`], then close.
    ListModules,
    /// A module: answer with `refuse`, `challenge` or `accept`.
    Module(Vec<u8>),
    /// The answer to a challenge: answer with `refuse` or `accept`.
    Credentials {
        /// The user's name.
        user: Vec<u8>,
        /// To be compared with the user's password.
        proof: Proof,
    },
    /// Everything that the client asked for. The greeting is over; see [`Greeting::into_rest`].
    Arguments(Box<Options>),
}

/// The state of a connection up to its setup.
#[derive(Debug)]
pub struct Greeting {
    input: Vec<u8>,
    output: Vec<u8>,
    /// The newest version to speak; then the one in force.
    version: Version,
    /// The digest for a response; none when nothing is in common.
    method: Option<Method>,
    module: Vec<u8>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The client's greeting is to come.
    Hello,
    /// A module's name or a command.
    Module,
    /// So many bytes to skip.
    EarlyInput(usize),
    /// The caller is to answer.
    Asked,
    /// The answer to this challenge.
    Response(String),
    /// The arguments.
    Arguments(arguments::Collector),
    /// Nothing more.
    Over,
}

impl Greeting {
    /// Begins; the output holds this server's greeting, unless the client has had it.
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

    /// Takes bytes of the client. Ask for all events before more is given: what is kept stays below the
    /// limits of a line and of the arguments.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// The next event; none until more bytes come or the last event is answered. After an error the
    /// session is to be ended as the error says.
    #[allow(clippy::should_implement_trait, reason = "an event may follow after none")]
    pub fn next(&mut self) -> Result<Option<Event>, Fault> {
        loop {
            let event = match &mut self.state {
                State::Asked | State::Over => return Ok(None),
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
                    self.line(&line)?
                }
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// Answers with names and comments of modules, and the end.
    pub fn list<'m>(&mut self, modules: impl IntoIterator<Item = (&'m str, &'m str)>) {
        for (name, comment) in modules {
            let (name, comment) = (printable(name), printable(comment));
            self.output.extend_from_slice(format!("{name:<15}\t{comment}\n").as_bytes());
        }
        self.output.extend_from_slice(b"@RSYNCD: EXIT\n");
        self.state = State::Over;
    }

    /// Answers `@ERROR: text`; the caller sends it and closes.
    pub fn refuse(&mut self, text: &str) {
        self.output.extend_from_slice(format!("@ERROR: {}\n", printable(text)).as_bytes());
        self.state = State::Over;
    }

    /// Asks for a user's name and proof. `challenge` is [`super::auth::challenge`]'s.
    pub fn challenge(&mut self, challenge: String) -> Result<(), Fault> {
        if self.method.is_none() {
            return Err(Fault::AuthDigest);
        }
        self.output.extend_from_slice(format!("@RSYNCD: AUTHREQD {challenge}\n").as_bytes());
        self.state = State::Response(challenge);
        Ok(())
    }

    /// Lets the client in.
    pub fn accept(&mut self) {
        self.output.extend_from_slice(b"@RSYNCD: OK\n");
        self.state = State::Arguments(arguments::Collector::new(self.version));
    }

    /// Whether the last answer was final: the caller sends the output and closes.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// The version in force; known with the first event.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Bytes that the client sent after its arguments: the first of its setup.
    pub fn into_rest(self) -> Vec<u8> {
        self.input
    }

    fn line(&mut self, line: &[u8]) -> Result<Option<Event>, Fault> {
        match std::mem::replace(&mut self.state, State::Asked) {
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
            _ => self.command(line),
        }
    }

    fn command(&mut self, line: &[u8]) -> Result<Option<Event>, Fault> {
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

/// The greeting of a server that speaks up to this version: one line. The names of digests are obligatory from 32 on, known
/// since 3.2.7, and harmless to all that know a sub-version.
pub fn hello(version: Version) -> Vec<u8> {
    if !version.facts().sub_version {
        return format!("@RSYNCD: {version}\n").into_bytes();
    }
    let names = Method::NAMED.map(Method::name).join(" ");
    format!("@RSYNCD: {version}.0 {names}\n").into_bytes()
}

/// The version in force and the digest for authentication, from `@RSYNCD: 32.0 sha512 …`.
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
    // A pre-release of a version speaks the one before it with everybody but itself.
    let pre_release = theirs <= ours.number() && sub.is_some_and(|sub| sub > 0);
    let number = theirs.min(ours.number()).saturating_sub(u32::from(pre_release));
    let version = Version::new(number).ok_or(Fault::Version(theirs))?;
    let method = names.map_or_else(|| Some(version.facts().implied_method), Method::choose);
    Ok((version, method))
}

/// Takes a line off the front, without its end.
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

/// A decimal number without a sign, of at most nine digits.
fn number(digits: &[u8]) -> Option<u32> {
    let plain = (1..=9).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    plain.then(|| digits.iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0')))
}

/// Text that stays within its line and its length.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1000).collect()
}

#[cfg(test)]
mod tests;
