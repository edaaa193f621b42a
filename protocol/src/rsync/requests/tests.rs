use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::rsync::codec::{NdxEncoder, put_i32, put_varint, put_vstring};
use crate::rsync::digest::Algorithm;
use crate::rsync::mux::put_frame;
use crate::rsync::setup::{Offer, Setup};

fn version(number: u32) -> Version {
    Version::new(number).expect("a version")
}

fn requests(options: &Options) -> Requests {
    let offer = Offer { digests: &[], compressions: &[], seed: 0, incremental: true, timeout: None };
    let setup = Setup::begin(options, &offer).1.next().expect("no fault").expect("nothing by name");
    Requests::new(&setup, options)
}

fn events(requests: &mut Requests, input: &[u8], piece: usize) -> Result<Vec<Event>, Fault> {
    let mut events = Vec::new();
    for piece in input.chunks(piece.max(1)) {
        requests.receive(piece);
        while let Some(event) = requests.next()? {
            events.push(event);
        }
    }
    Ok(events)
}

/// Encodes these events as a client does, in frames of `frame` bytes if the version has frames.
fn stream(options: &Options, events: &[Event], frame: usize) -> Vec<u8> {
    let facts = options.version.facts();
    let mut out = Vec::new();
    let mut data = Vec::new();
    let mut ndx = NdxEncoder::new(options.version);
    let flush = |out: &mut Vec<u8>, data: &mut Vec<u8>| {
        for piece in data.chunks(frame) {
            if facts.framed_requests {
                put_frame(out, tag::DATA, piece);
            } else {
                out.extend_from_slice(piece);
            }
        }
        data.clear();
    };
    for event in events {
        match event {
            Event::Rule(rule) => {
                put_i32(&mut data, rule.len() as i32);
                data.extend_from_slice(rule);
            }
            Event::RulesEnd => {
                put_i32(&mut data, 0);
                flush(&mut out, &mut data);
            }
            Event::Name(_) | Event::NamesEnd => {
                if let Event::Name(name) = event {
                    data.extend_from_slice(name);
                }
                data.push(0);
                if facts.raw_names {
                    out.append(&mut data);
                }
            }
            Event::Request(request) => put_request(&mut data, &mut ndx, options, request),
            Event::Done => ndx.put(&mut data, NDX_DONE),
            Event::Deleted(counts) => {
                ndx.put(&mut data, NDX_DEL_STATS);
                counts.iter().for_each(|&count| put_varint(&mut data, count));
            }
            Event::KeepAlive | Event::Exit(_) | Event::Success(_) | Event::Text(_) => {
                flush(&mut out, &mut data);
                let (tag, payload) = match event {
                    Event::KeepAlive => (tag::NOOP, Vec::new()),
                    Event::Exit(code) => (tag::ERROR_EXIT, code.map(i32::to_le_bytes).map_or(Vec::new(), Vec::from)),
                    Event::Success(ndx) => (tag::SUCCESS, ndx.to_le_bytes().to_vec()),
                    Event::Text(text) => (tag::INFO, text.clone()),
                    _ => unreachable!(),
                };
                put_frame(&mut out, tag, &payload);
            }
        }
    }
    flush(&mut out, &mut data);
    out
}

fn put_request(data: &mut Vec<u8>, ndx: &mut NdxEncoder, options: &Options, request: &Request) {
    ndx.put(data, request.ndx);
    if options.version.facts().item_flags {
        data.extend_from_slice(&request.flags.to_le_bytes());
    }
    data.extend(request.basis);
    if let Some(name) = &request.name {
        put_vstring(data, name);
    }
    if request.xattrs {
        data.push(0);
    }
    if let Some(sums) = &request.sums {
        put_head(data, sums);
        if options.append == Append::No || sums.strong_len == 16 {
            // Checksums whose bytes would be misread as something else if they were not skipped.
            data.resize(data.len() + sums.count as usize * (4 + sums.strong_len as usize), 0xfe);
        }
    }
}

fn put_head(data: &mut Vec<u8>, sums: &SumHead) {
    let SumHead { count, block_len, strong_len, remainder } = *sums;
    [count, block_len, strong_len, remainder].iter().for_each(|&field| put_i32(data, field));
}

