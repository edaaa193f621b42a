//! A file lock that is released when its guard is dropped.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// An exclusive `flock(2)` lock of an open file or directory, released on drop.
#[derive(Debug)]
pub struct Flock<F: AsFd>(F);

impl<F: AsFd> Flock<F> {
    /// Takes the lock without waiting. `None` if another holder has it.
    pub fn take(file: F) -> io::Result<Option<Self>> {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(file))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The locked file.
    pub fn file(&self) -> &F {
        &self.0
    }
}

impl<F: AsFd> Drop for Flock<F> {
    fn drop(&mut self) {
        // Closing the file is not enough: a child process that is being started has the file open too, until it
        // executes another program. If unlocking fails, closing is all that is left to do.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}
