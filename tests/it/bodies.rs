//! Bodies: whole ones arrive whole, broken ones broken.

use crate::support::{Origin, Proxy};

const GET: &str = "GET http://up.test/ HTTP/1.1\r\nHost: up.test\r\n";

#[tokio::test]
async fn chunked_bodies_and_trailers_pass_both_ways() {
    let origin = Origin::answering(
        "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n",
    )
    .await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let mut app = proxy.connect().await;
    app.send("PUT http://up.test/ HTTP/1.1\r\nHost: up.test\r\nTE: trailers\r\nTrailer: X-Mine\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nxy\r\n1\r\nz\r\n0\r\nX-Mine: 2\r\n\r\n").await;
    let head = app.head().await.to_ascii_lowercase();
    assert!(head.contains("transfer-encoding: chunked") && !head.contains("content-length"), "{head}");
    let rest = app.until("\r\n\r\n").await.to_ascii_lowercase();
    assert_eq!(rest, "3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n");
    let seen = origin.only();
    assert_eq!(seen.body, b"xyz");
    assert!(seen.head.to_ascii_lowercase().contains("+x-mine: 2"), "{seen:?}");
    proxy.stop().await;
}

#[tokio::test]
async fn answers_without_content_keep_their_headers_and_have_no_body() {
    for (request, answer, expected) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n", "Content-Length: 1234\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 1234\r\nETag: x\r\n\r\n", "Content-Length: 1234\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n", "X-A: b\r\n"),
    ] {
        let origin = Origin::answering(answer).await;
        let proxy = Proxy::for_origin(&origin, "").await;
        let mut app = proxy.connect().await;
        for _ in 0..2 {
            app.send(format!("{request} http://up.test/ HTTP/1.1\r\nHost: up.test\r\n\r\n")).await;
            let head = app.head().await;
            assert!(head.contains(expected), "{head}");
        }
        proxy.stop().await;
    }
}

#[tokio::test]
async fn a_broken_body_is_never_complete() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\nzz\r\n",
    ] {
        let origin = Origin::closing(answer).await;
        let proxy = Proxy::for_origin(&origin, "").await;
        let mut app = proxy.connect().await;
        app.send(format!("{GET}\r\n")).await;
        let head = app.head().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let (rest, end) = app.end().await;
        let rest = String::from_utf8(rest).unwrap();
        assert!(rest.contains("short") && !rest.ends_with("0\r\n\r\n"), "{answer:?}: {rest:?}");
        // Not every client counts what it got.
        assert!(end.is_err() || !head.contains("Content-Length"), "{answer:?}");

        // Without framing only a reset tells.
        let mut app = proxy.connect().await;
        app.send("GET http://up.test/ HTTP/1.0\r\n\r\n").await;
        app.head().await;
        let (_, end) = app.end().await;
        assert!(end.is_err(), "{answer:?}");
        proxy.stop().await;
    }
}

#[tokio::test]
async fn an_answer_without_length_ends_with_its_connection() {
    let origin = Origin::closing("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it").await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let got = proxy.talk(format!("{GET}Connection: close\r\n\r\n").as_bytes()).await;
    assert!(got.ends_with("9\r\nall of it\r\n0\r\n\r\n"), "{got}");
    proxy.stop().await;
}

#[tokio::test]
async fn a_large_upload_and_download_arrive_byte_for_byte() {
    let body: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let origin = Origin::scripted(|mut conn| async move {
        while let Some(seen) = conn.request().await {
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", seen.body.len())).await;
            conn.send(&seen.body).await;
        }
    })
    .await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let mut app = proxy.connect().await;
    app.send(format!("POST http://up.test/ HTTP/1.1\r\nHost: up.test\r\nContent-Length: {}\r\n\r\n", body.len())).await;
    app.send(&body).await;
    app.head().await;
    assert!(app.take(body.len()).await == body);
    proxy.stop().await;
}

#[tokio::test]
async fn expect_100_continue_is_end_to_end() {
    let origin = Origin::scripted(|mut conn| async move {
        while let Some(mut seen) = conn.head().await {
            assert_eq!(seen.all("expect"), ["100-continue"]);
            if seen.line().starts_with("POST /no ") {
                conn.send("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
                return;
            }
            conn.send("HTTP/1.1 100 Continue\r\n\r\n").await;
            conn.body(&mut seen).await;
            conn.remember(&seen);
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        }
    })
    .await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let post = |path| {
        format!(
            "POST http://up.test{path} HTTP/1.1\r\nHost: up.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        )
    };
    let mut app = proxy.connect().await;
    app.send(post("/yes")).await;
    assert_eq!(app.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    app.send("hello").await;
    assert!(app.head().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(origin.only().body, b"hello");

    let mut app = proxy.connect().await;
    app.send(post("/no")).await;
    assert!(app.head().await.starts_with("HTTP/1.1 417 "));

    let got = proxy.talk(b"POST http://up.test/ HTTP/1.1\r\nHost: up.test\r\nExpect: magic\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 417 "), "{got}");
    proxy.stop().await;
}

#[tokio::test]
async fn a_server_sent_event_passes_before_the_next_is_there() {
    let (go, going) = tokio::sync::oneshot::channel::<()>();
    let going = std::sync::Mutex::new(Some(going));
    let origin = Origin::scripted(move |mut conn| {
        let going = going.lock().unwrap().take();
        async move {
            conn.request().await;
            conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            conn.send("9\r\ndata: 1\n\n\r\n").await;
            if let Some(going) = going {
                let _ = going.await;
            }
            conn.send("9\r\ndata: 2\n\n\r\n0\r\n\r\n").await;
            conn.closed().await;
        }
    })
    .await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let mut app = proxy.connect().await;
    app.send(format!("{GET}\r\n")).await;
    app.until("data: 1\n\n").await;
    go.send(()).unwrap();
    app.until("data: 2\n\n").await;
    app.until("0\r\n\r\n").await;
    proxy.stop().await;
}

#[tokio::test]
async fn trailers_end_a_body_for_an_app_that_cannot_have_them() {
    let answer =
        "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n";
    let origin = Origin::answering(answer).await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let mut app = proxy.connect().await;
    app.send("GET http://up.test/ HTTP/1.0\r\n\r\n").await;
    app.head().await;
    let (body, end) = app.end().await;
    assert!(end.is_ok() && body == b"hello", "{body:?} {end:?}");
    proxy.stop().await;
}
