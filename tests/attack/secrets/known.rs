//! The secrets, each one its own.

use std::path::Path;

/// Which secrets there are. Each is long and has letters and digits, as real ones do.
pub(super) const NAMES: &[&str] = &[
    // Of the operator.
    "admin-token",
    "hook-in-env",
    "header-in-env",
    "process-env",
    "collector-headers",
    // Of the app.
    "authorization",
    "proxy-authorization",
    "cookie",
    "api-key",
    "idempotency-key",
    "tenant",
    "referer",
    "query-value",
    "query-word",
    "path-token",
    "url-password",
    "connect-password",
    "request-body",
    "request-trailer",
    "tunnel-bytes",
    "unknown-protocol",
    "refused-header",
    "refused-name",
    "refused-expect",
    "websocket",
    "grpc-metadata",
    "explained",
    // Of the upstream.
    "set-cookie",
    "response-header",
    "response-body",
    "error-body",
    "bad-length",
    "bad-header",
    "bad-status",
    "reason-phrase",
];

/// Tied to its name, and in no other text.
pub(super) fn secret(name: &str) -> String {
    assert!(NAMES.contains(&name), "{name}");
    let number = name.bytes().fold(7_u64, |sum, byte| sum.wrapping_mul(0x0100_0193).wrapping_add(u64::from(byte)));
    format!("kanari{number:016x}{}", name.replace('-', ""))
}

/// The parts of a private key that would give it away.
pub(super) fn key(name: &str, path: &Path) -> Vec<(String, Vec<u8>)> {
    let pem = std::fs::read_to_string(path).unwrap();
    pem.lines().filter(|line| line.len() == 64).map(|line| (name.to_owned(), line[24..56].into())).collect()
}
