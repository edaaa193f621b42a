//! The binary negotiation after the arguments.
