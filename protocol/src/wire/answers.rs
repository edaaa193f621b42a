//! Answers that may span several frames: the repositories, and the children of a directory.

use crate::changes::{EntryDecoder, EntryEncoder};
use crate::codec::{DecodeError, Reader, put_bytes, put_varint};
use crate::entry::Entry;
use crate::{limits, path};

/// A repository that a sender announces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// The repository's name.
    pub name: String,
    /// The operator's one-line description.
    pub comment: String,
    /// The current encoded head. It is empty if the repository is not indexed yet, or if this client may not read it.
    pub head: Vec<u8>,
}

impl Repository {
    /// Encodes a list of repositories.
    pub fn encode_all(repositories: &[Self]) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, repositories.len() as u64);
        for repository in repositories {
            put_bytes(&mut out, repository.name.as_bytes());
            let cut = repository.comment.floor_char_boundary(limits::MESSAGE);
            put_bytes(&mut out, &repository.comment.as_bytes()[..cut]);
            put_bytes(&mut out, &repository.head);
        }
        out
    }

    /// Decodes a list of repositories.
    pub fn decode_all(bytes: &[u8]) -> Result<Vec<Self>, DecodeError> {
        let mut reader = Reader::new(bytes);
        let count = reader.varint_to("repositories", limits::REPOSITORIES as u64)?;
        let one = |reader: &mut Reader<'_>| -> Result<Self, DecodeError> {
            Ok(Self {
                name: reader.text("name", limits::REPOSITORY_NAME)?.to_owned(),
                comment: reader.text("comment", limits::MESSAGE)?.to_owned(),
                head: reader.bytes("head", limits::HEAD)?.to_vec(),
            })
        };
        let repositories = (0..count).map(|_| one(&mut reader)).collect::<Result<_, _>>()?;
        reader.finish("repositories")?;
        Ok(repositories)
    }
}

/// Appends one child to the answer to [`Request::Dir`](super::Request::Dir): the name, then the entry.
pub fn encode_child(out: &mut Vec<u8>, encoder: &mut EntryEncoder, name: &[u8], entry: &Entry) {
    put_bytes(out, name);
    encoder.encode(out, entry);
}

/// Decodes the whole answer to [`Request::Dir`](super::Request::Dir): names and entries, in order. If the request named a
/// file, that file is the only entry.
pub fn decode_dir(bytes: &[u8]) -> Result<Vec<(Vec<u8>, Entry)>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let mut decoder = EntryDecoder::default();
    let mut children = Vec::new();
    while reader.remaining() > 0 {
        let name = reader.bytes("name", limits::NAME)?;
        path::check_name(name).map_err(|_| DecodeError::Invalid("name"))?;
        let entry = decoder.decode(&mut reader)?.ok_or(DecodeError::Invalid("type"))?;
        children.push((name.to_vec(), entry));
    }
    Ok(children)
}
