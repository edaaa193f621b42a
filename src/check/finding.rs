//! What `stillmirror check` found, and how it is printed.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::output::{count, line};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// It is as it should be.
    Ok,
    /// It is not used, and nothing needs to be done.
    Note,
    /// It works, but not as well as it could, or not for long.
    Warning,
    /// Something that is configured will not work.
    Error,
}

impl Level {
    fn text(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "ERROR",
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Finding {
    /// What it is about: `host`, `ports`, `repository debian`.
    pub(super) section: String,
    pub(super) level: Level,
    pub(super) text: String,
    /// What to do about it.
    pub(super) remedy: Option<String>,
}

/// All findings, in the order in which they were made.
#[derive(Debug, Default)]
pub(super) struct Report {
    section: String,
    pub(super) findings: Vec<Finding>,
}

impl Report {
    /// Begins a section. What is found from now on belongs to it.
    pub(super) fn section(&mut self, name: impl Into<String>) {
        self.section = name.into();
    }

    pub(super) fn ok(&mut self, text: impl Into<String>) {
        self.add(Level::Ok, text.into(), "");
    }

    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.add(Level::Note, text.into(), "");
    }

    /// Adds a warning. An empty remedy is none: the text says what to do.
    pub(super) fn warning(&mut self, text: impl Into<String>, remedy: &str) {
        self.add(Level::Warning, text.into(), remedy);
    }

    /// Adds an error. An empty remedy is none: the text says what to do.
    pub(super) fn error(&mut self, text: impl Into<String>, remedy: &str) {
        self.add(Level::Error, text.into(), remedy);
    }

    pub(super) fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    fn add(&mut self, level: Level, text: String, remedy: &str) {
        let remedy = (!remedy.is_empty()).then(|| remedy.to_owned());
        self.findings.push(Finding { section: self.section.clone(), level, text, remedy });
    }

    /// Prints everything section by section, and a line that sums it up.
    pub(super) fn print(&self) {
        let mut done: Vec<&str> = Vec::new();
        for Finding { section, .. } in &self.findings {
            if done.contains(&section.as_str()) {
                continue;
            }
            done.push(section);
            line!("{section}");
            for finding in self.findings.iter().filter(|finding| finding.section == *section) {
                line!("  {:<8} {}", finding.level.text(), finding.text);
                if let Some(remedy) = &finding.remedy {
                    line!("           {remedy}");
                }
            }
        }
        line!("{}, {}", self.counted(Level::Error, "error"), self.counted(Level::Warning, "warning"));
    }

    fn counted(&self, level: Level, noun: &str) -> String {
        count(self.count(level) as u64, noun)
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "errors": self.count(Level::Error),
            "warnings": self.count(Level::Warning),
            "findings": self.findings,
        })
    }
}
