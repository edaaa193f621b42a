//! What the two daemons show differently.

/// A property that clients see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Aspect {
    /// The greeting line of the daemon.
    Greeting,
    /// The message of the day.
    Motd,
    /// Whether a module is listed.
    Module,
    /// The comment of a module.
    Comment,
    /// The order of the modules.
    Order,
    /// Whether a module is open, asks for a password, or refuses.
    Access,
    /// How a login ends.
    Login,
    /// How a client ends.
    Exit,
    /// How a client ends if both daemons refuse its option.
    Refusal,
    /// The message of a failure that both clients end with.
    Wording,
    /// A message of a client that goes on.
    Message,
    /// Whether an entry is listed.
    Entry,
    /// The type of an entry.
    Type,
    Mode,
    Owner,
    Group,
    Size,
    /// The modification time, in seconds.
    Time,
    /// The fraction of a second of the modification time.
    Fraction,
    /// The target of a symlink.
    Target,
    /// The first name of a hard-linked file.
    HardLink,
    /// The digest that a client compares with `-c`.
    Digest,
    /// The content of a file.
    Content,
    /// What a client would do with its own file.
    Change,
}

impl Aspect {
    /// Returns the word for it, as in the JSON report.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Greeting => "greeting",
            Self::Motd => "motd",
            Self::Module => "module",
            Self::Comment => "comment",
            Self::Order => "order",
            Self::Access => "access",
            Self::Login => "login",
            Self::Exit => "exit",
            Self::Refusal => "refusal",
            Self::Wording => "wording",
            Self::Message => "message",
            Self::Entry => "entry",
            Self::Type => "type",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Group => "group",
            Self::Size => "size",
            Self::Time => "time",
            Self::Fraction => "fraction",
            Self::Target => "target",
            Self::HardLink => "hard-link",
            Self::Digest => "digest",
            Self::Content => "content",
            Self::Change => "change",
        }
    }
}

/// One property that the two daemons show differently.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Difference {
    /// The path in the module as the client prints it, or an option; empty if it is about the whole module or daemon.
    pub(super) subject: String,
    pub(super) aspect: Aspect,
    /// What each daemon shows; empty if nothing.
    pub(super) old: String,
    pub(super) new: String,
}

impl Difference {
    pub(super) fn new(
        subject: impl Into<String>,
        aspect: Aspect,
        old: impl Into<String>,
        new: impl Into<String>,
    ) -> Self {
        Self { subject: subject.into(), aspect, old: old.into(), new: new.into() }
    }

    /// Returns what it is about, in words.
    pub(super) fn what(&self) -> String {
        if self.subject.is_empty() { self.aspect.name().to_owned() } else { self.subject.clone() }
    }
}

/// What one look at both daemons found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// The first differences, at most [`MAX_KEPT`], sorted.
    pub(super) differences: Vec<Difference>,
    /// The number of differences that were not kept.
    pub(super) more: u64,
}

/// The maximum number of differences that one look keeps.
pub(super) const MAX_KEPT: usize = 1000;

impl Seen {
    pub(super) fn add(&mut self, difference: Difference) {
        if self.differences.len() < MAX_KEPT {
            self.differences.push(difference);
        } else {
            self.more += 1;
        }
    }

    /// Adds a difference if the two texts differ.
    pub(super) fn compare(&mut self, subject: &str, aspect: Aspect, old: &str, new: &str) {
        if old != new {
            self.add(Difference::new(subject, aspect, old, new));
        }
    }
}
