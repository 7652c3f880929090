//! The composition root: what is made, from what, in which order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::admin::live;
use crate::config::Config;
use crate::proxy::Proxy;
use crate::reload::{Cause, Place, Reloader, Source, Status};
use crate::shutdown::{Drain, FAREWELL};
use crate::telemetry::logging::Logging;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::spans::Tracer;

/// The longest that the last spans may take.
const LAST_SPANS: Duration = Duration::from_secs(5);

/// Outrigger, running.
pub struct App {
    reloader: Arc<Reloader>,
}

impl App {
    /// Opens every listener and serves. Must be called within a tokio runtime. Access lines go nowhere. `source` is where
    /// the configuration came from and is read again from: a file's path, or a text.
    ///
    /// # Errors
    /// A sentence that says which listener can't be opened, or what can't be set up.
    pub fn start(config: Config, source: impl Into<Source>) -> Result<App, String> {
        App::start_logging(config, source, None)
    }

    /// As [`App::start`], with access lines and reloads going to the process's log.
    ///
    /// # Errors
    /// As [`App::start`].
    pub fn start_logging(config: Config, source: impl Into<Source>, logging: Option<Logging>) -> Result<App, String> {
        App::start_traced(config, source, logging, |_| Ok(None))
    }

    /// As [`App::start_logging`], with requests traced by what `tracer` makes.
    ///
    /// # Errors
    /// As [`App::start`], and what `tracer` says.
    pub fn start_traced(
        config: Config,
        source: impl Into<Source>,
        logging: Option<Logging>,
        tracer: impl FnOnce(&Arc<Proxy>) -> Result<Option<Tracer>, String>,
    ) -> Result<App, String> {
        let metrics = Metrics::new();
        if let Some(logging) = &logging {
            metrics.count_dropped_lines(logging.dropped());
        }
        let make = |table, access| Proxy::new(table, access, Drain::new(), metrics.clone());
        let reloader = Reloader::first(config, source.into(), logging, make, &metrics)?;
        metrics.configured(true);
        if let Some(tracer) = tracer(reloader.proxy())? {
            // It was made just now, so it has none yet.
            let _ = reloader.proxy().tracer.set(tracer);
        }
        reloader.serve();
        tokio::spawn(live::run(reloader.admin()));
        for (place, address) in reloader.addresses().iter() {
            tracing::debug!(setting = place.setting(), %address, "listening");
        }
        let app = App { reloader };
        let show = |name| app.find(name).map(|address| address.to_string());
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            proxy = show("proxy"),
            admin = show("admin"),
            probes = show("probes"),
            upstreams = app.reloader.proxy().table.load().upstreams.len(),
            "ready"
        );
        Ok(app)
    }

    /// Where it listens: `proxy`, `admin`, `probes`, `tls`, or an upstream's name for its own port.
    ///
    /// # Panics
    /// Where there is no such listener.
    pub fn address(&self, name: &str) -> SocketAddr {
        self.find(name).unwrap_or_else(|| panic!("there is no listener {name}"))
    }

    fn find(&self, name: &str) -> Option<SocketAddr> {
        let named = |place: &Place| match place {
            Place::Proxy => name == "proxy",
            Place::Admin => name == "admin",
            Place::Probes => name == "probes",
            Place::Tls => name == "tls",
            Place::Upstream(upstream) => **upstream == *name,
        };
        // Outrigger's own come first, also where an upstream bears the same name.
        self.reloader.addresses().iter().find(|(place, _)| named(place)).map(|(_, address)| *address)
    }

    /// Reads the configuration again, as SIGHUP does.
    pub async fn reload_now(&self) -> Arc<Status> {
        self.reloader.reload(Cause::Signal).await
    }

    /// All counters.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.reloader.proxy().metrics
    }

    /// Drains: goes on serving until the app is quiet, or for `shutdown.grace`, and sends the last spans. True where nothing
    /// was cut short.
    pub async fn drain(&self) -> bool {
        let began = Instant::now();
        let proxy = self.reloader.proxy();
        let settings = proxy.table.load().config.shutdown.clone();
        tracing::info!(in_flight = proxy.drain.in_flight(), "draining");
        let left = proxy.drain.run(&settings).await;
        if left > 0 {
            tracing::warn!(in_flight = left, "the grace is over, what is still in flight is cut short");
        } else {
            tracing::info!("drained");
        }
        if let Some(tracer) = proxy.tracer.get() {
            let rest = settings.grace.saturating_sub(began.elapsed());
            // A collector that is gone must not keep the process much longer.
            if timeout(rest.clamp(FAREWELL, LAST_SPANS), tracer.flush()).await.is_err() {
                tracing::warn!("the collector did not take the last spans in time");
            }
        }
        left == 0
    }

    /// Ends at once.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let drain = &self.reloader.proxy().drain;
        drain.begun.cancel();
        drain.ended.cancel();
    }
}
