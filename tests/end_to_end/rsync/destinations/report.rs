//! The report of a run.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

use super::Found;
use crate::rsync::peers::Difference;

/// The results of a run.
#[derive(Default)]
pub(super) struct Report {
    pub(super) cases: usize,
    same: usize,
    known: usize,
    shrunk: usize,
    pub(super) failures: Vec<Failure>,
    /// Cases that did not differ again, or that differ between two stock daemons as well.
    pub(super) unsteady: Vec<Failure>,
    /// The number of cases by option, and by feature of the destination.
    options: BTreeMap<String, usize>,
    features: BTreeMap<String, usize>,
    /// The number of cases by exit code of the stock daemon's client, and the last command line with each code.
    exits: BTreeMap<String, (usize, String)>,
}

/// A failed case in readable form.
pub(super) struct Failure {
    pub(super) seed: u64,
    pub(super) source: Vec<String>,
    pub(super) base: String,
    pub(super) ops: Vec<String>,
    pub(super) alt: Vec<String>,
    pub(super) command: String,
    pub(super) names: String,
    pub(super) codes: [Option<i32>; 2],
    pub(super) differences: Vec<Difference>,
    pub(super) errors: [String; 2],
}

impl Report {
    pub(super) fn count(&mut self, command: String, options: &[String], found: &Found) {
        self.cases += 1;
        if found.unexplained.is_empty() {
            *(if found.is_known { &mut self.known } else { &mut self.same }) += 1;
        }
        // Count a case once for each option.
        let once = |names: &[String]| names.iter().cloned().collect::<std::collections::BTreeSet<_>>();
        for option in once(options) {
            *self.options.entry(option).or_default() += 1;
        }
        for feature in once(&found.features) {
            *self.features.entry(feature).or_default() += 1;
        }
        let exit = self.exits.entry(found.codes[0].map_or("signal".into(), |code| code.to_string())).or_default();
        *exit = (exit.0 + 1, command);
    }

    /// Counts a failure to shrink. Returns whether it is within the limit.
    pub(super) fn begin_to_shrink(&mut self, limit: usize) -> bool {
        self.shrunk += 1;
        self.shrunk <= limit
    }

    pub(super) fn json(&self) -> Value {
        let failures = |failures: &[Failure]| failures.iter().map(Failure::json).collect::<Vec<_>>();
        json!({
            "cases": self.cases, "same": self.same, "known": self.known, "failures": failures(&self.failures),
            "unsteady": failures(&self.unsteady), "options": self.options, "features": self.features, "exits": self.exits,
        })
    }
}

impl Failure {
    fn json(&self) -> Value {
        json!({
            "seed": self.seed, "source": self.source, "base": self.base, "ops": self.ops, "alt": self.alt,
            "command": self.command, "names": self.names, "codes": self.codes, "differences": self.differences,
            "errors": self.errors, "text": self.to_string(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for failure in &self.unsteady {
            writeln!(out, "unsteady: {failure}")?;
        }
        let (failed, unsteady) = (self.failures.len(), self.unsteady.len());
        writeln!(
            out,
            "{} cases: {} same, {} known, {failed} differ, {unsteady} unsteady",
            self.cases, self.same, self.known
        )?;
        for (exit, (count, command)) in &self.exits {
            writeln!(out, "exit {exit} ({count}), such as {command}")?;
        }
        for (what, counts) in [("options", &self.options), ("destination features", &self.features)] {
            let counted: Vec<_> = counts.iter().map(|(name, count)| format!("{name} ({count})")).collect();
            writeln!(out, "{} {what}: {}", counts.len(), counted.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "DIFFERS (seed {})", self.seed)?;
        for (what, lines) in [("source", &self.source), ("alt, a copy, then", &self.alt)] {
            if !lines.is_empty() {
                writeln!(out, "  {what}:\n    {}", lines.join("\n    "))?;
            }
        }
        writeln!(out, "  destination: {}", self.base)?;
        self.ops.iter().try_for_each(|op| writeln!(out, "    {op}"))?;
        if !self.names.is_empty() {
            writeln!(out, "  NAMES: {:?}", self.names)?;
        }
        writeln!(out, "  {}", self.command)?;
        writeln!(out, "  exit of stock and judged: {:?}", self.codes)?;
        for (facet, text) in self.differences.iter().take(12) {
            writeln!(out, "    {facet}: {text}")?;
        }
        for (who, errors) in ["stock", "judged"].iter().zip(&self.errors) {
            for line in errors.lines().take(6) {
                writeln!(out, "  {who}: {line}")?;
            }
        }
        Ok(())
    }
}
