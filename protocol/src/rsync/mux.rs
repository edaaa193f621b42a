//! Frames that carry data and messages.
