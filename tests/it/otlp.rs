//! Spans, as a collector gets them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use outrigger::app::App;
use outrigger::config::load::{Options, load};
use outrigger::otlp::{self, Settings};
use prost::Message;
use tokio::sync::Notify;

use crate::support::{Client, Origin, eventually};

const TAKEN: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
const GET: &str = "GET http://up.test/ HTTP/1.1\r\nHost: up.test\r\nConnection: close\r\n\r\n";

/// A proxy that exports to a collector, at once.
struct Traced {
    app: App,
    _file: tempfile::NamedTempFile,
}

impl Traced {
    fn new(origin: &Origin, collector: &Origin, more: &str) -> Traced {
        Traced::with(origin, &format!("http://{}", collector.address()), &[("OTEL_BSP_SCHEDULE_DELAY", "5")], more)
    }

    fn with(origin: &Origin, collector: &str, variables: &[(&str, &str)], more: &str) -> Traced {
        let text = format!(
            "version: 1\nlisteners: {{proxy: \"127.0.0.1:0\", admin: off, probes: \"127.0.0.1:0\"}}\nupstreams:\n  \
             up:\n    hosts: [up.test, \"127.0.0.1\"]\n    to: [\"http://{}\"]\n    allow_addresses: [loopback]\n    \
             retry: {{backoff: {{base: 0}}}}\n{more}",
            origin.address()
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        let loaded = load(file.path(), Options::default()).unwrap();
        let Some(config) = loaded.config else { panic!("{text}\n{:?}", loaded.problems) };
        let settings = Settings::read(|name| {
            let named = variables.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
            named.or((name == "OTEL_EXPORTER_OTLP_ENDPOINT").then_some(collector)).map(str::to_owned)
        });
        let settings = settings.unwrap().unwrap();
        let start = |proxy: &Arc<_>| otlp::start(settings, proxy).map(Some);
        Traced { app: App::start_traced(config, file.path().to_owned(), None, start).unwrap(), _file: file }
    }

    async fn connect(&self) -> Client {
        Client::connect(self.app.address("proxy")).await
    }

    async fn talk(&self, bytes: &str) -> String {
        let mut client = self.connect().await;
        client.send(bytes).await;
        String::from_utf8_lossy(&client.end().await.0).into_owned()
    }

    fn spans_counted(&self, result: &str) -> f64 {
        self.app.metrics().sample(&format!("outrigger_spans_total{{result=\"{result}\"}}")).unwrap()
    }
}

/// Every span that a collector was sent, in order.
fn all(collector: &Origin) -> Vec<Span> {
    let bodies = collector.seen().into_iter().map(|seen| ExportTraceServiceRequest::decode(&*seen.body).unwrap());
    let resources = bodies.flat_map(|body| body.resource_spans);
    resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
}

/// So many spans, once they have come.
async fn spans(collector: &Origin, count: usize) -> Vec<Span> {
    eventually("the spans come", async || all(collector).len() >= count).await;
    let spans = all(collector);
    assert_eq!(spans.len(), count, "{spans:#?}");
    spans
}

fn text(value: &KeyValue) -> String {
    match value.value.as_ref().and_then(|value| value.value.as_ref()).unwrap() {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        Value::BoolValue(truth) => truth.to_string(),
        other => panic!("{other:?}"),
    }
}

/// An attribute; empty where there is none.
fn at(span: &Span, key: &str) -> String {
    let mut found = span.attributes.iter().filter(|attribute| attribute.key == key).map(text);
    let value = found.next().unwrap_or_default();
    assert!(found.next().is_none(), "{key} is there twice: {span:?}");
    value
}

/// Whether its status is an error.
fn failed(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code == 2)
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Answers each request of a connection with the next of these.
async fn one_after_the_other(answers: &'static [&'static str]) -> Origin {
    let next = Arc::new(AtomicUsize::new(0));
    Origin::scripted(move |mut conn| {
        let next = next.clone();
        async move {
            while conn.request().await.is_some() {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if conn.try_send(answers[at.min(answers.len() - 1)].as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";

#[tokio::test]
async fn a_request_is_a_server_span_below_the_apps_and_its_attempt_a_client_span_below_that() {
    let (origin, collector) = (Origin::answering(OK).await, Origin::answering(TAKEN).await);
    let routes = "    routes: [{name: charges, match: {path: /v1/*}}]\n";
    let proxy = Traced::new(&origin, &collector, routes);
    let path = "/v1/sk_live_4eC39HqLyjWD/x?key=hunter2";
    let got = proxy
        .talk(&format!(
            "PUT http://up.test{path} HTTP/1.1\r\nHost: up.test\r\nConnection: close\r\ntraceparent: {PARENT}\r\n\
             tracestate: a=1,b=2\r\nContent-Length: 3\r\n\r\nabc"
        ))
        .await;
    assert!(got.starts_with("HTTP/1.1 200"), "{got}");
    let seen = origin.only();
    assert_eq!((seen.all("traceparent"), seen.all("tracestate")), (vec![PARENT], vec!["a=1,b=2"]));

    let spans = spans(&collector, 2).await;
    let [server, client] = &spans[..] else { panic!() };
    assert_eq!((server.kind, client.kind), (SpanKind::Server as i32, SpanKind::Client as i32));
    for span in &spans {
        assert_eq!(hex(&span.trace_id), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(span.name, "PUT up/charges");
        assert_eq!((at(span, "outrigger.upstream"), at(span, "outrigger.route")), ("up".into(), "charges".into()));
        assert_eq!(at(span, "http.request.method"), "PUT");
        assert_eq!(at(span, "http.response.status_code"), "200");
        assert_eq!(at(span, "network.protocol.version"), "1.1");
        assert!(!failed(span) && at(span, "error.type").is_empty());
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
    }
    assert_eq!(hex(&server.parent_span_id), "b7ad6b7169203331");
    assert_eq!(client.parent_span_id, server.span_id);
    assert!(client.start_time_unix_nano >= server.start_time_unix_nano);
    assert!(client.end_time_unix_nano <= server.end_time_unix_nano);
    assert_eq!((at(server, "server.address"), at(server, "server.port")), ("up.test".into(), "80".into()));
    assert_eq!((at(server, "url.scheme"), at(server, "url.path")), ("http".into(), "/v1/***/x".into()));
    assert_eq!(at(server, "url.query"), "key=***");
    assert_eq!((at(server, "http.request.body.size"), at(server, "http.response.body.size")), ("3".into(), "2".into()));
    assert_eq!(at(client, "server.port"), origin.address().port().to_string());
    assert_eq!(at(client, "url.full"), format!("http://{}/v1/***/x?key=***", origin.address()));
    assert!(at(client, "http.request.resend_count").is_empty());
    assert!(!at(client, "outrigger.connecting_ms").is_empty());
    for seen in collector.seen() {
        let body = String::from_utf8_lossy(&seen.body).into_owned();
        assert!(!body.contains("hunter2") && !body.contains("sk_live") && !body.contains("a=1,b=2"), "{body}");
        assert_eq!(seen.line(), "POST /v1/traces HTTP/1.1");
        assert_eq!(seen.all("content-type"), ["application/x-protobuf"]);
    }
}

#[tokio::test]
async fn each_attempt_has_its_span_with_how_often_it_was_resent_and_why() {
    let origin = one_after_the_other(&[UNAVAILABLE, UNAVAILABLE, OK]).await;
    let collector = Origin::answering(TAKEN).await;
    let proxy = Traced::new(&origin, &collector, "");
    assert!(proxy.talk(GET).await.starts_with("HTTP/1.1 200"));
    let spans = spans(&collector, 4).await;
    assert!(!failed(&spans[0]) && spans[0].parent_span_id.is_empty());
    assert_eq!(at(&spans[0], "outrigger.attempts"), "3");
    let told: Vec<_> = spans[1..]
        .iter()
        .map(|span| {
            assert_eq!(span.parent_span_id, spans[0].span_id);
            let keys =
                ["http.request.resend_count", "http.response.status_code", "error.type", "outrigger.retry.reason"];
            (keys.map(|key| at(span, key)), failed(span))
        })
        .collect();
    let expected =
        [(["", "503", "503", "503"], true), (["1", "503", "503", "503"], true), (["2", "200", "", ""], false)];
    assert_eq!(told, expected.map(|(values, failed)| (values.map(str::to_owned), failed)));
}

#[tokio::test]
async fn a_retry_that_was_wanted_and_not_made_says_why() {
    let (origin, collector) = (Origin::answering(UNAVAILABLE).await, Origin::answering(TAKEN).await);
    let proxy = Traced::new(&origin, &collector, "");
    proxy
        .talk("POST http://up.test/ HTTP/1.1\r\nHost: up.test\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        .await;
    let spans = spans(&collector, 2).await;
    for span in &spans {
        assert_eq!(at(span, "outrigger.no_retry"), "not_idempotent");
        assert_eq!((at(span, "error.type"), failed(span)), ("503".into(), true));
    }
}

#[tokio::test]
async fn a_trace_made_here_goes_upstream_with_the_span_of_each_attempt() {
    let origin = one_after_the_other(&[UNAVAILABLE, OK]).await;
    let collector = Origin::answering(TAKEN).await;
    let proxy = Traced::new(&origin, &collector, "trace: {send: true}\n");
    proxy.talk(GET).await;
    let spans = spans(&collector, 3).await;
    let sent: Vec<_> = origin.seen().iter().map(|seen| seen.all("traceparent").join("|")).collect();
    let expected = spans[1..].iter().map(|span| format!("00-{}-{}-01", hex(&span.trace_id), hex(&span.span_id)));
    assert_eq!(sent, expected.collect::<Vec<_>>());
}

#[tokio::test]
async fn what_is_not_sampled_is_not_exported_and_says_so_upstream() {
    let (origin, collector) = (Origin::answering(OK).await, Origin::answering(TAKEN).await);
    let proxy = Traced::new(&origin, &collector, "trace: {send: true}\n");
    let with = |parent| GET.replace("Connection", &format!("traceparent: {parent}\r\nConnection"));
    proxy.talk(&with(UNSAMPLED)).await;
    proxy.talk(&with(PARENT)).await;
    let spans = spans(&collector, 2).await;
    assert_eq!(hex(&spans[0].parent_span_id), "b7ad6b7169203331");
    assert_eq!(origin.seen()[0].all("traceparent"), [UNSAMPLED]);

    let url = format!("http://{}", collector.address());
    let silent = Traced::with(&origin, &url, &[("OTEL_TRACES_SAMPLER", "always_off")], "trace: {send: true}\n");
    silent.talk(GET).await;
    silent.app.drain().await;
    assert_eq!(all(&collector).len(), 2);
    let seen = origin.seen();
    assert!(seen[2].all("traceparent")[0].ends_with("-00"), "{seen:?}");
}

#[tokio::test]
async fn what_outrigger_refuses_has_no_attempt_and_what_cannot_be_reached_has_failed_ones() {
    let gone = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let (origin, collector) = (Origin::answering(OK).await, Origin::answering(TAKEN).await);
    let more = format!(
        "  gone:\n    hosts: [gone.test]\n    to: [\"http://{gone}\"]\n    retry: {{max_attempts: 2, backoff: {{base: 0}}}}\negress: {{unmatched: deny}}\n"
    );
    let proxy = Traced::new(&origin, &collector, &more);
    proxy.talk(&GET.replace("up.test", "other.test")).await;
    let refused = spans(&collector, 1).await;
    assert_eq!((at(&refused[0], "error.type"), failed(&refused[0])), ("denied_unmatched".into(), false));
    assert_eq!(at(&refused[0], "http.response.status_code"), "403");
    assert_eq!(at(&refused[0], "outrigger.upstream"), "unmatched");

    proxy.talk(&GET.replace("up.test", "gone.test")).await;
    let spans = spans(&collector, 4).await;
    for span in &spans[1..] {
        assert_eq!((at(span, "error.type"), failed(span)), ("connection_refused".into(), true));
    }
    assert_eq!(at(&spans[1], "http.response.status_code"), "502");
    assert_eq!(at(&spans[2], "http.response.status_code"), "");
    assert_eq!(at(&spans[2], "outrigger.retry.reason"), "connect_failure");
    assert_eq!(at(&spans[3], "server.port"), gone.port().to_string());
}

#[tokio::test]
async fn an_unusual_method_and_a_head_that_is_none_are_told_without_inventing() {
    let (origin, collector) = (Origin::answering(OK).await, Origin::answering(TAKEN).await);
    let proxy = Traced::new(&origin, &collector, "log: {path: off}\n");
    proxy.talk(&GET.replace("GET", "BREW")).await;
    proxy.talk("GET / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n").await;
    let spans = spans(&collector, 3).await;
    assert_eq!(spans[0].name, "HTTP up");
    assert_eq!(
        (at(&spans[0], "http.request.method"), at(&spans[0], "http.request.method_original")),
        ("_OTHER".into(), "BREW".into())
    );
    assert_eq!(at(&spans[0], "url.path"), "", "the log shows none either");
    assert_eq!(at(&spans[1], "url.full"), format!("http://{}", origin.address()));
    assert_eq!(
        (at(&spans[2], "error.type"), at(&spans[2], "http.request.method_original")),
        ("bad_request".into(), String::new())
    );
}

#[tokio::test]
async fn an_app_that_hangs_up_leaves_its_spans() {
    let asked = Arc::new(Notify::new());
    let ask = asked.clone();
    let origin = Origin::scripted(move |mut conn| {
        let ask = ask.clone();
        async move {
            conn.request().await;
            ask.notify_one();
            conn.closed().await;
        }
    })
    .await;
    let collector = Origin::answering(TAKEN).await;
    let proxy = Traced::new(&origin, &collector, "");
    let mut app = proxy.connect().await;
    app.send(GET).await;
    asked.notified().await;
    drop(app);
    let spans = spans(&collector, 2).await;
    assert_eq!((at(&spans[0], "error.type"), failed(&spans[0])), ("app_gone".into(), false));
    assert_eq!(at(&spans[0], "http.response.status_code"), "");
    assert_eq!((at(&spans[1], "error.type"), failed(&spans[1])), ("app_gone".into(), true));
    assert_eq!(at(&spans[1], "server.port"), origin.address().port().to_string());
}

#[tokio::test]
async fn a_body_that_breaks_is_an_error_of_both() {
    let origin = Origin::closing("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart").await;
    let collector = Origin::answering(TAKEN).await;
    let proxy = Traced::new(&origin, &collector, "");
    proxy.talk(GET).await;
    for span in spans(&collector, 2).await {
        assert_eq!((at(&span, "error.type"), failed(&span)), ("reset".into(), true));
        assert_eq!(at(&span, "http.response.status_code"), "200");
    }
}

#[tokio::test]
async fn a_tunnel_is_a_span_from_its_connect_to_its_end() {
    let origin = Origin::closing(OK).await;
    let collector = Origin::answering(TAKEN).await;
    let proxy = Traced::new(&origin, &collector, "");
    let mut app = proxy.connect().await;
    app.send(format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\ntraceparent: {PARENT}\r\n\r\n", origin.address())).await;
    app.head().await;
    app.send("GET / HTTP/1.1\r\nHost: up.test\r\n\r\n").await;
    app.end().await.1.unwrap();
    drop(app);
    let spans = spans(&collector, 2).await;
    assert_eq!((spans[0].name.as_str(), spans[1].name.as_str()), ("CONNECT up", "connect up"));
    assert_eq!(
        (at(&spans[0], "http.request.method"), at(&spans[1], "http.request.method")),
        ("CONNECT".into(), String::new())
    );
    assert_eq!(hex(&spans[0].parent_span_id), "b7ad6b7169203331");
    assert_eq!(at(&spans[0], "outrigger.tunnel.received"), OK.len().to_string());
    for span in &spans {
        assert!(!failed(span) && at(span, "url.path").is_empty(), "{span:?}");
        assert_eq!(at(span, "server.port"), origin.address().port().to_string());
    }
}

#[tokio::test]
async fn an_upgraded_stream_is_a_request_that_lasts_as_long_as_it_does() {
    let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    let origin = Origin::scripted(move |mut conn| async move {
        conn.head().await;
        conn.send(switch).await;
        let said = conn.take(4).await.unwrap();
        conn.send(said).await;
    })
    .await;
    let collector = Origin::answering(TAKEN).await;
    let proxy = Traced::new(&origin, &collector, "");
    let mut app = proxy.connect().await;
    app.send("GET http://up.test/ HTTP/1.1\r\nHost: up.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n").await;
    app.head().await;
    app.send("ping").await;
    assert_eq!(app.take(4).await, b"ping");
    drop(app);
    for span in spans(&collector, 2).await {
        assert_eq!((at(&span, "http.response.status_code"), failed(&span)), ("101".into(), false), "{span:?}");
    }
}

#[tokio::test]
async fn an_attempt_says_how_long_it_waited_for_its_token() {
    let (origin, collector) = (Origin::answering(OK).await, Origin::answering(TAKEN).await);
    let limit = "    rate_limit: {requests: 20, per: 1s, burst: 1, max_wait: 5s}\n";
    let proxy = Traced::new(&origin, &collector, limit);
    proxy.talk(GET).await;
    proxy.talk(GET).await;
    let spans = spans(&collector, 4).await;
    assert_eq!(at(&spans[1], "outrigger.wait.token_ms"), "");
    assert!(at(&spans[3], "outrigger.wait.token_ms").parse::<f64>().unwrap() > 0.0);
}

#[tokio::test]
async fn the_collector_gets_the_headers_and_the_resource_and_nobody_else_does() {
    let (origin, collector) = (Origin::answering(OK).await, Origin::answering(TAKEN).await);
    let variables = [
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2"),
        ("OTEL_SERVICE_NAME", "shop-outrigger"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
        ("OTEL_BSP_SCHEDULE_DELAY", "5"),
    ];
    let proxy = Traced::with(&origin, &format!("http://{}", collector.address()), &variables, "");
    proxy.talk(GET).await;
    spans(&collector, 2).await;
    let seen = collector.only();
    assert_eq!(seen.all("authorization"), ["Bearer hunter2"]);
    assert!(!origin.only().head.contains("hunter2") && !proxy.app.metrics().encode().contains("hunter2"));
    let body = ExportTraceServiceRequest::decode(&*seen.body).unwrap();
    let resource = body.resource_spans[0].resource.as_ref().unwrap();
    let of = |key: &str| resource.attributes.iter().find(|attribute| attribute.key == key).map(text).unwrap();
    assert_eq!((of("service.name"), of("deployment.environment.name")), ("shop-outrigger".into(), "test".into()));
}

#[tokio::test]
async fn a_collector_that_never_answers_costs_spans_and_nothing_else() {
    let origin = Origin::answering(OK).await;
    let collector = Origin::scripted(|mut conn| async move { conn.closed().await }).await;
    let url = format!("http://{}", collector.address());
    let small = [("OTEL_BSP_MAX_QUEUE_SIZE", "4"), ("OTEL_BSP_SCHEDULE_DELAY", "1")];
    let proxy = Traced::with(&origin, &url, &small, "");
    for _ in 0..20 {
        assert!(proxy.talk(GET).await.starts_with("HTTP/1.1 200"));
    }
    eventually("what does not fit is dropped", async || proxy.spans_counted("queue_full") == 36.0).await;
    assert_eq!(proxy.spans_counted("exported"), 0.0);
}

#[tokio::test]
async fn a_collector_that_is_down_loses_spans_that_are_counted() {
    let gone = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let origin = Origin::answering(OK).await;
    let proxy = Traced::with(&origin, &format!("http://{gone}"), &[], "shutdown: {quiet: 1ms}\n");
    assert!(proxy.talk(GET).await.starts_with("HTTP/1.1 200"));
    proxy.app.drain().await;
    assert_eq!(proxy.spans_counted("failed"), 2.0);
}

#[tokio::test]
async fn the_last_spans_are_sent_when_the_process_ends() {
    let (origin, collector) = (Origin::answering(OK).await, Origin::answering(TAKEN).await);
    let late = [("OTEL_BSP_SCHEDULE_DELAY", "3600000")];
    let proxy = Traced::with(&origin, &format!("http://{}", collector.address()), &late, "shutdown: {quiet: 1ms}\n");
    proxy.talk(GET).await;
    assert!(all(&collector).is_empty());
    proxy.app.drain().await;
    assert_eq!(all(&collector).len(), 2);
    assert_eq!(proxy.spans_counted("exported"), 2.0);
}

#[tokio::test]
async fn a_collector_that_is_busy_is_asked_again_and_one_that_refuses_is_not() {
    let origin = Origin::answering(OK).await;
    const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n";
    const NO: &str = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n";
    let collector = one_after_the_other(&[BUSY, TAKEN, NO]).await;
    let proxy = Traced::new(&origin, &collector, "");
    proxy.talk(GET).await;
    eventually("it is taken", async || proxy.spans_counted("exported") == 2.0).await;
    assert_eq!(collector.seen().len(), 2);
    proxy.talk(GET).await;
    eventually("it is given up", async || proxy.spans_counted("failed") == 2.0).await;
    assert_eq!(collector.seen().len(), 3);
}

#[tokio::test]
async fn spans_that_the_collector_rejects_are_counted_as_failed() {
    let answer = ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess { rejected_spans: 1, error_message: "no".to_owned() }),
    };
    let body = answer.encode_to_vec();
    let mut bytes = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    bytes.extend(body);
    let (origin, collector) = (Origin::answering(OK).await, Origin::answering(bytes).await);
    let proxy = Traced::new(&origin, &collector, "");
    proxy.talk(GET).await;
    eventually("one is rejected", async || proxy.spans_counted("failed") == 1.0).await;
    assert_eq!(proxy.spans_counted("exported"), 1.0);
}

#[tokio::test]
async fn a_collector_behind_tls_is_verified_by_the_ca_of_the_variable() {
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::from_params(&params, &ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let behind = Origin::answering(TAKEN).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let address = behind.address();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut near) = acceptor.accept(stream).await else { continue };
            let mut far = tokio::net::TcpStream::connect(address).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), ca.pem()).unwrap();
    let origin = Origin::answering(OK).await;
    let url = format!("https://localhost:{port}");
    let path = file.path().to_str().unwrap();
    let variables = [("OTEL_EXPORTER_OTLP_CERTIFICATE", path), ("OTEL_BSP_SCHEDULE_DELAY", "5")];
    let proxy = Traced::with(&origin, &url, &variables, "");
    proxy.talk(GET).await;
    spans(&behind, 2).await;
}
