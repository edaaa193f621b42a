//! Challenge and response: a client proves that it knows a password without sending it.
//!
//! The response is base64, without `=`, of a digest over the password and the challenge's text. What the
//! client announced in its greeting determines the digest.
//!
//! Source: stock releases 2.6.0 to 3.5.0.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use md4::Md4;
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use subtle::ConstantTimeEq;

/// Number of random bytes in a challenge.
pub const CHALLENGE_BYTES: usize = 32;

/// The digest of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// SHA-512.
    Sha512,
    /// SHA-256.
    Sha256,
    /// SHA-1.
    Sha1,
    /// MD5: the default for clients of protocol 30 and later that announce no digests.
    Md5,
    /// MD4.
    Md4,
    /// MD4 with four zero bytes in front: the default before protocol 30.
    OldMd4,
}

impl Method {
    /// The digests that a client may announce, the strongest first.
    pub const NAMED: [Self; 5] = [Self::Sha512, Self::Sha256, Self::Sha1, Self::Md5, Self::Md4];

    /// Returns the name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha512 => "sha512",
            Self::Sha256 => "sha256",
            Self::Sha1 => "sha1",
            Self::Md5 => "md5",
            Self::Md4 | Self::OldMd4 => "md4",
        }
    }

    /// Returns the first digest in the client's list that is offered here. `None` if there is none in common.
    pub fn choose(announced: &[u8]) -> Option<Self> {
        let named = |name: &[u8]| Self::NAMED.into_iter().find(|method| method.name().as_bytes() == name);
        announced.split(|&byte| byte == b' ').find_map(named)
    }

    /// Returns the response to `challenge` of a client that knows `password`.
    pub fn response(self, password: &[u8], challenge: &str) -> String {
        let parts: [&[u8]; 3] = [if self == Self::OldMd4 { &[0; 4] } else { &[] }, password, challenge.as_bytes()];
        match self {
            Self::Sha512 => encoded_digest::<Sha512>(parts),
            Self::Sha256 => encoded_digest::<Sha256>(parts),
            Self::Sha1 => encoded_digest::<Sha1>(parts),
            Self::Md5 => encoded_digest::<Md5>(parts),
            Self::Md4 | Self::OldMd4 => encoded_digest::<Md4>(parts),
        }
    }
}

/// Encodes unpredictable random bytes as the text of a challenge.
pub fn challenge(random: &[u8; CHALLENGE_BYTES]) -> String {
    STANDARD_NO_PAD.encode(random)
}

/// A client's response to a challenge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    pub(super) method: Method,
    pub(super) challenge: String,
    pub(super) response: Vec<u8>,
}

impl Proof {
    /// Returns whether the client knows this password. The comparison takes the same time wherever the
    /// response differs.
    pub fn knows(&self, password: &[u8]) -> bool {
        self.method.response(password, &self.challenge).as_bytes().ct_eq(&self.response).into()
    }
}

fn encoded_digest<D: Digest>(parts: [&[u8]; 3]) -> String {
    let mut state = D::new();
    parts.into_iter().for_each(|part| state.update(part));
    STANDARD_NO_PAD.encode(state.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_offered_name_of_the_clients_list_is_chosen() {
        assert_eq!(Method::choose(b"sha3 md4 sha512"), Some(Method::Md4));
        assert_eq!(Method::choose(b"sha512 sha256"), Some(Method::Sha512));
        assert_eq!(Method::choose(b""), None);
    }

    #[test]
    fn only_the_right_password_is_proven() {
        for method in [Method::Sha512, Method::Sha256, Method::Sha1, Method::Md5, Method::Md4, Method::OldMd4] {
            let response = method.response(b"s3cret", "challenge").into_bytes();
            let proof = Proof { method, challenge: "challenge".to_owned(), response };
            assert!(proof.knows(b"s3cret"), "{method:?}");
            assert!(!proof.knows(b"s3creT"), "{method:?}");
            assert!(!Proof { response: Vec::new(), ..proof }.knows(b"s3cret"), "{method:?}");
        }
    }

    #[test]
    fn a_challenge_is_one_word() {
        let text = challenge(&[0xff; CHALLENGE_BYTES]);
        assert!(text.len() >= CHALLENGE_BYTES && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'='));
    }
}
