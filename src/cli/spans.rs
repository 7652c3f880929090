//! Whether this build exports spans, and what the environment says about it.

#[cfg(feature = "otlp")]
pub(super) use with::Spans;
#[cfg(not(feature = "otlp"))]
pub(super) use without::Spans;

/// What `--version` says.
#[cfg(feature = "otlp")]
pub(super) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (otlp)");
/// What `--version` says.
#[cfg(not(feature = "otlp"))]
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

#[cfg(feature = "otlp")]
mod with {
    use std::sync::Arc;

    use crate::otlp::{self, Settings};
    use crate::proxy::Proxy;
    use crate::telemetry::spans::Tracer;

    /// Where spans go, if anywhere.
    pub(in crate::cli) struct Spans(Option<Settings>);

    impl Spans {
        /// By the standard variables.
        ///
        /// # Errors
        /// Every variable that is wrong.
        pub(in crate::cli) fn from_env() -> Result<Spans, String> {
            let settings = Settings::from_env();
            settings.map(Spans).map_err(|problems| format!("spans can't be exported\n{problems}"))
        }

        /// Begins to export, where a collector is named.
        ///
        /// # Errors
        /// A sentence when TLS can't be set up.
        pub(in crate::cli) fn start(self, proxy: &Arc<Proxy>) -> Result<Option<Tracer>, String> {
            let Some(settings) = self.0 else { return Ok(None) };
            let collector = settings.endpoint();
            let tracer = otlp::start(settings, proxy)?;
            tracing::info!(collector, "spans are exported");
            Ok(Some(tracer))
        }
    }
}

#[cfg(not(feature = "otlp"))]
mod without {
    use std::sync::Arc;

    use crate::proxy::Proxy;
    use crate::telemetry::spans::Tracer;

    /// Spans go nowhere.
    pub(in crate::cli) struct Spans;

    impl Spans {
        /// Warns where the environment names a collector.
        ///
        /// # Errors
        /// None.
        pub(in crate::cli) fn from_env() -> Result<Spans, String> {
            let named = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
            for variable in named {
                if std::env::var_os(variable).is_some_and(|value| !value.is_empty()) {
                    tracing::warn!(
                        variable,
                        "no spans are exported: this build is without the cargo feature `otlp`, release images have it"
                    );
                }
            }
            Ok(Spans)
        }

        /// Does nothing.
        ///
        /// # Errors
        /// None.
        pub(in crate::cli) fn start(self, _: &Arc<Proxy>) -> Result<Option<Tracer>, String> {
            Ok(None)
        }
    }
}
