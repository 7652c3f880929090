//! Upstreams: they answer as chance has it, and keep books of what they got.

pub(crate) mod http1;
pub(crate) mod http2;

use std::time::Duration;

use fastrand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::simulation::network::Mood;
use crate::simulation::stream::Simulated;

/// What an app's request says of its body.
pub(crate) const LENGTH: &str = "x-sim-length";
/// What an answer says of its own: the request, a seed for the bytes, their number.
pub(crate) const ANSWER: &str = "x-sim-answer";

/// An answer that an upstream means to give.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<u32>,
    /// Of the body.
    pub(crate) seed: u32,
    pub(crate) length: usize,
    /// The body is written in so many pieces, with a pause between them.
    pub(crate) pieces: usize,
    pub(crate) pause: Duration,
    /// Before the head.
    pub(crate) think: Duration,
}

impl Plan {
    pub(crate) fn draw(rng: &mut Rng, mood: &Mood) -> Plan {
        let (status, retry_after) = if rng.u32(0..1000) < mood.errors {
            match rng.u32(0..8) {
                0 => (503, Some(rng.u32(0..3))),
                1 => (429, Some(rng.u32(0..3))),
                2 => (429, None),
                3 => (404, None),
                4 => (500, None),
                _ => (503, None),
            }
        } else {
            match rng.u32(0..12) {
                0 => (204, None),
                1 => (304, None),
                _ => (200, None),
            }
        };
        let length = match rng.u32(0..10) {
            0 => 0,
            1 => rng.usize(2000..20_000),
            2 if rng.u32(0..6) == 0 => 80_000,
            _ => rng.usize(1..600),
        };
        let length = if matches!(status, 204 | 304) { 0 } else { length };
        let think = match rng.u32(0..40) {
            0 => rng.u64(1000..7000),
            1..5 => rng.u64(0..400),
            _ => rng.u64(0..20),
        };
        let slow = rng.u32(0..20) == 0;
        Plan {
            status,
            retry_after,
            seed: rng.u32(..),
            length,
            pieces: if rng.bool() { 1 } else { rng.usize(1..5) },
            pause: Duration::from_millis(if slow { rng.u64(0..3000) } else { rng.u64(0..10) }),
            think: Duration::from_millis(think),
        }
    }

    /// What the answer says of itself.
    pub(crate) fn label(&self, id: u32) -> String {
        format!("{id}.{}.{}", self.seed, self.length)
    }
}

/// Gives back what it gets.
pub(crate) async fn echo(mut stream: Simulated) {
    let mut piece = [0; 512];
    while let Ok(n) = stream.read(&mut piece).await {
        if n == 0 || stream.write_all(&piece[..n]).await.is_err() {
            break;
        }
    }
    let _ = stream.shutdown().await;
}
