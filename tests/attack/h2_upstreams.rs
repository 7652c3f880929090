//! Upstreams that break HTTP/2's rules, die, or never end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::child::{Child, text};
use crate::frames::*;
use crate::support::{Client, Origin, Proxy, eventually};

/// An HTTP/2 upstream: the script gets each connection, with how many there were before, and counts the requests it reads.
async fn upstream<F>(
    values: &'static [(u16, u32)],
    script: impl Fn(Peer, usize, Arc<AtomicUsize>) -> F + Send + Sync + 'static,
) -> (Origin, Arc<AtomicUsize>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let count = Arc::new(AtomicUsize::new(0));
    let (seen, script) = (Arc::clone(&count), Arc::new(script));
    let origin = Origin::scripted(move |conn| {
        let (seen, script) = (Arc::clone(&seen), Arc::clone(&script));
        let index = conn.index();
        async move { script(Peer::upstream(conn.stream, values).await, index, seen).await }
    })
    .await;
    (origin, count)
}

/// Reads a request's head, counts it, and does with its stream what `then` says.
async fn each(mut peer: Peer, seen: Arc<AtomicUsize>, then: impl Fn(u32) -> Vec<u8>) {
    while let Some(frame) = peer.next().await {
        if frame.kind == HEADERS {
            seen.fetch_add(1, Ordering::SeqCst);
            if peer.try_send(&then(frame.stream)).await.is_err() {
                return;
            }
        }
    }
}

async fn proxy(origin: &Origin, more: &str) -> Proxy {
    Proxy::for_origin(origin, &format!("    connections: {{http: 2, max_age: 1s}}\n{more}")).await
}

/// As a process of its own, whose memory is nobody else's.
async fn child(origin: &Origin, more: &str) -> Child {
    Child::start(&text(origin, &format!("    connections: {{http: 2, max_age: 1s}}\n{more}"), "")).await
}

const POST: &[u8] = b"POST / HTTP/1.1\r\nHost: up.test\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi";
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: up.test\r\nConnection: close\r\n\r\n";
const QUICK: &str = "    retry: {backoff: {base: 1ms}, budget: off}\n    circuit_breaker: off\n";

fn ok(stream: u32) -> Vec<u8> {
    [headers(stream, 0, &[(":status", "200"), ("content-length", "2")]), data(stream, END_STREAM, "ok")].concat()
}

/// The app gets 502, and the upstream has seen the request so many times.
async fn fails_after(times: usize, origin: &Origin, seen: &AtomicUsize, request: &[u8], what: &str) {
    let proxy = proxy(origin, QUICK).await;
    let got = proxy.talk(request).await;
    assert!(got.starts_with("HTTP/1.1 502 "), "{what}: {got}");
    assert_eq!(seen.load(Ordering::SeqCst), times, "{what}");
    proxy.stop().await;
}

/// Whether the app can see that what it got is not whole: its connection was reset, or chunks have no end.
async fn is_visibly_broken(proxy: &Proxy, request: &[u8]) -> bool {
    let mut app = proxy.connect().await;
    app.send(request).await;
    let (bytes, end) = app.end().await;
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    end.is_err() || text.to_ascii_lowercase().contains("transfer-encoding: chunked") && !text.ends_with("0\r\n\r\n")
}

#[tokio::test]
async fn a_stream_that_is_reset_without_an_answer_is_502_and_its_post_is_sent_once() {
    for code in (0..=13).chain([0xffff]).filter(|code| *code != REFUSED_STREAM) {
        let (origin, seen) =
            upstream(&[], move |peer, _, seen| each(peer, seen, move |stream| reset(stream, code))).await;
        fails_after(1, &origin, &seen, POST, &format!("{code}")).await;
    }
}

#[tokio::test]
async fn refused_streams_are_tried_again_max_attempts_times_whatever_the_method() {
    for request in [GET, POST] {
        let (origin, seen) =
            upstream(&[], |peer, _, seen| each(peer, seen, |stream| reset(stream, REFUSED_STREAM))).await;
        fails_after(3, &origin, &seen, request, "refused").await;
    }
}

