//! Arbitrary arguments of a stock client, and an arbitrary answer to the setup block that they lead to.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stillmirror_protocol::limits;
use stillmirror_protocol::rsync::arguments::{Compression, Options};
use stillmirror_protocol::rsync::digest::Algorithm;
use stillmirror_protocol::rsync::greeting::{Event, Greeting, GreetingOffer};
use stillmirror_protocol::rsync::setup::{Offer, Setup};
use stillmirror_protocol::rsync::version::Version;

fuzz_target!(|data: &[u8]| {
    let [version, data @ ..] = data else { return };
    let version = Version::new(27 + u32::from(version % 6)).expect("27 to 32");
    let Some((options, rest)) = arguments(version, data) else { return };
    assert!(options.paths.len() <= limits::ARGUMENTS + 1 && (options.fault.is_some() || !options.paths.is_empty()));
    let offer = Offer {
        digests: &Algorithm::NAMED,
        compressions: &Compression::NAMED,
        seed: 1,
        incremental: true,
        timeout: Some(60),
    };
    let (block, mut negotiation) = Setup::begin(&options, &offer);
    assert!(block.len() < 256);
    negotiation.receive(&rest);
    if let Ok(Some(setup)) = negotiation.next() {
        assert_eq!(setup.version, version);
        assert!(!setup.incremental || options.recurse);
        let _ = setup.class(&options).key();
    }
});

fn arguments(version: Version, data: &[u8]) -> Option<(Options, Vec<u8>)> {
    let mut greeting = Greeting::new(GreetingOffer { version, greeted: false, motd: b"" });
    greeting.receive(b"@RSYNCD: 32.0 md5\nm\n");
    assert!(matches!(greeting.next(), Ok(Some(Event::Module(_)))));
    greeting.accept();
    greeting.receive(data);
    match greeting.next() {
        Ok(Some(Event::Arguments(options))) => Some((*options, greeting.into_rest())),
        _ => None,
    }
}
