//! What the client asks for: the server's command line.
