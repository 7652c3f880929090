//! Tunnels that carry much, so that the kernel moves the bytes: all that holds for a small one holds for them.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, timeout};

use crate::child::{Child, text};
use crate::support::{Client, Origin, PATIENCE, Proxy, eventually};

const MIB: usize = 1024 * 1024;
/// More than the sockets and pipes of a tunnel hold.
const PLENTY: usize = 24 * MIB;

/// Pipes that stay for the next tunnel: one for each thread.
const SPARE: usize = 16;

/// An origin, and the connections that it is given.
async fn origin() -> (Origin, UnboundedReceiver<TcpStream>) {
    let (give, given) = unbounded_channel();
    let origin = Origin::scripted(move |conn| {
        let _ = give.send(conn.stream);
        async {}
    })
    .await;
    (origin, given)
}

/// Opens a tunnel: the app's end and the upstream's.
async fn tunnel(mut app: Client, to: &Origin, given: &mut UnboundedReceiver<TcpStream>) -> (TcpStream, TcpStream) {
    app.send(format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", to.address())).await;
    let head = app.head().await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    (app.stream, timeout(PATIENCE, given.recv()).await.unwrap().unwrap())
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Sends in pieces of all sizes.
async fn send(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) {
    let mut sizes = Rng::with_seed(bytes.len() as u64);
    let mut rest = bytes;
    while !rest.is_empty() {
        let most = if sizes.u8(..) < 32 { 100 } else { 400_000 };
        let piece;
        (piece, rest) = rest.split_at(sizes.usize(1..=most).min(rest.len()));
        to.write_all(piece).await.unwrap();
    }
}

/// Reads exactly these.
async fn expect(from: &mut (impl AsyncRead + Unpin), bytes: &[u8]) {
    let (got, end) = prefix(from, bytes).await;
    assert_eq!(got, bytes.len(), "{end:?}");
}

/// Reads these, or as much of them as comes. How many came, and how it ended if not with the last.
async fn prefix(from: &mut (impl AsyncRead + Unpin), bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut piece = vec![0; 100_000];
    let mut at = 0;
    while at < bytes.len() {
        let most = piece.len().min(bytes.len() - at);
        match timeout(PATIENCE, from.read(&mut piece[..most])).await.expect("something comes") {
            Ok(0) => return (at, Ok(())),
            Ok(n) => {
                assert!(piece[..n] == bytes[at..at + n], "something else came between {at} and {}", at + n);
                at += n;
            }
            Err(error) => return (at, Err(error)),
        }
    }
    (at, Ok(()))
}

/// Reads nothing, but the end.
async fn end(from: &mut (impl AsyncRead + Unpin)) {
    let mut rest = Vec::new();
    timeout(PATIENCE, from.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert_eq!(rest.len(), 0);
}

/// Writes until nobody takes any more. How much was taken.
async fn stuff(to: &mut TcpStream) -> usize {
    let piece = vec![b'x'; 64 * 1024];
    let mut taken = 0;
    while let Ok(n) = timeout(Duration::from_millis(500), to.write(&piece)).await {
        taken += n.unwrap();
    }
    taken
}

#[tokio::test]
async fn much_in_both_directions_at_once_arrives_whole_and_in_order() {
    let (origin, mut given) = origin().await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let (up, down) = (noise(1, PLENTY), noise(2, PLENTY));
    let (mut app, mut upstream) = tunnel(proxy.connect().await, &origin, &mut given).await;
    let ((mut from_app, mut to_app), (mut from_up, mut to_up)) = (upstream.split(), app.split());
    tokio::join!(
        async {
            send(&mut to_up, &up).await;
            to_up.shutdown().await.unwrap();
        },
        async {
            expect(&mut from_app, &up).await;
            end(&mut from_app).await;
        },
        async {
            send(&mut to_app, &down).await;
            to_app.shutdown().await.unwrap();
        },
        async {
            expect(&mut from_up, &down).await;
            end(&mut from_up).await;
        },
    );
    eventually("every byte is counted", async || {
        let metrics = proxy.metrics().await;
        ["received", "sent"].iter().all(|direction| {
            metrics.contains(&format!("outrigger_bytes_total{{direction=\"{direction}\",upstream=\"up\"}} {PLENTY}\n"))
        })
    })
    .await;
    proxy.stop().await;
}

#[tokio::test]
async fn a_half_close_behind_much_comes_after_it_and_leaves_the_other_direction_open() {
    let (origin, mut given) = origin().await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let bytes = noise(3, PLENTY);
    for app_first in [true, false] {
        let (app, upstream) = tunnel(proxy.connect().await, &origin, &mut given).await;
        let (mut first, mut second) = if app_first { (app, upstream) } else { (upstream, app) };
        tokio::join!(
            async {
                send(&mut first, &bytes).await;
                first.shutdown().await.unwrap();
            },
            async {
                expect(&mut second, &bytes).await;
                end(&mut second).await;
            },
        );
        tokio::join!(
            async {
                send(&mut second, &bytes).await;
                second.shutdown().await.unwrap();
            },
            async {
                expect(&mut first, &bytes).await;
                end(&mut first).await;
            },
        );
    }
    proxy.stop().await;
}

#[tokio::test]
async fn a_reset_in_the_middle_of_much_is_passed_on_as_one_from_either_side() {
    let (origin, mut given) = origin().await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let bytes = &noise(4, PLENTY);
    for app_leaves in [true, false] {
        let (app, upstream) = tunnel(proxy.connect().await, &origin, &mut given).await;
        let (mut leaver, mut other) = if app_leaves { (app, upstream) } else { (upstream, app) };
        let ((), (got, end)) = tokio::join!(
            async move {
                send(&mut leaver, &bytes[..PLENTY / 2]).await;
                leaver.set_zero_linger().unwrap();
            },
            prefix(&mut other, bytes),
        );
        assert!(got <= PLENTY / 2, "{got}");
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        drop(other);
    }
    eventually("both are counted out", async || proxy.metrics().await.contains("outrigger_tunnels{upstream=\"up\"} 0"))
        .await;
    proxy.stop().await;
}

#[tokio::test]
async fn the_last_words_of_a_side_that_leaves_in_the_middle_of_much_reach_the_other_and_so_does_the_reset() {
    let (origin, mut given) = origin().await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let bytes = &noise(5, PLENTY);
    for app_leaves in [true, false] {
        let (app, upstream) = tunnel(proxy.connect().await, &origin, &mut given).await;
        let (mut leaver, other) = if app_leaves { (app, upstream) } else { (upstream, app) };
        let (mut read, mut write) = other.into_split();
        let (sent, (got, end), ()) = tokio::join!(
            write.write_all(bytes),
            async {
                let mut got = Vec::new();
                let end = timeout(PATIENCE, read.read_to_end(&mut got)).await.unwrap();
                (got, end)
            },
            async move {
                expect(&mut leaver, &bytes[..4 * MIB]).await;
                leaver.write_all(b"no more").await.unwrap();
                // More has come than is read: its close is a reset.
                leaver.peek(&mut [0]).await.unwrap();
            },
        );
        assert_eq!(got, b"no more");
        assert!(sent.is_err() || end.is_err());
    }
    proxy.stop().await;
}

#[tokio::test]
async fn a_reader_that_stops_stops_the_sender_and_gets_all_when_it_goes_on() {
    let (origin, mut given) = origin().await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let (mut app, mut upstream) = tunnel(proxy.connect().await, &origin, &mut given).await;
    let bytes = noise(6, 4 * PLENTY);
    let sent = timeout(Duration::from_secs(2), upstream.write_all(&bytes)).await;
    assert!(sent.is_err(), "nobody stopped it");
    // Some of it was sent, nobody knows how much: what comes has to be its beginning.
    upstream.shutdown().await.unwrap();
    let (got, ended) = prefix(&mut app, &bytes).await;
    ended.unwrap();
    assert!(got > MIB, "{got}");
    proxy.stop().await;
}

#[tokio::test]
async fn a_slow_reader_gets_every_byte() {
    let (origin, mut given) = origin().await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let (mut app, mut upstream) = tunnel(proxy.connect().await, &origin, &mut given).await;
    SockRef::from(&app).set_recv_buffer_size(64 * 1024).unwrap();
    let bytes = noise(7, 3 * MIB);
    tokio::join!(
        async {
            send(&mut upstream, &bytes).await;
            upstream.shutdown().await.unwrap();
        },
        async {
            for piece in bytes.chunks(5000) {
                expect(&mut app, piece).await;
                tokio::task::yield_now().await;
            }
            end(&mut app).await;
        },
    );
    proxy.stop().await;
}

#[tokio::test]
async fn bytes_sent_as_urgent_do_not_hold_up_what_follows_them() {
    let (origin, mut given) = origin().await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let (mut app, mut upstream) = tunnel(proxy.connect().await, &origin, &mut given).await;
    let bytes = noise(8, 4 * MIB);
    let (mut from_app, mut from_up) = (Vec::new(), Vec::new());
    tokio::join!(
        async {
            for piece in bytes.chunks(MIB) {
                send(&mut app, piece).await;
                // What is urgent is out of line, for whoever asks for it. A proxy doesn't.
                while let Err(error) = SockRef::from(&app).send_out_of_band(b"!") {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    tokio::task::yield_now().await;
                }
            }
            send(&mut app, &bytes).await;
            app.shutdown().await.unwrap();
            timeout(PATIENCE, app.read_to_end(&mut from_up)).await.unwrap().unwrap();
        },
        async {
            timeout(PATIENCE, upstream.read_to_end(&mut from_app)).await.expect("all arrives").unwrap();
            upstream.shutdown().await.unwrap();
        },
    );
    // Of urgent bytes that follow each other closely, earlier ones are in line.
    assert!((2 * bytes.len()..=2 * bytes.len() + 4).contains(&from_app.len()), "{}", from_app.len());
    assert!(from_app.starts_with(&bytes[..MIB]) && from_app.ends_with(&bytes));
    proxy.stop().await;
}

#[tokio::test]
async fn a_tunnel_that_carried_much_is_closed_when_it_falls_silent_and_when_its_reader_does() {
    let (origin, mut given) = origin().await;
    let proxy = Proxy::for_origin(&origin, "    timeouts: {tunnel_idle: 300ms}\n").await;
    let bytes = noise(9, 8 * MIB);
    let (mut app, mut upstream) = tunnel(proxy.connect().await, &origin, &mut given).await;
    tokio::join!(send(&mut upstream, &bytes), expect(&mut app, &bytes));
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, app.read_to_end(&mut rest)).await.expect("it is closed");
    assert_eq!(rest.len(), 0);
    drop(upstream);

    let (_reads_nothing, mut upstream) = tunnel(proxy.connect().await, &origin, &mut given).await;
    let error = timeout(PATIENCE, async {
        loop {
            if let Err(error) = upstream.write_all(&bytes).await {
                return error;
            }
        }
    })
    .await
    .expect("it is closed");
    assert!(matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{error}");
    proxy.stop().await;
}

#[tokio::test]
async fn bytes_in_one_direction_keep_a_silent_one_alive() {
    let (origin, mut given) = origin().await;
    let proxy = Proxy::for_origin(&origin, "    timeouts: {tunnel_idle: 1s}\n").await;
    let (mut app, mut upstream) = tunnel(proxy.connect().await, &origin, &mut given).await;
    let bytes = noise(10, MIB);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        tokio::join!(send(&mut upstream, &bytes), expect(&mut app, &bytes));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::join!(send(&mut app, b"still there"), expect(&mut upstream, b"still there"));
    proxy.stop().await;
}

#[tokio::test]
async fn the_end_of_the_drain_cuts_a_tunnel_that_carries_much() {
    let (origin, mut given) = origin().await;
    let proxy = Proxy::for_origin(&origin, "shutdown: {quiet: 100ms, grace: 500ms}\n").await;
    let (mut app, mut upstream) = tunnel(proxy.connect().await, &origin, &mut given).await;
    let ((), (), whole) = tokio::join!(
        async {
            let piece = vec![b'x'; 64 * 1024];
            while upstream.write_all(&piece).await.is_ok() {}
        },
        async {
            let mut piece = vec![0; 64 * 1024];
            while matches!(timeout(PATIENCE, app.read(&mut piece)).await.unwrap(), Ok(1..)) {}
            drop(app);
        },
        proxy.drain(),
    );
    assert!(!whole);
    proxy.stop().await;
}

#[tokio::test]
async fn pipes_are_held_while_bytes_are_in_them_and_given_back_before_the_tunnel_ends() {
    let (origin, mut given) = origin().await;
    let child = Child::start(&text(&origin, "", "")).await;
    let before = child.pipes();
    let mut tunnels = Vec::new();
    let mut taken = Vec::new();
    for _ in 0..4 {
        tunnels.push(tunnel(child.connect().await, &origin, &mut given).await);
    }
    for (_, upstream) in &mut tunnels {
        taken.push(stuff(upstream).await);
    }
    // A kernel that is busy may have the last bytes on their way for longer than a writer waits.
    eventually("each holds one", async || (4..=4 + SPARE).contains(&(child.pipes() - before))).await;
    // Who reads on gets it all.
    for ((app, _), taken) in tunnels.iter_mut().zip(taken) {
        expect(app, &vec![b'x'; taken]).await;
    }
    eventually("they are given back", async || child.pipes() <= before + SPARE).await;
    for (app, upstream) in &mut tunnels {
        tokio::join!(send(app, b"still there"), expect(upstream, b"still there"));
    }
}

#[tokio::test]
async fn a_tunnel_whose_reader_stopped_costs_no_time() {
    let (origin, mut given) = origin().await;
    let child = Child::start(&text(&origin, "", "")).await;
    let (_app, mut upstream) = tunnel(child.connect().await, &origin, &mut given).await;
    stuff(&mut upstream).await;
    let before = child.ticks();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ticks = child.ticks() - before;
    assert!(ticks < 20, "{ticks} hundredths of a second");
}

#[tokio::test]
async fn tunnels_that_find_no_pipe_carry_on_by_copying_and_leave_descriptors_to_others() {
    let (origin, mut given) = origin().await;
    let limits = [(128, 8), (32, 2), (400, 25)];
    for (limit, most) in limits {
        let configuration = text(&origin, "    retry: off\n", "");
        let child = Child::spawn(&format!("ulimit -n {limit};"), Stdio::null(), Stdio::inherit(), &configuration);
        child.ready().await;
        let before = child.pipes();
        let count = if limit == 32 { 3 } else { 12 };
        let mut tunnels = Vec::new();
        for _ in 0..count {
            tunnels.push(tunnel(child.connect().await, &origin, &mut given).await);
        }
        let taken = join_all(tunnels.iter_mut().map(|(_, upstream)| stuff(upstream))).await;
        let held = child.pipes() - before;
        assert!(held <= most, "{held} of {limit}");
        let expected = vec![b'x'; taken.iter().copied().max().unwrap()];
        join_all(tunnels.iter_mut().zip(&taken).map(|((app, _), taken)| expect(app, &expected[..*taken]))).await;
        assert!(child.ask("probes", "GET", "/livez").await.starts_with("HTTP/1.1 200 "));
    }
}
