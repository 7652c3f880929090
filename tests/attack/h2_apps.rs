//! Apps that break HTTP/2's rules, or that stop reading.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::child::{Child, text};
use crate::frames::*;
use crate::support::{Origin, Proxy, eventually};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

async fn nothing_in_flight(proxy: &Proxy) {
    eventually("nothing is in flight", async || {
        let metrics = proxy.metrics().await;
        metrics.contains("outrigger_requests_in_flight{upstream=\"up\"} 0\n")
            && metrics.contains("outrigger_upstream_connections{state=\"active\",upstream=\"up\"} 0\n")
    })
    .await;
}

#[tokio::test]
async fn an_app_that_never_opens_its_window_is_ended_by_idle() {
    let origin = Origin::scripted(|mut conn| async move {
        if conn.request().await.is_some() {
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{}", "x".repeat(200_000))).await;
            conn.closed().await;
        }
    })
    .await;
    let proxy = Proxy::for_origin(&origin, "    timeouts: {idle: 300ms}\n").await;
    let mut app = Peer::app_with(proxy.address("proxy"), &[(INITIAL_WINDOW_SIZE, 0)]).await;
    app.send(get(1)).await;
    assert_eq!(app.until(HEADERS).await.status(), 200);
    let reset = app.until(RST_STREAM).await;
    assert_eq!((reset.stream, reset.code()), (1, CANCEL));
    nothing_in_flight(&proxy).await;
    // The connection itself is as good as before.
    app.send(ping()).await;
    app.until(PING).await;
    proxy.stop().await;
}

#[tokio::test]
async fn an_app_that_reads_a_little_at_a_time_is_not_idle() {
    let origin =
        Origin::answering(format!("HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n{}", "x".repeat(2000))).await;
    let proxy = Proxy::for_origin(&origin, "    timeouts: {idle: 1s}\n").await;
    let mut app = Peer::app_with(proxy.address("proxy"), &[(INITIAL_WINDOW_SIZE, 0)]).await;
    app.send(get(1)).await;
    app.until(HEADERS).await;
    let mut got = 0;
    // 2 s in all, in steps that are far shorter than `idle`.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        app.send(window_update(1, 100)).await;
        got += app.until(DATA).await.payload.len();
    }
    assert_eq!(got, 2000);
    nothing_in_flight(&proxy).await;
    proxy.stop().await;
}

#[tokio::test]
async fn answers_that_an_app_leaves_untaken_end_its_connection_once_nothing_else_is_on_it() {
    let origin = Origin::scripted(|mut conn| async move {
        while let Some(seen) = conn.request().await {
            if seen.line().contains("/long") {
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").await;
                // Longer than `idle` in all, and never silent for so long.
                for _ in 0..20 {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    conn.send("x".repeat(50)).await;
                }
            } else {
                conn.send(OK).await;
            }
        }
    })
    .await;
    let proxy = Proxy::for_origin(&origin, "    timeouts: {idle: 1s}\n").await;
    // The first byte may go, and so the whole answer is out of the upstream's hands.
    let mut app = Peer::app_with(proxy.address("proxy"), &[(INITIAL_WINDOW_SIZE, 1)]).await;
    app.send(get(1)).await;
    app.until(HEADERS).await;
    app.send(headers(3, END_STREAM, &request("GET", "/long"))).await;
    app.send(window_update(3, 5000)).await;
    let (mut told, mut got) = (false, 0);
    while let Some(frame) = app.next().await {
        match frame.kind {
            GOAWAY => told = true,
            DATA if frame.stream == 3 => got += frame.payload.len(),
            _ => {}
        }
    }
    assert!(told, "it is told by GOAWAY");
    assert_eq!(got, 1000, "what it does take comes whole");
    eventually("the connection is gone", async || {
        proxy.metrics().await.contains("outrigger_downstream_connections 0\n")
    })
    .await;
    proxy.stop().await;
}