fn any_options() -> impl Strategy<Value = Options> {
    (27u32..=32, any::<[bool; 4]>()).prop_map(|(number, [names, append, dry_run, xattrs])| Options {
        files_from: if names { FilesFrom::Client } else { FilesFrom::No },
        append: if append { Append::Verified } else { Append::No },
        dry_run,
        xattrs: xattrs && number >= 30,
        ..Options::new(version(number))
    })
}

fn any_sums() -> impl Strategy<Value = SumHead> {
    (0i32..40, 1i32..=128 << 10, prop_oneof![0i32..16, Just(16)], 0i32..1000).prop_map(
        |(count, block_len, strong_len, remainder)| SumHead {
            count,
            block_len,
            strong_len,
            remainder: remainder.min(block_len),
        },
    )
}

prop_compose! {
    fn any_request(options: Options)(
        ndx in prop_oneof![0i32..300, 0i32..=i32::MAX],
        flags: u16,
        basis: u8,
        name in vec(any::<u8>(), 0..300),
        sums in any_sums(),
    ) -> Request {
        let flags = if options.version.facts().item_flags { flags } else { item::TRANSFER };
        let link = options.version.facts().exit_messages && flags & 0x5000 == 0x5000;
        let sums = (flags & item::TRANSFER != 0 && !options.dry_run).then_some(sums);
        let from = sums.filter(|sums| options.append != Append::No && sums.strong_len < 16).map_or(0, |sums| sums.bytes());
        Request {
            ndx,
            flags,
            basis: (flags & item::BASIS != 0).then_some(basis),
            name: (flags & item::NAME != 0).then(|| name.into()),
            xattrs: options.xattrs && !options.dry_run && flags & item::XATTR != 0 && !link,
            sums,
            from,
        }
    }
}

fn any_session() -> impl Strategy<Value = (Options, Vec<Event>)> {
    any_options().prop_flat_map(|options| {
        let framed = options.version.facts().framed_requests;
        let exits = options.version.facts().exit_messages;
        let message = prop_oneof![
            Just(Event::KeepAlive),
            any::<i32>().prop_map(Event::Success),
            proptest::option::of(any::<i32>()).prop_map(Event::Exit),
            vec(any::<u8>(), 0..50).prop_map(Event::Text),
        ];
        let entry = prop_oneof![
            10 => any_request(options.clone()).prop_map(Event::Request),
            3 => Just(Event::Done),
            1 => if exits { any::<[i32; 5]>().prop_map(Event::Deleted).boxed() } else { Just(Event::Done).boxed() },
            1 => if framed { message.boxed() } else { Just(Event::Done).boxed() },
        ];
        let rules = vec(vec(any::<u8>(), 1..40).prop_map(Event::Rule), 0..5);
        let names = vec(
            vec(1u8..=255, 1..60).prop_map(Event::Name),
            0..if options.files_from == FilesFrom::No { 1 } else { 8 },
        );
        (Just(options), rules, names, vec(entry, 0..30)).prop_map(|(options, rules, names, entries)| {
            let mut events = [rules, vec![Event::RulesEnd]].concat();
            if options.files_from == FilesFrom::Client {
                events.extend(names);
                events.push(Event::NamesEnd);
            }
            events.extend(entries);
            (options, events)
        })
    })
}

proptest! {
    #[test]
    fn events_are_the_same_for_any_frames_and_pieces(
        (options, expected) in any_session(),
        frame in 1usize..600,
        piece in 1usize..300,
    ) {
        let input = stream(&options, &expected, frame);
        prop_assert_eq!(events(&mut requests(&options), &input, piece), Ok(expected));
    }

    #[test]
    fn any_bytes_give_the_same_result_in_any_pieces(
        options in any_options(),
        input in vec(prop_oneof![Just(0u8), Just(7), Just(0xfe), Just(0xff), any::<u8>()], 0..200),
        piece in 1usize..20,
    ) {
        let whole = events(&mut requests(&options), &input, usize::MAX);
        prop_assert_eq!(events(&mut requests(&options), &input, piece), whole);
    }
}

