//! The real rsync pulls from a server that consists of this crate's session and a few files in memory.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::{fs, thread};

use stillmirror_protocol::rsync::arguments::{Compression, Options};
use stillmirror_protocol::rsync::codec::{put_i32, put_long30, put_varint, put_varlong};
use stillmirror_protocol::rsync::digest::{Algorithm, Hasher};
use stillmirror_protocol::rsync::exit::{Exit, io_error};
use stillmirror_protocol::rsync::fault::Fault;
use stillmirror_protocol::rsync::greeting::{self, Greeting, GreetingOffer};
use stillmirror_protocol::rsync::mux::Severity;
use stillmirror_protocol::rsync::phases::Phases;
use stillmirror_protocol::rsync::replies::{self, Replies, Statistics};
use stillmirror_protocol::rsync::requests::{Event, Request, Requests};
use stillmirror_protocol::rsync::setup::{Offer, Setup};
use stillmirror_protocol::rsync::version::{Closing, Version};

const NAMES: [&str; 5] = ["f0", "f1", "f2", "f3", "f4"];
const LENGTHS: [usize; 5] = [0, 5, 16_256, 40_000, 300_001];

#[test]
fn files_arrive_with_every_version_and_compression() {
    for protocol in 27..=32 {
        pulls_all(&["-r", &format!("--protocol={protocol}")]);
        pulls_all(&["-rz", &format!("--protocol={protocol}")]);
    }
    for choice in ["zlib", "zlibx", "zstd", "lz4", "none"] {
        pulls_all(&["-rz", &format!("--compress-choice={choice}")]);
    }
}

#[test]
fn every_digest_matches_the_one_that_the_client_computes() {
    for choice in ["xxh128", "xxh3", "xxh64", "xxhash", "md5", "md4", "sha1", "none", "md4,sha1"] {
        pulls_all(&["-r", &format!("--checksum-choice={choice}")]);
    }
    pulls_all(&["-r", "--protocol=29", "--checksum-choice=md4"]);
}

#[test]
fn append_continues_after_what_the_client_has() {
    for options in [&["--append"][..], &["--append-verify"], &["--append-verify", "-z"], &["--append", "--protocol=29"]]
    {
        let scene = Scene::new();
        fs::write(scene.path("f4"), &content(4)[..200_001]).expect("a part");
        fs::write(scene.path("f3"), content(3)).expect("the whole");
        let done = scene.pull(Trouble::None, &[&["-r"], options].concat());
        scene.assert_complete(&done, options);
    }
}

#[test]
fn a_wrong_part_is_replaced_when_the_file_is_requested_again() {
    for options in
        [&["--append-verify"][..], &["--append", "--protocol=28"], &["--append-verify", "--checksum-choice=xxh3"]]
    {
        let scene = Scene::new();
        fs::write(scene.path("f4"), [b'x'; 100_000]).expect("a wrong part");
        let done = scene.pull(Trouble::None, &[&["-r"], options].concat());
        scene.assert_complete(&done, options);
    }
}

#[test]
fn a_file_with_a_wrong_digest_is_requested_again() {
    for protocol in [27, 29, 30, 32] {
        let scene = Scene::new();
        let options = ["-r", &format!("--protocol={protocol}")];
        let done = scene.pull(Trouble::WrongDigestOnce, &options);
        scene.assert_complete(&done, &options);
    }
}

#[test]
fn a_vanished_file_makes_exit_24_if_the_version_can_express_it() {
    for (protocol, code) in [(27, 23), (29, 23), (30, 24), (32, 24)] {
        let scene = Scene::new();
        let done = scene.pull(Trouble::Vanished, &["-r", &format!("--protocol={protocol}")]);
        assert_eq!(done.status.code(), Some(code), "{protocol}: {done:?}");
        assert!(!scene.path("f2").exists() && scene.path("f3").exists());
    }
}

#[test]
fn listings_and_dry_runs_request_no_content() {
    for options in [&["-r", "--list-only"][..], &["-rn"], &["-rn", "--protocol=28"]] {
        let scene = Scene::new();
        let done = scene.pull(Trouble::None, options);
        assert_eq!(done.status.code(), Some(0), "{options:?}: {done:?}");
        assert!(!scene.path("f1").exists());
    }
}

#[test]
fn deletions_are_counted() {
    let scene = Scene::new();
    fs::write(scene.path("extra"), "x").expect("a file too many");
    let done = scene.pull(Trouble::None, &["-r", "--delete", "--stats"]);
    scene.assert_complete(&done, &["--delete"]);
    assert!(!scene.path("extra").exists());
    assert!(String::from_utf8_lossy(&done.stdout).contains("Number of deleted files: 1"), "{done:?}");
}

#[test]
fn a_password_is_requested_and_checked() {
    let scene = Scene::new();
    for protocol in [27, 29, 30, 31, 32] {
        let done = scene.pull_with_password("s3cret", &["-r", &format!("--protocol={protocol}")]);
        scene.assert_complete(&done, &["password"]);
        let done = scene.pull_with_password("s3creT", &["-r", &format!("--protocol={protocol}")]);
        assert_eq!(done.status.code(), Some(5), "{done:?}");
    }
}

