//! What can be wrong with a client's side of a session, the exit code it means, and how the client is told.

use thiserror::Error;

use crate::codec::DecodeError;
use crate::limits;
use crate::rsync::exit::Exit;
use crate::rsync::version::Version;

/// How a client learns why its session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// A line `@ERROR: …` of the greeting, then close.
    Line,
    /// Error text and exit code in frames, then close. A setup block must have been sent, which may be the
    /// bare one if the arguments are not known.
    Frames,
}

/// What a client did that ends its session. Every fault is the client's, not this host's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Fault {
    /// The first line is not rsync's greeting.
    #[error("protocol startup error: no greeting")]
    Greeting,
    /// A greeting of a version that says more.
    #[error("your client omitted the {what}: {greeting}")]
    Omitted {
        /// What is missing.
        what: &'static str,
        /// The greeting.
        greeting: String,
    },
    /// No common version of the protocol.
    #[error("protocol {0} is not spoken here: it must be {old} to {new}", old = Version::OLDEST, new = Version::NEWEST)]
    Version(u32),
    /// A line is over its limit, or holds a NUL.
    #[error("protocol startup error: a line of over {limit} bytes, or with a NUL", limit = limits::RSYNC_LINE)]
    Line,
    /// `#early_input` with a length that is none, or over its limit.
    #[error("invalid length of early input")]
    EarlyInput,
    /// A command that is none.
    #[error("Unknown command '{0}'")]
    Command(String),
    /// No common digest for the answer to a challenge.
    #[error("no digest for authentication in common")]
    AuthDigest,
    /// The answer to a challenge is not `user response`.
    #[error("malformed credentials")]
    Credentials,
    /// Arguments beyond number or bytes.
    #[error(
        "more than {count} arguments, or more than {bytes} bytes of them",
        count = limits::ARGUMENTS,
        bytes = limits::ARGUMENT_BYTES
    )]
    ArgumentsTooLong,

    /// The client wants to send.
    #[error("module is read only")]
    ReadOnly,
    /// An option that would change the repository.
    #[error("--{0} cannot be used with a read-only module")]
    WritingOption(&'static str),
    /// An option that this server refuses.
    #[error("The server is configured to refuse --{0}")]
    Refused(String),
    /// A file of the module that the client names in an option, and that the module's rules hide.
    #[error("Your options have been rejected by the server.")]
    Rejected,
    /// An option that is none.
    #[error("{0}: unknown option")]
    UnknownOption(String),
    /// An option's value.
    #[error("--{option}: invalid value '{value}'")]
    OptionValue {
        /// The long name.
        option: &'static str,
        /// What the client said.
        value: String,
    },
    /// An option that the version in force does not have.
    #[error("--{option} requires protocol {least} or higher (negotiated {version})")]
    OptionVersion {
        /// The long name.
        option: &'static str,
        /// The version that brought it.
        least: u32,
        /// The version in force.
        version: Version,
    },
    /// Paths packed into strings beyond their number.
    #[error("more than {max} paths", max = limits::ARGUMENTS)]
    TooManyPaths,
    /// No path is asked for.
    #[error("no path was asked for")]
    NoPath,
    /// A digest or compression by a name that is not offered here.
    #[error("{what} '{name}' is not supported")]
    Choice {
        /// `checksum` or `compress`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// The client's list and ours share no name.
    #[error("no {what} choice in common")]
    NothingInCommon {
        /// `checksum` or `compress`.
        what: &'static str,
    },

    /// A frame that may not come from a client.
    #[error("unexpected frame: tag {tag}, {len} bytes")]
    Frame {
        /// The tag.
        tag: u8,
        /// Bytes of its payload.
        len: usize,
    },
    /// Bytes follow the filter rules in a frame where raw names must begin (protocol 30).
    #[error("names of --files-from inside a frame")]
    NamesInFrame,
    /// A negative length of a filter rule.
    #[error("invalid length of a filter rule: {0}")]
    RuleLength(i32),
    /// Filter rules over their limit in number.
    #[error("more than {0} filter rules, which is the limit of this server")]
    RulesTooMany(usize),
    /// Filter rules over their limit in bytes.
    #[error("filter rules of more than {0} bytes, which is the limit of this server")]
    RulesTooLong(usize),
    /// A name in the list of names that is too long.
    #[error("a name of over {limit} bytes in --files-from", limit = limits::PATH)]
    NameTooLong,
    /// An index that no request can have.
    #[error("invalid file index {0}")]
    Index(i32),
    /// Block checksums that the version or digest cannot have.
    #[error("invalid block checksums: {field} is {value}")]
    SumHead {
        /// The field of the head.
        field: &'static str,
        /// Its value.
        value: i32,
    },
    /// The client asks for values of extended attributes; none were offered.
    #[error("request for extended attributes that were not offered")]
    Xattrs,
    /// A list is called finished that was not sent, or an end after the end.
    #[error("more phases ended than there are")]
    Phases,
    /// A field does not decode.
    #[error("{0}")]
    Decode(#[from] DecodeError),
}

impl Fault {
    /// The exit code that stock rsync has for it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Greeting
            | Self::Omitted { .. }
            | Self::Line
            | Self::EarlyInput
            | Self::Command(_)
            | Self::Credentials
            | Self::AuthDigest
            | Self::ArgumentsTooLong => Exit::Startup,
            Self::ReadOnly
            | Self::WritingOption(_)
            | Self::UnknownOption(_)
            | Self::OptionValue { .. }
            | Self::TooManyPaths
            | Self::NoPath
            | Self::Choice { .. } => Exit::Syntax,
            Self::Refused(_)
            | Self::Rejected
            | Self::NothingInCommon { .. }
            | Self::RulesTooMany(_)
            | Self::RulesTooLong(_) => Exit::Unsupported,
            Self::Version(_)
            | Self::OptionVersion { .. }
            | Self::Index(_)
            | Self::SumHead { .. }
            | Self::Xattrs
            | Self::Phases => Exit::Protocol,
            Self::Frame { .. } | Self::NamesInFrame | Self::RuleLength(_) | Self::NameTooLong | Self::Decode(_) => {
                Exit::Stream
            }
        }
    }

    /// How the client is told.
    pub fn farewell(&self) -> Farewell {
        match self {
            Self::Greeting
            | Self::Omitted { .. }
            | Self::Version(_)
            | Self::Line
            | Self::EarlyInput
            | Self::Command(_)
            | Self::AuthDigest
            | Self::Credentials => Farewell::Line,
            _ => Farewell::Frames,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_hears_of_its_fault_in_the_words_of_its_stage() {
        for (fault, exit, farewell) in [
            (Fault::Greeting, Exit::Startup, Farewell::Line),
            (Fault::Version(26), Exit::Protocol, Farewell::Line),
            (Fault::AuthDigest, Exit::Startup, Farewell::Line),
            (Fault::ArgumentsTooLong, Exit::Startup, Farewell::Frames),
            (Fault::ReadOnly, Exit::Syntax, Farewell::Frames),
            (Fault::Refused("iconv".to_owned()), Exit::Unsupported, Farewell::Frames),
            (Fault::NothingInCommon { what: "checksum" }, Exit::Unsupported, Farewell::Frames),
            (Fault::Index(-7), Exit::Protocol, Farewell::Frames),
            (Fault::Frame { tag: 9, len: 1 }, Exit::Stream, Farewell::Frames),
        ] {
            assert_eq!((fault.exit(), fault.farewell()), (exit, farewell), "{fault}");
        }
    }

    #[test]
    fn texts_name_what_is_wrong() {
        for (fault, text) in [
            (Fault::Version(26), "protocol 26 is not spoken here: it must be 27 to 32"),
            (Fault::Refused("delete".to_owned()), "The server is configured to refuse --delete"),
            (Fault::SumHead { field: "block length", value: -1 }, "invalid block checksums: block length is -1"),
            (Fault::NameTooLong, "a name of over 4095 bytes in --files-from"),
        ] {
            assert_eq!(fault.to_string(), text);
        }
    }
}
