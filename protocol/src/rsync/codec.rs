//! Integers, strings and file indices.
