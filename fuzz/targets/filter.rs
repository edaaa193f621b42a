//! Arbitrary patterns, matched against arbitrary paths.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stillmirror_protocol::filter::Filter;

fuzz_target!(|input: (Vec<(bool, Vec<u8>)>, Vec<u8>, bool)| {
    let (rules, path, is_dir) = input;
    let mut filter = Filter::default();
    for (include, pattern) in rules {
        let _ = if include { filter.include(&pattern) } else { filter.exclude(&pattern) };
    }
    let _ = filter.keeps_below_root(&path, is_dir);
});
