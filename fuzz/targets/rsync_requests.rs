//! Arbitrary bytes after the setup, from a client with an arbitrary version and options. The events do not depend on how
//! the bytes are split, and each can be answered.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stillmirror_protocol::rsync::arguments::{Compression, Options};
use stillmirror_protocol::rsync::digest::Algorithm;
use stillmirror_protocol::rsync::greeting::{self, Greeting, GreetingOffer};
use stillmirror_protocol::rsync::phases::Phases;
use stillmirror_protocol::rsync::replies::Replies;
use stillmirror_protocol::rsync::requests::{Event, Requests};
use stillmirror_protocol::rsync::setup::{Offer, Setup};
use stillmirror_protocol::rsync::version::{Closing, Version};

const WORDS: [&str; 6] = ["-n", "-X", "--append", "--files-from=-", "--compress-choice=lz4", "-r"];

fuzz_target!(|data: &[u8]| {
    let [version, words, piece, data @ ..] = data else { return };
    let Some(options) = options(*version, *words) else { return };
    let offer = Offer {
        digests: &Algorithm::NAMED,
        compressions: &Compression::NAMED,
        seed: 1,
        incremental: true,
        timeout: None,
    };
    let Ok(Some(setup)) = Setup::begin(&options, &offer).1.next() else { return };
    let run = |piece| run(&options, &setup, data, piece);
    assert_eq!(run(usize::from(*piece) + 1), run(usize::MAX));
});

fn run(options: &Options, setup: &Setup, data: &[u8], piece: usize) -> String {
    let mut requests = Requests::new(setup, options);
    let mut replies = Replies::new(setup);
    let mut phases = Phases::new(setup.version);
    phases.lists_begun(2);
    phases.lists_ended();
    let mut seen = String::new();
    for piece in data.chunks(piece) {
        requests.receive(piece);
        loop {
            let event = requests.next();
            match &event {
                Ok(None) => break,
                Ok(Some(Event::Request(request))) if request.wants_data() => {
                    replies.file(request);
                    replies.literal(1);
                    replies.end(&[0]);
                }
                Ok(Some(Event::Request(request))) => replies.echo(request),
                Ok(Some(Event::Deleted(counts))) => replies.deleted(counts),
                Ok(Some(Event::Done)) if matches!(phases.done(), Ok(Closing::End) | Err(_)) => return seen,
                _ => {}
            }
            seen.push_str(&format!("{event:?}"));
            if event.is_err() {
                return seen;
            }
        }
        replies.take();
    }
    seen
}

fn options(version: u8, words: u8) -> Option<Options> {
    let version = Version::new(27 + u32::from(version % 6))?;
    let end = if version.number() < 30 { "\n" } else { "\0" };
    let mut greeting = Greeting::new(GreetingOffer { version, greeted: false, motd: b"" });
    greeting.receive(b"@RSYNCD: 32.0 md5\nm\n");
    greeting.next().ok()??;
    greeting.accept();
    let chosen = WORDS.iter().enumerate().filter(|(at, _)| words >> at & 1 != 0).map(|(_, word)| *word);
    let all = ["--server", "--sender"].into_iter().chain(chosen).chain([".", "m/", ""]);
    greeting.receive(all.map(|word| format!("{word}{end}")).collect::<String>().as_bytes());
    match greeting.next() {
        Ok(Some(greeting::Event::Arguments(options))) => Some(*options),
        _ => None,
    }
}