#[tokio::test]
async fn refused_streams_for_ever_cost_no_more_retries_than_the_budget_has() {
    let (origin, seen) = upstream(&[], |peer, _, seen| each(peer, seen, |stream| reset(stream, REFUSED_STREAM))).await;
    let more = "    retry: {backoff: {base: 1ms}, budget: {ratio: 0.1, min_per_second: 1}}\n    circuit_breaker: off\n";
    let proxy = proxy(&origin, more).await;
    for _ in 0..100 {
        assert!(proxy.talk(GET).await.starts_with("HTTP/1.1 502 "));
    }
    // 10 of the floor, 10 of the ratio, a little for the time that it took.
    let seen = seen.load(Ordering::SeqCst);
    assert!((100..140).contains(&seen), "{seen}");
    proxy.stop().await;
}

#[tokio::test]
async fn a_goaway_that_covers_a_request_does_not_repeat_it_and_one_that_excludes_it_does() {
    for (code, closes) in [(NO_ERROR, true), (INTERNAL_ERROR, true), (ENHANCE_YOUR_CALM, true), (PROTOCOL_ERROR, false)]
    {
        // It says that it processed the request, and never answers.
        let (origin, seen) = upstream(&[], move |mut peer, _, seen| async move {
            peer.until(DATA).await;
            seen.fetch_add(1, Ordering::SeqCst);
            peer.send(goaway(1, code)).await;
            if !closes {
                peer.end().await;
            }
        })
        .await;
        let covered = proxy(&origin, &format!("    timeouts: {{attempt: 1s}}\n{QUICK}")).await;
        let got = covered.talk(POST).await;
        assert!(got.starts_with("HTTP/1.1 502 ") || got.starts_with("HTTP/1.1 504 "), "{code}: {got}");
        assert_eq!(seen.load(Ordering::SeqCst), 1, "{code}");
        covered.stop().await;

        let (origin, seen) = upstream(&[], move |mut peer, index, seen| async move {
            if index > 0 {
                return each(peer, seen, ok).await;
            }
            peer.until(HEADERS).await;
            seen.fetch_add(1, Ordering::SeqCst);
            peer.send(goaway(0, code)).await;
            peer.end().await;
        })
        .await;
        let excluded = proxy(&origin, QUICK).await;
        let got = excluded.talk(POST).await;
        assert!(got.starts_with("HTTP/1.1 200 "), "{code}: {got}");
        assert_eq!(seen.load(Ordering::SeqCst), 2, "{code}");
        excluded.stop().await;
    }
}

#[tokio::test]
async fn a_storm_of_goaways_is_bounded_by_max_attempts() {
    let (origin, seen) = upstream(&[], |mut peer, _, seen| async move {
        peer.until(HEADERS).await;
        seen.fetch_add(1, Ordering::SeqCst);
        let _ = peer.try_send(&goaway(0, NO_ERROR).repeat(100)).await;
        peer.end().await;
    })
    .await;
    fails_after(3, &origin, &seen, POST, "GOAWAY").await;
}

