use proptest::prelude::*;

use super::*;
use crate::limits;

/// Parses a client's strings, fed in pieces of `piece` bytes. Also returns the input left over.
fn read(version: u32, module: &str, input: &[u8], piece: usize) -> (Result<Option<Options>, Fault>, Vec<u8>) {
    let version = Version::new(version).expect("a version");
    let mut collector = Collector::new(version);
    let mut held = Vec::new();
    let mut outcome = Ok(None);
    for piece in input.chunks(piece) {
        held.extend_from_slice(piece);
        if matches!(outcome, Ok(None)) {
            outcome = collector.take(&mut held, version, module.as_bytes());
        }
    }
    (outcome, held)
}

fn strings(strings: &[&str]) -> Vec<u8> {
    strings.iter().flat_map(|string| [string.as_bytes(), b"\0"].concat()).collect()
}

fn options(words: &[&str]) -> Options {
    let input = [&strings(&["--server", "--sender"])[..], &strings(words), b"\0"].concat();
    read(32, "pub", &input, usize::MAX).0.expect("within limits").expect("complete")
}

fn paths(words: &[&str]) -> Vec<String> {
    options(words).paths.iter().map(|path| path.escape_ascii().to_string()).collect()
}

#[test]
fn the_letters_of_an_archive_pull_are_understood() {
    let options = options(&["-vlHogDtprcCRnxe.iLsfxCIvu", "--numeric-ids", ".", "pub/"]);
    assert_eq!(options.fault, None);
    for (letter, set) in [
        ('l', options.links),
        ('H', options.hard_links),
        ('o', options.owner),
        ('g', options.group),
        ('D', options.devices && options.specials),
        ('r', options.recurse),
        ('c', options.checksum),
        ('C', options.cvs_exclude),
        ('R', options.relative),
        ('n', options.dry_run),
        ('x', options.one_file_system),
        ('#', options.numeric_ids),
    ] {
        assert!(set, "{letter}");
    }
    let all = Capabilities {
        incremental: true,
        safe_list: true,
        plain_xattr_links: true,
        seed_first: true,
        inplace_partial: true,
        varint_flags: true,
        id0_names: true,
    };
    assert_eq!(options.capabilities, all);
    assert_eq!(options.paths, [b""]);
}

#[test]
fn capabilities_mean_nothing_before_protocol_30() {
    let input = b"--server\n--sender\n-logDtpre.iLsfxCIvu\n.\npub/\n\n";
    let options = read(29, "pub", input, usize::MAX).0.expect("within limits").expect("complete");
    assert_eq!(options.capabilities, Capabilities::default());
    assert_eq!((options.recurse, options.fault), (true, None));
}

#[test]
fn long_options_take_their_values_in_either_form() {
    for words in [&["--files-from", "/names", "--timeout", "60"][..], &["--files-from=/names", "--timeout=60"]] {
        let options = options(&[words, &["-logDtpRe.Lsf", ".", "pub/"]].concat());
        assert_eq!(options.files_from, FilesFrom::Path(b"/names".to_vec()));
        assert_eq!((options.timeout, options.fault), (Some(60), None));
    }
    assert_eq!(options(&["-B8192", "-r", "-B", "700", ".", "pub/"]).fault, None);
}

#[test]
fn files_from_implies_relative_and_dirs() {
    let with = |words: &[&str]| options(&[words, &["--files-from=-", "--from0", ".", "pub/"]].concat());
    let options = with(&[]);
    assert_eq!((options.relative, options.dirs, options.from0), (true, true, true));
    assert_eq!(options.files_from, FilesFrom::Client);
    assert!(!with(&["--no-relative"]).relative);
}

#[test]
fn a_listing_that_does_not_recurse_shows_one_level() {
    let is = |words: &[&str]| {
        let options = options(&[words, &[".", "pub/"]].concat());
        (options.recurse, options.dirs)
    };
    assert_eq!(is(&["--list-only"]), (false, true));
    assert_eq!(is(&["--list-only", "-r"]), (true, false));
    assert_eq!(is(&[]), (false, false));
}

