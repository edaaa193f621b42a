//! Filter rules in a client's or a module's words.
