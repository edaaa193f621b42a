//! The text lines that a daemon sends before a transfer. The client prints only some of them.

use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::side::HostUrl;

/// The limit of a stock client for a line, in bytes.
const MAX_LINE: u64 = 5119;
/// The maximum number of lines before an answer.
const MAX_LINES: usize = 10_000;
/// How long connecting may take, for each address of the host.
const CONNECT: Duration = Duration::from_secs(30);
/// What a client of today sends. Protocol 31 needs no list of digests, and both daemons have one for 32.
const GREETING: &str = "@RSYNCD: 31.0 sha512 sha256 sha1 md5 md4\n";

/// How a daemon answers the name of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Open,
    /// It asks for a user and a password.
    Password,
    /// Without what depends on this client's name and address.
    Refused(String),
}

impl Answer {
    /// Returns whether the module has its maximum number of clients.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Refused(message) if is_full(message))
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::Open => "open".to_owned(),
            Self::Password => "asks for a password".to_owned(),
            Self::Refused(message) => message.clone(),
        }
    }
}

/// Returns whether a message says that there are too many clients.
pub(super) fn is_full(message: &str) -> bool {
    message.contains("max connections")
}

/// What a daemon says to a client at its door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Door {
    pub(super) greeting: String,
    /// The message of the day.
    pub(super) motd: Vec<String>,
    pub(super) answer: Answer,
}

/// Names a module to a daemon. Returns what it says.
pub(super) fn knock(url: &HostUrl, module: &str, patience: Duration) -> io::Result<Door> {
    let stream = connect(url)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    (&stream).write_all(format!("{GREETING}{module}\n").as_bytes())?;
    let mut reader = BufReader::new(&stream);
    let greeting = line(&mut reader)?;
    if !greeting.starts_with("@RSYNCD: ") && !greeting.starts_with("@ERROR") {
        return Err(io::Error::other("no rsync daemon answers there"));
    }
    let mut motd = Vec::new();
    let mut next = if greeting.starts_with("@ERROR") { greeting.clone() } else { line(&mut reader)? };
    while motd.len() < MAX_LINES {
        let answer = match &next {
            answer if answer.starts_with("@RSYNCD: OK") => Answer::Open,
            answer if answer.starts_with("@RSYNCD: AUTHREQD") => Answer::Password,
            answer if answer.starts_with('@') => Answer::Refused(without_client(answer)),
            _ => {
                motd.push(std::mem::take(&mut next));
                next = line(&mut reader)?;
                continue;
            }
        };
        return Ok(Door { greeting, motd, answer });
    }
    Err(io::Error::other("it sends text without end"))
}

/// Removes the name and the address of the client from `access denied to m from host (192.0.2.1)`.
pub(super) fn without_client(message: &str) -> String {
    match message.split_once(" from ") {
        Some((start, _)) if start.contains("access denied") => start.to_owned(),
        _ => message.to_owned(),
    }
}

fn connect(url: &HostUrl) -> io::Result<TcpStream> {
    let mut error = io::Error::other("the host has no address");
    for address in url.address().to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(stream) => return Ok(stream),
            Err(failed) => error = failed,
        }
    }
    Err(error)
}

fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    reader.take(MAX_LINE).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        let kind = io::ErrorKind::UnexpectedEof;
        return Err(io::Error::new(kind, "it closes the connection before it answers"));
    }
    Ok(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what a client learns from a daemon that sends `text`.
    fn knock_at(text: &'static str) -> io::Result<Door> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url: HostUrl = format!("rsync://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let daemon = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = [0; GREETING.len()];
            stream.read_exact(&mut line).unwrap();
            stream.write_all(text.as_bytes()).unwrap();
        });
        let door = knock(&url, "m", Duration::from_secs(20));
        daemon.join().unwrap();
        door
    }

    #[test]
    fn a_door_is_open_locked_or_closed() {
        let open = knock_at("@RSYNCD: 32.0 md5\nHello\n\n@RSYNCD: OK\n").unwrap();
        assert_eq!(open.motd, ["Hello", ""]);
        assert_eq!((open.greeting.as_str(), open.answer), ("@RSYNCD: 32.0 md5", Answer::Open));
        assert_eq!(knock_at("@RSYNCD: 32.0\n@RSYNCD: AUTHREQD x\n").unwrap().answer, Answer::Password);
        let denied = knock_at("@RSYNCD: 32.0\n@ERROR: access denied to m from h (192.0.2.1)\n").unwrap().answer;
        assert_eq!(denied, Answer::Refused("@ERROR: access denied to m".to_owned()));
        let full = knock_at("@ERROR: max connections (4) reached -- try again later\n").unwrap().answer;
        assert!(full.is_full());
    }

    #[test]
    fn other_peers_are_no_daemons() {
        for text in ["SSH-2.0-OpenSSH_9\n", "", "@RSYNCD: 32.0\n", "@RSYNCD: 32.0\nmotd"] {
            assert!(knock_at(text).is_err(), "{text}");
        }
    }
}
