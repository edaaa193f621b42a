//! What differs from version to version.