#[tokio::test]
async fn an_app_that_stops_reading_its_socket_is_ended_by_idle() {
    let origin = Origin::scripted(|mut conn| async move {
        if conn.request().await.is_some() {
            let _ = conn.try_send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await;
            while conn.try_send(&[b'x'; 65_536]).await.is_ok() {}
        }
    })
    .await;
    let proxy = Proxy::for_origin(&origin, "    timeouts: {idle: 300ms}\n").await;
    let mut app = Peer::app_with(proxy.address("proxy"), &[(INITIAL_WINDOW_SIZE, 0x7fff_ffff)]).await;
    app.send(window_update(0, 0x7fff_0000 - 65_535)).await;
    app.send(get(1)).await;
    eventually("the connection is gone, though the app holds it", async || {
        proxy.metrics().await.contains("outrigger_downstream_connections 0\n")
    })
    .await;
    nothing_in_flight(&proxy).await;
    proxy.stop().await;
}

#[tokio::test]
async fn a_head_without_its_end_is_ended_by_header_timeout() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "limits: {header_timeout: 500ms}\n").await;
    let starts = [
        frame(HEADERS, END_STREAM, 1, block(&request("GET", "/"))),
        headers(1, END_STREAM, &request("GET", "/"))[..20].to_vec(),
        get(1)[..5].to_vec(),
    ];
    for start in starts {
        let mut app = Peer::app(proxy.address("proxy")).await;
        app.send(&start).await;
        app.end().await;
    }
    for start in [&PREFACE[..10], PREFACE] {
        let mut stream = tokio::net::TcpStream::connect(proxy.address("proxy")).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, start).await.unwrap();
        let mut rest = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest);
        tokio::time::timeout(crate::support::PATIENCE, read).await.expect("it is closed").ok();
    }
    let metrics = proxy.metrics().await;
    assert!(!metrics.contains("outrigger_limit_refused_total{limit=\"header_timeout\"} 0\n"), "{metrics}");
    assert!(origin.seen().is_empty());
    // An idle connection is not timed: it lives on after more than the time of a head.
    let mut app = Peer::app(proxy.address("proxy")).await;
    tokio::time::sleep(Duration::from_millis(1000)).await;
    app.send(get(1)).await;
    assert_eq!(app.until(HEADERS).await.status(), 200);
    proxy.stop().await;
}

