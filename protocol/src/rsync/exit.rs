//! How a session ends: rsync's exit codes, and the bits of an I/O error that choose between some of them.

/// Bits of an I/O error.
pub mod io_error {
    /// Something could not be read: the client deletes nothing and exits 23.
    pub const GENERAL: i32 = 1;
    /// Files vanished: the client exits 24.
    pub const VANISHED: i32 = 2;
}

/// Rsync's exit codes, as far as a sender has a use for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All went well.
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
    /// Status of a process that was told to end.
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
    /// How a session ends that came to its end, after these bits of [`io_error`].
    pub fn partial(bits: i32) -> Self {
        match bits {
            0 => Self::Ok,
            io_error::VANISHED => Self::Vanished,
            _ => Self::Partial,
        }
    }
}
