//! Index files of package repositories, as a receiver gets them from a publisher: any bytes, and any text in every form
//! that can be read.
#![no_main]

use std::io::Write as _;

use libfuzzer_sys::fuzz_target;
use stillmirror_receiver::{IndexKind, read_index};

const KINDS: [IndexKind; 4] = [IndexKind::Packages, IndexKind::Sources, IndexKind::Repomd, IndexKind::Primary];

fuzz_target!(|bytes: &[u8]| {
    let Some((&how, bytes)) = bytes.split_first() else { return };
    let kind = KINDS[usize::from(how) % KINDS.len()];
    let names = |input: &[u8]| {
        let mut names = Vec::new();
        let read = read_index(kind, input, &mut |name| names.push(name.to_vec()));
        (names, read.map_err(|fault| fault.to_string()))
    };
    let plain = names(bytes);
    if plain.1.is_ok() && !bytes.starts_with(b"\x1f\x8b") && !bytes.starts_with(b"\xfd7zXZ\0") && !bytes.starts_with(b"\x28\xb5\x2f\xfd") {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let written = gzip.write_all(bytes).and_then(|()| gzip.finish());
        assert_eq!(written.ok().map(|compressed| names(&compressed)), Some(plain));
    }
});