#[test]
fn devices_imply_specials_unless_they_are_turned_off() {
    let is = |words: &[&str]| {
        let options = options(&[words, &[".", "pub/"]].concat());
        (options.devices, options.specials)
    };
    assert_eq!(is(&["-D"]), (true, true));
    assert_eq!(is(&["-D", "--no-specials"]), (true, false));
    assert_eq!(is(&["--specials"]), (false, true));
}

#[test]
fn a_second_append_verifies_the_whole_file() {
    assert_eq!(options(&["--append", ".", "pub/"]).append, Append::Blind);
    assert!(options(&["--append", ".", "pub/"]).digest_of_the_rest());
    assert_eq!(options(&["--append", "--append", ".", "pub/"]).append, Append::Verified);
}

#[test]
fn digests_and_compressions_are_chosen_by_name() {
    let choice = |word: &str| options(&[word, ".", "pub/"]).checksum_choice;
    assert_eq!(choice("--checksum-choice=md4,xxhash"), Some((Algorithm::Md4, Algorithm::Xxh64)));
    assert_eq!(choice("--checksum-choice=sha1"), Some((Algorithm::Sha1, Algorithm::Sha1)));
    assert_eq!(choice("--checksum-choice=auto"), None);
    let compress = |words: &[&str]| options(&[words, &[".", "pub/"]].concat()).compress;
    assert_eq!(compress(&["-z"]), Compress::Negotiated);
    assert_eq!(compress(&["-z", "--old-compress"]), Compress::Chosen(Compression::Zlib));
    assert_eq!(compress(&["--new-compress"]), Compress::Chosen(Compression::Zlibx));
    assert_eq!(compress(&["--compress-choice=zstd", "-z"]), Compress::Chosen(Compression::Zstd));
}

#[test]
fn paths_lose_their_module_and_keep_their_wildcards() {
    assert_eq!(paths(&["-r", ".", "pub/a/sub/", "pub", "pub//b", "public/x"]), ["a/sub/", "", "b", "public/x"]);
    assert_eq!(paths(&["-r", ".", "pub/*.[ab]", "pub/a\\ b"]), ["*.[ab]", "a\\\\ b"]);
    // Nothing after the dot is an option.
    assert_eq!(paths(&["-r", ".", "pub/a", "--delete"]), ["a", "--delete"]);
}

#[test]
fn paths_packed_into_one_string_are_unpacked() {
    assert_eq!(paths(&["-r", ".", "pub/a pub/b c pub/"]), ["a", "b c", ""]);
    assert_eq!(paths(&["-r", ".", "pub/a\\ pub/b"]), ["a\\\\ pub/b"]);
}

#[test]
fn shell_quoting_is_undone_in_options_only() {
    let options = options(&["--files-from=/a\\ \\\\b\\", "-r", ".", "pub/a\\*"]);
    assert_eq!(options.files_from, FilesFrom::Path(b"/a \\b\\".to_vec()));
    assert_eq!(options.paths, [b"a\\*"]);
}

#[test]
fn secluded_arguments_come_in_a_second_list() {
    let second = strings(&["rsync", "--timeout=9", ".", "pub/a b", "pub/c pub/d", ""]);
    let first = strings(&["--server", "--sender", "-slogDtpre.iLsfxCIvu", ""]);
    let old = b"--server\n--sender\n-slogDtpr\n(null)\n.\npub/\n\n".to_vec();
    for (version, first) in [(32, first), (29, old)] {
        let (outcome, rest) = read(version, "pub", &[&first, &second, &b"rest"[..]].concat(), usize::MAX);
        let options = outcome.expect("within limits").expect("complete");
        assert_eq!(options.paths, [&b"a b"[..], b"c pub/d"]);
        assert_eq!((options.links, options.timeout, options.fault), (true, Some(9), None));
        assert_eq!(rest, b"rest");
    }
}

#[test]
fn only_the_letter_s_announces_a_second_list() {
    for words in [&["--specials", ".", "-s"][..], &["-re.s", ".", "pub/"]] {
        assert!(
            !parse::is_secluded(&words.iter().map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>()),
            "{words:?}"
        );
    }
}

