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
    let mut greeting = Greeting::new(GreetingOffer { version, greeted: false, motd: b"" });
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
fn the_first_offered_name_in_the_clients_list_is_agreed() {
    let z = options(32, &["-rze.iLsfxCIvu"]);
    let setup = agree(&z, &OFFER, &[b"sha3 md5 xxh128", b"lzma lz4 zstd"]).expect("an agreement");
    assert_eq!((setup.transfer, setup.compression), (Algorithm::Md5, Compression::Lz4));
    let few = Offer { digests: &[Algorithm::Xxh64], compressions: &[Compression::None], ..OFFER };
    let setup = agree(&z, &few, &[b"md5 xxhash", b"zstd none"]).expect("an agreement");
    assert_eq!((setup.list, setup.compression), (Algorithm::Xxh64, Compression::None));
}

#[test]
fn nothing_in_common_is_the_clients_fault() {
    let plain = options(32, &["-re.iLsfxCIvu"]);
    assert_eq!(agree(&plain, &OFFER, &[b"sha3"]), Err(Fault::NothingInCommon { what: "checksum" }));
    let (_, mut negotiation) = Setup::begin(&plain, &OFFER);
    negotiation.receive(&[0x81, 0, 0]);
    assert!(matches!(negotiation.next(), Err(Fault::Decode(DecodeError::TooLarge { .. }))));
}

#[test]
fn a_client_without_names_gets_the_defaults_of_its_version() {
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
fn zlib_at_level_0_is_no_compression() {
    let compression = |version, words: &[&str], names: &[&[u8]]| {
        agree(&options(version, &[words, &["--compress-level=0"]].concat()), &OFFER, names)
            .expect("an agreement")
            .compression
    };
    assert_eq!(compression(29, &["-rz"], &[]), Compression::None);
    assert_eq!(compression(30, &["-rze.iLsf", "--new-compress"], &[]), Compression::None);
    assert_eq!(compression(32, &["-rze.iLsfxCIvu"], &[b"md5", b"zlibx"]), Compression::None);
    assert_eq!(compression(32, &["-rze.iLsfxCIvu"], &[b"md5", b"zstd"]), Compression::Zstd);
    assert_eq!(compression(32, &["-rze.iLsfxCIvu", "--compress-choice=lz4"], &[b"md5"]), Compression::Lz4);
}

#[test]
fn the_block_holds_bits_then_names_then_seed_then_timeout() {
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
fn a_list_is_incremental_only_if_client_paths_and_server_allow_it() {
    let inc = |options: &Options| Setup::begin(options, &OFFER).1.setup.incremental;
    assert!(inc(&options(32, &["-re.iLsfxCIvu"])));
    assert!(!inc(&options(32, &["-re.LsfxCIvu"])));
    assert!(!inc(&options(29, &["-re.iLsfxCIvu"])));
    let relative =
        |path: &[u8]| Options { relative: true, paths: vec![path.to_vec()], ..options(32, &["-re.iLsfxCIvu"]) };
    assert!(inc(&relative(b"")) && inc(&relative(b"dir/./")));
    assert!(!inc(&relative(b"dir/")) && !inc(&relative(b"dir/./a")));
    assert!(!inc(&Options { copy_links: true, ..options(32, &["-re.iLsfxCIvu"]) }));
    assert!(!inc(&Options { files_from: FilesFrom::Client, ..options(32, &["-re.iLsfxCIvu"]) }));
}

#[test]
fn a_choice_that_is_not_offered_is_refused_after_the_block() {
    let none = Offer { compressions: &[Compression::None], digests: &[Algorithm::Md5], ..OFFER };
    let (block, mut negotiation) = Setup::begin(&options(32, &["--compress-choice=zstd", "-re.iLsfxCIvu"]), &none);
    assert!(block.ends_with(&[4, 3, 2, 1]));
    assert_eq!(negotiation.next(), Err(Fault::Refused("compress".to_owned())));
    let iconv = options(32, &["--iconv=utf-8", "-re.iLsfxCIvu"]);
    assert_eq!(Setup::begin(&iconv, &OFFER).1.next(), Err(Fault::Refused("iconv".to_owned())));
}

#[test]
fn a_digest_chosen_by_option_need_not_be_offered() {
    let offer = Offer { digests: &[Algorithm::Md5], ..OFFER };
    let chosen = options(32, &["--checksum-choice=sha1,xxh64", "-re.iLsfxCIvu"]);
    let setup = agree(&chosen, &offer, &[]).expect("an agreement");
    assert_eq!((setup.transfer, setup.list), (Algorithm::Sha1, Algorithm::Xxh64));
}

#[test]
fn the_list_class_holds_the_options_that_change_the_lists_bytes() {
    let options = options(32, &["-lHogDtprce.iLsfxCIvu", "--numeric-ids"]);
    let setup = agree(&options, &OFFER, &[b"sha1"]).expect("an agreement");
    let class = setup.class(&options);
    assert_eq!(class.checksum, Some(ListDigest::Unknown(20)));
    assert!(class.links && class.hard_links && class.owner && class.group && class.devices && class.numeric_ids);
    assert!(class.incremental && class.varint_flags && class.id0_names && !class.acls && !class.atimes);
    assert_eq!(options.append, Append::No);
}