#[test]
fn an_unsupported_option_is_refused_with_its_exit_code() {
    for (options, code) in [
        (&["-r", "--iconv=utf-8,latin1"][..], 4),
        (&["-r", "--remove-source-files"], 1),
        (&["-r", "--remove-source-files", "--protocol=30"], 12),
    ] {
        let scene = Scene::new();
        let done = scene.pull(Trouble::None, options);
        assert_eq!(done.status.code(), Some(code), "{options:?}: {done:?}");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(said.contains("refuse --iconv") || said.contains("read-only module"), "{options:?}: {said}");
    }
}

#[test]
fn the_list_of_modules_is_printed() {
    let scene = Scene::new();
    let server = Server::start(Trouble::ListModules, None);
    let done = server.client(&[], &["rsync://127.0.0.1:PORT/"], &scene);
    assert_eq!(String::from_utf8_lossy(&done.stdout), "Hello\n\npub            \tall of it\n");
}

fn pulls_all(options: &[&str]) {
    let scene = Scene::new();
    let done = scene.pull(Trouble::None, options);
    scene.assert_complete(&done, options);
}

/// Returns text, which compresses, or noise, which does not.
fn content(file: usize) -> Vec<u8> {
    let mut state = file as u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..LENGTHS[file]).map(|at| if file.is_multiple_of(2) { noise() } else { b'a' + (at % 26) as u8 }).collect()
}

/// A directory to pull into.
struct Scene(tempfile::TempDir);

impl Scene {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn pull(&self, trouble: Trouble, options: &[&str]) -> Output {
        self.pull_from(&Server::start(trouble, None), "", options)
    }

    fn pull_with_password(&self, password: &str, options: &[&str]) -> Output {
        self.pull_from(&Server::start(Trouble::None, Some("s3cret")), password, options)
    }

    fn pull_from(&self, server: &Server, password: &str, options: &[&str]) -> Output {
        let words = [options, &["rsync://alice@127.0.0.1:PORT/pub/"]].concat();
        server.client(&[("RSYNC_PASSWORD", password)], &words, self)
    }

