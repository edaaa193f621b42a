use super::*;
use crate::changes::{Changes, Put, apply};
use crate::entry::{Digests, Entry, Kind, Owner, Time};

fn rules(texts: &[&str]) -> Result<Rules, RuleError> {
    Rules::parse(texts.iter().map(|text| text.as_bytes()), Version::NEWEST, false)
}

fn old_rules(texts: &[&str]) -> Result<Rules, RuleError> {
    Rules::parse(texts.iter().map(|text| text.as_bytes()), Version::OLDEST, false)
}

fn hides(rules: &Rules, path: &str) -> bool {
    rules.hides(path.trim_end_matches('/').as_bytes(), 0, path.ends_with('/'))
}

/// Returns the list of a tree with these files, each with its size.
fn list_of(files: &[(&str, u64)]) -> rkyv::util::AlignedVec {
    let entry = |kind| Entry { mode: 0o755, mtime: Time::default(), owner: Owner::default(), link: None, kind };
    let mut changes = Changes { root: Some(Put { entry: entry(Kind::Directory), tag: 0 }), ..Changes::default() };
    for (path, size) in files {
        for (at, _) in path.match_indices('/') {
            let (dir, name) = crate::path::split(&path.as_bytes()[..at]);
            changes.put(dir, name, entry(Kind::Directory), 0);
        }
        let (dir, name) = crate::path::split(path.as_bytes());
        changes.put(dir, name, entry(Kind::File { size: *size, digests: Digests::default() }), 0);
    }
    apply(None, &changes).unwrap().list.encode()
}

#[test]
fn an_invalid_rule_is_refused_in_rsyncs_words() {
    for (text, message) in [
        ("foo", "Unknown filter rule: foo"),
        ("-n foo", "invalid modifier 'n' at position 1 in filter rule: -n foo"),
        ("-s,p foo", "invalid modifier ',' at position 2 in filter rule: -s,p foo"),
        ("Hs foo", "invalid modifier 's' at position 1 in filter rule: Hs foo"),
        (":-C x", "invalid modifier 'C' at position 2 in filter rule: :-C x"),
        ("- ", "unexpected end of filter rule: - "),
        ("hide", "unexpected end of filter rule: hide"),
        ("! x", "'!' rule has trailing characters: ! x"),
    ] {
        assert_eq!(rules(&[text]).map(|_| ()).unwrap_err().to_string(), message);
    }
    assert_eq!(rules(&["-n foo"]).unwrap_err().exit(), Exit::Syntax);
}

#[test]
fn a_rule_that_would_read_a_file_is_refused_by_name() {
    let error = rules(&["- x", ". /etc/rules"]).unwrap_err();
    assert!(error.to_string().contains(". /etc/rules"), "{error}");
    assert_eq!(error.exit(), Exit::Unsupported);
}

#[test]
fn old_clients_have_only_plus_minus_and_bang() {
    let old = old_rules(&["+ keep", "kee?", "-s x", ":C"]).unwrap();
    assert!(
        !hides(&old, "keep") && hides(&old, "keen") && !hides(&old, "x") && hides(&old, "-s x") && hides(&old, ":C")
    );
    assert!(!hides(&old_rules(&["x", "!"]).unwrap(), "x"));
    assert!(hides(&old_rules(&["x", "! "]).unwrap(), "x"));
}

#[test]
fn the_slash_modifier_matches_the_path_in_the_module() {
    let rules = rules(&["-/ /sub/foo", "- /bar"]).unwrap();
    assert!(rules.hides(b"sub/foo", 4, false) && !rules.hides(b"foo", 0, false));
    assert!(rules.hides(b"sub/bar", 4, false) && !rules.hides(b"sub/bar", 0, false));
}

#[test]
fn cvs_excludes_follow_the_clients_rules() {
    let rules = Rules::parse([&b"+ core"[..], b"!", b"+ keep.o"], Version::NEWEST, true).unwrap();
    assert!(hides(&rules, "a/core") && hides(&rules, "x.o") && !hides(&rules, "keep.o") && hides(&rules, ".git/"));
    assert!(!hides(&rules, ".git"), "only as a directory");
    assert_eq!(rules.merge_files().collect::<Vec<_>>(), [b".cvsignore"]);
}

#[test]
fn an_existing_merge_file_in_reach_is_refused() {
    let bytes = list_of(&[("a/.rules", 5), ("b/.rules", 0), ("c/x/y", 1)]);
    let list = crate::list::open(&bytes).unwrap();
    let merging = rules(&["dir-merge,n- /.rules"]).unwrap();
    let error = merging.check_merges(list, b"").unwrap_err();
    assert!(matches!(&error, RuleError::DirMerge { file, .. } if file == "a/.rules"), "{error}");
    assert!(merging.check_merges(list, b"a").is_err());
    assert_eq!(merging.check_merges(list, b"b"), Ok(()), "an empty file has no rules");
    assert_eq!(merging.check_merges(list, b"c"), Ok(()), "there is no such file");
    assert_eq!(rules(&[": .none"]).unwrap().check_merges(list, b""), Ok(()));
    let above = list_of(&[(".rules", 5), ("c/x/y", 1)]);
    assert!(merging.check_merges(crate::list::open(&above).unwrap(), b"c/x").is_err());
}

