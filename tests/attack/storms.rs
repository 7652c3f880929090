//! Storms on the real binary: what is slow, what hangs, what comes and goes by the thousand. After each nothing is held, and
//! the memory is what it was.

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::child::{Child, text};
use crate::support::{Client, Origin};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// After the storm and before the next: nobody is connected, nothing is in flight.
pub(crate) async fn is_quiet(child: &Child) {
    child.comes_to("outrigger_downstream_connections", 0.0).await;
    child.comes_to("outrigger_requests_in_flight{upstream=\"up\"}", 0.0).await;
    child.comes_to("outrigger_upstream_connections{state=\"active\",upstream=\"up\"}", 0.0).await;
    child.comes_to("outrigger_tunnels{upstream=\"up\"}", 0.0).await;
}

/// A small storm to warm up, then a large one. Between them and after them all is as it was.
pub(crate) async fn survives(child: &Child, small: usize, large: usize, storm: impl AsyncFn(&Child, usize)) {
    storm(child, small).await;
    is_quiet(child).await;
    let idle = child.resident();
    storm(child, large).await;
    is_quiet(child).await;
    assert!(child.get().await.starts_with("HTTP/1.1 200 "));
    child.shrinks_to(idle).await;
}

async fn connections(child: &Child, n: usize) -> Vec<Client> {
    join_all((0..n).map(|_| child.connect())).await
}

#[tokio::test]
async fn slow_heads_are_answered_408_while_others_are_served() {
    let origin = Origin::answering(OK).await;
    let child = Child::start(&text(&origin, "", "limits: {header_timeout: 500ms}\n")).await;
    survives(&child, 50, 500, async |child, n| {
        let mut apps = connections(child, n).await;
        for app in &mut apps {
            app.send("GET http://up.test/ HTTP/1.1\r\nHost: up").await;
        }
        assert!(child.get().await.starts_with("HTTP/1.1 200 "));
        for got in join_all(apps.iter_mut().map(Client::end)).await {
            let got = String::from_utf8_lossy(&got.0).into_owned();
            assert!(got.starts_with("HTTP/1.1 408 ") && got.contains("limits.header_timeout"), "{got}");
        }
    })
    .await;
    child.comes_to("outrigger_limit_refused_total{limit=\"header_timeout\"}", 550.0).await;
}

