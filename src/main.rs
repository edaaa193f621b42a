//! (under construction)
mod config;
fn main() {}
