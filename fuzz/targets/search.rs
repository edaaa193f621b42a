//! A search with block checksums from a hostile sender. They are refused, or the search ends in an assembly that tiles
//! the new file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stillmirror_protocol::delta::{Basis, Search, Step};
use stillmirror_protocol::sums::{Layout, Level, Scheme, SumsRef};

fuzz_target!(|input: (u32, Vec<(u16, u8)>, Vec<u8>, Vec<u8>)| {
    let (size, levels, items, basis) = input;
    let _ = SumsRef::parse(&items);
    let levels = levels.into_iter().map(|(block, strong_len)| Level { block_size: u32::from(block) * 8, strong_len });
    let Ok(scheme) = Scheme::new(levels.collect()) else { return };
    // A real receiver accepts larger files, but many small ones suit the fuzzer better.
    let size = u64::from(size % (1 << 20));
    let Ok(layout) = Layout::new(size, scheme) else { return };
    let bases: [&dyn Basis; 1] = [&basis];
    let mut search = Search::new(layout.clone());
    let mut step = search.start();
    while let Step::NeedSums(ranges) = step {
        for range in ranges {
            let len = range.count as usize * layout.levels()[usize::from(range.level)].item_len();
            let supplied: Vec<u8> = items.iter().copied().chain([0]).cycle().take(len).collect();
            search.supply(range, &supplied).expect("it was asked for");
        }
        step = search.advance(&bases).expect("the basis is in memory");
    }
    let Step::Done(assembly) = step else { return };
    let mut end = 0;
    for piece in assembly.pieces() {
        end += piece.len();
    }
    assert_eq!(end, size);
});
