//! The far side: one connection that is kept, and what its answers mean (OTLP specification, "OTLP/HTTP Response").

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use tokio::time::timeout;

use crate::error::Error;
use crate::otlp::settings::Settings;
use crate::policy::retry_after;
use crate::shared::Shared;
use crate::upstream::connection::chain;
use crate::upstream::direct::Direct;
use crate::upstream::table::Table;

/// Of an answer. Bytes.
const MOST_ANSWER: usize = 64 << 10;

/// Why a post was not taken.
pub(super) enum Refusal {
    /// It may be taken later, after this long if the collector says so.
    Later(String, Option<Duration>),
    /// It will never be.
    Never(String),
}

/// See the module.
pub(super) struct Collector {
    direct: Direct,
    /// For its resolver and the addresses that are our own.
    table: Arc<Shared<Table>>,
    uri: Uri,
    headers: HeaderMap,
    timeout: Duration,
    kept: Option<SendRequest<Full<Bytes>>>,
}

impl Collector {
    /// Not connected yet.
    ///
    /// # Errors
    /// A sentence when TLS can't be set up.
    pub(super) fn new(settings: &Settings, table: Arc<Shared<Table>>) -> Result<Collector, String> {
        let connector = table.load().connector.clone();
        let direct = Direct::new(settings.origin.clone(), settings.tls.clone(), &connector)
            .map_err(|problem| format!("the collector {}: {problem}", settings.endpoint()))?;
        let mut headers = HeaderMap::new();
        let host = HeaderValue::try_from(settings.origin.authority()).map_err(|_| "the collector's host is none")?;
        headers.insert(HOST, host);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let agent = concat!("OTel-OTLP-Exporter-Outrigger/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        for (name, value) in &settings.headers {
            headers.insert(name.clone(), value.clone());
        }
        let uri = Uri::from(settings.path.clone());
        Ok(Collector { direct, table, uri, headers, timeout: settings.timeout, kept: None })
    }

    /// Posts once. How many of its spans the collector rejected.
    ///
    /// # Errors
    /// Why it was not taken.
    pub(super) async fn post(&mut self, body: Bytes) -> Result<u64, Refusal> {
        match timeout(self.timeout, self.exchange(body)).await {
            Ok(Ok((status, headers, answer))) => judge(status, &headers, answer),
            Ok(Err(reason)) => Err(Refusal::Later(reason, None)),
            Err(_) => {
                self.kept = None;
                let limit = self.timeout.as_millis();
                Err(Refusal::Later(format!("no answer within {limit} ms (OTEL_EXPORTER_OTLP_TIMEOUT)"), None))
            }
        }
    }

    async fn exchange(&mut self, body: Bytes) -> Result<(StatusCode, HeaderMap, Bytes), String> {
        if let Some(sender) = self.kept.take().filter(|sender| !sender.is_closed())
            && let Ok(answer) = self.over(sender, body.clone()).await
        {
            return Ok(answer);
        }
        // There was none, or the collector closed it while it was idle.
        let connector = self.table.load().connector.clone();
        let stream = self.direct.dial(&connector, self.timeout).await.map_err(|error| told(&error))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| chain(&error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = chain(&error), "the connection to the collector broke");
            }
        });
        self.over(sender, body).await
    }

    /// One post over a connection, which is kept where it can carry another.
    async fn over(
        &mut self,
        mut sender: SendRequest<Full<Bytes>>,
        body: Bytes,
    ) -> Result<(StatusCode, HeaderMap, Bytes), String> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        sender.ready().await.map_err(|error| chain(&error))?;
        let answer: Response<Incoming> = sender.send_request(request).await.map_err(|error| chain(&error))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MOST_ANSWER).collect().await;
        // An answer that breaks or never ends is one all the same: its status said what counts.
        let body = match body {
            Ok(body) => {
                self.kept = Some(sender);
                body.to_bytes()
            }
            Err(_) => Bytes::new(),
        };
        Ok((head.status, head.headers, body))
    }
}

/// Without the words that speak of an upstream.
fn told(error: &Error) -> String {
    match error {
        Error::Connect { detail, .. } if !detail.is_empty() => format!("{}: {detail}", error.code()),
        other => other.to_string(),
    }
}

fn judge(status: StatusCode, headers: &HeaderMap, answer: Bytes) -> Result<u64, Refusal> {
    match status.as_u16() {
        200..=299 => {
            // What can't be read rejects nothing.
            let rejected = ExportTraceServiceResponse::decode(answer).ok().and_then(|answer| answer.partial_success);
            Ok(rejected.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or(0)))
        }
        429 | 502 | 503 | 504 => {
            let asked = retry_after::parse(headers, SystemTime::now());
            Err(Refusal::Later(format!("it answered {status}"), asked))
        }
        _ => Err(Refusal::Never(format!("it answered {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use http::header::RETRY_AFTER;

    use super::*;

    fn judged(status: u16, headers: &HeaderMap) -> Result<u64, Refusal> {
        judge(StatusCode::from_u16(status).unwrap(), headers, Bytes::new())
    }

    #[test]
    fn what_may_be_taken_later_is_told_from_what_never_will() {
        let mut asks = HeaderMap::new();
        asks.insert(RETRY_AFTER, HeaderValue::from_static("7"));
        assert!(matches!(judged(200, &asks), Ok(0)));
        assert!(matches!(judged(429, &asks), Err(Refusal::Later(_, Some(wait))) if wait == Duration::from_secs(7)));
        assert!(matches!(judged(503, &HeaderMap::new()), Err(Refusal::Later(_, None))));
        for status in [301, 400, 401, 404, 500] {
            assert!(matches!(judged(status, &HeaderMap::new()), Err(Refusal::Never(_))), "{status}");
        }
    }
}
