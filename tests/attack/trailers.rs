//! Trailers are not heads: none of them frames a message, leads it elsewhere or proves who sent it, whatever is spoken on both
//! sides.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use tokio::net::{TcpListener, TcpStream};

use crate::frames::{END_HEADERS, END_STREAM, GOAWAY, HEADERS, Peer, RST_STREAM, block, data, frame, headers, request};
use crate::support::{Origin, Proxy};

/// What somebody further on could take for fields of the head.
const SMUGGLED: [(&str, &str); 11] = [
    ("content-length", "50"),
    ("host", "evil.test"),
    ("authorization", "Bearer evil"),
    ("cookie", "evil=1"),
    ("set-cookie", "evil=1"),
    ("content-type", "text/evil"),
    ("content-encoding", "gzip"),
    ("cache-control", "no-store"),
    ("te", "trailers"),
    ("trailer", "x-more"),
    ("max-forwards", "0"),
];

/// What belongs to one connection, and is no HTTP/2 at all.
const OF_HTTP1: [(&str, &str); 5] = [
    ("Transfer-Encoding", "chunked"),
    ("Connection", "close"),
    ("Keep-Alive", "timeout=5"),
    ("Upgrade", "evil"),
    ("Proxy-Authorization", "Basic evil"),
];

/// An upstream of HTTP/2 that keeps the trailers it is sent, and sends all of `SMUGGLED` back.
async fn http2_upstream() -> (std::net::SocketAddr, Arc<Mutex<Vec<HeaderMap>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let kept = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&kept);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let log = Arc::clone(&log);
                    tokio::spawn(async move {
                        let mut body = request.into_body();
                        while let Some(Ok(piece)) = body.data().await {
                            let _ = body.flow_control().release_capacity(piece.len());
                        }
                        if let Ok(Some(trailers)) = body.trailers().await {
                            log.lock().unwrap().push(trailers);
                        }
                        let head = Response::builder().header("trailer", "x-sum").body(()).unwrap();
                        let mut stream = respond.send_response(head, false).unwrap();
                        stream.send_data(Bytes::from("ok"), false).unwrap();
                        stream.send_trailers(map(&SMUGGLED)).unwrap();
                    });
                }
            });
        }
    });
    (address, kept)
}

fn map(smuggled: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut map: HeaderMap =
        smuggled.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
    map.append("x-sum", "7".parse().unwrap());
    map
}

async fn proxy(upstream: std::net::SocketAddr, http: u8) -> Proxy {
    Proxy::start(&format!(
        "upstreams:\n  up:\n    hosts: [up.test]\n    to: [\"http://{upstream}\"]\n    connections: {{http: {http}}}\n    retry: off\n"
    ))
    .await
}

fn only_the_sum(trailers: &HeaderMap) {
    let list: Vec<_> = trailers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    assert_eq!(list, [("x-sum", &b"7"[..])]);
}

/// The trailers of an answer, to an app that speaks HTTP/2.
async fn trailers_of_an_answer(proxy: &Proxy) -> HeaderMap {
    let stream = TcpStream::connect(proxy.address("proxy")).await.unwrap();
    let (mut send, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let asks = Request::get("http://up.test/").header("te", "trailers").body(()).unwrap();
    let (answer, _) = send.send_request(asks, true).unwrap();
    let mut body = answer.await.unwrap().into_body();
    while let Some(piece) = body.data().await {
        body.flow_control().release_capacity(piece.unwrap().len()).unwrap();
    }
    body.trailers().await.unwrap().unwrap()
}

#[tokio::test]
async fn an_apps_http2_trailers_smuggle_nothing_to_an_http2_upstream() {
    let (upstream, kept) = http2_upstream().await;
    let proxy = proxy(upstream, 2).await;
    let mut app = Peer::app(proxy.address("proxy")).await;
    let mut trailers = SMUGGLED.to_vec();
    trailers.push(("x-sum", "7"));
    let trailers = frame(HEADERS, END_STREAM | END_HEADERS, 1, block(&trailers));
    app.send([headers(1, 0, &request("POST", "/")), data(1, 0, "hi"), trailers].concat()).await;
    assert_eq!(app.until(HEADERS).await.status(), 200);
    only_the_sum(&kept.lock().unwrap()[0]);
    proxy.stop().await;
}

#[tokio::test]
async fn an_apps_http1_trailers_smuggle_nothing_to_an_http2_upstream() {
    let (upstream, kept) = http2_upstream().await;
    let proxy = proxy(upstream, 2).await;
    let lines =
        |list: &[(&str, &str)]| list.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect::<String>();
    let got = proxy
        .talk(
            format!(
                "POST http://up.test/ HTTP/1.1\r\nHost: up.test\r\nConnection: close\r\nTrailer: X-Sum\r\nTransfer-Encoding: \
                 chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 7\r\n{}{}\r\n",
                lines(&SMUGGLED),
                lines(&OF_HTTP1)
            )
            .as_bytes(),
        )
        .await;
    assert!(got.starts_with("HTTP/1.1 200 "), "{got}");
    only_the_sum(&kept.lock().unwrap()[0]);
    proxy.stop().await;
}

#[tokio::test]
async fn an_apps_trailers_smuggle_nothing_to_an_http1_upstream() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = proxy(origin.address(), 1).await;
    let mut app = Peer::app(proxy.address("proxy")).await;
    let names = SMUGGLED.map(|(name, _)| name).join(", ") + ", x-sum";
    let mut fields = request("POST", "/").to_vec();
    fields.extend([("te", "trailers"), ("trailer", &names)]);
    let mut trailers = SMUGGLED.to_vec();
    trailers.push(("x-sum", "7"));
    let trailers = frame(HEADERS, END_STREAM | END_HEADERS, 1, block(&trailers));
    app.send([headers(1, 0, &fields), data(1, 0, "hi"), trailers].concat()).await;
    assert_eq!(app.until(HEADERS).await.status(), 200);
    let seen = origin.only();
    let trailers: Vec<_> = seen.head.split("\r\n").filter(|line| line.starts_with('+')).collect();
    assert_eq!(trailers, ["+x-sum: 7"]);
    proxy.stop().await;
}

