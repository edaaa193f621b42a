//! The recorded streams of stock clients give the same events as an independent decoder read from them,
//! regardless of the pieces in which they arrive.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use stillmirror_protocol::rsync::arguments::{Compression, Options};
use stillmirror_protocol::rsync::digest::Algorithm;
use stillmirror_protocol::rsync::greeting::{self, Greeting, GreetingOffer};
use stillmirror_protocol::rsync::phases::Phases;
use stillmirror_protocol::rsync::requests::{Event, Request, Requests, SumHead};
use stillmirror_protocol::rsync::setup::{Offer, Setup};
use stillmirror_protocol::rsync::version::{Closing, Version};

const PASSWORD: &[u8] = b"s3cret";

#[test]
fn every_recorded_client_gives_the_events_of_the_decoder() {
    for recording in recordings() {
        for piece in [1, 7, 4096, usize::MAX] {
            let session = Session::replay(&recording, piece);
            assert_eq!(session.transcript, recording.events, "{}, {piece} bytes at a time", recording.name);
        }
    }
}

#[test]
fn the_last_done_of_every_recorded_session_ends_it() {
    let mut whole = 0;
    for recording in recordings() {
        let Some(lists) = recording.lists else { continue };
        let session = Session::replay(&recording, usize::MAX);
        let mut phases = Phases::new(session.setup.version);
        phases.lists_begun(lists);
        phases.lists_ended();
        let dones = recording.events.lines().filter(|line| *line == "done").count();
        let answers: Vec<_> = (0..dones).map(|_| phases.done().expect("an answer")).collect();
        assert_eq!(answers.iter().position(|answer| *answer == Closing::End), Some(dones - 1), "{}", recording.name);
        assert!(answers.contains(&Closing::DoneAndStatistics), "{}", recording.name);
        whole += 1;
    }
    assert!(whole > 50, "{whole} whole sessions");
}

#[test]
fn the_setup_block_equals_a_stock_servers_except_for_optional_parts() {
    for recording in recordings() {
        let session = Session::replay(&recording, usize::MAX);
        let ours = &session.setup_block;
        let seed = ours.len() - 4;
        let stock = &recording.server[recording.server.len() - ours.len()..];
        assert_eq!(ours[seed..], stock[seed..], "{}", recording.name);
        if session.setup.version.number() >= 30 {
            // Incremental lists and iconv of symlinks. A server need not support either.
            let optional = 0x001 | 0x004;
            let (ours_bits, ours_rest) = compat_bits(ours);
            let (stock_bits, stock_rest) = compat_bits(stock);
            assert_eq!(ours_bits & !optional, stock_bits & !optional, "{}", recording.name);
            assert_eq!(ours_bits & !stock_bits, 0, "{}", recording.name);
            assert_eq!(ours_rest, stock_rest, "{}", recording.name);
        }
    }
}

struct Recording {
    name: String,
    client: Vec<u8>,
    server: Vec<u8>,
    events: String,
    lists: Option<u64>,
}

fn recordings() -> Vec<Recording> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings");
    let mut paths: Vec<PathBuf> =
        fs::read_dir(root).expect("recordings").map(|entry| entry.expect("entry").path()).collect();
    paths.retain(|path| path.is_dir());
    paths.sort();
    assert!(paths.len() > 50, "{} recordings", paths.len());
    paths.iter().map(|path| Recording::read(path)).collect()
}

impl Recording {
    fn read(path: &Path) -> Self {
        let read = |file| fs::read(path.join(file)).expect(file);
        let text = String::from_utf8(read("events.txt")).expect("text");
        let (lists, events): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("lists "));
        Self {
            name: path.file_name().expect("a name").to_string_lossy().into_owned(),
            client: read("c2s.bin"),
            server: read("s2c.bin"),
            events: events.join("\n"),
            lists: lists.first().map(|line| line["lists ".len()..].parse().expect("a number")),
        }
    }

    fn challenge(&self) -> Option<String> {
        let mut lines = self.server.split(|&byte| byte == b'\n');
        let line = lines.find_map(|line| line.strip_prefix(b"@RSYNCD: AUTHREQD "))?;
        Some(String::from_utf8(line.to_vec()).expect("text"))
    }

    fn seed(&self) -> i32 {
        i32::from_le_bytes(*self.server.last_chunk().expect("a seed"))
    }
}