#[tokio::test]
async fn bodies_that_stall_are_given_up_both_ways() {
    let origin = Origin::scripted(|mut conn| async move {
        while let Some(mut seen) = conn.head().await {
            if seen.line().contains("/stalls") {
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart").await;
                conn.closed().await;
            } else if conn.body(&mut seen).await.is_none() || conn.try_send(OK.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await;
    let policies = "    timeouts: {idle: 500ms}\n    circuit_breaker: off\n";
    let child = Child::start(&text(&origin, policies, "")).await;
    survives(&child, 20, 150, async |child, n| {
        let mut uploads = connections(child, n).await;
        for app in &mut uploads {
            app.send("POST http://up.test/ HTTP/1.1\r\nHost: up.test\r\nContent-Length: 100\r\n\r\npart").await;
        }
        let mut downloads = connections(child, n).await;
        for app in &mut downloads {
            app.send("GET http://up.test/stalls HTTP/1.1\r\nHost: up.test\r\n\r\n").await;
        }
        for (got, _) in join_all(uploads.iter_mut().map(Client::end)).await {
            let got = String::from_utf8_lossy(&got).into_owned();
            assert!(got.starts_with("HTTP/1.1 408 ") && got.contains("timeouts.idle"), "{got}");
        }
        for (got, end) in join_all(downloads.iter_mut().map(Client::end)).await {
            // What came is passed on, and the end is visibly none.
            let got = String::from_utf8_lossy(&got).into_owned();
            assert!(got.is_empty() || got.starts_with("HTTP/1.1 200 "), "{got}");
            assert!(end.is_err() || got.ends_with("part"), "{got}");
        }
    })
    .await;
}

#[tokio::test]
async fn who_stops_reading_is_given_up_and_holds_nothing_of_the_other_side() {
    let origin = Origin::scripted(|mut conn| async move {
        while let Some(seen) = conn.head().await {
            if seen.line().contains("/large") {
                let head = "HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n";
                conn.send(head).await;
                let piece = vec![b'x'; 1 << 20];
                for _ in 0..64 {
                    if conn.try_send(&piece).await.is_err() {
                        return;
                    }
                }
            } else if seen.line().contains("/deaf") {
                // Reads nothing of the body, until the proxy is gone.
                std::future::pending::<()>().await;
            } else if conn.try_send(OK.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await;
    let policies = "    timeouts: {idle: 500ms}\n    circuit_breaker: off\n    retry: off\n";
    let child = Child::start(&text(&origin, policies, "")).await;
    survives(&child, 5, 40, async |child, n| {
        let mut deaf = connections(child, n).await;
        for app in &mut deaf {
            app.send("GET http://up.test/large HTTP/1.1\r\nHost: up.test\r\n\r\n").await;
        }
        // They hold their sockets, and yet nothing is held for them.
        is_quiet(child).await;
        let ends = join_all(deaf.iter_mut().map(Client::end)).await;
        assert!(ends.iter().all(|(got, end)| end.is_err() && got.len() < 64 << 20));

        let uploads = (0..n / 4).map(async |_| {
            let app = child.connect().await;
            let (mut read, mut write) = app.stream.into_split();
            let sending = async {
                let head = "POST http://up.test/deaf HTTP/1.1\r\nHost: up.test\r\nContent-Length: 67108864\r\n\r\n";
                let _ = write.write_all(head.as_bytes()).await;
                let piece = vec![b'x'; 1 << 20];
                for _ in 0..64 {
                    if write.write_all(&piece).await.is_err() {
                        return;
                    }
                }
            };
            let reading = async {
                let mut got = Vec::new();
                let _ = read.read_to_end(&mut got).await;
                String::from_utf8_lossy(&got).into_owned()
            };
            tokio::join!(sending, reading).1
        });
        for got in join_all(uploads).await {
            assert!(got.starts_with("HTTP/1.1 504 ") && got.contains("timeouts.idle"), "{got}");
        }
    })
    .await;
}

#[tokio::test]
async fn thousands_of_connects_disconnects_and_resets_leave_nothing_behind() {
    let origin = Origin::answering(OK).await;
    let child = Child::start(&text(&origin, "    circuit_breaker: off\n", "")).await;
    let tunnel = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", origin.address());
    survives(&child, 200, 2000, async |child, n| {
        for batch in 0..n / 100 {
            let mut apps = connections(child, 100).await;
            for (at, app) in apps.iter_mut().enumerate() {
                match at % 6 {
                    0 => {}
                    1 => app.send("GET http://up.test/ HTTP/1.1\r\nHo").await,
                    2 => app.send(&tunnel).await,
                    3 => {
                        app.send("POST http://up.test/ HTTP/1.1\r\nHost: up.test\r\nContent-Length: 9\r\n\r\nhalf")
                            .await
                    }
                    4 => app.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await,
                    _ => app.send("GET http://up.test/ HTTP/1.1\r\nHost: up.test\r\n\r\n").await,
                }
                if (batch + at) % 2 == 0 {
                    app.stream.set_zero_linger().unwrap();
                }
            }
        }
        assert!(child.get().await.starts_with("HTTP/1.1 200 "));
    })
    .await;
    // The pool may keep a few connections; apps have none.
    let open = child.figure("process_open_fds").await;
    assert!(open < 100.0, "{open}");
}

#[tokio::test]
async fn tunnels_on_which_nothing_moves_end_half_closed_ones_too() {
    // Says nothing, and doesn't care that the other side has ended.
    let origin = Origin::scripted(|mut conn| async move {
        if conn.head().await.is_some_and(|seen| seen.line().contains("up.test") || seen.line().contains(" / ")) {
            conn.send(OK).await;
        }
        std::future::pending::<()>().await;
    })
    .await;
    let child = Child::start(&text(&origin, "    timeouts: {tunnel_idle: 500ms}\n", "")).await;
    let tunnel = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", origin.address());
    survives(&child, 20, 200, async |child, n| {
        let mut apps = connections(child, n).await;
        for app in &mut apps {
            app.send(&tunnel).await;
        }
        for (at, app) in apps.iter_mut().enumerate() {
            assert!(app.head().await.starts_with("HTTP/1.1 200 "));
            if at % 2 == 0 {
                app.stream.shutdown().await.unwrap();
            }
        }
        child.comes_to("outrigger_tunnels{upstream=\"up\"}", 0.0).await;
        join_all(apps.iter_mut().map(Client::end)).await;
    })
    .await;
}

#[tokio::test]
async fn ten_thousand_hanging_connections_disturb_neither_probes_nor_traffic() {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    // As many as this process may hold itself; the last places are for listeners with less than their share.
    let n = usize::try_from(descriptors.saturating_sub(1000)).unwrap().min(10_000);
    let origin = Origin::answering(OK).await;
    let child = Child::start(&text(&origin, "", "limits: {max_connections: 10100, header_timeout: 1m}\n")).await;
    let _ = rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: Some(descriptors), maximum: Some(descriptors) },
    );
    let mut hanging = Vec::new();
    while hanging.len() < n {
        let more = connections(&child, 250.min(n - hanging.len())).await;
        hanging.extend(more);
    }
    child.comes_to("outrigger_downstream_connections", n as f64).await;
    let memory = child.resident();
    for listener in ["probes", "admin"] {
        assert!(child.ask(listener, "GET", "/livez").await.starts_with("HTTP/1.1 200 "));
    }
    assert!(child.ask("admin", "GET", "/api/upstreams").await.contains("\"up\""));
    assert!(child.get().await.starts_with("HTTP/1.1 200 "));
    // A connection that says nothing costs little. Bounded loosely: builds with debug assertions are larger.
    assert!(memory < 256 * 1024, "{memory} KiB");
    drop(hanging);
    child.comes_to("outrigger_downstream_connections", 0.0).await;
    assert!(child.get().await.starts_with("HTTP/1.1 200 "));
}
