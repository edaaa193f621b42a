//! Challenge and response.