/// Reads a client's stream that follows an empty list of rules.
fn entries(options: &Options, data: &[u8]) -> Result<Vec<Event>, Fault> {
    let mut input = Vec::new();
    let data = [&[0; 4], data].concat();
    if options.version.facts().framed_requests {
        put_frame(&mut input, tag::DATA, &data);
    } else {
        input = data;
    }
    events(&mut requests(options), &input, usize::MAX)
}

#[test]
fn block_checksums_are_discarded_as_they_arrive() {
    let options = Options::new(version(29));
    let mut requests = requests(&options);
    let head = SumHead { count: 1_000_000, block_len: 700, strong_len: 16, remainder: 0 };
    requests.receive(&[0; 4]);
    let mut data = Vec::new();
    data.extend_from_slice(&[5, 0, 0, 0, 0, 0x80]);
    put_head(&mut data, &head);
    requests.receive(&data);
    assert_eq!(requests.next(), Ok(Some(Event::RulesEnd)));
    let Ok(Some(Event::Request(request))) = requests.next() else { panic!("a request") };
    assert_eq!((request.ndx, request.sums, request.from), (5, Some(head), 0));
    for _ in 0..20_000 {
        requests.receive(&[0xfe; 1000]);
        assert_eq!(requests.next(), Ok(None));
        assert!(requests.data.capacity() + requests.input.capacity() < 10_000);
    }
    requests.receive(&[0xff; 4]);
    assert_eq!(requests.next(), Ok(Some(Event::Done)));
}

#[test]
fn invalid_heads_of_block_checksums_are_refused() {
    for (number, fields, field, value) in [
        (30, [-1, 700, 2, 0], "number of blocks", -1),
        (30, [1, (128 << 10) + 1, 2, 0], "block length", (128 << 10) + 1),
        (29, [1, (1 << 29) + 1, 2, 0], "block length", (1 << 29) + 1),
        (30, [1, 0, 2, 0], "block length", 0),
        (30, [1, 700, 17, 0], "sum length", 17),
        (30, [1, 700, 2, 701], "last block's length", 701),
        (30, [1, 700, 2, -1], "last block's length", -1),
    ] {
        let options = Options::new(version(number));
        let mut data = Vec::new();
        NdxEncoder::new(options.version).put(&mut data, 0);
        data.extend_from_slice(&item::TRANSFER.to_le_bytes());
        fields.iter().for_each(|&field| put_i32(&mut data, field));
        assert_eq!(entries(&options, &data), Err(Fault::SumHead { field, value }), "{number} {fields:?}");
    }
}

#[test]
fn with_append_the_head_gives_the_offset_of_the_content() {
    let from = |count, block_len, remainder| SumHead { count, block_len, strong_len: 2, remainder }.bytes();
    assert_eq!(from(13, 700, 601), 9001);
    assert_eq!(from(10, 700, 0), 7000);
    assert_eq!(from(0, 0, 0), 0);
    assert_eq!(from(i32::MAX, 1 << 29, 1), (i32::MAX as u64) * (1 << 29) - (1 << 29) + 1);
}

#[test]
fn indices_that_cannot_be_requested_are_refused() {
    let put = |ndx: i32| {
        let mut data = Vec::new();
        NdxEncoder::new(Version::NEWEST).put(&mut data, ndx);
        data
    };
    let options = Options::new(Version::NEWEST);
    assert_eq!(entries(&options, &put(-2)), Err(Fault::Index(-2)));
    assert_eq!(entries(&options, &put(-101)), Err(Fault::Index(-101)));
    // Deletion counts exist from protocol 31 on.
    assert_eq!(entries(&Options::new(version(30)), &put(-3)), Err(Fault::Index(-3)));
}

