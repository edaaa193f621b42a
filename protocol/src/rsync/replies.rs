//! What follows a request: echoes, literal data, phases, statistics.
