//! Block checksums and the search, end to end in memory, with arbitrary edits and hostile checksums.

use proptest::prelude::*;
use stillmirror_protocol::delta::{Assembly, Basis, DeltaError, Piece, Search, Step};
use stillmirror_protocol::sums::{Layout, Level, Scheme, SumsBuilder, SumsError, SumsPolicy, SumsRef};

fn record(scheme: Scheme, data: &[u8], piece: usize) -> Vec<u8> {
    let mut builder = SumsBuilder::new(scheme, data.len() as u64);
    data.chunks(piece.max(1)).for_each(|piece| builder.update(piece));
    builder.finish()
}

fn default_record(data: &[u8]) -> Vec<u8> {
    record(Scheme::for_size(data.len() as u64, &SumsPolicy::default()), data, 1 << 16)
}

/// Searches with the checksums of `record`. Panics after more steps than any search should take.
fn search(record: &[u8], bases: &[&dyn Basis]) -> Assembly {
    counted_search(record, bases).0
}

/// Like [`search`], but also returns the number of lookups.
fn counted_search(record: &[u8], bases: &[&dyn Basis]) -> (Assembly, u64) {
    let sums = SumsRef::parse(record).expect("a valid record");
    let mut search = Search::new(sums.layout().clone());
    let mut step = search.start();
    for _ in 0..100 {
        match step {
            Step::Done(assembly) => return (assembly, search.lookups()),
            Step::NeedSums(ranges) => {
                for range in ranges {
                    let items = sums.range(usize::from(range.level), range.first, range.count);
                    search.supply(range, items.expect("ranges lie within the record")).expect("asked for");
                }
                step = search.advance(bases).expect("bases in memory");
            }
        }
    }
    panic!("the search does not end");
}

/// Checks that the pieces tile the file and lie within the bases. Returns the file made from them.
fn rebuild(assembly: &Assembly, new: &[u8], bases: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in assembly.pieces() {
        assert!(!piece.is_empty());
        match *piece {
            Piece::Copy { target, len, basis, offset } => {
                assert_eq!(target, out.len() as u64);
                out.extend_from_slice(&bases[basis as usize][offset as usize..(offset + len) as usize]);
            }
            Piece::Literal { target, len } => {
                assert_eq!(target, out.len() as u64);
                out.extend_from_slice(&new[target as usize..(target + len) as usize]);
            }
        }
    }
    assert_eq!(assembly.literal_bytes() + assembly.matched_bytes(), new.len() as u64);
    out
}

fn round_trip(new: &[u8], bases: &[&[u8]]) -> Assembly {
    let owned: Vec<Vec<u8>> = bases.iter().map(|basis| basis.to_vec()).collect();
    let dynamic: Vec<&dyn Basis> = owned.iter().map(|basis| basis as &dyn Basis).collect();
    let assembly = search(&default_record(new), &dynamic);
    assert!(rebuild(&assembly, new, bases) == new, "the rebuilt file differs");
    assembly
}

/// Returns pseudo-random bytes.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Generates content from noise, runs of one byte, and noise of a small alphabet.
fn content(max: usize) -> impl Strategy<Value = Vec<u8>> {
    let part = (0..max / 4, any::<u64>(), 0..3u8).prop_map(|(len, seed, kind)| match kind {
        0 => noise(len, seed),
        1 => vec![seed as u8; len],
        _ => noise(len, seed).into_iter().map(|byte| byte & 1).collect(),
    });
    proptest::collection::vec(part, 0..5).prop_map(|parts| parts.concat())
}

