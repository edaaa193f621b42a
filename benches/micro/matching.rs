//! Measures the speed of block checksums and of the search with them, per core.
//!
//! `cargo bench -p stillmirror-protocol --bench matching [-- OLD NEW]` uses generated data, and one pair of real files if
//! given. It prints gigabytes (10^9 bytes) of basis per second, for a whole search with all levels and passes, on one
//! thread, as the best of five runs.

use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use stillmirror_protocol::delta::{Assembly, Basis, Search, Step};
use stillmirror_protocol::sums::{Scheme, SumsBuilder, SumsPolicy, SumsRef};

const LEN: usize = 64 << 20;
const RUNS: usize = 5;

fn main() {
    let paths: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    // One thread, because the figures are per core.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one thread");
    pool.install(|| run(&paths));
}

fn run(paths: &[String]) {
    let old = noise(LEN, 1);
    let mut edited = old.clone();
    edited.chunks_mut(1_000_003).for_each(|chunk| chunk[chunk.len() / 2] ^= 1);
    let shifted = [&old[..LEN / 3], b"inserted", &old[LEN / 3..]].concat();

    report("SHA-256", LEN, || Sha256::digest(&old).len());
    report("block checksums, default levels", LEN, || record(&old).len());
    report("SHA-256 and block checksums", LEN, || Sha256::digest(&old).len() + record(&old).len());
    for (name, new) in [
        ("same", old.clone()),
        ("8 bytes inserted", shifted),
        ("one byte changed per MB", edited),
        ("unlike", noise(LEN, 2)),
    ] {
        report_search(name, &old, &new);
    }
    let zeros = vec![0; LEN];
    let mut touched = zeros.clone();
    touched[LEN / 3] = 1;
    let mut islands = zeros.clone();
    (0..LEN).step_by(1 << 20).for_each(|at| islands[at..at + 4096].copy_from_slice(&old[at..at + 4096]));
    let mut other_islands = islands.clone();
    other_islands[LEN / 3] ^= 1;
    for (name, old, new) in [
        ("zeros, one byte changed", &zeros, &touched),
        ("zeros, one byte set back", &touched, &zeros),
        ("zeros with islands, one byte changed", &islands, &other_islands),
        ("zeros against noise", &zeros, &old),
        ("noise against zeros", &old, &zeros),
    ] {
        report_search(name, old, new);
    }
    if let [old, new] = paths {
        let read = |path: &String| std::fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        report_search(&format!("{old} -> {new}"), &read(old), &read(new));
    }
}

fn report_search(name: &str, old: &[u8], new: &[u8]) {
    let record = record(new);
    let basis = old.to_vec();
    let assembly = search(&record, &basis);
    report(&format!("search: {name}"), old.len(), || search(&record, &basis).pieces().len());
    println!("    {} of {} bytes literal, {} of checksums", assembly.literal_bytes(), new.len(), assembly.sums_bytes());
}

fn report(name: &str, bytes: usize, mut work: impl FnMut() -> usize) {
    let timed = |work: &mut dyn FnMut() -> usize| {
        let start = Instant::now();
        std::hint::black_box(work());
        start.elapsed()
    };
    let best = (0..RUNS).map(|_| timed(&mut work)).min().unwrap_or(Duration::MAX);
    println!("{:6.2} GB/s  {name}", bytes as f64 / 1e9 / best.as_secs_f64());
}

fn record(data: &[u8]) -> Vec<u8> {
    let size = data.len() as u64;
    let mut builder = SumsBuilder::new(Scheme::for_size(size, &SumsPolicy::default()), size);
    data.chunks(256 << 10).for_each(|piece| builder.update(piece));
    builder.finish()
}

#[expect(clippy::ptr_arg, reason = "a trait object needs a sized type")]
fn search(record: &[u8], basis: &Vec<u8>) -> Assembly {
    let sums = SumsRef::parse(record).expect("a valid record");
    let mut search = Search::new(sums.layout().clone());
    let mut step = search.start();
    loop {
        match step {
            Step::Done(assembly) => return assembly,
            Step::NeedSums(ranges) => {
                for range in ranges {
                    let items = sums.range(usize::from(range.level), range.first, range.count);
                    search.supply(range, items.expect("within the record")).expect("asked for");
                }
                step = search.advance(&[basis as &dyn Basis]).expect("in memory");
            }
        }
    }
}

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