#[test]
fn rules_are_limited_in_number_and_bytes() {
    let options = Options::new(version(29));
    let run = |input: &[u8]| events(&mut requests(&options), input, 4096).map(|events| events.len());
    let RuleLimits { count, bytes } = RuleLimits::default();
    let long = [&(bytes as i32).to_le_bytes()[..], &vec![b'x'; bytes]].concat();
    assert_eq!(run(&long), Ok(1));
    assert_eq!(run(&[&long[..], &[1, 0, 0, 0, b'x']].concat()), Err(Fault::RulesTooLong(bytes)));
    assert_eq!(run(&[0xff; 4]), Err(Fault::RuleLength(-1)));
    let rule = [1, 0, 0, 0, b'x'];
    assert_eq!(run(&rule.repeat(count)), Ok(count));
    assert_eq!(run(&rule.repeat(count + 1)), Err(Fault::RulesTooMany(count)));
}

#[test]
fn a_name_cannot_be_longer_than_a_path() {
    let options = Options { files_from: FilesFrom::Client, ..Options::new(version(29)) };
    let run = |len: usize, end: &[u8]| {
        let input = [&[0; 4], &vec![b'x'; len][..], end].concat();
        events(&mut requests(&options), &input, 1000).map(|events| events.len())
    };
    assert_eq!(run(limits::PATH, b"\0\0"), Ok(3));
    assert_eq!(run(limits::PATH + 1, b""), Err(Fault::NameTooLong));
}

#[test]
fn the_name_of_a_basis_cannot_be_longer_than_a_path() {
    let run = |len: usize| {
        let mut data = Vec::new();
        NdxEncoder::new(Version::NEWEST).put(&mut data, 1);
        data.extend_from_slice(&item::NAME.to_le_bytes());
        put_vstring(&mut data, &vec![b'x'; len]);
        entries(&Options::new(Version::NEWEST), &data)
    };
    assert!(run(limits::PATH).is_ok());
    assert!(matches!(run(limits::PATH + 1), Err(Fault::Decode(DecodeError::TooLarge { .. }))));
}

#[test]
fn raw_names_must_begin_between_frames() {
    let options = Options { files_from: FilesFrom::Client, ..Options::new(version(30)) };
    assert_eq!(entries(&options, b"a\0\0"), Err(Fault::NamesInFrame));
}

#[test]
fn a_request_for_values_of_extended_attributes_is_refused() {
    let options = Options { xattrs: true, ..Options::new(Version::NEWEST) };
    assert_eq!(entries(&options, &[1, 0, 1, 1]), Err(Fault::Xattrs));
    assert!(matches!(entries(&options, &[1, 0, 1, 0]).as_deref(), Ok([_, Event::Request(request)]) if request.xattrs));
}

#[test]
fn messages_that_no_client_sends_are_refused() {
    let options = Options::new(Version::NEWEST);
    let run = |tag, payload: &[u8]| {
        let mut input = Vec::new();
        put_frame(&mut input, tag, payload);
        events(&mut requests(&options), &input, 3)
    };
    assert_eq!(run(tag::NO_SEND, &[0; 4]), Err(Fault::Frame { tag: tag::NO_SEND, len: 4 }));
    assert_eq!(run(tag::ERROR_EXIT, &[0; 3]), Err(Fault::Frame { tag: tag::ERROR_EXIT, len: 3 }));
    assert_eq!(run(tag::ERROR_EXIT, &[93, 0, 0, 0]), Ok(vec![Event::Exit(Some(93))]));
}

#[test]
fn the_digest_limits_the_length_of_strong_checksums() {
    let options = Options { checksum_choice: Some((Algorithm::Sha1, Algorithm::Sha1)), ..Options::new(version(30)) };
    let offer = Offer { digests: &[Algorithm::Sha1], compressions: &[], seed: 0, incremental: false, timeout: None };
    let setup = Setup::begin(&options, &offer).1.next().expect("no fault").expect("nothing by name");
    assert_eq!(Requests::new(&setup, &options).strong_limit, 20);
}

#[test]
fn a_keep_alive_of_protocol_29_names_the_entry_after_the_last() {
    let request = Request { ndx: 9, flags: item::NEW, basis: None, name: None, xattrs: false, sums: None, from: 0 };
    assert!(request.is_keep_alive(9));
    assert!(!request.is_keep_alive(10));
    assert!(!Request { flags: item::NEW | item::TRANSFER, ..request }.is_keep_alive(9));
}
