//! Whole sessions over loopback: a real daemon, real files, a real store.

mod answers;
mod support;