/// The replayed client side of a session.
struct Session {
    setup: Setup,
    setup_block: Vec<u8>,
    transcript: String,
}

impl Session {
    fn replay(recording: &Recording, piece: usize) -> Self {
        let mut pieces = recording.client.chunks(piece.min(recording.client.len()));
        let (options, rest) = greet(recording, &mut pieces);
        let offer = Offer {
            digests: &Algorithm::NAMED,
            compressions: &Compression::NAMED,
            seed: recording.seed(),
            incremental: true,
            timeout: None,
        };
        let options = Options { fault: None, timeout: None, ..options };
        let (setup_block, mut negotiation) = Setup::begin(&options, &offer);
        negotiation.receive(&rest);
        let setup = loop {
            match negotiation.next().expect("an agreement") {
                Some(setup) => break setup,
                None => negotiation.receive(pieces.next().expect("more of the setup")),
            }
        };
        let mut transcript = format!(
            "protocol {}\ndigests {} {} compress {}",
            setup.version, setup.transfer, setup.list, setup.compression
        );
        let mut requests = Requests::new(&setup, &options);
        requests.receive(&negotiation.into_rest());
        loop {
            while let Some(event) = requests.next().expect("an honest client") {
                record(&mut transcript, &event);
            }
            let Some(piece) = pieces.next() else { break };
            requests.receive(piece);
        }
        Self { setup, setup_block, transcript }
    }
}

/// Plays the server up to the client's arguments.
fn greet<'a>(recording: &Recording, pieces: &mut impl Iterator<Item = &'a [u8]>) -> (Options, Vec<u8>) {
    let mut greeting = Greeting::new(GreetingOffer { version: Version::NEWEST, greeted: false, motd: b"" });
    loop {
        match greeting.next().expect("an honest client") {
            Some(greeting::Event::Module(_)) => match recording.challenge() {
                Some(challenge) => greeting.challenge(challenge).expect("a common digest"),
                None => greeting.accept(),
            },
            Some(greeting::Event::Credentials { user, proof }) => {
                assert_eq!(user, b"alice");
                assert!(proof.knows(PASSWORD) && !proof.knows(b"secret"), "{}", recording.name);
                greeting.accept();
            }
            Some(greeting::Event::Arguments(options)) => return (*options, greeting.into_rest()),
            Some(greeting::Event::ListModules) => panic!("{} lists modules", recording.name),
            None => greeting.receive(pieces.next().expect("more of the greeting")),
        }
    }
}

/// Appends an event in the format of `events.txt`.
fn record(transcript: &mut String, event: &Event) {
    let line = match event {
        Event::Rule(rule) => format!("rule {}", rule.escape_ascii()),
        Event::Name(name) => format!("name {}", name.escape_ascii()),
        Event::RulesEnd | Event::NamesEnd => return,
        Event::Request(request) => request_line(request),
        Event::Done => "done".to_owned(),
        Event::Deleted(counts) => format!("deleted {counts:?}"),
        Event::KeepAlive => "alive".to_owned(),
        Event::Exit(Some(code)) => format!("exit {code}"),
        Event::Exit(None) => "exit seen".to_owned(),
        Event::Success(ndx) => format!("success {ndx}"),
        Event::Text(text) => format!("text {}", text.escape_ascii()),
    };
    transcript.push('\n');
    transcript.push_str(&line);
}

fn request_line(request: &Request) -> String {
    let mut line = format!("request {} {:04x}", request.ndx, request.flags);
    if let Some(basis) = request.basis {
        write!(line, " basis {basis:02x}").expect("text");
    }
    if let Some(name) = &request.name {
        write!(line, " name {}", name.escape_ascii()).expect("text");
    }
    if let Some(SumHead { count, block_len, strong_len, remainder }) = request.sums {
        write!(line, " sums {:?}", [count, block_len, strong_len, remainder]).expect("text");
    }
    line
}

/// Splits a setup block into its bits, a varint of one or two bytes, and what follows them.
fn compat_bits(block: &[u8]) -> (u32, &[u8]) {
    match block {
        [lead, low, rest @ ..] if *lead >= 0x80 => (u32::from(lead & 0x3f) << 8 | u32::from(*low), rest),
        [bits, rest @ ..] => (u32::from(*bits), rest),
        [] => panic!("an empty setup block"),
    }
}
