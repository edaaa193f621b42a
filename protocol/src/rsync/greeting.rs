//! The text lines before `@RSYNCD: OK`, and the arguments after it.
//!
//! Both sides greet without waiting; the client names a module (or asks for the list of them); the
//! caller lists, refuses, challenges or accepts; an accepted client sends its arguments. All bytes that
//! come in are given to [`Greeting::receive`], all that go out are taken from [`Greeting::output`].

use crate::rsync::arguments::Options;
use crate::rsync::auth::Proof;
use crate::rsync::fault::Fault;
use crate::rsync::version::Version;

/// Bytes in one line, without its end: what stock clients read of one.
pub const LINE: usize = 5119;
/// Bytes of `#early_input`, the bound of stock clients.
pub const EARLY_INPUT: usize = 5120;

/// What this server says of itself.
#[derive(Debug, Clone, Copy)]
pub struct GreetingOffer<'a> {
    /// The newest version to speak.
    pub version: Version,
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
    _todo: (),
}

impl Greeting {
    /// Begins; the output holds this server's greeting.
    pub fn new(offer: GreetingOffer<'_>) -> Self {
        unreachable!("{offer:?}")
    }
    /// Takes the bytes to send.
    pub fn output(&mut self) -> Vec<u8> {
        unreachable!()
    }
    /// Takes bytes of the client.
    pub fn receive(&mut self, bytes: &[u8]) {
        unreachable!("{bytes:?}")
    }
    /// The next event; none until more bytes come or the last event is answered.
    pub fn next(&mut self) -> Result<Option<Event>, Fault> {
        unreachable!()
    }
    /// Answers with names and comments of modules, and the end.
    pub fn list<'m>(&mut self, modules: impl IntoIterator<Item = (&'m str, &'m str)>) {
        modules.into_iter().for_each(drop);
    }
    /// Answers `@ERROR: text`; the caller sends it and closes.
    pub fn refuse(&mut self, text: &str) {
        unreachable!("{text}")
    }
    /// Asks for a user's name and proof. `challenge` is [`super::auth::challenge`]'s.
    pub fn challenge(&mut self, challenge: String) -> Result<(), Fault> {
        unreachable!("{challenge}")
    }
    /// Lets the client in.
    pub fn accept(&mut self) {}
    /// The version in force; known with the first event.
    pub fn version(&self) -> Version {
        unreachable!()
    }
    /// Bytes that the client sent after its arguments: the first of its setup.
    pub fn into_rest(self) -> Vec<u8> {
        unreachable!()
    }
}
