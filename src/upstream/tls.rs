//! TLS to the upstream.
