//! The readers of index files. What they select is tested by pulls, in `tests/pull/slices.rs`.

use std::io::Write as _;

use proptest::prelude::*;

use super::compressed::{self, IndexFault};
use super::{Slice, deb822, decoded, xml};

/// Compresses in each way that can be read.
fn forms(content: &[u8]) -> Vec<Vec<u8>> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(content).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(content).unwrap();
    let zstd = zstd::bulk::compress(content, 1).unwrap();
    vec![content.to_vec(), gzip.finish().unwrap(), xz.finish().unwrap(), zstd]
}

fn packages(input: &[u8]) -> Result<Vec<String>, IndexFault> {
    let mut found = Vec::new();
    deb822::packages(input, &mut |name| found.push(String::from_utf8_lossy(name).into_owned()))?;
    Ok(found)
}

fn sources(input: &[u8]) -> Result<Vec<String>, IndexFault> {
    let mut found = Vec::new();
    deb822::sources(input, &mut |name| found.push(String::from_utf8_lossy(name).into_owned()))?;
    Ok(found)
}

fn primary(input: &[u8]) -> Result<Vec<(String, String)>, IndexFault> {
    let mut found = Vec::new();
    xml::primary(input, &mut |architecture, name| found.push((architecture.to_owned(), name.to_owned())))?;
    Ok(found)
}

fn path() -> impl Strategy<Value = String> {
    "[a-z0-9+~_.-]{1,12}(/[a-z0-9+~_.-]{1,12}){0,3}"
}

proptest! {
    #[test]
    fn every_package_is_found_in_every_form(paths in prop::collection::vec(path(), 0..20), crlf: bool) {
        let end = if crlf { "\r\n" } else { "\n" };
        let mut text = String::new();
        for path in &paths {
            for line in ["Package: p", "Description: one", " two: three", &format!("fileName:{path}"), "Size: 3", ""] {
                text += &format!("{line}{end}");
            }
        }
        for form in forms(text.as_bytes()) {
            prop_assert_eq!(&packages(&form).unwrap(), &paths);
        }
    }

    #[test]
    fn every_file_of_every_source_package_is_found(
        stanzas in prop::collection::vec((path(), prop::collection::btree_set("[a-z.]{1,9}", 1..4), any::<bool>()), 0..9),
    ) {
        let (mut text, mut expected) = (String::new(), Vec::new());
        for (directory, names, is_first) in &stanzas {
            let lists = ["Files", "Checksums-Sha256"].map(|field| {
                format!("{field}:\n{}", names.iter().map(|name| format!(" 00ff 12 {name}\n")).collect::<String>())
            });
            let at = format!("Directory: {directory}\n");
            let parts = if *is_first { vec![&at, &lists[0], &lists[1]] } else { vec![&lists[1], &lists[0], &at] };
            text += "Package: s\nPackage-List:\n s deb x optional\n";
            parts.into_iter().for_each(|part| text += part);
            text += "\n";
            expected.extend(names.iter().map(|name| format!("{directory}/{name}")));
        }
        for form in forms(text.as_bytes()) {
            prop_assert_eq!(&sources(&form).unwrap(), &expected);
        }
    }

    #[test]
    fn every_rpm_is_found_with_its_architecture(
        rpms in prop::collection::vec(("x86_64|noarch|src", path()), 0..9),
    ) {
        let mut text = "<?xml version=\"1.0\"?><metadata xmlns=\"a\" packages=\"1\">\n".to_owned();
        for (architecture, path) in &rpms {
            text += &format!(
                "<package type=\"rpm\"><name>n</name><arch>{architecture}</arch><summary>&lt;arch&gt;</summary>\
                 <location href=\"{path}&amp;\"/><format><rpm:requires><arch>no</arch></rpm:requires></format></package>\n"
            );
        }
        text += "</metadata>\n";
        let expected: Vec<_> = rpms.into_iter().map(|(one, path)| (one, format!("{path}&"))).collect();
        for form in forms(text.as_bytes()) {
            prop_assert_eq!(&primary(&form).unwrap(), &expected);
        }
    }

    #[test]
    fn any_bytes_can_be_read(bytes: Vec<u8>, cut: u16, at: u16) {
        let text = b"Package: a\nFilename: pool/a\n\n".repeat(30);
        let mut inputs = vec![bytes];
        for form in forms(&text) {
            let mut wrong = form.clone();
            let place = usize::from(at) % wrong.len();
            wrong[place] ^= 0x41;
            inputs.extend([form[..usize::from(cut) % form.len()].to_vec(), wrong]);
        }
        for input in inputs {
            let _ = (packages(&input), sources(&input), primary(&input), xml::repomd(&input[..]));
        }
    }
}

