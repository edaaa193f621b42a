//! Faults: what a client can do wrong, the exit code for it, and how the client is notified.

use thiserror::Error;

use crate::codec::DecodeError;
use crate::limits;
use crate::rsync::exit::Exit;
use crate::rsync::version::Version;

/// How a client is notified of the reason why its session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// A line `@ERROR: …` in the greeting, then close.
    Line,
    /// Error text and exit code in frames, then close. A setup block must have been sent before. If the
    /// arguments are not known, that is the bare one.
    Frames,
}

/// A client's error that ends its session. The cause of a fault is always the client, never this host.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Fault {
    /// The first line is not an rsync greeting.
    #[error("protocol startup error: no greeting")]
    Greeting,
    /// The greeting lacks a part that its version requires.
    #[error("your client omitted the {what}: {greeting}")]
    Omitted {
        /// The missing part.
        what: &'static str,
        /// The client's greeting.
        greeting: String,
    },
    /// There is no common protocol version.
    #[error("protocol {0} is not spoken here: it must be {old} to {new}", old = Version::OLDEST, new = Version::NEWEST)]
    Version(u32),
    /// A line exceeds its limit or contains a NUL.
    #[error("protocol startup error: a line of over {limit} bytes, or with a NUL", limit = limits::RSYNC_LINE)]
    Line,
    /// `#early_input` with an invalid length, or one above the limit.
    #[error("invalid length of early input")]
    EarlyInput,
    /// Unknown command.
    #[error("Unknown command '{0}'")]
    Command(String),
    /// There is no common digest for the response to a challenge.
    #[error("no digest for authentication in common")]
    AuthDigest,
    /// The response to a challenge is not of the form `user response`.
    #[error("malformed credentials")]
    Credentials,
    /// The arguments exceed their limit in number or in bytes.
    #[error(
        "more than {count} arguments, or more than {bytes} bytes of them",
        count = limits::ARGUMENTS,
        bytes = limits::ARGUMENT_BYTES
    )]
    ArgumentsTooLong,

    /// The client wants to upload.
    #[error("module is read only")]
    ReadOnly,
    /// An option that would modify the repository.
    #[error("--{0} cannot be used with a read-only module")]
    WritingOption(&'static str),
    /// An option that this server refuses.
    #[error("The server is configured to refuse --{0}")]
    Refused(String),
    /// An option names a file of the module that the module's rules hide.
    #[error("Your options have been rejected by the server.")]
    Rejected,
    /// Unknown option.
    #[error("{0}: unknown option")]
    UnknownOption(String),
    /// An option has an invalid value.
    #[error("--{option}: invalid value '{value}'")]
    OptionValue {
        /// The option's long name.
        option: &'static str,
        /// The value that the client sent.
        value: String,
    },
    /// The negotiated version does not have this option.
    #[error("--{option} requires protocol {least} or higher (negotiated {version})")]
    OptionVersion {
        /// The option's long name.
        option: &'static str,
        /// The first version that has the option.
        least: u32,
        /// The negotiated version.
        version: Version,
    },
    /// Argument strings that pack several paths each hold too many in total.
    #[error("more than {max} paths", max = limits::ARGUMENTS)]
    TooManyPaths,
    /// The client requested no path.
    #[error("no path was asked for")]
    NoPath,
    /// The client chose a digest or compression that is not offered.
    #[error("{what} '{name}' is not supported")]
    Choice {
        /// `checksum` or `compress`.
        what: &'static str,
        /// The name that the client sent.
        name: String,
    },
    /// The client's list of names and this server's have no name in common.
    #[error("no {what} choice in common")]
    NothingInCommon {
        /// `checksum` or `compress`.
        what: &'static str,
    },

    /// A frame that a client must not send.
    #[error("unexpected frame: tag {tag}, {len} bytes")]
    Frame {
        /// The tag.
        tag: u8,
        /// Length of the payload, in bytes.
        len: usize,
    },
    /// The frame that ends the filter rules holds more bytes, but raw names must follow outside of frames
    /// (protocol 30).
    #[error("names of --files-from inside a frame")]
    NamesInFrame,
    /// The length of a filter rule is negative.
    #[error("invalid length of a filter rule: {0}")]
    RuleLength(i32),
    /// The number of filter rules exceeds the limit.
    #[error("more than {0} filter rules, which is the limit of this server")]
    RulesTooMany(usize),
    /// The filter rules exceed their limit in bytes.
    #[error("filter rules of more than {0} bytes, which is the limit of this server")]
    RulesTooLong(usize),
    /// A name in the `--files-from` list is too long.
    #[error("a name of over {limit} bytes in --files-from", limit = limits::PATH)]
    NameTooLong,
    /// A file index that no request can have.
    #[error("invalid file index {0}")]
    Index(i32),
    /// Block checksums that are invalid for the version or digest.
    #[error("invalid block checksums: {field} is {value}")]
    SumHead {
        /// The invalid field of the head.
        field: &'static str,
        /// Its value.
        value: i32,
    },
    /// The client requests values of extended attributes, but none were offered.
    #[error("request for extended attributes that were not offered")]
    Xattrs,
    /// The client finished a list that was not sent, or sent a "done" after the last one.
    #[error("more phases ended than there are")]
    Phases,
    /// A field cannot be decoded.
    #[error("{0}")]
    Decode(#[from] DecodeError),
}

impl Fault {
    /// Returns the exit code that stock rsync uses for this fault.
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

    /// Returns how the client is notified of this fault.
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
    fn the_farewell_and_the_exit_code_suit_the_stage_of_the_session() {
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
    fn messages_name_what_is_wrong() {
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
