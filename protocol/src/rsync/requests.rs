//! What the client sends once it has the list.