#[test]
fn a_file_that_is_cut_short_or_is_something_else_is_an_error() {
    let text = b"Package: a\nFilename: pool/a\n\n".repeat(200);
    for form in forms(&text).iter().skip(1) {
        assert!(matches!(packages(&form[..form.len() - 9]), Err(IndexFault::Read(_))));
    }
    assert!(matches!(packages(b"<html>404</html>\n"), Err(IndexFault::Line(1))));
    assert!(matches!(packages(b"Package: a\n\nnonsense"), Err(IndexFault::Line(3))));
    assert_eq!(packages(b"").unwrap(), [""; 0]);
    for wrong in [&b""[..], b"text", b"<metadata><package>", b"<a></b>"] {
        assert!(primary(wrong).is_err(), "{wrong:?}");
    }
    assert!(matches!(xml::repomd(&b"<repomd/>"[..]), Err(IndexFault::NoPrimary)));
    let repomd = b"<repomd><data type=\"filelists\"><location href=\"f\"/></data><data type=\"primary\">\
                   <location href=\"repodata/p.xml.gz\"/></data><data type=\"other\"><location href=\"o\"/></data></repomd>";
    assert_eq!(xml::repomd(&repomd[..]).unwrap(), "repodata/p.xml.gz");
}

#[test]
fn a_long_line_costs_no_memory_and_a_longer_element_is_an_error() {
    let long = [&b"Provides: "[..], &b"x, ".repeat(1 << 20), b"\nFilename: pool/a\n"].concat();
    assert_eq!(packages(&long).unwrap(), ["pool/a"]);
    let endless = [&b"Provides: "[..], &vec![b'x'; 17 << 20]].concat();
    assert!(packages(&forms(&endless)[3]).is_err());
    let endless = [&b"<metadata><package><arch>"[..], &vec![b'x'; 17 << 20]].concat();
    assert!(primary(&endless).is_err());
}

#[test]
fn a_compressed_file_that_needs_much_memory_is_an_error() {
    // A window of 2 GiB, in the frame's header.
    assert!(compressed::open(&b"\x28\xb5\x2f\xfd\x00\xa8\x00\x00"[..]).is_ok());
    assert!(packages(b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00").is_err());
}

#[test]
fn packages_for_all_architectures_belong_to_each() {
    let of =
        |names: &[&str]| Slice::new(vec![], names.iter().map(|name| (*name).to_owned()).collect(), vec![]).unwrap();
    let amd64 = of(&["amd64"]);
    let takes = |slice: &Slice, name: &str| slice.takes_debian(name.as_bytes());
    assert!(takes(&amd64, "amd64") && takes(&amd64, "all") && !takes(&amd64, "arm64") && !takes(&amd64, "source"));
    for source in ["source", "src"] {
        let source = of(&[source]);
        assert!(takes(&source, "source") && !takes(&source, "all"));
        assert!(source.takes_rpm("src") && source.takes_rpm("nosrc") && !source.takes_rpm("noarch"));
    }
    let x86_64 = of(&["x86_64"]);
    assert!(x86_64.takes_rpm("x86_64") && x86_64.takes_rpm("noarch") && !x86_64.takes_rpm("i686"));
    assert!(takes(&of(&[]), "anything") && of(&[]).takes_rpm("anything"));
    for wrong in ["", "/", "a/", "../b", "a//b"] {
        assert!(Slice::new(vec![wrong.to_owned()], vec![], vec![]).is_err(), "{wrong}");
    }
    assert!(Slice::new(vec!["bookworm/updates".to_owned()], vec!["a/b".to_owned()], vec![]).is_err());
}

#[test]
fn escapes_of_urls_are_decoded() {
    assert_eq!(decoded(b"a%2Bb%2b%zz%4"), b"a+b+%zz%4");
}
