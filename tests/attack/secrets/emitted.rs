//! What was emitted, searched for secrets.

use std::collections::BTreeMap;
use std::process::Output;

/// All that was emitted, by where it came from.
#[derive(Default)]
pub(super) struct Emitted(pub(super) BTreeMap<String, Vec<u8>>);

impl Emitted {
    pub(super) fn add(&mut self, place: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.0.entry(place.into()).or_default().extend(bytes.into());
    }

    pub(super) fn command(&mut self, place: &str, output: Output) {
        assert!(!output.stdout.is_empty() || !output.stderr.is_empty(), "{place}");
        self.add(place, [output.stdout, output.stderr].concat());
    }

    /// Everything that is found in anything.
    pub(super) fn leaks(&self, secrets: &[(String, Vec<u8>)]) -> Vec<String> {
        let mut leaks = Vec::new();
        for (place, bytes) in &self.0 {
            for (name, secret) in secrets {
                if let Some(at) = bytes.windows(secret.len()).position(|window| window == secret) {
                    let around = &bytes[at.saturating_sub(200)..(at + secret.len() + 50).min(bytes.len())];
                    leaks.push(format!("{name} in {place}: {}", String::from_utf8_lossy(around)));
                }
            }
        }
        leaks
    }
}
