//! Signatures of heads, in the format of minisign.
//!
//! A signature is a file of four lines that the program `minisign` reads and writes. Only the pre-hashed form (`ED`) is
//! accepted. What a signed head has to satisfy besides, such as its expiry, is for the receiver to decide.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use minisign_verify as minisign;
use thiserror::Error;

use crate::limits;

/// A public key whose signatures are trusted.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// The key in base64, as in a public key file.
    text: String,
    id: KeyId,
    key: minisign::PublicKey,
}

/// The number by which a signature names its key. It is not a secret, and anybody can make a key with any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId(pub u64);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", self.0)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The text is not a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a minisign public key")]
pub struct InvalidKey;

/// Why a signature is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SignatureError {
    /// The bytes are not a minisign signature.
    #[error("the signature is not one of minisign's")]
    Malformed,
    /// The signature has the legacy form, which is not pre-hashed.
    #[error("the signature has minisign's legacy form; only pre-hashed ones are accepted")]
    Legacy,
    /// The key that the signature names is not trusted.
    #[error("it is signed by the key {0}, which is not trusted")]
    UnknownKey(KeyId),
    /// The signature is not one of these bytes and its comment by the key that it names.
    #[error("the signature is wrong for the key {0}")]
    Wrong(KeyId),
}

impl PublicKey {
    /// Parses the content of a public key file, or its second line alone.
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        let mut lines = text.trim_end().lines();
        let (first, second) = (lines.next().ok_or(InvalidKey)?, lines.next());
        if text.len() > limits::PUBLIC_KEY || lines.next().is_some() {
            return Err(InvalidKey);
        }
        let text = second.unwrap_or(first).trim();
        let key = minisign::PublicKey::from_base64(text).map_err(|_| InvalidKey)?;
        Ok(Self { id: key_id(text).ok_or(InvalidKey)?, text: text.to_owned(), key })
    }

    /// Returns the key in base64, as in a public key file.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the number by which signatures name the key.
    pub fn id(&self) -> KeyId {
        self.id
    }
}

/// Returns the number of the key in a base64 text that begins with a 2-byte algorithm and that number.
fn key_id(text: &str) -> Option<KeyId> {
    let bytes = STANDARD.decode(text).ok()?;
    bytes.get(2..)?.first_chunk().map(|id| KeyId(u64::from_le_bytes(*id)))
}

/// Verifies the signature of a message. Returns the trusted key that made it.
pub fn verify<'a>(message: &[u8], signature: &[u8], keys: &'a [PublicKey]) -> Result<&'a PublicKey, SignatureError> {
    if signature.len() > limits::SIGNATURE {
        return Err(SignatureError::Malformed);
    }
    let text = std::str::from_utf8(signature).map_err(|_| SignatureError::Malformed)?;
    let decoded = minisign::Signature::decode(text).map_err(|_| SignatureError::Malformed)?;
    let id = text.lines().nth(1).and_then(key_id).ok_or(SignatureError::Malformed)?;
    let mut refusal = SignatureError::UnknownKey(id);
    // Several keys may have the same number.
    for key in keys.iter().filter(|key| key.id == id) {
        match key.key.verify(message, &decoded, false) {
            Ok(()) => return Ok(key),
            Err(minisign::Error::UnexpectedAlgorithm) => return Err(SignatureError::Legacy),
            Err(_) => refusal = SignatureError::Wrong(id),
        }
    }
    Err(refusal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Written by the program minisign 0.11: `minisign -G -W`, `minisign -S` and `minisign -S -l` over `a head\n`.
    const KEY: &str = include_str!("../tests/minisign/key.pub");
    const SIGNATURE: &str = include_str!("../tests/minisign/head.minisig");
    const LEGACY: &str = include_str!("../tests/minisign/legacy.minisig");
    const MESSAGE: &[u8] = b"a head\n";

    fn keys() -> Vec<PublicKey> {
        vec![PublicKey::parse(KEY).unwrap()]
    }

    #[test]
    fn a_signature_of_the_program_minisign_verifies() {
        assert_eq!(verify(MESSAGE, SIGNATURE.as_bytes(), &keys()), Ok(&keys()[0]));
        assert!(KEY.contains(&keys()[0].id().to_string()), "the comment of a key has its number");
    }

    #[test]
    fn a_key_is_read_from_its_file_and_from_its_second_line() {
        let line = KEY.lines().nth(1).unwrap();
        assert_eq!(PublicKey::parse(line), PublicKey::parse(KEY));
        assert_eq!(PublicKey::parse(&KEY.replace('\n', "\r\n")), PublicKey::parse(KEY));
        assert_eq!(PublicKey::parse(line).unwrap().as_str(), line);
        let long = format!("untrusted comment: {}\n{line}\n", "x".repeat(limits::PUBLIC_KEY));
        for text in ["", "\n", "word", &line[1..], &format!("{KEY}more\n"), &long, SIGNATURE] {
            assert_eq!(PublicKey::parse(text), Err(InvalidKey), "{text}");
        }
    }

    #[test]
    fn the_legacy_form_is_refused() {
        assert_eq!(verify(MESSAGE, LEGACY.as_bytes(), &keys()), Err(SignatureError::Legacy));
    }

    #[test]
    fn another_message_comment_or_key_is_refused() {
        let id = keys()[0].id();
        assert_eq!(verify(b"another", SIGNATURE.as_bytes(), &keys()), Err(SignatureError::Wrong(id)));
        let comment = SIGNATURE.replacen("trusted comment: t", "trusted comment: T", 2);
        assert_eq!(verify(MESSAGE, comment.as_bytes(), &keys()), Err(SignatureError::Wrong(id)));
        assert_eq!(verify(MESSAGE, SIGNATURE.as_bytes(), &[]), Err(SignatureError::UnknownKey(id)));
    }

    #[test]
    fn any_of_several_keys_with_the_same_number_may_have_signed() {
        let pair = ::minisign::KeyPair::generate_unencrypted_keypair().unwrap();
        let mut bytes = pair.pk.to_bytes();
        bytes[2..10].copy_from_slice(&keys()[0].id().0.to_le_bytes());
        let same_number = PublicKey::parse(&STANDARD.encode(&bytes)).unwrap();
        let both = [same_number.clone(), keys()[0].clone()];
        assert_eq!(verify(MESSAGE, SIGNATURE.as_bytes(), &both), Ok(&both[1]));
        let wrong = Err(SignatureError::Wrong(same_number.id()));
        assert_eq!(verify(MESSAGE, SIGNATURE.as_bytes(), &[same_number]), wrong);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(verify(MESSAGE, &bytes, &keys()).is_err());
            prop_assert!(PublicKey::parse(&String::from_utf8_lossy(&bytes)).is_err());
        }

        #[test]
        fn a_signature_with_any_changed_byte_does_not_verify_or_signs_the_same(at in 0..SIGNATURE.len(), to: u8) {
            let mut bytes = SIGNATURE.as_bytes().to_vec();
            bytes[at] = to;
            let untrusted = at <= SIGNATURE.lines().next().unwrap().len();
            if let Ok(key) = verify(MESSAGE, &bytes, &keys()) {
                prop_assert_eq!(key, &keys()[0]);
                prop_assert!(untrusted || bytes == SIGNATURE.as_bytes() || to.is_ascii_whitespace());
            }
        }
    }
}
