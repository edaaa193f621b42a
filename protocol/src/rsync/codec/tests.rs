//! The encodings match the bytes that stock rsync writes, and every value survives a round trip.

use proptest::prelude::*;

use super::*;

fn hex(text: &str) -> Vec<u8> {
    text.split(' ').map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect()
}

fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

fn version(number: u32) -> Version {
    Version::new(number).expect("a version")
}

#[test]
fn varints_are_the_bytes_that_stock_rsync_writes() {
    let vectors = [
        (0, "00"),
        (0x7f, "7f"),
        (0x1ff, "81 ff"),
        (0x4000, "c0 00 40"),
        (i32::MAX, "f0 ff ff ff 7f"),
        (-2, "f0 fe ff ff ff"),
    ];
    for (value, bytes) in vectors {
        assert_eq!(written(|out| put_varint(out, value)), hex(bytes), "{value}");
    }
}

#[test]
fn varlongs_are_the_bytes_that_stock_rsync_writes() {
    let vectors = [
        (3, 17, "00 11 00"),
        (3, 346_760, "05 88 4a"),
        (3, 1 << 23, "80 00 00 80"),
        (3, 1 << 32, "c1 00 00 00 00"),
        (4, 1_714_885_505, "66 81 13 37"),
        (4, 2_208_988_800, "80 80 7e aa 83"),
        (4, -60, "f8 c4 ff ff ff ff ff ff ff"),
    ];
    for (least, value, bytes) in vectors {
        assert_eq!(written(|out| put_varlong(out, value, least)), hex(bytes), "{value}");
    }
}

#[test]
fn indices_are_the_bytes_that_stock_rsync_writes() {
    let sequence = [
        (-101, "ff 64"),
        (-102, "ff 01"),
        (-2, "ff fe 80 02 00 00"),
        (0, "01"),
        (1, "01"),
        (5, "04"),
        (NDX_DONE, "00"),
        (259, "fe 00 fe"),
        (300, "29"),
        (40_000, "fe 80 40 9c 00"),
        (39_000, "fe 80 58 98 00"),
    ];
    let mut encoder = NdxEncoder::new(version(30));
    for (ndx, bytes) in sequence {
        assert_eq!(written(|out| encoder.put(out, ndx)), hex(bytes), "{ndx}");
    }
    assert_eq!(written(|out| NdxEncoder::new(version(29)).put(out, -101)), hex("9b ff ff ff"));
}

#[test]
fn overlong_and_overflowing_integers_are_refused() {
    for bytes in ["f8 00 00 00 00 00", "f1 00 00 00 00", "ff ff ff ff ff ff ff"] {
        assert_eq!(Cursor::new(&hex(bytes)).varint("v"), Err(DecodeError::Invalid("v")), "{bytes}");
    }
    let nine = hex("ff 00 00 00 00 00 00 00 00 00 00");
    assert_eq!(Cursor::new(&nine).varlong("v", 3), Err(DecodeError::Invalid("v")));
    for bytes in ["ff ff", "ff 00", "ff fe 80 00 00 00"] {
        let ndx = NdxDecoder::new(version(31)).get("n", &mut Cursor::new(&hex(bytes)));
        assert_eq!(ndx, Err(DecodeError::Invalid("n")), "{bytes}");
    }
    let long = written(|out| put_vstring(out, &[b'x'; 300]));
    assert!(matches!(Cursor::new(&long).vstring("s", 299), Err(DecodeError::TooLarge { value: 300, .. })));
}

fn sized() -> impl Strategy<Value = i64> {
    (any::<i64>(), 0..64u32).prop_map(|(value, shift)| value >> shift)
}

proptest! {
    #[test]
    fn every_value_comes_back_and_every_prefix_is_short(
        number in 27..33u32, long in sized(), text in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let version = version(number);
        let int = long as i32;
        let bytes = written(|out| {
            put_varint(out, int);
            put_varlong(out, long, 3);
            put_varlong(out, long, 4);
            put_longint(out, long);
            put_int30(out, version, int);
            put_long30(out, version, long);
            put_vstring(out, &text);
        });
        let read = |bytes: &[u8]| {
            let mut cursor = Cursor::new(bytes);
            prop_assert_eq!(cursor.varint("f"), Ok(int));
            prop_assert_eq!(cursor.varlong("f", 3), Ok(long));
            prop_assert_eq!(cursor.varlong("f", 4), Ok(long));
            prop_assert_eq!(cursor.longint("f"), Ok(long));
            prop_assert_eq!(cursor.int30("f", version), Ok(int));
            prop_assert_eq!(cursor.long30("f", version), Ok(long));
            prop_assert_eq!(cursor.vstring("f", VSTRING), Ok(&text[..]));
            prop_assert_eq!(cursor.position(), bytes.len());
            Ok(())
        };
        read(&bytes)?;
        let one = written(|out| put_varlong(out, long, 3));
        for cut in 0..one.len() {
            prop_assert_eq!(Cursor::new(&one[..cut]).varlong("f", 3), Err(DecodeError::Short("f")));
        }
    }

    #[test]
    fn every_sequence_of_indices_comes_back(
        number in 27..33u32, sequence in prop::collection::vec(sized().prop_map(|long| long as i32), 0..50),
    ) {
        let (mut encoder, mut bytes) = (NdxEncoder::new(version(number)), Vec::new());
        let sequence: Vec<i32> = sequence.into_iter().filter(|&ndx| ndx != i32::MIN).collect();
        for &ndx in &sequence {
            encoder.put(&mut bytes, ndx);
        }
        let (mut decoder, mut cursor) = (NdxDecoder::new(version(number)), Cursor::new(&bytes));
        for ndx in sequence {
            prop_assert_eq!(decoder.get("ndx", &mut cursor), Ok(ndx));
        }
        prop_assert_eq!(cursor.remaining(), 0);
    }

    #[test]
    fn no_bytes_break_a_reader(bytes: Vec<u8>, number in 27..33u32) {
        let (mut decoder, mut cursor) = (NdxDecoder::new(version(number)), Cursor::new(&bytes));
        while decoder.get("ndx", &mut cursor).is_ok() {}
        let mut cursor = Cursor::new(&bytes);
        while cursor.varint("v").is_ok() && cursor.varlong("v", 3).is_ok() && cursor.vstring("v", 9).is_ok() {}
    }
}
