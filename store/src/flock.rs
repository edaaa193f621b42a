//! A lock that ends with its guard.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// An exclusive flock(2) of an open file or directory, given up on drop.
#[derive(Debug)]
pub struct Flock<F: AsFd>(F);

impl<F: AsFd> Flock<F> {
    /// Takes the lock, without waiting. None: somebody else has it.
    pub fn take(file: F) -> io::Result<Option<Self>> {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(file))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What is locked.
    pub fn file(&self) -> &F {
        &self.0
    }
}

impl<F: AsFd> Drop for Flock<F> {
    fn drop(&mut self) {
        // Closing is not enough: a child that is being started has the file open too, until it becomes
        // another program. Where unlocking fails, closing is what is left.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}
