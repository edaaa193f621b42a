//! Whole-file digests.
