//! Arbitrary answers to a challenge, from a client that announces arbitrary digests. An answer is accepted only if it
//! proves knowledge of the password.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stillmirror_protocol::rsync::auth::{Method, Proof};
use stillmirror_protocol::rsync::greeting::{Event, Greeting, GreetingOffer};
use stillmirror_protocol::rsync::version::Version;

const CHALLENGE: &str = "bytes that nobody can predict";
const METHODS: [Method; 6] = [Method::Sha512, Method::Sha256, Method::Sha1, Method::Md5, Method::Md4, Method::OldMd4];

fuzz_target!(|input: (u8, Vec<u8>, Vec<u8>, Vec<u8>, Option<u8>)| {
    let (version, digests, password, answer, honest) = input;
    let is_line = |bytes: &[u8]| !bytes.iter().any(|byte| matches!(byte, b'\n' | b'\r' | 0));
    if !is_line(&digests) || !is_line(&answer) {
        return;
    }
    let version = 27 + version % 6;
    let hello = [format!("@RSYNCD: {version}.0 ").as_bytes(), &digests, b"\nmodule\n"].concat();
    let Some(mut greeting) = challenged(&hello) else { return };
    // The answer of an honest client is the response of one of the methods.
    let honest = honest.map(|method| METHODS[usize::from(method) % METHODS.len()]);
    let answer = match honest {
        Some(method) => [b"user ", method.response(&password, CHALLENGE).as_bytes()].concat(),
        None => answer,
    };
    greeting.receive(&[&answer, &b"\n"[..]].concat());
    let Some(proof) = proof(&mut greeting) else { return };
    let is_right = METHODS.iter().any(|method| answer.ends_with(method.response(&password, CHALLENGE).as_bytes()));
    assert!(!proof.knows(&password) || is_right);
    assert!(!proof.knows(b"another password, which nobody has"));
});

/// Runs a greeting up to the challenge. `None` if it ends before.
fn challenged(hello: &[u8]) -> Option<Greeting> {
    let mut greeting = Greeting::new(GreetingOffer { version: Version::NEWEST, greeted: false, motd: b"" });
    greeting.receive(hello);
    let Event::Module(_) = greeting.next().ok()?? else { return None };
    greeting.challenge(CHALLENGE.to_owned()).ok()?;
    Some(greeting)
}

fn proof(greeting: &mut Greeting) -> Option<Proof> {
    match greeting.next().ok()?? {
        Event::Credentials { proof, .. } => Some(proof),
        _ => None,
    }
}
