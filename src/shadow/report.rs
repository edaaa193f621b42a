//! What was compared, what differs and why, as text and as JSON.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::difference::{Aspect, Difference};
use super::reason::{self, Reason};
use super::settle::Settled;
use crate::exit::Exit;
use crate::output::{bytes, count, grouped, line};

/// The maximum number of differences of a kind that are printed as text.
const SHOWN: usize = 5;
/// The maximum number of differences that are kept.
const MAX_FINDINGS: usize = 100_000;

/// The report of a comparison.
#[derive(Debug, Default)]
pub(super) struct Report {
    old: String,
    new: String,
    /// The version of the client.
    pub(super) client: String,
    seed: u64,
    pub(super) modules: Vec<ModuleReport>,
    /// The differences by module and aspect.
    findings: BTreeMap<(Option<String>, Aspect, Difference), Finding>,
    /// The number of differences that were not kept.
    more: u64,
    /// What changed while it was compared, with its module.
    changed: BTreeSet<(String, String)>,
    is_restless: bool,
    /// Module, part and reason.
    not_compared: Vec<(String, String, String)>,
    /// Why the comparison stopped.
    pub(super) stopped: Option<String>,
}

/// What was compared of a module.
#[derive(Debug, Default)]
pub(super) struct ModuleReport {
    pub(super) name: String,
    pub(super) entries: u64,
    /// The names of the views.
    pub(super) views: Vec<String>,
    /// The number of files whose contents were compared.
    pub(super) files: usize,
    /// Their size.
    pub(super) bytes: u64,
    /// The number of files of the sample that were too large.
    pub(super) left_out: usize,
}

#[derive(Debug)]
struct Finding {
    /// The views that show it.
    views: Vec<String>,
    reason: Reason,
}

impl Report {
    pub(super) fn new(old: String, new: String, seed: u64) -> Self {
        Self { old, new, seed, ..Self::default() }
    }

    /// Returns whether the difference was found before.
    pub(super) fn knows(&self, module: Option<&str>, difference: &Difference) -> bool {
        self.findings.contains_key(&key(module, difference))
    }

    pub(super) fn add(&mut self, module: Option<&str>, view: &str, settled: Settled) {
        self.more += settled.more;
        for difference in settled.lasting {
            let is_full = self.findings.len() >= MAX_FINDINGS;
            let key = key(module, &difference);
            if is_full && !self.findings.contains_key(&key) {
                self.more += 1;
                continue;
            }
            let finding = self.findings.entry(key);
            let finding = finding.or_insert_with(|| Finding { views: Vec::new(), reason: reason::of(&difference) });
            finding.views.push(view.trim_end().to_owned());
        }
        let module = module.unwrap_or_default();
        self.changed.extend(settled.changed.into_iter().map(|what| (module.to_owned(), what)));
        self.is_restless |= settled.is_restless;
    }

    /// Returns the module that is being compared.
    pub(super) fn module(&mut self) -> &mut ModuleReport {
        if self.modules.is_empty() {
            self.modules.push(ModuleReport::default());
        }
        let last = self.modules.len() - 1;
        &mut self.modules[last]
    }

    pub(super) fn not_compared(&mut self, module: &str, part: &str, why: &str) {
        self.not_compared.push((module.to_owned(), part.to_owned(), why.to_owned()));
    }

    /// Returns the exit code of a comparison that was not stopped.
    pub(super) fn exit(&self) -> Exit {
        if self.noticeable() > 0 || self.more > 0 {
            Exit::Differs
        } else if !self.not_compared.is_empty() {
            Exit::Partial
        } else if self.is_restless {
            Exit::Vanished
        } else {
            Exit::Done
        }
    }

    /// Returns the number of kept differences that a client could notice.
    fn noticeable(&self) -> usize {
        self.findings.values().filter(|finding| finding.reason.is_noticeable).count()
    }

    /// Prints what clients notice, what was not compared, and, with `all`, everything.
    pub(super) fn print(&self, all: bool) {
        self.print_findings(true);
        for (module, part, why) in &self.not_compared {
            line!("{}not compared: {part}: {why}", prefix(module));
        }
        for (module, what) in &self.changed {
            line!("{}changed while it was compared: {what}", prefix(module));
        }
        if all {
            self.print_findings(false);
            self.modules.iter().for_each(print_module);
            let noticeable = self.noticeable() as u64 + self.more;
            let quiet = self.findings.len() as u64 - self.noticeable() as u64;
            line!(
                "{} that clients could notice, {} that they could not; rsync {}, seed {}",
                count(noticeable, "difference"),
                grouped(quiet),
                self.client,
                self.seed
            );
        }
    }