    fn assert_complete(&self, done: &Output, what: &[&str]) {
        assert_eq!(done.status.code(), Some(0), "{what:?}: {done:?}");
        for (file, name) in NAMES.iter().enumerate() {
            assert!(fs::read(self.path(name)).expect(name) == content(file), "{what:?}: {name}");
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    None,
    WrongDigestOnce,
    Vanished,
    ListModules,
}

/// Serves one client.
struct Server(u16);

impl Server {
    fn start(trouble: Trouble, password: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        thread::spawn(move || {
            let (stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            Session { stream, trouble, password }.run()
        });
        Self(port)
    }

    fn client(&self, environment: &[(&str, &str)], words: &[&str], scene: &Scene) -> Output {
        let words = words.iter().map(|word| word.replace("PORT", &self.0.to_string()));
        let mut command = Command::new("rsync");
        command.envs(environment.iter().copied()).args(["--timeout=20", "-t", "--no-inc-recursive"]).args(words);
        if environment.iter().any(|(name, _)| *name == "RSYNC_PASSWORD") {
            command.arg(Path::new(scene.0.path()));
        }
        command.output().expect("rsync is installed")
    }
}

struct Session {
    stream: TcpStream,
    trouble: Trouble,
    password: Option<&'static str>,
}

impl Session {
    fn run(mut self) -> io::Result<()> {
        let Some((options, rest)) = self.greet()? else { return Ok(()) };
        let offer = Offer {
            digests: &Algorithm::NAMED,
            compressions: &Compression::NAMED,
            seed: 0x1234_5678,
            incremental: true,
            timeout: Some(30),
        };
        let (mut block, mut negotiation) = Setup::begin(&options, &offer);
        self.stream.write_all(&block)?;
        negotiation.receive(&rest);
        let setup = loop {
            match negotiation.next() {
                Ok(Some(setup)) => break setup,
                Ok(None) => negotiation.receive(&self.read()?),
                Err(fault) => {
                    block.clear();
                    replies::fatal(&mut block, options.version, fault.to_string(), fault.exit());
                    self.stream.write_all(&block)?;
                    return self.drain();
                }
            }
        };
        self.serve(&options, &setup, &negotiation.into_rest())
    }

    fn greet(&mut self) -> io::Result<Option<(Options, Vec<u8>)>> {
        let mut greeting = Greeting::new(GreetingOffer { version: Version::NEWEST, greeted: false, motd: b"Hello" });
        loop {
            match greeting.next().expect("an honest client") {
                Some(greeting::Event::ListModules) => greeting.list([("pub", "all of it")]),
                Some(greeting::Event::Module(_)) if self.password.is_some() => {
                    greeting.challenge("a-challenge".to_owned()).expect("a common digest");
                }
                Some(greeting::Event::Module(_)) => greeting.accept(),
                Some(greeting::Event::Credentials { user, proof }) => {
                    let password = self.password.unwrap_or_default();
                    if user == b"alice" && proof.knows(password.as_bytes()) {
                        greeting.accept();
                    } else {
                        greeting.refuse("auth failed on module pub");
                        self.stream.write_all(&greeting.output())?;
                        return Ok(None);
                    }
                }
                Some(greeting::Event::Arguments(options)) => {
                    self.stream.write_all(&greeting.output())?;
                    return Ok(Some((*options, greeting.into_rest())));
                }
                None => {
                    self.stream.write_all(&greeting.output())?;
                    if self.trouble == Trouble::ListModules && greeting.is_over() {
                        return Ok(None);
                    }
                    greeting.receive(&self.read()?);
                }
            }
        }
    }

    fn serve(&mut self, options: &Options, setup: &Setup, rest: &[u8]) -> io::Result<()> {
        let mut requests = Requests::new(setup, options);
        let mut replies = Replies::new(setup);
        let mut phases = Phases::new(setup.version);
        requests.receive(rest);
        loop {
            while let Some(event) = requests.next().expect("an honest client") {
                match event {
                    Event::RulesEnd => {
                        phases.lists_begun(1);
                        phases.lists_ended();
                        replies.list(&list(setup));
                    }
                    Event::Request(request) if request.wants_data() => {
                        self.send(options, setup, &mut replies, &request)?;
                    }
                    Event::Request(request) => replies.echo(&request),
                    Event::Deleted(counts) => replies.deleted(&counts),
                    Event::Exit(_) => replies.exit_seen(),
                    Event::Done => match phases.done() {
                        Ok(Closing::Done) => replies.done(),
                        Ok(Closing::DoneAndStatistics) => {
                            if self.trouble == Trouble::Vanished {
                                replies.io_error(io_error::VANISHED);
                            }
                            replies.done();
                            replies.statistics(&Statistics { total: 356_262, ..Statistics::default() });
                        }
                        Ok(Closing::End) => return self.stream.write_all(replies.buffer()),
                        Err(Fault::Phases) => replies.fatal("too many phases", Exit::Protocol),
                        Err(fault) => panic!("{fault}"),
                    },
                    _ => {}
                }
            }
            self.stream.write_all(&replies.take())?;
            requests.receive(&self.read()?);
        }
    }

    fn send(&mut self, options: &Options, setup: &Setup, replies: &mut Replies, request: &Request) -> io::Result<()> {
        // The root directory has index 0.
        let file = request.ndx as usize - 1;
        if self.trouble == Trouble::Vanished && file == 2 {
            let severity = if setup.version.number() < 30 { Severity::Transfer } else { Severity::Warning };
            replies.message(severity, "file has vanished: \"f2\"");
            replies.no_send(request.ndx);
            return Ok(());
        }
        let content = content(file);
        let rest = &content[request.from as usize..];
        // A keep-alive may stand between any two frames.
        replies.keep_alive();
        replies.file(request);
        for slice in rest.chunks(replies.slice()) {
            replies.literal(slice.len());
            self.stream.write_all(&replies.take())?;
            self.stream.write_all(slice)?;
        }
        let mut hasher = Hasher::new(setup.transfer, setup.seed);
        hasher.update(if options.digest_of_the_rest() { rest } else { &content });
        let mut digest = hasher.finish().to_vec();
        if self.trouble == Trouble::WrongDigestOnce && file == 3 {
            digest[0] ^= 1;
            self.trouble = Trouble::None;
        }
        replies.end(&digest);
        Ok(())
    }

    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; 4096];
        let len = self.stream.read(&mut bytes)?;
        bytes.truncate(len);
        if len == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
    }

    /// Reads until the client closes, so that closing does not discard data on its way to the client.
    fn drain(&mut self) -> io::Result<()> {
        self.stream.shutdown(std::net::Shutdown::Write)?;
        io::copy(&mut self.stream, &mut io::sink()).map(drop)
    }
}

/// Encodes the root and the files as one list without owners.
fn list(setup: &Setup) -> Vec<u8> {
    const SAME_OWNER: i32 = 0x18;
    const TOP: i32 = 1;
    let version = setup.version;
    let mut out = Vec::new();
    let mut entry = |flags: i32, name: &str, len: usize, mode: i32| {
        out.push((flags | SAME_OWNER) as u8);
        out.push(name.len() as u8);
        out.extend_from_slice(name.as_bytes());
        put_long30(&mut out, version, len as i64);
        if version.number() >= 30 {
            put_varlong(&mut out, 1_700_000_000, 4);
        } else {
            put_i32(&mut out, 1_700_000_000);
        }
        put_i32(&mut out, mode);
    };
    entry(TOP, ".", 4096, 0o040_755);
    for (name, len) in NAMES.into_iter().zip(LENGTHS) {
        entry(0, name, len, 0o100_644);
    }
    out.push(0);
    if setup.varint_flags {
        put_varint(&mut out, 0);
    }
    if version.number() < 30 {
        put_i32(&mut out, 0);
    }
    out
}
