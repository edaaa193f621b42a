//! The file list, as stock clients read it.