#[derive(Debug, Clone)]
enum Edit {
    Insert(usize, Vec<u8>),
    Delete(usize, usize),
    Overwrite(usize, Vec<u8>),
    Move(usize, usize, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let bytes = || proptest::collection::vec(any::<u8>(), 1..3000);
    prop_oneof![
        (any::<usize>(), bytes()).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (any::<usize>(), 1..20_000usize).prop_map(|(at, len)| Edit::Delete(at, len)),
        (any::<usize>(), bytes()).prop_map(|(at, bytes)| Edit::Overwrite(at, bytes)),
        (any::<usize>(), any::<usize>(), 1..50_000usize).prop_map(|(from, to, len)| Edit::Move(from, to, len)),
    ]
}

fn apply(edit: &Edit, data: &mut Vec<u8>) {
    let at = |at: usize, data: &[u8]| at % (data.len() + 1);
    match edit {
        Edit::Insert(offset, bytes) => {
            let start = at(*offset, data);
            data.splice(start..start, bytes.iter().copied());
        }
        Edit::Delete(offset, len) => {
            let start = at(*offset, data);
            data.drain(start..(start + len).min(data.len()));
        }
        Edit::Overwrite(offset, bytes) => {
            let start = at(*offset, data);
            let end = (start + bytes.len()).min(data.len());
            data[start..end].copy_from_slice(&bytes[..end - start]);
        }
        Edit::Move(from, to, len) => {
            let start = at(*from, data);
            let moved: Vec<u8> = data.drain(start..(start + len).min(data.len())).collect();
            let start = at(*to, data);
            data.splice(start..start, moved);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn an_edited_file_is_rebuilt_from_its_old_version(old in content(400_000), edits in proptest::collection::vec(edit(), 0..6)) {
        let mut new = old.clone();
        edits.iter().for_each(|edit| apply(edit, &mut new));
        round_trip(&new, &[&old]);
    }

    #[test]
    fn any_file_is_rebuilt_from_any_bases(new in content(100_000), a in content(100_000), b in content(50_000)) {
        round_trip(&new, &[&a, &b]);
    }

    #[test]
    fn a_record_does_not_depend_on_how_the_data_is_split(data in content(200_000), piece in 1..10_000usize) {
        let scheme = Scheme::for_size(data.len() as u64, &SumsPolicy::default());
        prop_assert_eq!(record(scheme.clone(), &data, piece), record(scheme, &data, usize::MAX));
    }

    #[test]
    fn a_record_has_the_layout_of_its_scheme(data in content(200_000)) {
        let bytes = default_record(&data);
        let sums = SumsRef::parse(&bytes).expect("valid");
        let scheme = Scheme::for_size(data.len() as u64, &SumsPolicy::default());
        let layout = Layout::new(data.len() as u64, scheme).expect("possible");
        prop_assert_eq!(sums.layout(), &layout);
        prop_assert_eq!(layout.record_len(), bytes.len() as u64);
        for level in 0..layout.levels().len() {
            let blocks = layout.blocks(level).expect("a level");
            let items = layout.items(level, 0, blocks).expect("its items");
            prop_assert_eq!(sums.range(level, 0, blocks).expect("its items"), &bytes[items.start as usize..items.end as usize]);
            prop_assert!(sums.range(level, 0, blocks + 1).is_none());
            prop_assert!(sums.range(level, u64::MAX, 1).is_none());
        }
    }

    #[test]
    fn a_damaged_record_never_panics(data in content(60_000), at in any::<usize>(), byte in any::<u8>(), cut in any::<usize>()) {
        let mut bytes = default_record(&data);
        let len = bytes.len();
        prop_assert!(SumsRef::parse(&bytes[..cut % len]).is_err());
        bytes[at % len] = byte;
        if let Ok(sums) = SumsRef::parse(&bytes) {
            for level in 0..sums.levels().len() {
                let _ = sums.range(level, 0, u64::MAX);
                let _ = sums.range(level, 1, 1);
            }
        }
    }

    #[test]
    fn arbitrary_checksums_yield_an_assembly_that_tiles_the_file(
        old in content(200_000),
        size in 4096..300_000usize,
        seed in any::<u64>(),
        alphabet in 0..3u8,
    ) {
        let mut bytes = default_record(&vec![0; size]);
        let header = bytes.len() - sums_len(&bytes);
        let hostile = noise(bytes.len() - header, seed);
        for (byte, noise) in bytes[header..].iter_mut().zip(hostile) {
            *byte = match alphabet { 0 => noise, 1 => seed as u8, _ => noise & 1 };
        }
        let assembly = search(&bytes, &[&old]);
        prop_assert_eq!(assembly.pieces().iter().map(Piece::len).sum::<u64>(), size as u64);
    }

    #[test]
    fn unusual_schemes_work_like_the_default_one(data in content(100_000), fine in 8..200u32, ratios in proptest::collection::vec(2..9u32, 0..4), strong_len in 2..=8u8) {
        let mut levels = vec![Level { block_size: fine * 8, strong_len }];
        for ratio in ratios {
            levels.push(Level { block_size: levels[levels.len() - 1].block_size * ratio, strong_len });
        }
        levels.reverse();
        let mut new = data.clone();
        new.splice(data.len() / 2..data.len() / 2, *b"inserted");
        let bytes = record(Scheme::new(levels).expect("valid"), &new, 4096);
        let assembly = search(&bytes, &[&data]);
        prop_assert!(rebuild(&assembly, &new, &[&data]) == new);
    }
}

fn sums_len(record: &[u8]) -> usize {
    let sums = SumsRef::parse(record).expect("valid");
    let levels = sums.levels().iter();
    levels.map(|level| level.blocks(sums.size()) as usize * level.item_len()).sum()
}

#[test]
fn an_unchanged_file_costs_its_coarsest_level_only() {
    let data = noise(4_000_000, 1);
    let assembly = round_trip(&data, &[&data]);
    assert_eq!(assembly.literal_bytes(), 0);
    assert!(assembly.sums_bytes() < 200, "{} bytes of checksums", assembly.sums_bytes());
    assert_eq!(assembly.pieces().len(), 1);
}

#[test]
fn one_byte_inserted_costs_a_few_fine_blocks() {
    let old = noise(4_000_000, 2);
    let mut new = old.clone();
    new.insert(1_234_567, 0);
    let assembly = round_trip(&new, &[&old]);
    assert!(assembly.literal_bytes() <= 1024, "{} literal bytes", assembly.literal_bytes());
    assert!(assembly.sums_bytes() < 500, "{} bytes of checksums", assembly.sums_bytes());
}

#[test]
fn an_unrelated_file_costs_less_than_a_thousandth_in_checksums() {
    let new = noise(4_000_000, 3);
    let assembly = round_trip(&new, &[&noise(4_000_000, 4)]);
    assert!(assembly.sums_bytes() < 4_000, "{} bytes of checksums", assembly.sums_bytes());
}

#[test]
fn zeros_in_the_new_file_are_found_in_the_zeros_of_the_basis() {
    let zeros = vec![0; 5_000_000];
    let basis = [noise(100_000, 5), vec![0; 600_000]].concat();
    let assembly = round_trip(&zeros, &[&basis]);
    assert!(assembly.literal_bytes() < 1024, "{} literal bytes", assembly.literal_bytes());
}

#[test]
fn a_file_is_found_across_several_bases() {
    let (a, b) = (noise(500_000, 6), noise(500_000, 7));
    let new = [&a[1000..400_000], &b[777..300_000]].concat();
    let assembly = round_trip(&new, &[&a, &[], &b]);
    assert!(assembly.literal_bytes() < 2048, "{} literal bytes", assembly.literal_bytes());
}

#[test]
fn a_file_without_checksums_is_fetched_as_one_literal() {
    let assembly = round_trip(b"short", &[b"short"]);
    assert!(assembly.literals().eq(std::iter::once(0..5)));
    assert!(round_trip(b"", &[b"old"]).pieces().is_empty());
}

#[test]
fn weak_checksums_that_all_match_do_not_stall_the_search() {
    // Every offset of a basis of zeros has the weak checksum 0, but none has the strong checksum 0.
    let bytes = default_record(&vec![0; 1 << 20]);
    let header = bytes.len() - sums_len(&bytes);
    let mut hostile = bytes.clone();
    hostile[header..].fill(0);
    let basis = vec![0; 16 << 20];
    let assembly = search(&hostile, &[&basis]);
    assert_eq!(assembly.literal_bytes(), 1 << 20);
}

#[test]
fn checksums_that_were_not_asked_for_are_refused() {
    let data = noise(50_000, 8);
    let bytes = default_record(&data);
    let sums = SumsRef::parse(&bytes).expect("valid");
    let mut search = Search::new(sums.layout().clone());
    let Step::NeedSums(ranges) = search.start() else { panic!("checksums are needed") };
    let range = ranges[0];
    assert!(matches!(search.advance(&[]), Err(DeltaError::Missing(r)) if r == range));
    assert!(matches!(search.supply(range, &[0; 3]), Err(DeltaError::WrongLength { found: 3, .. })));
    let items = sums.range(0, range.first, range.count).expect("in the record");
    search.supply(range, items).expect("asked for");
    assert!(matches!(search.supply(range, items), Err(DeltaError::UnexpectedSums(_))));
}

#[test]
fn impossible_levels_are_refused() {
    let level = |block_size, strong_len| Level { block_size, strong_len };
    for levels in [
        vec![level(0, 1)],
        vec![level(u32::MAX, 1)],
        vec![level(512, 9)],
        vec![level(512, 1), level(512, 1)],
        vec![level(512, 1), level(4096, 1)],
        vec![level(4096, 1), level(1000, 1)],
    ] {
        assert!(matches!(Scheme::new(levels), Err(SumsError::BadLevel { .. })));
    }
    assert!(matches!(Scheme::new(vec![level(512, 1); 9]), Err(SumsError::TooManyLevels(9))));
    let scheme = Scheme::new(vec![level(64, 8)]).expect("valid");
    assert!(matches!(Layout::new(u64::MAX, scheme), Err(SumsError::TooLarge(_))));
}

#[test]
fn a_huge_claimed_size_does_not_exceed_the_limit_on_checksums() {
    let scheme = Scheme::new(vec![Level { block_size: 64, strong_len: 0 }]).expect("valid");
    let mut search = Search::new(Layout::new(1 << 60, scheme).expect("possible"));
    let Step::NeedSums(ranges) = search.start() else { panic!("checksums are needed") };
    assert!(ranges.iter().map(|range| range.count).sum::<u64>() <= 1 << 22);
}

/// Returns repetitive content with its names: zeros, another byte, and patterns shorter and longer than a fine block.
fn repetitive(len: usize) -> Vec<(&'static str, Vec<u8>)> {
    let pattern = |period: usize| noise(period, 5).into_iter().cycle().take(len).collect();
    vec![
        ("zeros", vec![0; len]),
        ("ones", vec![0xff; len]),
        ("period 3", pattern(3)),
        ("period 16", pattern(16)),
        ("period 4096", pattern(4096)),
    ]
}

#[test]
fn runs_of_equal_blocks_are_found_and_cost_few_lookups() {
    let len = 6 << 20;
    let count = |old: &[u8], new: &[u8]| {
        let old = old.to_vec();
        let (assembly, lookups) = counted_search(&default_record(new), &[&old as &dyn Basis]);
        assert!(rebuild(&assembly, new, &[&old]) == new);
        (assembly, lookups)
    };
    let noisy = noise(len, 1);
    let mut touched = noisy.clone();
    touched[len / 3] ^= 1;
    let (_, similar) = count(&noisy, &touched);
    let (_, unrelated) = count(&noisy, &noise(len, 2));
    let limit = 4 * similar.max(unrelated);
    for (name, old) in repetitive(len) {
        let mut new = old.clone();
        new[len / 3] ^= 1;
        let mut islands = old.clone();
        (0..len).step_by(1 << 20).for_each(|at| islands[at..at + 5000].copy_from_slice(&noisy[at..at + 5000]));
        for (old, new) in [(&old, &new), (&new, &old), (&islands, &new), (&new, &islands), (&old, &noisy)] {
            let (assembly, lookups) = count(old, new);
            assert!(lookups <= limit, "{name}: {lookups} lookups, the limit is {limit} (four times those for noise)");
            assert!(assembly.pieces().len() < 64, "{name}: {} pieces", assembly.pieces().len());
        }
        assert!(count(&old, &new).0.literal_bytes() < 5000, "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The old and the new file consist of noise with runs of zeros between. The file is rebuilt correctly, and the
    /// number of lookups is bounded by the bytes searched, whatever the lengths of the runs.
    #[test]
    fn sparse_content_is_rebuilt_with_lookups_in_proportion_to_its_length(
        parts in proptest::collection::vec((0..200_000usize, 0..3000usize, any::<u64>()), 1..8),
        edits in proptest::collection::vec(edit(), 0..4),
    ) {
        let old: Vec<u8> = parts.iter().flat_map(|&(zeros, len, seed)| [vec![0; zeros], noise(len, seed)].concat()).collect();
        let mut new = old.clone();
        edits.iter().for_each(|edit| apply(edit, &mut new));
        let (assembly, lookups) = counted_search(&default_record(&new), &[&old as &dyn Basis]);
        prop_assert!(rebuild(&assembly, &new, &[&old]) == new);
        prop_assert!(lookups <= 4096 + old.len() as u64 / 8, "{} lookups in {} bytes", lookups, old.len());
    }
}