#[test]
fn a_merge_file_that_the_module_hides_counts_as_missing() {
    let bytes = list_of(&[("a/.rules", 5), ("b/c/.rules", 5), ("d/.rules", 5), ("d/.more", 5)]);
    let list = crate::list::open(&bytes).unwrap();
    let module = |exclude: &str| {
        let texts = ModuleTexts { exclude: exclude.as_bytes(), ..ModuleTexts::default() };
        Arc::new(ModuleRules::parse(&texts).unwrap())
    };
    let told = |exclude: &str, wanted: &[&str]| {
        let merging = rules(wanted).unwrap().within(module(exclude));
        merging.check_merges(list, b"").err().map(|error| error.to_string())
    };
    assert_eq!(told(".rules", &[": .rules"]), None);
    assert_eq!(told("/a /b/ /d", &[": .rules"]), None);
    assert!(told("/a /b", &[": .rules"]).unwrap().contains("'d/.rules'"));
    // Another merge file in the same directory is not hidden.
    assert!(told(".rules", &[": .rules", ": .more"]).unwrap().contains("'d/.more'"));
}

#[test]
fn there_may_be_more_rules_than_files() {
    let bytes = list_of(&[("a/.rules", 5), ("a/b", 1)]);
    let list = crate::list::open(&bytes).unwrap();
    let many = |prefix: &str, last: &str| {
        let texts: Vec<String> = (0..100).map(|number| format!("{prefix} x{number}")).collect();
        let texts = texts.iter().map(String::as_str).chain([last]);
        rules(&texts.collect::<Vec<_>>()).unwrap()
    };
    assert_eq!(many(":", ": other").check_merges(list, b""), Ok(()));
    let error = many(":", ": .rules").check_merges(list, b"").unwrap_err();
    assert!(matches!(&error, RuleError::DirMerge { file, .. } if file == "a/.rules"), "{error}");
    assert!(many("-", "- other").is_void_for(list));
    assert!(!many("-", "- b").is_void_for(list));
}

#[test]
fn a_search_for_a_hidden_name_stops_when_the_caller_gives_up() {
    let names: Vec<String> = (0..1000).map(|number| format!("{}/{number}", number % 10)).collect();
    let bytes = list_of(&names.iter().map(|name| (name.as_str(), 1)).collect::<Vec<_>>());
    let list = crate::list::open(&bytes).unwrap();
    let search = |pattern: &str, patience: u32| {
        let mut asked = 0;
        let goes_on = || {
            asked += 1;
            asked <= patience
        };
        (rules(&[pattern]).unwrap().is_void_below(list, b"", 0, goes_on), asked)
    };
    assert_eq!(search("- *.none", 3), (None, 4));
    let (found, asked) = search("- *.none", u32::MAX);
    assert!(found == Some(true) && asked > 1000 / 40, "asked {asked} times");
    assert_eq!(search("- none/", 0), (Some(true), 0), "there is little to check");
    assert_eq!(rules(&["- 7"]).unwrap().is_void_below(list, b"", 0, || false), Some(false), "found before asking");
}

#[test]
fn cvs_patterns_are_added_once() {
    let links = |texts: &[&str]| rules(texts).unwrap().client.excluding().count();
    assert_eq!(links(&["-C"; 1000]), links(&["-C"]));
    assert_eq!(links(&["-C", "- x", "!", "-C"]), links(&["-C"]));
}

fn parse(filter: &[u8], include: &[u8], exclude: &[u8]) -> Result<ModuleRules, RuleError> {
    ModuleRules::parse(&ModuleTexts { filter, include, exclude, ..ModuleTexts::default() })
}

#[test]
fn a_modules_pattern_files_are_read_by_line_and_rank_before_its_patterns() {
    let texts = ModuleTexts {
        filter: b"- one",
        include_from: b"# comment\nkeep me\r\n; comment\n\n- not me\n",
        include: b"keep",
        exclude_from: b"one\nkeep*\n+ two\n",
        exclude: b"two three",
    };
    let module = ModuleRules::parse(&texts).unwrap();
    for (name, hidden) in [("one", true), ("keep me", false), ("not me", true), ("keep", false), ("keeper", true)] {
        assert_eq!(module.hides(name.as_bytes(), false), hidden, "{name}");
    }
    assert!(!module.hides(b"two", false) && module.hides(b"three", false) && !module.hides(b"# comment", false));
    assert!(ModuleRules::parse(&ModuleTexts { exclude_from: b"- \n", ..ModuleTexts::default() }).is_err());
}

