//! Connections of apps that idle: they cost next to nothing, and nobody can tell.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::child::{Child, text};
use crate::support::{Client, Origin, PATIENCE, Proxy, eventually};

/// Longer than a connection is kept ready for its next request.
const IDLE: Duration = Duration::from_millis(1300);

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const GET: &str = "GET http://up.test/ HTTP/1.1\r\nHost: up.test\r\n\r\n";

/// Has its answer.
async fn is_answered(app: &mut Client) {
    let head = app.head().await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert_eq!(app.take(2).await, b"ok");
}

/// A connection that made one request.
async fn used(proxy: &Proxy) -> Client {
    let mut app = proxy.connect().await;
    app.send(GET).await;
    is_answered(&mut app).await;
    app
}

#[tokio::test]
async fn a_connection_that_idled_takes_its_next_requests_in_whatever_pieces_they_come() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let (mut whole, mut bytes, mut piped) = (used(&proxy).await, used(&proxy).await, used(&proxy).await);
    let (mut sized, mut chunked, mut large) = (used(&proxy).await, used(&proxy).await, used(&proxy).await);
    for round in 1..=2 {
        sleep(IDLE).await;
        whole.send(GET).await;
        is_answered(&mut whole).await;

        for byte in GET.as_bytes() {
            bytes.send([*byte]).await;
            sleep(Duration::from_millis(1)).await;
        }
        is_answered(&mut bytes).await;

        piped.send(GET.repeat(40)).await;
        for _ in 0..40 {
            is_answered(&mut piped).await;
        }

        let body = vec![b'x'; 100_000];
        sized
            .send(format!(
                "POST http://up.test/sized HTTP/1.1\r\nHost: up.test\r\nContent-Length: {}\r\n\r\n",
                body.len()
            ))
            .await;
        sized.send(&body).await;
        is_answered(&mut sized).await;

        let head = "POST http://up.test/chunked HTTP/1.1\r\nHost: up.test\r\nTransfer-Encoding: chunked\r\n\r\n";
        chunked.send(format!("{head}3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n{GET}")).await;
        is_answered(&mut chunked).await;
        is_answered(&mut chunked).await;

        let field = "y".repeat(12_000);
        large.send(format!("GET http://up.test/large HTTP/1.1\r\nHost: up.test\r\nX-Large: {field}\r\n\r\n")).await;
        is_answered(&mut large).await;

        let seen = origin.seen();
        let of = |path: &str| seen.iter().filter(|seen| seen.line().contains(path)).collect::<Vec<_>>();
        assert_eq!(seen.len(), 6 + round * 46);
        assert!(of("/sized").iter().all(|seen| seen.body == body) && of("/sized").len() == round);
        assert!(of("/chunked").iter().all(|seen| seen.body == b"abcdefg") && of("/chunked").len() == round);
        assert!(of("/large").iter().all(|seen| seen.all("x-large") == [&field]) && of("/large").len() == round);
    }
    proxy.stop().await;
}

#[tokio::test]
async fn a_connection_that_idled_may_become_a_tunnel_or_be_upgraded() {
    let origin = Origin::scripted(|mut conn| async move {
        while let Some(seen) = conn.request().await {
            if !seen.all("upgrade").is_empty() {
                conn.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n").await;
                break;
            }
            conn.send(OK).await;
        }
        let mut piece = [0; 100];
        while let Ok(n @ 1..) = conn.stream.read(&mut piece).await {
            conn.stream.write_all(&piece[..n]).await.unwrap();
        }
    })
    .await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let far = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let echo = far.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = far.accept().await.unwrap();
        let (mut reading, mut writing) = stream.split();
        tokio::io::copy(&mut reading, &mut writing).await.unwrap();
    });
    let (mut tunnel, mut upgraded) = (used(&proxy).await, used(&proxy).await);
    sleep(IDLE).await;
    // What follows comes early.
    tunnel.send(format!("CONNECT {echo} HTTP/1.1\r\nHost: {echo}\r\n\r\n\0\n early")).await;
    assert!(tunnel.head().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(tunnel.take(8).await, b"\0\n early");
    upgraded.send("GET http://up.test/ HTTP/1.1\r\nHost: up.test\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n").await;
    assert!(upgraded.head().await.starts_with("HTTP/1.1 101 "));
    // Neither is taken for idle.
    sleep(IDLE).await;
    for app in [&mut tunnel, &mut upgraded] {
        app.send(b"\xff late").await;
        assert_eq!(app.take(6).await, b"\xff late");
    }
    proxy.stop().await;
}

