//! What the daemons say before a client names a module: greeting, message of the day, modules.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::client::{Ended, words_for};
use super::difference::{Aspect, Difference, Seen};
use super::door::Door;
use super::error::ShadowError;
use super::observer::{Observer, compare_ends, impossible};
use super::record::text;
use super::report::Report;
use super::settle::{PAUSE, settle};
use super::side::Side;

/// The name of a module that no daemon has.
const UNKNOWN: &str = "no-such-module.shadow";
/// The maximum number of listed modules.
const MAX_MODULES: usize = 10_000;

/// Compares the daemons. Returns the modules of both, or those that are `wanted`.
pub(super) fn compare(observer: &Observer, wanted: &[String], report: &mut Report) -> Result<Vec<String>, ShadowError> {
    observer.bar.set_message("modules");
    let modules = RefCell::new(Vec::new());
    let settled = settle(
        |difference| report.knows(None, difference),
        || observer.client.wait(PAUSE),
        || {
            let (old, new) = observer.both(|side| listed(observer, side))?;
            let mut seen = Seen::default();
            match impossible(&old.ended, &new.ended)? {
                Some(why) => return Err(ShadowError::Client { code: old.ended.code, message: why }),
                None => compare_ends("", &old.ended, &new.ended, &mut seen),
            }
            seen.compare("", Aspect::Greeting, &old.door.greeting, &new.door.greeting);
            seen.compare("", Aspect::Motd, &old.door.motd.join("\n"), &new.door.motd.join("\n"));
            seen.compare(UNKNOWN, Aspect::Access, &old.door.answer.text(), &new.door.answer.text());
            compare_modules(&old.modules, &new.modules, wanted, &mut seen);
            let has = |names: &[Module], name: &str| names.iter().any(|module| module.name == name);
            let both = old.modules.iter().map(|module| module.name.clone()).filter(|name| has(&new.modules, name));
            *modules.borrow_mut() = if wanted.is_empty() { both.collect() } else { wanted.to_vec() };
            Ok(seen)
        },
    )?;
    report.add(None, "modules", settled);
    Ok(modules.into_inner())
}

/// A module as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Module {
    name: String,
    comment: String,
}

/// What a daemon says of itself.
struct Listed {
    door: Door,
    ended: Ended,
    modules: Vec<Module>,
}

fn listed(observer: &Observer, side: &Side) -> Result<Listed, ShadowError> {
    let door = observer.knock(side, UNKNOWN)?;
    let mut lines = Vec::new();
    // With --no-motd, clients do not show the modules either.
    let words: Vec<_> = words_for(side, &[], "", "", None).into_iter().filter(|word| word != "--no-motd").collect();
    let ended = observer.client.run(side.which, &words, None, &mut |line| {
        if lines.len() < MAX_MODULES {
            lines.push(text(line));
        }
        Ok(())
    })?;
    Ok(Listed { modules: modules_of(&lines, &door.motd), door, ended })
}

/// Reads the list of modules below the message of the day.
fn modules_of(lines: &[String], motd: &[String]) -> Vec<Module> {
    let lines = lines.strip_prefix(motd).unwrap_or(lines);
    let parts = lines.iter().filter_map(|line| line.split_once('\t'));
    parts.map(|(name, comment)| Module { name: name.trim_end().to_owned(), comment: comment.to_owned() }).collect()
}

fn compare_modules(old: &[Module], new: &[Module], wanted: &[String], seen: &mut Seen) {
    let names: BTreeSet<_> = old.iter().chain(new).map(|module| &module.name[..]).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    for name in names.into_iter().filter(|name| is_wanted(name)) {
        let find = |modules: &'_ [Module]| modules.iter().find(|module| module.name == name).cloned();
        match (find(old), find(new)) {
            (Some(old), Some(new)) => seen.compare(name, Aspect::Comment, &old.comment, &new.comment),
            (Some(_), None) => seen.add(Difference::new(name, Aspect::Module, "listed", "")),
            (None, _) => seen.add(Difference::new(name, Aspect::Module, "", "listed")),
        }
    }
    let shared = |modules: &[Module], others: &[Module]| -> Vec<String> {
        let names = modules.iter().map(|module| module.name.clone());
        names.filter(|name| others.iter().any(|other| other.name == *name) && is_wanted(name)).collect()
    };
    seen.compare("", Aspect::Order, &shared(old, new).join(" "), &shared(new, old).join(" "));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_read_below_the_message_of_the_day() {
        let lines = ["Hello\tworld", "", "debian         \tThe archive", "x              \t"].map(str::to_owned);
        let module = |name: &str, comment: &str| Module { name: name.to_owned(), comment: comment.to_owned() };
        let expected = [module("debian", "The archive"), module("x", "")];
        assert_eq!(modules_of(&lines, &lines[..2]), expected);
        assert_eq!(modules_of(&lines[2..], &[]), expected);
    }

    #[test]
    fn modules_on_one_side_other_comments_and_another_order_are_found() {
        fn modules(text: &str) -> Vec<Module> {
            let parts = text.split(' ').filter_map(|part| part.split_once('='));
            parts.map(|(name, comment)| Module { name: name.to_owned(), comment: comment.to_owned() }).collect()
        }
        let found = |wanted: &[String]| {
            let mut seen = Seen::default();
            compare_modules(&modules("a=1 b=2 c=3"), &modules("c=3 a=9 d=4"), wanted, &mut seen);
            let found = seen.differences.iter();
            found.map(|difference| (difference.subject.clone(), difference.aspect)).collect::<Vec<_>>()
        };
        let expected = [("a", Aspect::Comment), ("b", Aspect::Module), ("d", Aspect::Module), ("", Aspect::Order)];
        assert_eq!(found(&[]), expected.map(|(name, aspect)| (name.to_owned(), aspect)));
        assert_eq!(found(&["b".to_owned()]), [("b".to_owned(), Aspect::Module)]);
    }
}