#[test]
fn the_first_fault_is_kept_and_the_rest_is_still_parsed() {
    let fault = |words: &[&str]| options(words).fault;
    assert_eq!(fault(&["--iconv=utf-8", "--nonsense", ".", "pub/"]), Some(Fault::Refused("iconv".to_owned())));
    assert_eq!(fault(&["-N", ".", "pub/"]), Some(Fault::Refused("crtimes".to_owned())));
    assert_eq!(fault(&["--remove-source-files", ".", "pub/"]), Some(Fault::WritingOption("remove-source-files")));
    assert_eq!(fault(&["--nonsense=1", ".", "pub/"]), Some(Fault::UnknownOption("--nonsense=1".to_owned())));
    assert_eq!(fault(&["-rw", ".", "pub/"]), Some(Fault::UnknownOption("-w".to_owned())));
    assert_eq!(fault(&["stray", ".", "pub/"]), Some(Fault::UnknownOption("stray".to_owned())));
    assert_eq!(
        fault(&["--timeout=-1", ".", "pub/"]),
        Some(Fault::OptionValue { option: "timeout", value: "-1".to_owned() })
    );
    assert_eq!(
        fault(&["--checksum-choice=sha512", ".", "pub/"]),
        Some(Fault::Choice { what: "checksum", name: "sha512".to_owned() })
    );
    assert_eq!(fault(&["-r"]), Some(Fault::NoPath));
    assert_eq!(fault(&["-r", ".", &"pub/a ".repeat(limits::ARGUMENTS + 1)]), Some(Fault::TooManyPaths));
    let options = options(&["--checksum-choice=sha512", "-H", ".", "pub/"]);
    assert!(options.hard_links && options.checksum_choice.is_some());
}

#[test]
fn a_client_that_wants_to_upload_learns_that_the_module_is_read_only() {
    let input = strings(&["--server", "-logDtpre.iLsfxCIvu", ".", "pub/", ""]);
    let options = read(32, "pub", &input, usize::MAX).0.expect("within limits").expect("complete");
    assert_eq!(options.fault, Some(Fault::ReadOnly));
}

#[test]
fn acls_and_xattrs_require_protocol_30() {
    let input = b"--server\n--sender\n-rA\n.\npub/\n\n";
    let options = read(29, "pub", input, usize::MAX).0.expect("within limits").expect("complete");
    let version = Version::new(29).expect("a version");
    assert_eq!(options.fault, Some(Fault::OptionVersion { option: "acls", least: 30, version }));
}

#[test]
fn used_options_have_the_names_that_refuse_options_uses() {
    let used = options(&["-rze.iLsfxCIvu", "--timeout=1", "-z", ".", "pub/"]).used;
    let expected =
        [("server", None), ("sender", None), ("recursive", Some('r')), ("compress", Some('z')), ("timeout", None)];
    assert_eq!(used, expected.map(|(name, letter)| Used { name, letter }));
}

#[test]
fn arguments_that_do_not_end_are_refused() {
    let outcome = |input: &[u8]| read(32, "pub", input, 4096).0;
    assert_eq!(outcome(&vec![b'a'; limits::ARGUMENT_BYTES + 4096]), Err(Fault::ArgumentsTooLong));
    assert_eq!(outcome(&b"a\0".repeat(limits::ARGUMENTS + 1)), Err(Fault::ArgumentsTooLong));
    assert_eq!(outcome(&b"a\0".repeat(limits::ARGUMENTS)), Ok(None));
}

proptest! {
    #[test]
    fn pieces_do_not_change_the_result_of_any_input(
        version in 27u32..=32,
        words in proptest::collection::vec("(-{0,2}[a-zA-Z0-9=./\\\\ *,-]{0,12}|--server|--sender|\\.|pub/[a-z ]{0,5})", 0..12),
        piece in 1usize..9,
    ) {
        let end = if version < 30 { "\n" } else { "\0" };
        let input = words.iter().map(|word| format!("{word}{end}")).collect::<String>() + end + "\0\0";
        let whole = read(version, "pub", input.as_bytes(), usize::MAX);
        prop_assert_eq!(whole, read(version, "pub", input.as_bytes(), piece));
    }
}
