//! The binary negotiation after the arguments, and its result.
//!
//! [`Setup::begin`] returns this server's bytes and a [`Negotiation`], which takes the client's bytes and
//! yields the [`Setup`]. Where both sides send names of their choices, both take the first name in the
//! client's list that the server offered too.
//!
//! Source: stock releases 2.6.0 to 3.5.0.

use crate::codec::DecodeError;
use crate::rsync::arguments::{Compress, Compression, Options};
use crate::rsync::chmod::Chmod;
use crate::rsync::codec::{Cursor, put_i32, put_varint, put_vstring};
use crate::rsync::digest::Algorithm;
use crate::rsync::fault::Fault;
use crate::rsync::flist::{Class, ListDigest};
use crate::rsync::mux::{put_frame, tag};
use crate::rsync::version::Version;

/// Maximum length of a list of names, in bytes. It is the limit of stock clients.
pub const NAMES: usize = 255;
/// The longest timeout that a client can be told, in seconds. It is the limit of stock clients.
pub const TIMEOUT: u32 = 86_400;

/// Compatibility bits.
mod compat {
    pub(super) const INCREMENTAL: i32 = 0x001;
    /// This side can set the times of symlinks. That is true of every Linux, and stock servers say so.
    pub(super) const SYMLINK_TIMES: i32 = 0x002;
    pub(super) const SAFE_LIST: i32 = 0x008;
    pub(super) const PLAIN_XATTR_LINKS: i32 = 0x010;
    pub(super) const SEED_FIRST: i32 = 0x020;
    pub(super) const INPLACE_PARTIAL: i32 = 0x040;
    pub(super) const VARINT_FLAGS: i32 = 0x080;
    pub(super) const ID0_NAMES: i32 = 0x100;
}

/// The capabilities of this sender for one session.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// The digests to offer, the preferred first, without [`Algorithm::SeededMd4`]. A client that chooses a
    /// digest by option gets it even if it is not among these.
    pub digests: &'a [Algorithm],
    /// The compressions to offer, the preferred first. They should include [`Compression::None`].
    pub compressions: &'a [Compression],
    /// The checksum seed, unless the client fixes it.
    pub seed: i32,
    /// Whether the list may be sent incrementally, if the client and the paths allow it.
    pub incremental: bool,
    /// The timeout of a silent session, in seconds. The client's own timeout applies if it is shorter.
    pub timeout: Option<u32>,
}

/// The result of the setup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// The negotiated version.
    pub version: Version,
    /// The digest after every file.
    pub transfer: Algorithm,
    /// The digest in the list, with `-c`. It is never seeded.
    pub list: Algorithm,
    /// The compression of literal data.
    pub compression: Compression,
    /// The session's checksum seed.
    pub seed: i32,
    /// Whether the list is sent incrementally, in sub-lists.
    pub incremental: bool,
    /// Whether the list's end mark may carry an I/O error.
    pub safe_list: bool,
    /// Whether the entries' flags are varints.
    pub varint_flags: bool,
    /// Whether id lists end with the name of id 0.
    pub id0_names: bool,
    /// The timeout after which either side gives up on a silent peer, in seconds. Send keep-alives at half of it.
    pub timeout: Option<u32>,
}

/// A setup that waits for the client's names.
#[derive(Debug)]
pub struct Negotiation {
    setup: Setup,
    level: Option<i32>,
    /// The digests that were offered by name. `None` unless the client's names are still to come.
    digests: Option<Vec<Algorithm>>,
    compressions: Option<Vec<Compression>>,
    fault: Option<Fault>,
    input: Vec<u8>,
}

impl Setup {
    /// Starts the setup. Returns the bytes to send in one write, and the negotiation that waits for the
    /// client's part. Send the bytes even if the options or the negotiation have a fault: the client accepts
    /// error frames only after them.
    pub fn begin(options: &Options, offer: &Offer<'_>) -> (Vec<u8>, Negotiation) {
        let negotiation = Negotiation::new(options, offer);
        let setup = &negotiation.setup;
        let mut out = Vec::new();
        if setup.version.facts().variable_ints {
            put_varint(&mut out, compat_bits(setup, options));
        }
        if let Some(digests) = &negotiation.digests {
            put_names(&mut out, digests.iter().map(|digest| digest.name()));
        }
        if let Some(compressions) = &negotiation.compressions {
            put_names(&mut out, compressions.iter().map(|compression| compression.name()));
        }
        put_i32(&mut out, setup.seed);
        if let Some(seconds) = setup.timeout.filter(|_| setup.version.facts().exit_messages) {
            put_frame(&mut out, tag::IO_TIMEOUT, &seconds.min(TIMEOUT).to_le_bytes());
        }
        (out, negotiation)
    }

    /// Returns the list class of this session: everything that makes the bytes of its list differ from
    /// another session's.
    pub fn class(&self, options: &Options) -> Class {
        let digest = match self.list {
            Algorithm::Xxh128 => ListDigest::Xxh128,
            Algorithm::Md5 => ListDigest::Md5,
            other => ListDigest::Unknown(other.bytes() as u8),
        };
        Class {
            version: self.version,
            varint_flags: self.varint_flags,
            incremental: self.incremental,
            id0_names: self.id0_names,
            safe_list: self.safe_list,
            links: options.links,
            hard_links: options.hard_links,
            owner: options.owner,
            group: options.group,
            devices: options.devices,
            specials: options.specials,
            numeric_ids: options.numeric_ids,
            nameless: false,
            atimes: options.atimes,
            acls: options.acls,
            xattrs: options.xattrs,
            checksum: options.checksum.then_some(digest),
            public_digests: false,
            munged: false,
            chmod: Chmod::default(),
        }
    }
}