#[tokio::test]
async fn frames_against_the_rules_end_the_connection_and_reach_no_upstream() {
    let body = |bytes: &[u8]| bytes.to_vec();
    for (name, frames) in [
        ("HEADERS on stream 0", frame(HEADERS, END_STREAM | END_HEADERS, 0, block(&request("GET", "/")))),
        ("an even stream", headers(2, END_STREAM, &request("GET", "/"))),
        ("DATA on a stream that is idle", data(5, 0, "x")),
        ("RST_STREAM on a stream that is idle", reset(5, CANCEL)),
        ("WINDOW_UPDATE on a stream that is idle", window_update(5, 1)),
        (
            "PUSH_PROMISE",
            frame(PUSH_PROMISE, END_HEADERS, 1, [&2u32.to_be_bytes()[..], &block(&request("GET", "/"))].concat()),
        ),
        ("CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, block(&request("GET", "/")))),
        ("another frame within a block", [frame(HEADERS, 0, 1, block(&request("GET", "/"))), ping()].concat()),
        (
            "CONTINUATION of another stream",
            [frame(HEADERS, 0, 1, block(&request("GET", "/"))), frame(CONTINUATION, END_HEADERS, 3, "")].concat(),
        ),
        ("a frame over its bound", frame(DATA, 0, 1, vec![0; 16_385])),
        ("a frame of 16 MiB", body(&[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1])),
        ("a PING of 7 bytes", frame(PING, 0, 0, "short..")),
        ("a PING on a stream", frame(PING, 0, 1, *b"attacker")),
        ("SETTINGS of 5 bytes", frame(SETTINGS, 0, 0, "short")),
        ("SETTINGS on a stream", frame(SETTINGS, 0, 1, "")),
        ("an ACK with content", frame(SETTINGS, ACK, 0, [0; 6])),
        ("a window too large", settings(&[(INITIAL_WINDOW_SIZE, 0x8000_0000)])),
        ("a frame size too small", settings(&[(MAX_FRAME_SIZE, 1)])),
        ("no increment on the connection", window_update(0, 0)),
        ("the connection's window overflows", window_update(0, 0x7fff_ffff)),
        (
            "a table larger than allowed",
            frame(
                HEADERS,
                END_STREAM | END_HEADERS,
                1,
                [&[0x3f, 0xe1, 0xff, 0x03][..], &block(&request("GET", "/"))].concat(),
            ),
        ),
        ("an index past the table", frame(HEADERS, END_STREAM | END_HEADERS, 1, [0xff, 0xff, 0xff, 0x07])),
        ("an integer without end", frame(HEADERS, END_STREAM | END_HEADERS, 1, [0xff; 40])),
        ("padding longer than the frame", frame(DATA, 8, 1, [200, 0, 0])),
        ("GOAWAY on a stream", frame(GOAWAY, 0, 1, [0; 8])),
    ] {
        let origin = Origin::answering(OK).await;
        let proxy = Proxy::for_origin(&origin, "").await;
        let mut app = Peer::app(proxy.address("proxy")).await;
        app.send(frames).await;
        let codes = app.end().await;
        assert!(codes.iter().any(|code| *code != NO_ERROR), "{name}: {codes:?}");
        assert!(origin.seen().is_empty(), "{name}: {:?}", origin.seen());
        proxy.stop().await;
    }
}

#[tokio::test]
async fn malformed_requests_over_http2_reach_no_upstream() {
    let with = |more: &[(&'static str, &'static str)]| [&request("GET", "/")[..], more].concat();
    for (name, fields) in [
        ("no name", with(&[("", "x")])),
        ("an upper-case name", with(&[("X-Up", "x")])),
        ("a space in a name", with(&[("x y", "x")])),
        ("a line break in a name", with(&[("x\r\ny", "x")])),
        ("a colon in a name", with(&[("x:y", "x")])),
        ("a line break in a value", with(&[("x", "a\r\nhost: other")])),
        ("a zero byte in a value", with(&[("x", "a\0")])),
        ("Connection", with(&[("connection", "close")])),
        ("Transfer-Encoding", with(&[("transfer-encoding", "chunked")])),
        ("Upgrade", with(&[("upgrade", "websocket")])),
        ("Keep-Alive", with(&[("keep-alive", "1")])),
        ("Proxy-Connection", with(&[("proxy-connection", "close")])),
        ("TE", with(&[("te", "gzip")])),
        ("a second path", with(&[(":path", "/other")])),
        ("a pseudo field behind others", vec![("x", "y"), (":method", "GET"), (":scheme", "http"), (":path", "/")]),
        ("an unknown pseudo field", with(&[(":other", "x")])),
        ("a status", with(&[(":status", "200")])),
        ("no method", request("GET", "/")[1..].to_vec()),
        ("no path", request("GET", "/")[..3].to_vec()),
        ("an empty path", request("GET", "").to_vec()),
        ("a path without a slash", request("GET", "x").to_vec()),
        ("a line break in the path", request("GET", "/ HTTP/1.1\r\nx: y").to_vec()),
        ("a space in the path", request("GET", "/a b").to_vec()),
        ("a line break in the method", request("GET / HTTP/1.1\r\n\r\nGET", "/").to_vec()),
        (
            "a line break in the authority",
            vec![(":method", "GET"), (":scheme", "http"), (":authority", "up.test\r\nx: y"), (":path", "/")],
        ),
        ("no authority and no Host", vec![(":method", "GET"), (":scheme", "http"), (":path", "/")]),
        ("a length that lies", with(&[("content-length", "5")])),
        ("two lengths", with(&[("content-length", "0"), ("content-length", "1")])),
        (
            "extended CONNECT",
            vec![
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "http"),
                (":authority", "up.test"),
                (":path", "/"),
            ],
        ),
    ] {
        let origin = Origin::answering(OK).await;
        let proxy = Proxy::for_origin(&origin, "").await;
        let mut app = Peer::app(proxy.address("proxy")).await;
        app.send(headers(1, END_STREAM, &fields)).await;
        loop {
            let frame = app.next().await.unwrap_or_else(|| panic!("{name}: closed without a word"));
            match frame.kind {
                RST_STREAM | GOAWAY => assert_eq!(frame.code(), PROTOCOL_ERROR, "{name}"),
                HEADERS => assert_eq!(frame.status(), 400, "{name}"),
                _ => continue,
            }
            break;
        }
        assert!(origin.seen().is_empty(), "{name}: {:?}", origin.seen());
        proxy.stop().await;
    }
}

