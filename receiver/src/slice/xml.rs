//! Reads rpm's `repomd.xml` and the list of packages that it names, `primary`.

use std::io::BufRead;

use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

use super::compressed::{self, IndexFault};

/// Returns the path of the list of packages, relative to the repository.
pub(crate) fn repomd(input: impl BufRead) -> Result<String, IndexFault> {
    let (mut is_primary, mut found) = (false, None);
    elements(input, &mut |element| match element {
        Element::Start(tag) if tag.local_name().as_ref() == "data" => {
            is_primary = attribute(tag, "type").is_some_and(|kind| kind == "primary");
        }
        Element::Start(tag) if tag.local_name().as_ref() == "location" && is_primary => found = attribute(tag, "href"),
        _ => {}
    })?;
    found.ok_or(IndexFault::NoPrimary)
}

/// Calls `each` with the architecture and the path of every package, relative to the repository. Packages that lie
/// elsewhere are left out.
pub(crate) fn primary(input: impl BufRead, each: &mut dyn FnMut(&str, &str)) -> Result<(), IndexFault> {
    let (mut depth, mut is_arch, mut arch, mut path) = (0_u64, false, String::new(), None);
    elements(input, &mut |element| match element {
        Element::Start(tag) => {
            depth += 1;
            let name = tag.local_name();
            is_arch = depth == 3 && name.as_ref() == "arch";
            if depth == 3 && name.as_ref() == "location" && attribute(tag, "base").is_none() {
                path = attribute(tag, "href");
            }
        }
        Element::Text(text) if is_arch && arch.len() < ARCHITECTURE => arch.push_str(text.trim()),
        Element::Text(_) => {}
        Element::End => {
            is_arch = false;
            depth = depth.saturating_sub(1);
            if depth == 1 {
                path.take().iter().for_each(|path| each(&arch, path));
                arch.clear();
            }
        }
    })
}

enum Element<'a> {
    Start(&'a BytesStart<'a>),
    Text(&'a str),
    End,
}

/// Calls `each` for every element and text of an XML file.
fn elements(input: impl BufRead, each: &mut dyn FnMut(Element<'_>)) -> Result<(), IndexFault> {
    let input = compressed::open(input)?;
    let unit = input.unit();
    let mut reader = Reader::from_reader(input);
    let (mut buffer, mut depth, mut is_any) = (Vec::new(), 0_u64, false);
    loop {
        buffer.clear();
        let event = reader.read_event_into(&mut buffer).map_err(fault)?;
        unit.ended();
        match &event {
            Event::Start(tag) => {
                (depth, is_any) = (depth + 1, true);
                each(Element::Start(tag));
            }
            Event::Empty(tag) => {
                is_any = true;
                each(Element::Start(tag));
                each(Element::End);
            }
            Event::End(_) => {
                depth = depth.saturating_sub(1);
                each(Element::End);
            }
            Event::Text(text) => each(Element::Text(text)),
            Event::Eof if depth == 0 && is_any => return Ok(()),
            Event::Eof => return Err(IndexFault::Short),
            _ => {}
        }
    }
}

fn fault(error: quick_xml::Error) -> IndexFault {
    match error {
        quick_xml::Error::Io(error) => IndexFault::Read(error),
        error => IndexFault::Xml(error.to_string()),
    }
}

/// Returns an attribute, with or without a namespace.
fn attribute(tag: &BytesStart<'_>, name: &str) -> Option<String> {
    let mut attributes = tag.attributes();
    attributes.with_checks(false);
    let found = attributes.flatten().find(|one| one.key.local_name().as_ref() == name)?;
    found.normalized_value(XmlVersion::Implicit1_0).ok().map(std::borrow::Cow::into_owned)
}

/// Maximum length of the name of an architecture.
const ARCHITECTURE: usize = 64;
