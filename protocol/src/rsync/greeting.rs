//! The text lines before `@RSYNCD: OK`.