impl Negotiation {
    /// Takes bytes from the client, beginning with those left over from the greeting.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// Returns the agreed setup. `None` until the client has sent its part. A fault is final; a fault of the
    /// options is returned at once.
    #[allow(clippy::should_implement_trait, reason = "an agreement may follow after `None`")]
    pub fn next(&mut self) -> Result<Option<Setup>, Fault> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        if let Some(digests) = &self.digests {
            let Some(names) = take_names(&mut self.input)? else { return Ok(None) };
            let chosen = first_offered(&names, Algorithm::from_name, digests);
            let chosen = chosen.ok_or(Fault::NothingInCommon { what: "checksum" })?;
            (self.setup.transfer, self.setup.list) = (chosen, chosen);
            self.digests = None;
        }
        if let Some(compressions) = &self.compressions {
            let Some(names) = take_names(&mut self.input)? else { return Ok(None) };
            let chosen = first_offered(&names, Compression::from_name, compressions);
            let chosen = chosen.ok_or(Fault::NothingInCommon { what: "compress" })?;
            self.setup.compression = at_level(chosen, self.level);
            self.compressions = None;
        }
        Ok(Some(self.setup))
    }

    /// Returns the bytes that the client sent after its part. They belong to its requests.
    pub fn into_rest(self) -> Vec<u8> {
        self.input
    }

    fn new(options: &Options, offer: &Offer<'_>) -> Self {
        let version = options.version;
        let can = options.capabilities;
        let mut fault = options.fault.clone();
        let implied = version.facts().implied_digest;
        // Only the digest of a whole file is ever seeded.
        let implied_list = if implied == Algorithm::SeededMd4 { Algorithm::Md4 } else { implied };
        let (transfer, list) = options.checksum_choice.unwrap_or((implied, implied_list));
        let by_name = options.compress == Compress::Negotiated && can.varint_flags;
        let compression = match options.compress {
            Compress::Chosen(compression) => compression,
            Compress::Negotiated if !by_name => Compression::Zlib,
            _ => Compression::None,
        };
        if compression != Compression::None && !offer.compressions.contains(&compression) {
            fault.get_or_insert(Fault::Refused("compress".to_owned()));
        }
        let setup = Setup {
            version,
            transfer,
            list,
            compression: at_level(compression, options.compress_level),
            seed: options.seed.unwrap_or(offer.seed),
            incremental: offer.incremental && can.incremental && options.wanted().may_be_incremental(),
            safe_list: can.safe_list,
            varint_flags: can.varint_flags,
            id0_names: can.id0_names,
            timeout: options.timeout.into_iter().chain(offer.timeout).min(),
        };
        let by_digest_name = can.varint_flags && options.checksum_choice.is_none();
        Self {
            setup,
            level: options.compress_level,
            digests: by_digest_name.then(|| offer.digests.to_vec()),
            compressions: by_name.then(|| offer.compressions.to_vec()),
            fault,
            input: Vec::new(),
        }
    }
}

/// Returns the setup block of a session whose options are not known. It agrees on nothing, and only error
/// frames can follow it.
pub fn bare(version: Version) -> Vec<u8> {
    let mut out = Vec::new();
    if version.facts().variable_ints {
        put_varint(&mut out, 0);
    }
    put_i32(&mut out, 0);
    out
}

/// Returns the compression that a client uses at this level. For zlib, level 0 means no compression, and the
/// data are not wrapped. The other compressions have no such level.
fn at_level(compression: Compression, level: Option<i32>) -> Compression {
    match compression {
        Compression::Zlib | Compression::Zlibx if level == Some(0) => Compression::None,
        other => other,
    }
}

fn compat_bits(setup: &Setup, options: &Options) -> i32 {
    let can = options.capabilities;
    let bits = [
        (compat::INCREMENTAL, setup.incremental),
        (compat::SYMLINK_TIMES, true),
        (compat::SAFE_LIST, can.safe_list),
        (compat::PLAIN_XATTR_LINKS, can.plain_xattr_links),
        (compat::SEED_FIRST, can.seed_first),
        (compat::INPLACE_PARTIAL, can.inplace_partial),
        (compat::VARINT_FLAGS, can.varint_flags),
        (compat::ID0_NAMES, can.id0_names),
    ];
    bits.into_iter().filter(|(_, set)| *set).fold(0, |bits, (bit, _)| bits | bit)
}

fn put_names(out: &mut Vec<u8>, names: impl Iterator<Item = &'static str>) {
    put_vstring(out, names.collect::<Vec<_>>().join(" ").as_bytes());
}

fn take_names(input: &mut Vec<u8>) -> Result<Option<Vec<u8>>, Fault> {
    let mut cursor = Cursor::new(input);
    match cursor.vstring("names of choices", NAMES) {
        Ok(names) => {
            let (names, end) = (names.to_vec(), cursor.position());
            input.drain(..end);
            Ok(Some(names))
        }
        Err(DecodeError::Short(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn first_offered<T: PartialEq>(names: &[u8], from_name: fn(&[u8]) -> Option<T>, offered: &[T]) -> Option<T> {
    names.split(|&byte| byte == b' ').filter_map(from_name).find(|named| offered.contains(named))
}

#[cfg(test)]
mod tests;
