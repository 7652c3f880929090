//! Apps that leave.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::support::{Origin, Proxy, eventually};

/// Answers with the head and then nothing; says when it was asked and when it was left alone.
async fn endless(head: &'static str) -> (Origin, Arc<Notify>, Arc<Notify>) {
    let (asked, left) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (ask, leave) = (Arc::clone(&asked), Arc::clone(&left));
    let origin = Origin::scripted(move |mut conn| {
        let (ask, leave) = (Arc::clone(&ask), Arc::clone(&leave));
        async move {
            conn.request().await;
            conn.send(head).await;
            ask.notify_one();
            conn.closed().await;
            leave.notify_one();
        }
    })
    .await;
    (origin, asked, left)
}

#[tokio::test]
async fn an_app_that_leaves_frees_the_upstreams_connection_and_counts_as_499() {
    for head in ["", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart"] {
        let (origin, asked, left) = endless(head).await;
        let proxy = Proxy::for_origin(&origin, "    concurrency: {max_in_flight: 1, max_queue: 1}\n").await;
        let mut app = proxy.connect().await;
        app.send("GET http://up.test/ HTTP/1.1\r\nHost: up.test\r\n\r\n").await;
        asked.notified().await;
        if !head.is_empty() {
            app.until("part").await;
        }
        drop(app);
        left.notified().await;
        eventually("it is counted", async || {
            let metrics = proxy.metrics().await;
            metrics.contains("code=\"499\"") && metrics.contains("outrigger_requests_in_flight{upstream=\"up\"} 0")
        })
        .await;
        // The slot is free.
        let mut app = proxy.connect().await;
        app.send("GET http://up.test/ HTTP/1.1\r\nHost: up.test\r\n\r\n").await;
        asked.notified().await;
        drop(app);
        left.notified().await;
        proxy.stop().await;
    }
}

#[tokio::test]
async fn an_upload_that_breaks_off_never_reaches_the_upstream_whole() {
    let (origin, _, left) = endless("").await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let mut app = proxy.connect().await;
    app.send("POST http://up.test/ HTTP/1.1\r\nHost: up.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        .await;
    drop(app);
    // Either nothing was sent, or the origin sees it break.
    if tokio::time::timeout(std::time::Duration::from_millis(500), left.notified()).await.is_ok() {
        assert!(origin.seen().is_empty(), "{:?}", origin.seen());
    }
    proxy.stop().await;
}

#[tokio::test]
async fn an_app_that_stops_reading_frees_the_upstreams_connection_by_the_idle_clock() {
    let left = Arc::new(Notify::new());
    let leave = Arc::clone(&left);
    let origin = Origin::scripted(move |mut conn| {
        let leave = Arc::clone(&leave);
        async move {
            conn.request().await;
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").await;
            // More than all buffers on the way hold.
            let piece = [b'x'; 65536];
            while conn.try_send(&piece).await.is_ok() {}
            leave.notify_one();
        }
    })
    .await;
    let proxy = Proxy::for_origin(&origin, "    timeouts: {idle: 500ms}\n").await;
    let mut app = proxy.connect().await;
    app.send("GET http://up.test/ HTTP/1.1\r\nHost: up.test\r\n\r\n").await;
    app.head().await;
    left.notified().await;
    let (got, end) = app.end().await;
    assert!(end.is_err() && got.len() < 100_000_000, "{} bytes, {end:?}", got.len());
    proxy.stop().await;
}