#[tokio::test]
async fn an_answer_that_takes_its_time_is_not_taken_for_an_idle_connection() {
    // Silent before its head, in its body, and towards an app that uploads slowly.
    let origin = Origin::scripted(|mut conn| async move {
        conn.request().await.unwrap();
        sleep(IDLE).await;
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsl").await;
        sleep(IDLE).await;
        conn.send("ow").await;
        let _ = conn.request().await;
    })
    .await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let (mut plain, mut slow, mut piped) = (proxy.connect().await, proxy.connect().await, proxy.connect().await);
    plain.send(GET).await;
    slow.send("POST http://up.test/ HTTP/1.1\r\nHost: up.test\r\nContent-Length: 4\r\n\r\nbo").await;
    // The second one waits in memory for the first one's answer.
    piped.send(GET.repeat(2)).await;
    sleep(IDLE).await;
    slow.send("dy").await;
    for app in [&mut plain, &mut slow, &mut piped] {
        assert!(app.head().await.starts_with("HTTP/1.1 200 "));
        assert_eq!(app.take(4).await, b"slow");
    }
    assert!(piped.head().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(piped.take(4).await, b"slow");
    proxy.stop().await;
}

#[tokio::test]
async fn an_app_that_has_not_taken_its_answer_is_not_idle() {
    const LENGTH: usize = 4_000_000;
    let origin = Origin::answering(
        [format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n").as_bytes(), &[b'x'; LENGTH][..]].concat(),
    )
    .await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let mut app = proxy.connect().await;
    for _ in 0..2 {
        app.send(GET).await;
        sleep(IDLE).await;
        assert!(app.head().await.starts_with("HTTP/1.1 200 "));
        assert!(app.take(LENGTH).await.iter().all(|byte| *byte == b'x'));
        sleep(IDLE).await;
    }
    proxy.stop().await;
}

#[tokio::test]
async fn an_idle_connection_keeps_its_place_until_its_app_hangs_up_which_is_noticed_at_once() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "limits: {max_connections: 1}\n").await;
    for resets in [false, true] {
        let mut idle = None;
        eventually("there is room", async || {
            let mut app = proxy.connect().await;
            app.send(GET).await;
            let head = app.head().await;
            if head.starts_with("HTTP/1.1 200 ") {
                app.take(2).await;
                idle = Some(app);
            }
            idle.is_some()
        })
        .await;
        let idle = idle.unwrap();
        sleep(IDLE).await;
        let mut second = proxy.connect().await;
        second.send(GET).await;
        assert!(second.head().await.starts_with("HTTP/1.1 503 "));
        drop(second);
        eventually("it counts", async || proxy.metrics().await.contains("outrigger_downstream_connections 1\n")).await;
        if resets {
            idle.stream.set_zero_linger().unwrap();
        }
        drop(idle);
        eventually("its place is free", async || {
            proxy.metrics().await.contains("outrigger_downstream_connections 0\n")
        })
        .await;
    }
    proxy.stop().await;
}

#[tokio::test]
async fn an_app_that_ends_its_side_of_an_idle_connection_gets_the_end_of_ours() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let mut app = used(&proxy).await;
    sleep(IDLE).await;
    app.stream.shutdown().await.unwrap();
    assert_eq!(app.rest().await, b"");
    proxy.stop().await;
}

#[tokio::test]
async fn half_a_head_is_timed_after_an_idle_time_which_is_not() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "limits: {header_timeout: 400ms}\n").await;
    let (mut slow, mut silent) = (used(&proxy).await, used(&proxy).await);
    sleep(IDLE).await;
    let (first, rest) = GET.split_at(20);
    slow.send(first).await;
    silent.send(first).await;
    sleep(Duration::from_millis(50)).await;
    slow.send(rest).await;
    is_answered(&mut slow).await;
    let got = String::from_utf8(silent.rest().await).unwrap();
    assert!(got.starts_with("HTTP/1.1 408 "), "{got}");
    proxy.stop().await;
}

#[tokio::test]
async fn what_is_no_http_is_refused_after_an_idle_time_too() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let (mut bad, mut half) = (used(&proxy).await, used(&proxy).await);
    sleep(IDLE).await;
    bad.send("GET /\n\n").await;
    half.send("GET / HT").await;
    half.stream.shutdown().await.unwrap();
    for app in [&mut bad, &mut half] {
        let got = String::from_utf8(app.rest().await).unwrap();
        assert!(got.starts_with("HTTP/1.1 400 ") && got.contains("proxy-status: outrigger"), "{got}");
    }
    assert_eq!(origin.seen().len(), 2);
    proxy.stop().await;
}

#[tokio::test]
async fn the_end_of_the_drain_ends_an_idle_connection_in_good_order_and_is_not_kept_waiting() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "shutdown: {quiet: 100ms, grace: 20s}\n").await;
    let (mut idle, mut late) = (used(&proxy).await, used(&proxy).await);
    sleep(IDLE).await;
    let began = tokio::time::Instant::now();
    let (whole, ()) = tokio::join!(proxy.drain(), async {
        eventually("it drains", async || {
            late.send(GET).await;
            let head = late.head().await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            late.take(2).await;
            head.contains("connection: close")
        })
        .await;
    });
    assert!(whole && began.elapsed() < Duration::from_secs(10));
    assert_eq!(late.rest().await, b"");
    assert_eq!(idle.rest().await, b"");
    proxy.stop().await;
}

#[tokio::test]
async fn five_hundred_idle_connections_cost_less_than_8_kib_each() {
    const CONNECTIONS: u64 = 500;
    let origin = Origin::answering(OK).await;
    let child = Child::start(&text(&origin, "    connections: {max: 4, max_idle: 4}\n", "")).await;
    // What is made once.
    for _ in 0..20 {
        assert!(child.get().await.starts_with("HTTP/1.1 200 "));
    }
    let before = child.resident();
    let mut apps = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut app = child.connect().await;
        app.send(GET).await;
        is_answered(&mut app).await;
        apps.push(app);
    }
    let busy = child.resident();
    let mut idle = busy;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while idle >= before + CONNECTIONS * 8 {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{before} KiB at first, {busy} after all requests, {idle} idle"
        );
        // The allocator gives back what is free when it is used.
        child.metrics().await;
        sleep(Duration::from_millis(100)).await;
        idle = child.resident();
    }
    for app in &mut apps {
        app.send(GET).await;
        is_answered(app).await;
    }
    assert_eq!(child.figure("outrigger_downstream_connections").await, CONNECTIONS as f64);
}
