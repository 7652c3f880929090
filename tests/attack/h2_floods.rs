//! Apps that flood over HTTP/2: memory stays where it was, upstreams are not hammered, and the others are served.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use crate::child::{Child, text};
use crate::frames::*;
use crate::storms::survives;
use crate::support::{Origin, PATIENCE, Proxy, eventually};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// What floods may add to the proxy's memory while they last, in KiB.
const ROOM: u64 = 24 << 10;

/// How many floods there are at once, behind one that warms up.
const AT_ONCE: usize = 20;

/// The counter of connections that were ended for a flood.
const FLOODS: &str = "outrigger_limit_refused_total{limit=\"http2_flood\"}";

/// The real binary before an upstream that answers: during the floods its memory is bounded, and afterwards somebody else is
/// served, nothing is in flight and the memory is what it was. How many floods it has counted.
async fn after_floods(name: &str, flood: impl AsyncFn(SocketAddr)) -> f64 {
    let origin = Origin::answering(OK).await;
    let child = Child::start(&text(&origin, "", "")).await;
    floods(name, &child, flood).await;
    child.figure(FLOODS).await
}

/// A flood on each of some connections.
async fn floods(name: &str, child: &Child, flood: impl AsyncFn(SocketAddr)) {
    let before = child.resident();
    survives(child, 1, AT_ONCE, async |child, n| {
        let address = child.address("proxy");
        let all = join_all((0..n).map(|_| flood(address)));
        timeout(PATIENCE * 2, all).await.unwrap_or_else(|_| panic!("{name} has no end"));
    })
    .await;
    let grown = child.peak().saturating_sub(before);
    assert!(grown < ROOM, "{name}: {grown} KiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_continuation_flood_ends_its_connection() {
    after_floods("a block without end", async |address| {
        let mut app = Peer::app(address).await;
        app.send(frame(HEADERS, END_STREAM, 1, block(&request("GET", "/")))).await;
        let piece = block(&[("x-filler", "y".repeat(8000))]);
        let codes = app.flood(100_000, move |_| frame(CONTINUATION, 0, 1, &piece)).await;
        assert_eq!(codes, Some(vec![ENHANCE_YOUR_CALM]));
    })
    .await;
    after_floods("empty pieces", async |address| {
        let mut app = Peer::app(address).await;
        app.send(frame(HEADERS, END_STREAM, 1, block(&request("GET", "/")))).await;
        let codes = app.flood(100_000, |_| frame(CONTINUATION, 0, 1, "")).await;
        assert_eq!(codes, Some(vec![ENHANCE_YOUR_CALM]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_control_frames_end_their_connection() {
    for (name, piece) in [
        ("PING", ping()),
        ("PING that answers nothing", frame(PING, ACK, 0, *b"no asked")),
        ("SETTINGS", settings(&[(INITIAL_WINDOW_SIZE, 65_535)])),
        ("empty SETTINGS", settings(&[])),
        ("PRIORITY", frame(PRIORITY, 0, 1, [0, 0, 0, 0, 7])),
        ("WINDOW_UPDATE", window_update(0, 1)),
        ("unknown frames", frame(0xbe, 0, 0, "grease")),
    ] {
        let counted = after_floods(name, async |address| {
            let app = Peer::app(address).await;
            let piece = piece.clone();
            let codes = app.flood(200_000, move |_| piece.clone()).await;
            assert_eq!(codes, Some(vec![ENHANCE_YOUR_CALM]), "{name}");
        })
        .await;
        assert_eq!(counted, 1.0 + AT_ONCE as f64, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_whose_answers_nobody_reads_stops_being_read() {
    for (name, piece) in [("PING", ping()), ("SETTINGS", settings(&[])), ("GET", get(1))] {
        after_floods(name, async |address| {
            let app = Peer::app(address).await;
            let (_read, mut write) = app.stream.into_split();
            let many = piece.repeat(1000);
            // Until it is refused, or nothing more is taken for a while.
            while let Ok(Ok(())) =
                timeout(Duration::from_millis(300), tokio::io::AsyncWriteExt::write_all(&mut write, &many)).await
            {
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_empty_data_ends_its_connection() {
    after_floods("DATA", async |address| {
        let mut app = Peer::app(address).await;
        app.send(headers(1, 0, &request("POST", "/"))).await;
        assert_eq!(app.flood(100_000, |_| data(1, 0, "")).await, Some(vec![ENHANCE_YOUR_CALM]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rapid_reset_ends_its_connection_before_the_upstream_is_hammered() {
    let origin = Origin::answering(OK).await;
    let child = Child::start(&text(&origin, "", "")).await;
    floods("a rapid reset", &child, async |address| {
        let app = Peer::app(address).await;
        let codes = app
            .flood(50_000, |n| {
                let stream = 2 * n as u32 + 1;
                [get(stream), reset(stream, CANCEL)].concat()
            })
            .await;
        assert_eq!(codes.as_deref().and_then(<[u32]>::last), Some(&ENHANCE_YOUR_CALM));
    })
    .await;
    let connections = 1 + AT_ONCE;
    assert!(origin.seen().len() < 1000 * connections, "{}", origin.seen().len());
    assert_eq!(child.figure(FLOODS).await, connections as f64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rapid_reset_of_requests_that_reached_the_upstream_ends_too_and_gives_every_slot_back() {
    let origin = Origin::scripted(|mut conn| async move {
        while conn.request().await.is_some() {
            std::future::pending::<()>().await;
        }
    })
    .await;
    let proxy = Proxy::for_origin(&origin, "    concurrency: {max_in_flight: 4, max_queue: 4, max_wait: 5s}\n").await;
    let mut app = Peer::app(proxy.address("proxy")).await;
    let mut sent = 0;
    let ended = loop {
        let stream = 2 * sent + 1;
        if tokio::io::AsyncWriteExt::write_all(&mut app.stream, &get(stream)).await.is_err() {
            break true;
        }
        sent += 1;
        let reached = async || {
            while origin.seen().len() < sent as usize {
                tokio::task::yield_now().await
            }
        };
        if timeout(Duration::from_secs(2), reached()).await.is_err() {
            break true;
        }
        if tokio::io::AsyncWriteExt::write_all(&mut app.stream, &reset(stream, CANCEL)).await.is_err() {
            break true;
        }
        if sent == 2000 {
            break false;
        }
    };
    assert!(ended, "{sent} requests were sent and reset");
    // 500, and twice the streams that may have been under way when it was asked to leave.
    assert!(origin.seen().len() < 1100, "{}", origin.seen().len());
    eventually("all is given back", async || {
        let metrics = proxy.metrics().await;
        metrics.contains("outrigger_requests_in_flight{upstream=\"up\"} 0\n")
            && metrics.contains("outrigger_upstream_connections{state=\"active\",upstream=\"up\"} 0\n")
    })
    .await;
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_makes_the_proxy_reset_its_streams_is_ended() {
    for (name, wrong) in [
        ("no increment", (|stream| window_update(stream, 0)) as fn(u32) -> Vec<u8>),
        ("window overflow", |stream| window_update(stream, 0x7fff_ffff)),
        ("a stream that depends on itself", |stream| {
            frame(PRIORITY, 0, stream, [&stream.to_be_bytes()[..], &[7]].concat())
        }),
        ("a length that lies", |stream| data(stream, END_STREAM, "x")),
    ] {
        let origin = Origin::answering(OK).await;
        let proxy = Proxy::for_origin(&origin, "").await;
        let app = Peer::app(proxy.address("proxy")).await;
        let codes = app
            .flood(20_000, move |n| {
                let stream = 2 * n as u32 + 1;
                let mut fields = request("POST", "/").to_vec();
                fields.push(("content-length", "1000"));
                [headers(stream, 0, &fields), wrong(stream)].concat()
            })
            .await;
        let code = codes.as_deref().and_then(<[u32]>::last).copied();
        assert!(matches!(code, Some(ENHANCE_YOUR_CALM | PROTOCOL_ERROR)), "{name}: {codes:?}");
        assert!(origin.seen().len() < 1000, "{name}: {}", origin.seen().len());
        eventually("nothing is in flight", async || {
            proxy.metrics().await.contains("outrigger_requests_in_flight{upstream=\"up\"} 0\n")
        })
        .await;
        proxy.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_past_the_bound_are_refused_and_those_within_it_go_on() {
    let origin = Origin::scripted(|mut conn| async move {
        let Some(seen) = conn.request().await else { return };
        if seen.line().contains("/last") {
            conn.send(OK).await;
        }
        conn.closed().await;
    })
    .await;
    let proxy = Proxy::for_origin(&origin, "    connections: {max: 1000}\n").await;
    let mut app = Peer::app(proxy.address("proxy")).await;
    for n in 0..255 {
        app.send(get(2 * n + 1)).await;
    }
    app.send(headers(511, END_STREAM, &request("GET", "/last"))).await;
    for n in 256..300 {
        app.send(get(2 * n + 1)).await;
    }
    let (mut refused, mut answered) = (0, false);
    while refused < 44 || !answered {
        let frame = app.next().await.unwrap();
        if frame.kind == RST_STREAM {
            assert_eq!(frame.code(), REFUSED_STREAM);
            refused += 1;
        }
        if frame.kind == HEADERS {
            assert_eq!((frame.stream, frame.status()), (511, 200));
            answered = true;
        }
    }
    // Past the bound for ever: that is an attack.
    let codes = app.flood(10_000, |n| get(2 * n as u32 + 1001)).await;
    assert_eq!(codes, Some(vec![ENHANCE_YOUR_CALM]));
    assert!(origin.seen().len() <= 257, "{}", origin.seen().len());
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_bombs_are_refused_and_never_grow_in_memory() {
    // One field of 4,000 bytes is put into the table, and named again and again by a byte each.
    let mut bomb = block(&request("GET", "/"));
    bomb.push(0x40);
    for text in ["x-bomb".to_owned(), "y".repeat(4000)] {
        integer(&mut bomb, 0, 7, text.len());
        bomb.extend(text.as_bytes());
    }
    bomb.extend([0xbe; 8000]);
    let cookies = [&request("GET", "/")[..], &[("cookie", "a=b"); 2500]].concat();
    let small = [&request("GET", "/")[..], &[("x", ""); 5000]].concat();
    for (name, block) in [("table", bomb), ("cookies", block(&cookies)), ("small fields", block(&small))] {
        after_floods(name, async |address| {
            let mut app = Peer::app(address).await;
            let pieces: Vec<&[u8]> = block.chunks(16_384).collect();
            for (at, piece) in pieces.iter().enumerate() {
                let kind = if at == 0 { HEADERS } else { CONTINUATION };
                let flags = if at == 0 { END_STREAM } else { 0 };
                let last = if at + 1 == pieces.len() { END_HEADERS } else { 0 };
                app.send(frame(kind, flags | last, 1, piece)).await;
            }
            let answer = loop {
                let frame = app.next().await.expect(name);
                if matches!(frame.kind, HEADERS | GOAWAY) {
                    break frame;
                }
            };
            let refused =
                if answer.kind == HEADERS { answer.status() == 431 } else { answer.code() == ENHANCE_YOUR_CALM };
            assert!(refused, "{name}: {answer:?}");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apps_whose_windows_stay_shut_leave_no_memory_behind() {
    const STREAMS: u32 = 10;
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{}", "x".repeat(1_000_000));
    let origin = Origin::answering(answer).await;
    let policies = "    timeouts: {idle: 500ms}\n    circuit_breaker: off\n    retry: off\n";
    let child = Child::start(&text(&origin, policies, "")).await;
    floods("windows that stay shut", &child, async |address| {
        // Not even the first byte of an answer may go; or all of each may, and the connection's window is what holds them up.
        for window in [0, 0x7fff_ffff] {
            let mut app = Peer::app_with(address, &[(INITIAL_WINDOW_SIZE, window)]).await;
            for n in 0..STREAMS {
                app.send(get(2 * n + 1)).await;
            }
            let mut ended = 0;
            while ended < STREAMS {
                match app.next().await {
                    Some(frame) if frame.kind == RST_STREAM => ended += 1,
                    Some(frame) if frame.kind == GOAWAY => break,
                    Some(_) => {}
                    None => break,
                }
            }
        }
    })
    .await;
}
