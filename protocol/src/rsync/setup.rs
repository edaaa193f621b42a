//! The binary negotiation after the arguments, and what it comes to.
//!
//! Source: stock releases 2.6.0 to 3.5.0. Where both sides name what they can do, the client takes the first
//! of its own names that the server named too, and so must the server.

use crate::codec::DecodeError;
use crate::rsync::arguments::{Compress, Compression, Options};
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
    /// Digests, the preferred first; without [`Algorithm::SeededMd4`].
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
            atimes: options.atimes,
            acls: options.acls,
            xattrs: options.xattrs,
            checksum: options.checksum.then_some(digest),
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
            self.setup.compression = chosen.ok_or(Fault::NothingInCommon { what: "compress" })?;
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
        if let Some((transfer, list)) = options.checksum_choice
            && let Some(missing) = [transfer, list].into_iter().find(|digest| !offer.digests.contains(digest))
        {
            fault.get_or_insert(Fault::Choice { what: "checksum", name: missing.name().to_owned() });
        }
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
            compression,
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
            digests: by_digest_name.then(|| offer.digests.to_vec()),
            compressions: by_name.then(|| offer.compressions.to_vec()),
            fault,
            input: Vec::new(),
        }
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
mod tests {
    use super::*;
    use crate::rsync::arguments::{Append, FilesFrom};
    use crate::rsync::greeting::{Event, Greeting, GreetingOffer};

