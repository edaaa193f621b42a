//! Arbitrary bytes before the setup. The events do not depend on how the bytes are split, and memory stays within the
//! limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stillmirror_protocol::rsync::greeting::{Event, Greeting, GreetingOffer};
use stillmirror_protocol::rsync::version::Version;

fuzz_target!(|data: &[u8]| {
    let [piece, data @ ..] = data else { return };
    assert_eq!(run(data, usize::from(*piece) + 1), run(data, usize::MAX));
});

fn run(data: &[u8], piece: usize) -> String {
    let mut greeting = Greeting::new(GreetingOffer { version: Version::NEWEST, greeted: false, motd: b"" });
    let mut seen = String::new();
    for piece in data.chunks(piece) {
        greeting.receive(piece);
        loop {
            let event = greeting.next();
            seen.push_str(&format!("{event:?}"));
            match event {
                Ok(Some(Event::ListModules)) => greeting.list([("a", "b")]),
                Ok(Some(Event::Module(name))) if name.starts_with(b"p") => greeting.accept(),
                Ok(Some(Event::Module(_))) if greeting.challenge("c".to_owned()).is_err() => return seen,
                Ok(Some(Event::Module(_))) => {}
                Ok(Some(Event::Credentials { proof, .. })) => {
                    assert!(!proof.knows(b"nobody can guess this"));
                    greeting.accept();
                }
                Ok(Some(Event::Arguments(_))) | Err(_) => return seen,
                Ok(None) => {
                    seen.truncate(seen.len() - "Ok(None)".len());
                    break;
                }
            }
        }
    }
    seen
}