#[tokio::test]
async fn a_connection_that_dies_fails_each_of_its_requests_once() {
    for reset in [false, true] {
        let (origin, seen) = upstream(&[], move |mut peer, _, seen| async move {
            for _ in 0..100 {
                peer.until(HEADERS).await;
                seen.fetch_add(1, Ordering::SeqCst);
            }
            if reset {
                peer.stream.set_zero_linger().unwrap();
            }
        })
        .await;
        let proxy = Arc::new(proxy(&origin, QUICK).await);
        let apps: Vec<_> = (0..100)
            .map(|_| {
                let proxy = Arc::clone(&proxy);
                tokio::spawn(async move { proxy.talk(POST).await })
            })
            .collect();
        for app in apps {
            let got = app.await.unwrap();
            assert!(got.starts_with("HTTP/1.1 502 "), "{got}");
        }
        assert_eq!(seen.load(Ordering::SeqCst), 100);
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_visibly_broken_however_it_breaks() {
    let begun = |stream, more: &[(&str, &str)]| {
        let fields = [&[(":status", "200")][..], more].concat();
        [headers(stream, 0, &fields), data(stream, 0, "some")].concat()
    };
    let with_length: &[(&str, &str)] = &[("content-length", "10")];
    for fields in [&[], with_length] {
        for (name, end) in [
            ("NO_ERROR", reset(1, NO_ERROR)),
            ("PROTOCOL_ERROR", reset(1, PROTOCOL_ERROR)),
            ("REFUSED_STREAM", reset(1, REFUSED_STREAM)),
            ("CANCEL", reset(1, CANCEL)),
            ("an unknown code", reset(1, 0xffff)),
            ("GOAWAY", goaway(0, NO_ERROR)),
            ("GOAWAY with an error", goaway(1, INTERNAL_ERROR)),
            (
                "PUSH_PROMISE",
                frame(PUSH_PROMISE, END_HEADERS, 1, [&2u32.to_be_bytes()[..], &block(&request("GET", "/"))].concat()),
            ),
            ("DATA on stream 0", data(0, 0, "x")),
            ("a second head", headers(1, 0, &[(":status", "200")])),
            ("trailers without END_STREAM", headers(1, 0, &[("x", "y")])),
            ("malformed trailers", headers(1, END_STREAM, &[("X Y", "z")])),
            ("trailers without end, then the end", frame(HEADERS, END_STREAM, 1, block(&[("x", "y")]))),
            ("nothing more", Vec::new()),
        ] {
            let answer = [begun(1, fields), end].concat();
            let (origin, seen) = upstream(&[], move |mut peer, _, seen| {
                let answer = answer.clone();
                async move {
                    peer.until(HEADERS).await;
                    seen.fetch_add(1, Ordering::SeqCst);
                    peer.send(answer).await;
                    // Its end is read before it closes, so that what was sent arrives.
                    let _ = tokio::io::AsyncWriteExt::shutdown(&mut peer.stream).await;
                    peer.end().await;
                }
            })
            .await;
            let proxy = proxy(&origin, QUICK).await;
            assert!(is_visibly_broken(&proxy, GET).await, "{name} {fields:?}");
            assert_eq!(seen.load(Ordering::SeqCst), 1, "{name} {fields:?}");
            proxy.stop().await;
        }
    }
}

#[tokio::test]
async fn a_length_that_lies_never_makes_a_whole_answer() {
    for (name, body) in [
        ("too little", data(1, END_STREAM, "four")),
        ("nothing", data(1, END_STREAM, "")),
        ("too much", data(1, END_STREAM, "more than ten bytes")),
        ("too much in two", [data(1, 0, "ten bytes."), data(1, END_STREAM, "x")].concat()),
        ("trailers too early", [data(1, 0, "four"), headers(1, END_STREAM, &[("x", "y")])].concat()),
    ] {
        let answer = [headers(1, 0, &[(":status", "200"), ("content-length", "10")]), body].concat();
        let (origin, _) = upstream(&[], move |peer, _, seen| {
            let answer = answer.clone();
            async move { each(peer, seen, move |_| answer.clone()).await }
        })
        .await;
        let proxy = proxy(&origin, QUICK).await;
        let mut app = proxy.connect().await;
        app.send(GET).await;
        let (bytes, end) = app.end().await;
        let text = String::from_utf8_lossy(&bytes);
        let whole = text.starts_with("HTTP/1.1 200 ") && end.is_ok();
        // hyper takes no more than the length says.
        assert!(
            !whole || name.starts_with("too much in two") && text.ends_with("\r\n\r\nten bytes."),
            "{name}: {text}"
        );
        proxy.stop().await;
    }
}

#[tokio::test]
async fn malformed_answers_over_http2_are_502_and_a_post_is_sent_once() {
    let status = (":status", "200");
    let many: Vec<(String, String)> = (0..200).map(|n| (format!("x-{n}"), "y".to_owned())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let large = "y".repeat(40_000);
    let cut = |fields: &[(&str, &str)]| {
        let block = block(fields);
        let pieces: Vec<&[u8]> = block.chunks(16_000).collect();
        let mut bytes = frame(HEADERS, END_STREAM, 1, pieces[0]);
        for (at, piece) in pieces.iter().enumerate().skip(1) {
            let flags = if at + 1 == pieces.len() { END_HEADERS } else { 0 };
            bytes.extend(frame(CONTINUATION, flags, 1, piece));
        }
        bytes
    };
    let mut bomb = block(&[status]);
    bomb.push(0x40);
    for text in ["x-bomb".to_owned(), "y".repeat(4000)] {
        integer(&mut bomb, 0, 7, text.len());
        bomb.extend(text.as_bytes());
    }
    bomb.extend([0xbe; 8000]);
    for (name, answer) in [
        ("no status", headers(1, END_STREAM, &[("x", "y")])),
        ("an empty status", headers(1, END_STREAM, &[(":status", "")])),
        ("a status of two digits", headers(1, END_STREAM, &[(":status", "20")])),
        ("a status that is no number", headers(1, END_STREAM, &[(":status", "abc")])),
        ("two statuses", headers(1, END_STREAM, &[status, status])),
        ("a request", headers(1, END_STREAM, &request("GET", "/"))),
        ("101", headers(1, 0, &[(":status", "101")])),
        ("100 at its end", headers(1, END_STREAM, &[(":status", "100")])),
        ("an upper-case name", headers(1, END_STREAM, &[status, ("X", "y")])),
        ("no name", headers(1, END_STREAM, &[status, ("", "y")])),
        ("a line break in a value", headers(1, END_STREAM, &[status, ("x", "a\r\nset-cookie: b")])),
        ("a line break in a name", headers(1, END_STREAM, &[status, ("x\r\ny", "a")])),
        ("a zero byte", headers(1, END_STREAM, &[status, ("x", "a\0")])),
        ("Connection", headers(1, END_STREAM, &[status, ("connection", "close")])),
        ("Transfer-Encoding", headers(1, END_STREAM, &[status, ("transfer-encoding", "chunked")])),
        ("Upgrade", headers(1, END_STREAM, &[status, ("upgrade", "h2c")])),
        ("differing lengths", headers(1, 0, &[status, ("content-length", "1"), ("content-length", "2")])),
        ("a length that is no number", headers(1, 0, &[status, ("content-length", "x")])),
        ("a length without a body", headers(1, END_STREAM, &[status, ("content-length", "3")])),
        ("DATA before HEADERS", data(1, END_STREAM, "x")),
        ("too many fields", headers(1, END_STREAM, &[&[status][..], &many[..]].concat())),
        ("a head too large", cut(&[status, ("x", &large)])),
        ("a table bomb", frame(HEADERS, END_STREAM | END_HEADERS, 1, &bomb)),
        (
            "CONTINUATION without end",
            [frame(HEADERS, 0, 1, block(&[status])), frame(CONTINUATION, 0, 1, block(&[("x", "y")])).repeat(1000)]
                .concat(),
        ),
        ("HEADERS on stream 0", headers(0, END_STREAM, &[status])),
        ("HEADERS on a stream of its own", headers(2, END_STREAM, &[status])),
        (
            "PUSH_PROMISE",
            frame(PUSH_PROMISE, END_HEADERS, 1, [&2u32.to_be_bytes()[..], &block(&request("GET", "/"))].concat()),
        ),
        ("a frame over its bound", frame(DATA, 0, 1, vec![0; 16_385])),
        ("HTTP/1.1", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()),
        ("window overflow", window_update(0, 0x7fff_ffff)),
        ("window overflow of the stream", window_update(1, 0x7fff_ffff)),
        ("no increment", window_update(1, 0)),
    ] {
        let (origin, seen) = upstream(&[], move |mut peer, _, seen| {
            let answer = answer.clone();
            async move {
                peer.until(DATA).await;
                seen.fetch_add(1, Ordering::SeqCst);
                let _ = peer.try_send(&answer).await;
                peer.end().await;
            }
        })
        .await;
        let proxy = proxy(&origin, &format!("    timeouts: {{attempt: 2s}}\n{QUICK}")).await;
        let got = proxy.talk(POST).await;
        // h2 takes 101 for a head that comes before the answer, and doesn't say that it has reset a stream for its window.
        let status = if matches!(name, "101" | "window overflow of the stream") { "504" } else { "502" };
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{name}: {got}");
        assert_eq!(seen.load(Ordering::SeqCst), 1, "{name}");
        eventually("nothing is left", async || {
            proxy.metrics().await.contains("outrigger_requests_in_flight{upstream=\"up\"} 0\n")
        })
        .await;
        proxy.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_nothing_but_1xx_ends_by_the_attempt_clock_in_bounded_memory() {
    let (origin, seen) = upstream(&[], |mut peer, _, seen| async move {
        peer.until(HEADERS).await;
        seen.fetch_add(1, Ordering::SeqCst);
        let early = headers(1, 0, &[(":status", "103"), ("link", &"x".repeat(200))]).repeat(100);
        while peer.try_send(&early).await.is_ok() {}
    })
    .await;
    let child = child(&origin, &format!("    timeouts: {{attempt: 2s}}\n{QUICK}")).await;
    let before = child.resident();
    let got = child.talk(POST).await;
    assert!(got.starts_with("HTTP/1.1 504 ") || got.starts_with("HTTP/1.1 502 "), "{got}");
    assert_eq!(seen.load(Ordering::SeqCst), 1);
    let grown = child.peak().saturating_sub(before);
    assert!(grown < 48 << 10, "{grown} KiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_by_an_upstream_end_in_bounded_memory_and_spare_the_others() {
    for (name, piece) in [
        ("PING", ping()),
        ("SETTINGS", settings(&[(INITIAL_WINDOW_SIZE, 65_535)])),
        ("PRIORITY", frame(PRIORITY, 0, 1, [0, 0, 0, 0, 7])),
        ("WINDOW_UPDATE", window_update(0, 1)),
        ("empty DATA", data(1, 0, "")),
        ("DATA of one byte", data(1, 0, "x")),
        ("unknown frames", frame(0xbe, 0, 0, "grease")),
    ] {
        let (origin, _) = upstream(&[], move |mut peer, index, seen| {
            let piece = piece.clone();
            async move {
                if index > 0 {
                    return each(peer, seen, ok).await;
                }
                peer.until(HEADERS).await;
                let _ = peer.try_send(&headers(1, 0, &[(":status", "200")])).await;
                let many = piece.repeat(1000);
                while peer.try_send(&many).await.is_ok() {}
            }
        })
        .await;
        let child = child(&origin, &format!("    timeouts: {{attempt: 300ms, idle: 1s}}\n{QUICK}")).await;
        let before = child.resident();
        let mut app = child.connect().await;
        app.send(GET).await;
        app.head().await;
        // The app reads nothing for now, and what must not come in the meantime has no event.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let grown = child.peak().saturating_sub(before);
        assert!(grown < 48 << 10, "{name}: {grown} KiB");
        drop(app);
        eventually(&format!("{name}: others are served"), async || child.get().await.starts_with("HTTP/1.1 200 "))
            .await;
    }
}

#[tokio::test]
async fn an_upstream_that_takes_no_streams_gives_an_error_in_time() {
    let (origin, seen) = upstream(&[(MAX_CONCURRENT_STREAMS, 0)], |peer, _, seen| each(peer, seen, ok)).await;
    let proxy = Arc::new(proxy(&origin, &format!("    timeouts: {{attempt: 600ms}}\n{QUICK}")).await);
    let apps: Vec<_> = (0..20)
        .map(|_| {
            let proxy = Arc::clone(&proxy);
            tokio::spawn(async move { proxy.talk(POST).await })
        })
        .collect();
    for app in apps {
        let got = app.await.unwrap();
        let status = &got[9..12];
        assert!(matches!(status, "200" | "502" | "503" | "504"), "{got}");
    }
    // A stream may go before the first SETTINGS have come (RFC 9113 section 5.1.2), so some may have been answered; none twice.
    assert!(seen.load(Ordering::SeqCst) <= 20);
}

#[tokio::test]
async fn a_window_that_stays_shut_ends_the_upload_by_idle_and_it_is_not_repeated() {
    let (origin, seen) = upstream(&[(INITIAL_WINDOW_SIZE, 0)], |peer, _, seen| each(peer, seen, |_| Vec::new())).await;
    let proxy = proxy(&origin, &format!("    timeouts: {{idle: 400ms}}\n{QUICK}")).await;
    let got = proxy.talk(POST).await;
    assert!(got.starts_with("HTTP/1.1 504 "), "{got}");
    let body = "x".repeat(3 << 20);
    let large = format!(
        "POST / HTTP/1.1\r\nHost: up.test\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut app = proxy.connect().await;
    // The proxy may stop reading before all of it is written.
    let (mut read, mut write) = app.stream.split();
    let mut got = vec![0; 12];
    let (_, read) = tokio::join!(
        async { tokio::io::AsyncWriteExt::write_all(&mut write, large.as_bytes()).await.ok() },
        tokio::time::timeout(Duration::from_secs(10), tokio::io::AsyncReadExt::read_exact(&mut read, &mut got)),
    );
    read.unwrap().unwrap();
    assert_eq!(got, b"HTTP/1.1 504");
    assert_eq!(seen.load(Ordering::SeqCst), 2);
    proxy.stop().await;
}

#[tokio::test]
async fn settings_that_change_all_the_time_change_no_answer() {
    let (origin, seen) = upstream(&[(MAX_CONCURRENT_STREAMS, 1)], |mut peer, _, seen| async move {
        let mut n: u32 = 0;
        while let Some(frame) = peer.next().await {
            if frame.kind == HEADERS {
                seen.fetch_add(1, Ordering::SeqCst);
                n += 1;
                let values = [
                    (MAX_CONCURRENT_STREAMS, n % 5 + 1),
                    (INITIAL_WINDOW_SIZE, n % 3 * 1000),
                    (HEADER_TABLE_SIZE, n % 2 * 4096),
                    (MAX_FRAME_SIZE, 16_384 + n),
                ];
                if peer.try_send(&[settings(&values), ok(frame.stream)].concat()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let proxy = Arc::new(proxy(&origin, QUICK).await);
    let apps: Vec<_> = (0..60)
        .map(|_| {
            let proxy = Arc::clone(&proxy);
            tokio::spawn(async move {
                let mut app = Client::connect(proxy.address("proxy")).await;
                app.send(GET).await;
                app.end().await.0
            })
        })
        .collect();
    for app in apps {
        let got = String::from_utf8(app.await.unwrap()).unwrap();
        assert!(got.starts_with("HTTP/1.1 200 ") && got.ends_with("\r\n\r\nok"), "{got}");
    }
    assert_eq!(seen.load(Ordering::SeqCst), 60);
}

#[tokio::test]
async fn an_answer_before_the_body_was_sent_comes_whole() {
    let (origin, seen) = upstream(&[], |mut peer, _, seen| async move {
        peer.until(DATA).await;
        seen.fetch_add(1, Ordering::SeqCst);
        let early = headers(1, 0, &[(":status", "413"), ("content-length", "5")]);
        let _ = peer.try_send(&[early, data(1, END_STREAM, "large"), reset(1, NO_ERROR)].concat()).await;
        peer.end().await;
    })
    .await;
    let proxy = proxy(&origin, QUICK).await;
    let mut app = proxy.connect().await;
    app.send(format!("POST / HTTP/1.1\r\nHost: up.test\r\nContent-Length: 3000000\r\n\r\n{}", "x".repeat(100_000)))
        .await;
    let head = app.head().await;
    assert!(head.starts_with("HTTP/1.1 413 "), "{head}");
    assert_eq!(app.take(5).await, b"large");
    assert_eq!(seen.load(Ordering::SeqCst), 1);
    proxy.stop().await;
}
