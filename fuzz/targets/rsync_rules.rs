//! Arbitrary rules of a client and of a module's configuration, matched against arbitrary paths.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use stillmirror_protocol::rsync::rules::{ModuleRules, ModuleTexts, Rules};
use stillmirror_protocol::rsync::selection::Hides as _;
use stillmirror_protocol::rsync::version::Version;

fuzz_target!(|input: (u8, Vec<Vec<u8>>, [Vec<u8>; 3], Vec<u8>, u16, bool)| {
    let (bits, texts, [filter, include, exclude], path, name, is_dir) = input;
    let version = if bits & 1 == 0 { Version::NEWEST } else { Version::OLDEST };
    let module = ModuleRules::parse(&ModuleTexts {
        filter: &filter,
        include: &include,
        exclude: &exclude,
        ..ModuleTexts::default()
    })
    .unwrap_or_default();
    let Ok(rules) = Rules::parse(texts.iter().map(Vec::as_slice), version, bits & 2 != 0) else { return };
    let rules = rules.within(Arc::new(module));
    let hidden = rules.hides(&path, usize::from(name), is_dir);
    assert!(!hidden || !rules.nothing());
    assert_eq!(hidden, rules.hides(&path, usize::from(name), is_dir));
    let _ = (rules.module_hides(&path, is_dir), rules.merge_files().count(), rules.key());
});