/// h2 takes no notice of pseudo fields in trailers, and so nobody behind it does.
#[tokio::test]
async fn pseudo_fields_in_trailers_reach_nobody_and_fields_of_a_connection_end_the_request() {
    let (upstream, kept) = http2_upstream().await;
    let proxy = proxy(upstream, 2).await;
    let post = |rest: &[(&str, &str)]| {
        let trailers = frame(HEADERS, END_STREAM | END_HEADERS, 1, block(rest));
        [headers(1, 0, &request("POST", "/")), data(1, 0, "hi"), trailers].concat()
    };
    let mut app = Peer::app(proxy.address("proxy")).await;
    app.send(post(&[(":path", "/evil"), (":authority", "evil.test"), ("x-sum", "7")])).await;
    let answer = loop {
        let frame = app.next().await.unwrap();
        if matches!(frame.kind, HEADERS | RST_STREAM) {
            break frame;
        }
    };
    if answer.kind == HEADERS {
        assert_eq!(answer.status(), 200);
        only_the_sum(&kept.lock().unwrap()[0]);
    }
    let before = kept.lock().unwrap().len();
    for (name, value) in [("transfer-encoding", "chunked"), ("connection", "close"), ("x", "a\r\nb")] {
        let mut app = Peer::app(proxy.address("proxy")).await;
        app.send(post(&[(name, value)])).await;
        while !matches!(app.next().await.expect("the stream is ended first").kind, RST_STREAM | GOAWAY) {}
    }
    assert_eq!(kept.lock().unwrap().len(), before);
    proxy.stop().await;
}

/// Over HTTP/2 and HTTP/1.
async fn apps_hear_only_the_sum(proxy: Proxy) {
    only_the_sum(&trailers_of_an_answer(&proxy).await);
    let got = proxy
        .talk(b"GET http://up.test/ HTTP/1.1\r\nHost: up.test\r\nTE: trailers\r\nConnection: close, TE\r\n\r\n")
        .await;
    assert!(got.ends_with("\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n"), "{got}");
    proxy.stop().await;
}

#[tokio::test]
async fn an_http2_upstreams_trailers_smuggle_nothing_to_an_app() {
    let (upstream, _) = http2_upstream().await;
    apps_hear_only_the_sum(proxy(upstream, 2).await).await;
}

#[tokio::test]
async fn an_http1_upstreams_trailers_smuggle_nothing_to_an_app() {
    let all = SMUGGLED.iter().chain(&OF_HTTP1);
    let (names, lines): (Vec<_>, Vec<_>) =
        all.map(|(name, value)| (name.to_string(), format!("{name}: {value}\r\n"))).unzip();
    let origin = Origin::answering(format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, {}\r\n\r\n2\r\nok\r\n0\r\n{}X-Sum: 7\r\n\r\n",
        names.join(", "),
        lines.concat()
    ))
    .await;
    apps_hear_only_the_sum(proxy(origin.address(), 1).await).await;
}