    /// Prints the differences, those of a kind together.
    fn print_findings(&self, noticeable: bool) {
        let mut groups = BTreeMap::<_, Vec<_>>::new();
        for ((module, aspect, difference), finding) in &self.findings {
            if finding.reason.is_noticeable == noticeable {
                let name = module.as_deref().unwrap_or_default();
                groups.entry((name, *aspect, finding.reason.text)).or_default().push((difference, finding));
            }
        }
        for ((module, aspect, text), found) in groups {
            let heading = if noticeable { "differs" } else { "differs, which no client notices" };
            let number = if found.len() > 1 { format!(" ({})", grouped(found.len() as u64)) } else { String::new() };
            line!("{}{} {heading}{number}: {text}", prefix(module), aspect.name());
            for (difference, finding) in found.iter().take(SHOWN) {
                let subject = if difference.subject.is_empty() { "" } else { &format!("{}: ", difference.subject) };
                line!("    {subject}old: {}; new: {}", shown(&difference.old), shown(&difference.new));
                if aspect != Aspect::Module && aspect != Aspect::Access {
                    line!("        seen by: {}", finding.views.join(", "));
                }
            }
            if found.len() > SHOWN {
                line!("    and {} more (--json has them)", grouped((found.len() - SHOWN) as u64));
            }
        }
        if noticeable && self.more > 0 {
            line!("{} more were found and not kept", grouped(self.more));
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let difference =
            |((module, aspect, difference), finding): (&(Option<String>, Aspect, Difference), &Finding)| {
                json!({
                    "module": module,
                    "what": aspect.name(),
                    "subject": difference.subject,
                    "old": difference.old,
                    "new": difference.new,
                    "reason": finding.reason.text,
                    "noticeable": finding.reason.is_noticeable,
                    "views": finding.views,
                })
            };
        let module = |module: &ModuleReport| {
            json!({
                "name": module.name,
                "entries": module.entries,
                "views": module.views,
                "sampled_files": module.files,
                "sampled_bytes": module.bytes,
                "too_large_for_the_sample": module.left_out,
            })
        };
        let not_compared =
            |(module, part, why): &(String, String, String)| json!({ "module": module, "part": part, "reason": why });
        let changed = |(module, what): &(String, String)| json!({ "module": module, "what": what });
        json!({
            "old": self.old,
            "new": self.new,
            "client": self.client,
            "seed": self.seed,
            "modules": self.modules.iter().map(module).collect::<Vec<_>>(),
            "differences": self.findings.iter().map(difference).collect::<Vec<_>>(),
            "noticeable": self.noticeable(),
            "more_differences": self.more,
            "changed": self.changed.iter().map(changed).collect::<Vec<_>>(),
            "not_compared": self.not_compared.iter().map(not_compared).collect::<Vec<_>>(),
            "stopped": self.stopped,
        })
    }
}

fn key(module: Option<&str>, difference: &Difference) -> (Option<String>, Aspect, Difference) {
    (module.map(str::to_owned), difference.aspect, difference.clone())
}

fn prefix(module: &str) -> String {
    if module.is_empty() { String::new() } else { format!("{module}: ") }
}

fn shown(text: &str) -> &str {
    if text.is_empty() { "nothing" } else { text }
}

fn print_module(module: &ModuleReport) {
    let left_out = match module.left_out {
        0 => String::new(),
        number => format!(", and {} too large for --sample-bytes", grouped(number as u64)),
    };
    line!(
        "{}: compared {} in {}, and the contents of {} ({}{left_out})",
        module.name,
        count(module.entries, "entry"),
        count(module.views.len() as u64, "view"),
        count(module.files as u64, "file"),
        bytes(module.bytes),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(aspect: Aspect) -> Settled {
        Settled { lasting: vec![Difference::new("x", aspect, "a", "b")], ..Settled::default() }
    }

    #[test]
    fn the_exit_code_says_the_worst() {
        let mut report = Report::default();
        assert_eq!(report.exit(), Exit::Done);
        report.add(None, "modules", settled(Aspect::Greeting));
        assert_eq!(report.exit(), Exit::Done);
        report.add(Some("m"), "list", Settled { changed: vec!["x".to_owned()], ..Settled::default() });
        assert_eq!(report.exit(), Exit::Done);
        report.add(Some("m"), "list", Settled { is_restless: true, ..Settled::default() });
        assert_eq!(report.exit(), Exit::Vanished);
        report.not_compared("m", "everything", "it asks for a password");
        assert_eq!(report.exit(), Exit::Partial);
        report.add(Some("m"), "list", settled(Aspect::Mode));
        assert_eq!(report.exit(), Exit::Differs);
    }

    #[test]
    fn a_difference_that_several_views_show_is_one() {
        let mut report = Report::default();
        report.add(Some("m"), "first", settled(Aspect::Mode));
        assert!(report.knows(Some("m"), &settled(Aspect::Mode).lasting[0]));
        assert!(!report.knows(Some("n"), &settled(Aspect::Mode).lasting[0]));
        report.add(Some("m"), "second", settled(Aspect::Mode));
        let json = report.to_json();
        assert_eq!(json["differences"].as_array().unwrap().len(), 1);
        assert_eq!(json["differences"][0]["views"], json!(["first", "second"]));
        assert_eq!((&json["noticeable"], &json["differences"][0]["what"]), (&json!(1), &json!("mode")));
    }
}
