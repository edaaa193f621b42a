//! The order of names. No other code in this project compares names.
//!
//! Both ends of rsync's protocol number entries by their position in the sorted list, and nothing detects a difference:
//! the wrong file would be updated. The order is that of rsync's protocol 29 and later. Within a directory, all
//! non-directories come first, then the directories. Both are compared by unsigned bytes, a directory as if its name
//! ended in `/`.

use std::cmp::Ordering;

/// Compares two siblings.
pub fn siblings(a: &[u8], a_is_dir: bool, b: &[u8], b_is_dir: bool) -> Ordering {
    match (a_is_dir, b_is_dir) {
        (false, false) => a.cmp(b),
        (true, true) => directories(a, b),
        (false, true) => Ordering::Less,
        (true, false) => Ordering::Greater,
    }
}

/// Compares the names of two sibling directories.
pub fn directories(a: &[u8], b: &[u8]) -> Ordering {
    let shared = a.len().min(b.len());
    a[..shared].cmp(&b[..shared]).then_with(|| {
        // One name is a prefix of the other. The shorter one continues with its slash.
        let next = |name: &[u8]| name.get(shared).copied();
        match (next(a), next(b)) {
            (None, None) => Ordering::Equal,
            (None, Some(byte)) => b'/'.cmp(&byte).then(Ordering::Less),
            (Some(byte), None) => byte.cmp(&b'/').then(Ordering::Greater),
            (Some(x), Some(y)) => x.cmp(&y),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_directory_compares_as_its_name_with_a_slash() {
        assert_eq!(directories(b"a.d", b"a"), Ordering::Less);
        assert_eq!(directories(b"a0", b"a"), Ordering::Greater);
        assert_eq!(siblings(b"z", false, b"a", true), Ordering::Less);
    }

    proptest! {
        #[test]
        fn directories_compare_like_their_names_with_a_slash_appended(a: Vec<u8>, b: Vec<u8>) {
            prop_assume!(!a.contains(&b'/') && !b.contains(&b'/'));
            let slashed = |name: &[u8]| [name, b"/"].concat();
            prop_assert_eq!(directories(&a, &b), slashed(&a).cmp(&slashed(&b)));
        }
    }
}
