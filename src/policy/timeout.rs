//! The clocks.

use std::time::Duration;

use crate::document::Reader;

/// `timeouts`: each may be off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// One connection set-up: DNS, TCP over all addresses, TLS.
    pub connect: Option<Duration>,
    /// One attempt, from its slot to response headers.
    pub attempt: Option<Duration>,
    /// All attempts and waits together, until the app has response headers.
    pub request: Option<Duration>,
    /// Silence between body bytes, in either direction.
    pub idle: Option<Duration>,
    /// Silence in tunnels and upgraded streams.
    pub tunnel_idle: Option<Duration>,
}

impl Settings {
    /// Reads the block.
    pub fn read(reader: &mut Reader<'_>) -> Settings {
        Settings {
            connect: reader.clock("connect"),
            attempt: reader.clock("attempt"),
            request: reader.clock("request"),
            idle: reader.clock("idle"),
            tunnel_idle: reader.clock("tunnel_idle"),
        }
    }
}