#[tokio::test]
async fn frames_on_a_stream_that_has_ended_change_no_request() {
    for (name, late) in [
        ("DATA", data(1, 0, "more")),
        ("HEADERS", headers(1, END_STREAM, &request("GET", "/second"))),
        ("RST_STREAM", reset(1, CANCEL)),
        ("WINDOW_UPDATE", window_update(1, 1)),
    ] {
        let origin = Origin::answering(OK).await;
        let proxy = Proxy::for_origin(&origin, "").await;
        let mut app = Peer::app(proxy.address("proxy")).await;
        app.send([headers(1, 0, &request("POST", "/")), data(1, END_STREAM, "body")].concat()).await;
        app.until(DATA).await;
        app.send([late, ping()].concat()).await;
        while let Some(frame) = app.next().await {
            if matches!(frame.kind, PING | GOAWAY) {
                break;
            }
        }
        assert_eq!(origin.only().body, b"body", "{name}");
        proxy.stop().await;
    }
}

#[tokio::test]
async fn an_app_that_says_goaway_still_gets_its_answers() {
    let go = Arc::new(Notify::new());
    let gate = Arc::clone(&go);
    let origin = Origin::scripted(move |mut conn| {
        let gate = Arc::clone(&gate);
        async move {
            conn.request().await;
            gate.notified().await;
            conn.send(OK).await;
            conn.closed().await;
        }
    })
    .await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let mut app = Peer::app(proxy.address("proxy")).await;
    app.send(get(1)).await;
    eventually("it is on its way", async || origin.seen().len() == 1).await;
    app.send(goaway(0, NO_ERROR)).await;
    go.notify_one();
    assert_eq!(app.until(HEADERS).await.status(), 200);
    assert_eq!(app.until(DATA).await.payload, b"ok");
    nothing_in_flight(&proxy).await;
    proxy.stop().await;
}

#[tokio::test]
async fn settings_that_are_never_acknowledged_and_tiny_windows_keep_answers_whole() {
    let body: String = (0..3000).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
    let origin = Origin::answering(format!("HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n{body}")).await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let mut app = Peer::app_with(proxy.address("proxy"), &[(INITIAL_WINDOW_SIZE, 1), (HEADER_TABLE_SIZE, 0)]).await;
    app.send(get(1)).await;
    app.until(HEADERS).await;
    let mut got = Vec::new();
    while got.len() < 3000 {
        let frame = app.until(DATA).await;
        assert!(frame.payload.len() <= 7);
        got.extend(frame.payload);
        app.send(window_update(1, 7)).await;
        // A window that shrinks below what was sent is a debt, not a fault.
        if got.len() == 701 {
            app.send(settings(&[(INITIAL_WINDOW_SIZE, 0)])).await;
        }
    }
    assert_eq!(got, body.as_bytes());
    proxy.stop().await;
}

#[tokio::test]
async fn an_upgrade_to_h2c_is_neither_made_nor_passed_on() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let got = proxy
        .talk(b"GET / HTTP/1.1\r\nHost: up.test\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n")
        .await;
    assert!(got.starts_with("HTTP/1.1 200 "), "{got}");
    let seen = origin.only();
    assert!(seen.all("upgrade").is_empty() && seen.all("http2-settings").is_empty(), "{seen:?}");
    proxy.stop().await;
}

#[tokio::test]
async fn cookies_in_crumbs_reach_an_http1_upstream_as_one_field() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let mut app = Peer::app(proxy.address("proxy")).await;
    let fields = [&request("GET", "/")[..], &[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")]].concat();
    app.send(headers(1, END_STREAM, &fields)).await;
    assert_eq!(app.until(HEADERS).await.status(), 200);
    assert_eq!(origin.only().all("cookie"), ["a=1; b=2"]);
    proxy.stop().await;
}

#[tokio::test]
async fn heads_over_the_limits_are_answered_and_counted_as_over_http1() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "limits: {max_header_bytes: 8KiB, max_headers: 20}\n").await;
    let (large, long) = ("y".repeat(9000), format!("/{}", "y".repeat(9000)));
    for (fields, status) in [
        ([&request("GET", "/")[..], &[("x", large.as_str())]].concat(), 431),
        ([&request("GET", "/")[..], &[("x", "y"); 30]].concat(), 431),
        (request("GET", &long).to_vec(), 414),
    ] {
        let mut app = Peer::app(proxy.address("proxy")).await;
        app.send(headers(1, END_STREAM, &fields)).await;
        assert_eq!(app.until(HEADERS).await.status(), status);
        let problem = String::from_utf8(app.until(DATA).await.payload).unwrap();
        assert!(problem.contains("urn:outrigger:error:"), "{problem}");
    }
    assert!(origin.seen().is_empty());
    let metrics = proxy.metrics().await;
    for counted in ["{limit=\"max_header_bytes\"} 2", "{limit=\"max_headers\"} 1"] {
        assert!(metrics.contains(&format!("outrigger_limit_refused_total{counted}\n")), "{metrics}");
    }
    proxy.stop().await;
}