#[test]
fn a_name_must_be_allowed_by_both_module_and_client() {
    let module = parse(b"- /private/ + *.iso  H void", b"secret.txt", b"secret* !x").unwrap();
    assert!(module.hides(b"private", true) && module.hides(b"secret.key", false));
    assert!(!module.hides(b"secret.txt", false) && !module.hides(b"secret.iso", false));
    assert!(!module.hides(b"void", false), "'hide' does not hide in a stock daemon's module");
    assert!(module.hides(b"!x", false));
    let rules = rules(&["+ private/", "- *.txt"]).unwrap().within(Arc::new(module));
    assert!(hides(&rules, "private/") && hides(&rules, "a/b.txt") && !hides(&rules, "a/b.iso"));
    assert!(rules.module_hides(b"private", true) && !rules.module_hides(b"a/b.txt", false));
}

#[test]
fn a_module_filter_that_is_invalid_is_refused() {
    for filter in [&b"foo"[..], b"- foo bar", b"-", b"-  foo", b". rules", b":C - b"] {
        assert!(parse(filter, b"", b"").is_err(), "{}", filter.escape_ascii());
    }
    assert!(parse(b"- a ! -_b -C - c", b"- d", b"e f").is_ok());
}

#[test]
fn rules_without_excludes_hide_nothing_and_equal_rules_have_equal_keys() {
    assert!(rules(&["+ a", "- b", "!", "-x c"]).unwrap().nothing());
    let key = |texts: &[&str]| rules(texts).unwrap().key();
    assert_eq!(key(&["- a", "!", "hide,p b"]), key(&["-s_b"]));
    for other in [&["+ b"][..], &["-/ b"], &["-! b"], &["- b/"], &["- b", "- b"]] {
        assert_ne!(key(other), key(&["- b"]), "{other:?}");
    }
}

#[test]
fn rules_that_cost_too_much_are_cut_short() {
    let hostile = format!("- {}", "*[!~]".repeat(800));
    let rules = rules(&vec![hostile.as_str(); 20]).unwrap();
    let name = "a".repeat(255);
    assert!(!hides(&rules, &name) && !rules.exhausted());
    let a_name = rules.counted.load(Ordering::Relaxed);
    assert!(a_name > 1_000_000, "{a_name} steps");
    rules.counted.store(COUNTED_STEPS - a_name, Ordering::Relaxed);
    assert!(!hides(&rules, &name) && !rules.exhausted());
    assert!(!hides(&rules, &name) && rules.exhausted());
    assert!(hides(&rules, &name), "from then on nothing is compared");
}

#[test]
fn matching_a_single_name_stops_at_its_limit() {
    let hostile = format!("- {}", "*[!~]".repeat(800));
    let rules = rules(&vec![hostile.as_str(); 1000]).unwrap();
    assert!(hides(&rules, &"a".repeat(255)) && rules.exhausted());
    let a_rule = 1600 * 256 * 2;
    assert!(rules.steps() <= NAME_STEPS + a_rule, "{} steps", rules.steps());
}

/// Returns rules that cost some hundred thousand steps per name, and a list of `files` files with such names.
fn costly(files: usize) -> (Rules, rkyv::util::AlignedVec) {
    let hostile = format!("- {}", "*[!~]".repeat(800));
    let names: Vec<String> = (0..files).map(|at| format!("{at:04}{}", "a".repeat(200))).collect();
    let files: Vec<(&str, u64)> = names.iter().map(|name| (&**name, 1)).collect();
    (rules(&vec![hostile.as_str(); 16]).unwrap(), list_of(&files))
}

#[test]
fn a_piece_of_a_list_ends_when_its_names_have_cost_enough() {
    use crate::rsync::flist::{Class, ListWriter};
    use crate::rsync::selection::{Selection, Wanted};

    let (rules, bytes) = costly(200);
    let list = crate::list::open(&bytes).unwrap();
    let wanted = Wanted { paths: vec![Vec::new()], recurse: true, ..Wanted::default() };
    let (selection, _) = Selection::resolve(list, wanted, &rules);
    let mut writer = ListWriter::new(list, Class::plain(Version::NEWEST), selection, &rules);
    let (mut pieces, mut is_done, mut before) = (0, false, rules.steps());
    while !is_done {
        is_done = writer.write(list, &rules, &mut Vec::new(), &mut Vec::new(), usize::MAX).done;
        let steps = rules.steps() - before;
        assert!(steps < 2 << 20, "{steps} steps in one piece");
        (before, pieces) = (rules.steps(), pieces + 1);
    }
    assert!(pieces > 10 && writer.entries() == 201, "{pieces} pieces of {} entries", writer.entries());
}

#[test]
fn an_expensive_search_asks_often_whether_to_continue() {
    let (rules, bytes) = costly(100);
    let list = crate::list::open(&bytes).unwrap();
    let (mut asked, mut most, mut before) = (0, 0, rules.steps());
    let is_void = rules.is_void_below(list, b"", 0, || {
        (asked, most, before) = (asked + 1, most.max(rules.steps() - before), rules.steps());
        true
    });
    assert_eq!(is_void, Some(true));
    assert!(asked >= 100 && most < 1 << 20, "asked {asked} times, with {most} steps between");
}
