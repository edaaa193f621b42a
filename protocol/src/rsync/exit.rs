//! rsync's exit codes, and the I/O error bits that select some of them.

/// I/O error bits.
pub mod io_error {
    /// Something could not be read. The client deletes nothing and exits with 23.
    pub const GENERAL: i32 = 1;
    /// Files vanished. The client exits with 24.
    pub const VANISHED: i32 = 2;
}

/// The rsync exit codes that a sender uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Success.
    Ok = 0,
    /// Syntax or usage error.
    Syntax = 1,
    /// Protocol incompatibility.
    Protocol = 2,
    /// Requested action not supported.
    Unsupported = 4,
    /// Error starting client-server protocol.
    Startup = 5,
    /// Error in socket I/O.
    Socket = 10,
    /// Error in file I/O.
    File = 11,
    /// Error in the protocol data stream.
    Stream = 12,
    /// Terminated by a signal.
    Signal = 20,
    /// Error allocating core memory buffers.
    Memory = 22,
    /// Partial transfer due to error.
    Partial = 23,
    /// Partial transfer due to vanished source files.
    Vanished = 24,
    /// Timeout in data send/receive.
    Timeout = 30,
}

impl Exit {
    /// Returns the exit code of a session that ran to its end with these [`io_error`] bits.
    pub fn partial(bits: i32) -> Self {
        match bits {
            0 => Self::Ok,
            io_error::VANISHED => Self::Vanished,
            _ => Self::Partial,
        }
    }
}
