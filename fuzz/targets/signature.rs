//! The signature of a head, from a hostile sender or store, and the text of a public key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stillmirror_protocol::signature::{PublicKey, verify};

const KEY: &str = include_str!("../../protocol/tests/minisign/key.pub");
/// What the signature beside the key signs. A mutated signature must not verify for another message.
const MESSAGE: &[u8] = b"a head\n";

fuzz_target!(|bytes: &[u8]| {
    let Ok(trusted) = PublicKey::parse(KEY) else { return };
    let mut keys = vec![trusted];
    let _ = verify(MESSAGE, bytes, &keys);
    assert!(verify(b"another", bytes, &keys).is_err());
    if let Ok(key) = PublicKey::parse(&String::from_utf8_lossy(bytes)) {
        assert_eq!(PublicKey::parse(key.as_str()).as_ref(), Ok(&key));
        keys.push(key);
        let _ = verify(MESSAGE, bytes, &keys);
    }
});