#[tokio::test]
async fn an_app_that_stops_sending_a_body_gets_408_and_its_other_streams_go_on() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "    timeouts: {idle: 300ms}\n").await;
    let mut app = Peer::app(proxy.address("proxy")).await;
    app.send([headers(1, 0, &request("POST", "/")), data(1, 0, "some")].concat()).await;
    let answer = app.until(HEADERS).await;
    assert_eq!((answer.stream, answer.status()), (1, 408));
    app.send(get(3)).await;
    loop {
        let frame = app.next().await.expect("the connection stays");
        if frame.kind == DATA && frame.stream == 3 {
            assert_eq!(frame.payload, b"ok");
            break;
        }
    }
    nothing_in_flight(&proxy).await;
    proxy.stop().await;
}

#[tokio::test]
async fn a_body_that_is_not_as_long_as_it_says_never_reaches_the_upstream_whole() {
    let fields = [&request("POST", "/")[..], &[("content-length", "10")]].concat();
    for (name, body) in [
        ("too short", data(1, END_STREAM, "four")),
        ("too long", data(1, END_STREAM, "more than ten bytes")),
        ("ended by trailers", [data(1, 0, "four"), headers(1, END_STREAM, &[("x", "y")])].concat()),
        ("reset", [data(1, 0, "four"), reset(1, CANCEL)].concat()),
        ("reset without an error", [data(1, 0, "four"), reset(1, NO_ERROR)].concat()),
    ] {
        let origin = Origin::answering(OK).await;
        let proxy = Proxy::for_origin(&origin, "").await;
        let mut app = Peer::app(proxy.address("proxy")).await;
        app.send([headers(1, 0, &fields), body].concat()).await;
        nothing_in_flight(&proxy).await;
        // Nothing can be sent behind it that the upstream would take for the rest.
        app.send([get(3), ping()].concat()).await;
        app.until(PING).await;
        let posts: Vec<_> = origin.seen().into_iter().filter(|seen| seen.line().starts_with("POST")).collect();
        assert!(posts.is_empty(), "{name}: {posts:?}");
        proxy.stop().await;
    }
}

#[tokio::test]
async fn an_app_that_takes_back_fewer_than_half_of_its_requests_keeps_its_connection() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let mut app = Peer::app(proxy.address("proxy")).await;
    let mut stream = 1;
    for _ in 0..700 {
        // Two that are answered, and one that is not waited for.
        app.send([get(stream), get(stream + 2), get(stream + 4), reset(stream + 4, CANCEL)].concat()).await;
        let mut ended = 0;
        while ended < 2 {
            let frame = app.next().await.expect("the connection stays");
            assert_ne!(frame.kind, GOAWAY, "after {stream}");
            ended += usize::from(frame.kind == DATA && frame.stream != stream + 4);
        }
        stream += 6;
    }
    proxy.stop().await;
}

#[tokio::test]
async fn apps_that_wait_for_ever_cost_no_processor_time() {
    let origin =
        Origin::answering(format!("HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n{}", "x".repeat(9000))).await;
    let child = Child::start(&text(&origin, "    timeouts: {idle: off}\n", "")).await;
    let mut apps = Vec::new();
    for window in [0, 1, 5000] {
        for _ in 0..10 {
            let mut app = Peer::app_with(child.address("proxy"), &[(INITIAL_WINDOW_SIZE, window)]).await;
            app.send([get(1), get(3), headers(5, 0, &request("POST", "/"))].concat()).await;
            for _ in 0..2 {
                assert_eq!(app.until(HEADERS).await.status(), 200);
            }
            apps.push(app);
        }
    }
    // What is asked is what a second costs.
    let before = child.ticks();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ticks = child.ticks() - before;
    assert!(ticks < 20, "{ticks} hundredths of a second");
}
