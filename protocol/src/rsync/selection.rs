//! What part of the repository a client asked for.
