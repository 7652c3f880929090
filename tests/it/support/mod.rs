//! A proxy from YAML, a scripted origin, and a client that sees every byte.

#![allow(dead_code, reason = "each scenario uses its part")]

mod client;
pub(crate) mod origin;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use outrigger::app::App;
use outrigger::config::load::{Options, load};
use outrigger::reload::Status;

pub(crate) use client::Client;
pub(crate) use origin::Origin;

/// Longer than anything here takes, shorter than anybody's patience.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

const LISTENERS: &str = "proxy: \"127.0.0.1:0\", admin: off, probes: \"127.0.0.1:0\"";

/// A whole proxy, on free ports.
pub(crate) struct Proxy {
    app: Option<App>,
    file: tempfile::NamedTempFile,
}

impl Proxy {
    /// From the text behind `listeners`, with `up` (the origin) as `http://up.test`.
    pub(crate) async fn for_origin(origin: &Origin, more: &str) -> Proxy {
        let text = format!(
            "upstreams:\n  up:\n    hosts: [up.test, \"127.0.0.1\"]\n    to: [\"http://{}\"]\n    listen: 127.0.0.1:0\n    allow_addresses: [loopback]\n{more}",
            origin.address()
        );
        Proxy::start(&text).await
    }

    /// From everything but `version` and `listeners`.
    pub(crate) async fn start(text: &str) -> Proxy {
        Proxy::listening(LISTENERS, text).await
    }

    /// From the keys of `listeners`, and everything but that and `version`.
    pub(crate) async fn listening(listeners: &str, text: &str) -> Proxy {
        let text = format!("version: 1\nlisteners: {{{listeners}}}\n{text}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        let loaded = load(file.path(), Options::default()).unwrap();
        let Some(config) = loaded.config else { panic!("{text}\n{:?}", loaded.problems) };
        let app = App::start(config, file.path().to_owned()).unwrap();
        Proxy { app: Some(app), file }
    }

    /// Where a listener is: `proxy`, `probes`, or an upstream's name.
    pub(crate) fn address(&self, listener: &str) -> SocketAddr {
        self.app.as_ref().unwrap().address(listener)
    }

    /// A connection to the proxy port.
    pub(crate) async fn connect(&self) -> Client {
        Client::connect(self.address("proxy")).await
    }

    /// Sends bytes to the proxy port on a connection of their own and reads until it is closed.
    pub(crate) async fn talk(&self, bytes: &[u8]) -> String {
        let mut client = self.connect().await;
        client.send(bytes).await;
        String::from_utf8_lossy(&client.rest().await).into_owned()
    }

    /// The metrics.
    pub(crate) async fn metrics(&self) -> String {
        let mut client = Client::connect(self.address("probes")).await;
        client.send(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").await;
        String::from_utf8_lossy(&client.rest().await).into_owned()
    }

    /// Its configuration.
    pub(crate) fn file(&self) -> &Path {
        self.file.path()
    }

    /// Looks at the configuration again, as on SIGHUP.
    pub(crate) async fn reload_what_is_there(&self) -> Arc<Status> {
        self.app.as_ref().unwrap().reload_now().await
    }

    /// Takes another configuration into service, as [`Proxy::start`] takes it.
    pub(crate) async fn reload(&self, text: &str) -> Arc<Status> {
        std::fs::write(self.file.path(), format!("version: 1\nlisteners: {{{LISTENERS}}}\n{text}")).unwrap();
        self.app.as_ref().unwrap().reload_now().await
    }

    /// Drains. True where nothing was cut short.
    pub(crate) async fn drain(&self) -> bool {
        self.app.as_ref().unwrap().drain().await
    }

    /// Ends it.
    pub(crate) async fn stop(mut self) {
        self.app.take().unwrap().stop();
    }
}

/// Waits for something that has no event of its own, such as a counter.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
