//! The binary negotiation after the arguments, and what it comes to.
//!
//! Source: stock releases 2.6.0 to 3.5.0. Where both sides name what they can do, the client takes the first
//! of its own names that the server named too, and so must the server.

use crate::codec::DecodeError;
use crate::rsync::arguments::{Compress, Compression, Options};
use crate::rsync::chmod::Chmod;
use crate::rsync::codec::{Cursor, put_i32, put_varint, put_vstring};
use crate::rsync::digest::Algorithm;
use crate::rsync::fault::Fault;
use crate::rsync::flist::{Class, ListDigest};
use crate::rsync::mux::{put_frame, tag};
use crate::rsync::version::Version;

/// Bytes in a list of names: the bound of stock clients.
pub const NAMES: usize = 255;
/// Seconds of silence that a client can be told to bear: the bound of stock clients.
pub const TIMEOUT: u32 = 86_400;

/// Compatibility bits.
mod compat {
    pub(super) const INCREMENTAL: i32 = 0x001;
    /// This side can set the times of symlinks: true of every Linux, and stock servers say so.
    pub(super) const SYMLINK_TIMES: i32 = 0x002;
    pub(super) const SAFE_LIST: i32 = 0x008;
    pub(super) const PLAIN_XATTR_LINKS: i32 = 0x010;
    pub(super) const SEED_FIRST: i32 = 0x020;
    pub(super) const INPLACE_PARTIAL: i32 = 0x040;
    pub(super) const VARINT_FLAGS: i32 = 0x080;
    pub(super) const ID0_NAMES: i32 = 0x100;
}

/// What this sender can do for a session.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// Digests to agree on, the preferred first; without [`Algorithm::SeededMd4`]. A client that chooses one
    /// itself gets that.
    pub digests: &'a [Algorithm],
    /// Compressions, the preferred first; [`Compression::None`] should be among them.
    pub compressions: &'a [Compression],
    /// The seed, unless the client fixes it.
    pub seed: i32,
    /// Whether the list may be sent in parts, if client and paths allow it.
    pub incremental: bool,
    /// Seconds of silence before a session ends; the client's own limit is used if it is shorter.
    pub timeout: Option<u32>,
}

/// What is in force after the setup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// The version.
    pub version: Version,
    /// Digest behind every file.
    pub transfer: Algorithm,
    /// Digest in the list, with `-c`; never seeded.
    pub list: Algorithm,
    /// Wrapping of literal data.
    pub compression: Compression,
    /// The session's seed.
    pub seed: i32,
    /// The list goes out in parts.
    pub incremental: bool,
    /// An I/O error may ride on the list's end mark.
    pub safe_list: bool,
    /// Entries' flags are varints.
    pub varint_flags: bool,
    /// Id lists end with the names of id 0.
    pub id0_names: bool,
    /// Seconds after which one side gives up on silence; keep alive at half of it.
    pub timeout: Option<u32>,
}

/// A negotiation that waits for the client's names.
#[derive(Debug)]
pub struct Negotiation {
    setup: Setup,
    level: Option<i32>,
    /// What was offered by name, and waits for the client's names.
    digests: Option<Vec<Algorithm>>,
    compressions: Option<Vec<Compression>>,
    fault: Option<Fault>,
    input: Vec<u8>,
}

impl Setup {
    /// Begins: what to send, in one write, and what then waits for the client's answer. The bytes go out even if
    /// the options or the negotiation have a fault: the client reads error frames only behind them.
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

    /// What makes this session's list other bytes than another's.
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
    /// Takes bytes of the client (first those left over from the greeting).
    pub fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// What was agreed; none until the client has said its part. A fault is final, and comes at once when
    /// the options have one.
    #[allow(clippy::should_implement_trait, reason = "an agreement may follow after none")]
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

    /// Bytes that the client sent after its part: the first of its requests.
    pub fn into_rest(self) -> Vec<u8> {
        self.input
    }

    fn new(options: &Options, offer: &Offer<'_>) -> Self {
        let version = options.version;
        let can = options.capabilities;
        let mut fault = options.fault.clone();
        let implied = version.facts().implied_digest;
        // Only a file's digest is ever seeded.
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

/// The block of a session whose options are not known. It agrees on nothing, and only error frames can follow it.
pub fn bare(version: Version) -> Vec<u8> {
    let mut out = Vec::new();
    if version.facts().variable_ints {
        put_varint(&mut out, 0);
    }
    put_i32(&mut out, 0);
    out
}

/// What a client takes a compression at a level for: zlib at level 0 is none at all, and its data are not wrapped.
/// The others have no such level.
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