    const OFFER: Offer<'_> = Offer {
        digests: &Algorithm::NAMED,
        compressions: &Compression::NAMED,
        seed: 0x0102_0304,
        incremental: true,
        timeout: None,
    };

    fn options(version: u32, words: &[&str]) -> Options {
        let version = Version::new(version).expect("a version");
        let end = if version.number() < 30 { "\n" } else { "\0" };
        let mut greeting = Greeting::new(GreetingOffer { version, motd: b"" });
        greeting.receive(b"@RSYNCD: 32.0 sha512\npub\n");
        assert!(matches!(greeting.next(), Ok(Some(Event::Module(_)))));
        greeting.accept();
        let words = ["--server", "--sender"].iter().chain(words).chain(&[".", "pub/", ""]);
        greeting.receive(words.map(|word| format!("{word}{end}")).collect::<String>().as_bytes());
        match greeting.next() {
            Ok(Some(Event::Arguments(options))) => *options,
            other => panic!("{other:?}"),
        }
    }

    fn agree(options: &Options, offer: &Offer<'_>, names: &[&[u8]]) -> Result<Setup, Fault> {
        let (_, mut negotiation) = Setup::begin(options, offer);
        for names in names {
            let mut bytes = Vec::new();
            put_vstring(&mut bytes, names);
            for byte in bytes {
                assert_eq!(negotiation.next(), Ok(None));
                negotiation.receive(&[byte]);
            }
        }
        negotiation.next().map(|setup| setup.expect("all names are there"))
    }

    #[test]
    fn the_first_of_the_clients_names_that_is_offered_is_in_force() {
        let z = options(32, &["-rze.iLsfxCIvu"]);
        let setup = agree(&z, &OFFER, &[b"sha3 md5 xxh128", b"lzma lz4 zstd"]).expect("an agreement");
        assert_eq!((setup.transfer, setup.compression), (Algorithm::Md5, Compression::Lz4));
        let few = Offer { digests: &[Algorithm::Xxh64], compressions: &[Compression::None], ..OFFER };
        let setup = agree(&z, &few, &[b"md5 xxhash", b"zstd none"]).expect("an agreement");
        assert_eq!((setup.list, setup.compression), (Algorithm::Xxh64, Compression::None));
    }

    #[test]
    fn a_client_with_nothing_in_common_is_at_fault() {
        let plain = options(32, &["-re.iLsfxCIvu"]);
        assert_eq!(agree(&plain, &OFFER, &[b"sha3"]), Err(Fault::NothingInCommon { what: "checksum" }));
        let (_, mut negotiation) = Setup::begin(&plain, &OFFER);
        negotiation.receive(&[0x81, 0, 0]);
        assert!(matches!(negotiation.next(), Err(Fault::Decode(DecodeError::TooLarge { .. }))));
    }

    #[test]
    fn clients_without_names_get_what_their_version_implies() {
        for (version, letters, transfer, list) in [
            (27, "-rz", Algorithm::SeededMd4, Algorithm::Md4),
            (29, "-rze.iLsfxCIvu", Algorithm::SeededMd4, Algorithm::Md4),
            (30, "-rze.iLsf", Algorithm::Md5, Algorithm::Md5),
        ] {
            let setup = agree(&options(version, &[letters]), &OFFER, &[]).expect("an agreement");
            assert_eq!((setup.transfer, setup.list, setup.compression), (transfer, list, Compression::Zlib));
        }
        let named = options(29, &["-r", "--checksum-choice=md4"]);
        assert_eq!(agree(&named, &OFFER, &[]).expect("an agreement").transfer, Algorithm::Md4);
    }

    #[test]
    fn the_block_is_bits_then_names_then_seed_then_patience() {
        let begin = |options: &Options, offer: &Offer<'_>| Setup::begin(options, offer).0;
        assert_eq!(begin(&options(29, &["-r"]), &OFFER), [4, 3, 2, 1]);
        assert_eq!(begin(&options(30, &["-re.iLsf"]), &OFFER), [0x0b, 4, 3, 2, 1]);
        let few = Offer {
            digests: &[Algorithm::Xxh3, Algorithm::None],
            compressions: &[Compression::None],
            timeout: Some(300),
            incremental: false,
            ..OFFER
        };
        let chosen = options(31, &["-rze.iLsfxCIvu", "--checksum-seed=-2", "--timeout=100000"]);
        let expected =
            [b"\x81\xfa\x09xxh3 none\x04none", &[0xfe, 0xff, 0xff, 0xff, 4, 0, 0, 0x28, 44, 1, 0, 0][..]].concat();
        assert_eq!(begin(&chosen, &few), expected);
    }

    #[test]
    fn a_list_goes_in_parts_only_where_client_paths_and_server_can() {
        let inc = |options: &Options| Setup::begin(options, &OFFER).1.setup.incremental;
        assert!(inc(&options(32, &["-re.iLsfxCIvu"])));
        assert!(!inc(&options(32, &["-re.LsfxCIvu"])));
        assert!(!inc(&options(29, &["-re.iLsfxCIvu"])));
        assert!(!inc(&Options { relative: true, ..options(32, &["-re.iLsfxCIvu"]) }));
        assert!(!inc(&Options { files_from: FilesFrom::Client, ..options(32, &["-re.iLsfxCIvu"]) }));
    }

    #[test]
    fn what_is_not_offered_is_refused_behind_the_block() {
        let none = Offer { compressions: &[Compression::None], digests: &[Algorithm::Md5], ..OFFER };
        let (block, mut negotiation) = Setup::begin(&options(32, &["--compress-choice=zstd", "-re.iLsfxCIvu"]), &none);
        assert!(block.ends_with(&[4, 3, 2, 1]));
        assert_eq!(negotiation.next(), Err(Fault::Refused("compress".to_owned())));
        let sha1 = options(32, &["--checksum-choice=sha1", "-re.iLsfxCIvu"]);
        let fault = Fault::Choice { what: "checksum", name: "sha1".to_owned() };
        assert_eq!(Setup::begin(&sha1, &none).1.next(), Err(fault));
        let iconv = options(32, &["--iconv=utf-8", "-re.iLsfxCIvu"]);
        assert_eq!(Setup::begin(&iconv, &OFFER).1.next(), Err(Fault::Refused("iconv".to_owned())));
    }

    #[test]
    fn the_lists_class_has_the_options_that_change_its_bytes() {
        let options = options(32, &["-lHogDtprce.iLsfxCIvu", "--numeric-ids"]);
        let setup = agree(&options, &OFFER, &[b"sha1"]).expect("an agreement");
        let class = setup.class(&options);
        assert_eq!(class.checksum, Some(ListDigest::Unknown(20)));
        assert!(class.links && class.hard_links && class.owner && class.group && class.devices && class.numeric_ids);
        assert!(class.incremental && class.varint_flags && class.id0_names && !class.acls && !class.atimes);
        assert_eq!(options.append, Append::No);
    }
}
