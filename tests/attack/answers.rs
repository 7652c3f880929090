//! Upstreams that lie about where their answers end, or what they are: an app gets exactly one answer to each request, or sees
//! that it is broken; and what an upstream sends beyond an answer is never taken for the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::corpus;
use crate::strict::{Answer, Asked, Read, answer};
use crate::support::origin::Conn;
use crate::support::{Client, Origin, PATIENCE, Proxy};

const POLICIES: &str = "    retry: off\n    circuit_breaker: off\n    timeouts: {attempt: 2s, idle: 2s}\n";

/// Answers `/hostile` with these bytes, and anything else well: with the number of the request.
async fn lying(bytes: &[u8], closes: bool) -> Origin {
    let bytes: Arc<[u8]> = bytes.into();
    let count = Arc::new(AtomicUsize::new(0));
    Origin::scripted(move |mut conn| {
        let (bytes, count) = (Arc::clone(&bytes), Arc::clone(&count));
        async move {
            while let Some(seen) = conn.request().await {
                let number = count.fetch_add(1, Ordering::Relaxed);
                let sent = if seen.line().contains("/hostile") {
                    conn.try_send(&bytes).await
                } else {
                    let text = number.to_string();
                    conn.try_send(
                        format!("HTTP/1.1 200 OK\r\nX-Good: {text}\r\nContent-Length: 4\r\n\r\ngood").as_bytes(),
                    )
                    .await
                };
                if sent.is_err() || closes && seen.line().contains("/hostile") {
                    return;
                }
            }
        }
    })
    .await
}

/// What came of a request.
#[derive(Debug)]
pub(crate) enum Got {
    Whole(Answer),
    /// A head, and a body that is visibly not whole.
    Broken,
    #[expect(dead_code, reason = "shown where it is found")]
    Nonsense(String),
}

/// The final answer to one request, and whether the connection is still open behind it.
pub(crate) async fn final_answer(app: &mut Client, held: &mut Vec<u8>, asked: Asked) -> (Got, bool) {
    let mut closed = false;
    loop {
        match answer(held, asked, closed) {
            Read::Whole(got, length) => {
                held.drain(..length);
                if got.status >= 200 {
                    return (Got::Whole(got), !closed);
                }
            }
            Read::Bad(what) => return (Got::Nonsense(format!("{what}: {:?}", String::from_utf8_lossy(held))), false),
            Read::Part(head) if closed => {
                let text = String::from_utf8_lossy(held).into_owned();
                return (if head { Got::Broken } else { Got::Nonsense(text) }, false);
            }
            Read::Part(_) => {
                match timeout(PATIENCE, app.stream.read_buf(held)).await.expect("the proxy says something") {
                    Ok(n) if n > 0 => {}
                    Ok(_) => closed = true,
                    // A reset: what has no length is not whole then.
                    Err(_) if matches!(answer(held, asked, false), Read::Part(true)) => return (Got::Broken, false),
                    Err(_) => closed = true,
                }
            }
        }
    }
}

fn verdict(want: &str, got: &Got, empty: bool) -> Result<(), String> {
    match (want, got) {
        ("broken", Got::Broken) => Ok(()),
        ("broken", Got::Whole(answer)) if answer.status == 502 => Ok(()),
        (_, Got::Whole(answer)) if answer.status.to_string() == want => {
            let own = answer.message.all("proxy-status").iter().any(|value| value.starts_with(b"outrigger; error="));
            let bare = empty || matches!(answer.status, 204 | 304);
            let body = if bare { &b""[..] } else { b"ok" };
            match want {
                "502" if own => Ok(()),
                "502" => Err("a 502 that is not the proxy's".to_owned()),
                _ if answer.message.body == body => Ok(()),
                _ => Err(format!("its body is {:?}", String::from_utf8_lossy(&answer.message.body))),
            }
        }
        _ => Err(format!("{want} expected, but {got:?}")),
    }
}

#[tokio::test]
async fn an_app_gets_one_answer_or_sees_that_it_is_broken_and_the_next_answer_is_its_own() {
    let mut failed = Vec::new();
    for case in corpus::answers() {
        let origin = lying(&case.bytes, case.has("closes")).await;
        let proxy = Proxy::for_origin(&origin, POLICIES).await;
        let (head, want) = (case.has("HEAD"), &*case.words[0]);
        let (method, asked) = if head { ("HEAD", Asked::Head) } else { ("GET", Asked::Other) };
        let (mut app, mut held) = (proxy.connect().await, Vec::new());
        app.send(format!("{method} http://up.test/hostile HTTP/1.1\r\nHost: up.test\r\n\r\n")).await;
        let (got, open) = final_answer(&mut app, &mut held, asked).await;
        if let Err(what) = verdict(want, &got, head || case.has("empty")) {
            failed.push(format!("== {}: {what}", case.name));
        }
        if open && !held.is_empty() {
            failed.push(format!("== {}: more than an answer: {:?}", case.name, String::from_utf8_lossy(&held)));
        }
        // Three more, on the same connection where it lives and on another: each gets its own.
        for _ in 0..3 {
            if !open {
                app = proxy.connect().await;
                held.clear();
            }
            app.send("GET http://up.test/good HTTP/1.1\r\nHost: up.test\r\n\r\n").await;
            match final_answer(&mut app, &mut held, Asked::Other).await {
                (Got::Whole(answer), _) if answer.message.body == b"good" && held.is_empty() => {}
                (got, _) => failed.push(format!("== {}: then {got:?}, and {held:?}", case.name)),
            }
        }
        if origin.seen().iter().any(|seen| seen.line().contains("evil")) || origin.seen().len() != 4 {
            failed.push(format!("== {}: the upstream was sent {:?}", case.name, origin.seen()));
        }
        proxy.stop().await;
    }
    assert!(failed.is_empty(), "{} failed\n{}", failed.len(), failed.join("\n"));
}

/// Agrees to switch, and says back so many bytes of the other protocol.
async fn switch(mut conn: Conn, fields: &str, bytes: usize) {
    conn.send(format!("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n{fields}\r\n")).await;
    let said = conn.take(bytes).await.unwrap();
    conn.send(&said).await;
    conn.closed().await;
}

/// The 101 that an app asked for has no body, whatever its head says: what follows it is the other protocol.
#[tokio::test]
async fn a_switch_with_a_length_is_passed_on_without_it() {
    let origin = Origin::scripted(|mut conn| async move {
        conn.request().await.unwrap();
        switch(conn, "Content-Length: 2\r\n", 4).await;
    })
    .await;
    let proxy = Proxy::for_origin(&origin, POLICIES).await;
    let mut app = proxy.connect().await;
    app.send("GET http://up.test/ HTTP/1.1\r\nHost: up.test\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").await;
    let head = app.head().await;
    assert!(matches!(answer(head.as_bytes(), Asked::Other, false), Read::Whole(..)), "{head}");
    app.send("\r\n\0\n").await;
    assert_eq!(app.take(4).await, b"\r\n\0\n");
    proxy.stop().await;
}

/// What an app says before the upstream has agreed to switch is the other protocol's, or comes too late; it is never replaced by
/// words of the proxy's.
#[tokio::test]
async fn what_comes_before_the_switch_is_agreed_on_arrives_as_it_was_sent() {
    for early in
        [&b"\x81\x85\x00\x00\x00\x00hello"[..], b"GET / HTTP/1.1\r\n", b"\0\r\n\r\n", b"hello\r\n\r\n", b"\n", b"x"]
    {
        let (asked, mut told) = tokio::sync::mpsc::channel::<()>(1);
        let origin = Origin::scripted(move |mut conn| {
            let asked = asked.clone();
            async move {
                conn.request().await.unwrap();
                asked.send(()).await.unwrap();
                // The app's early words are in the proxy by then, which nothing shows outside of it.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                switch(conn, "", early.len() + 4).await;
            }
        })
        .await;
        let proxy = Proxy::for_origin(&origin, POLICIES).await;
        let mut app = proxy.connect().await;
        app.send("GET http://up.test/ HTTP/1.1\r\nHost: up.test\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").await;
        told.recv().await.unwrap();
        app.send(early).await;
        app.head().await;
        app.send("late").await;
        let got = app.take(early.len() + 4).await;
        assert_eq!(got, [early, b"late"].concat(), "{:?}", String::from_utf8_lossy(&got));
        proxy.stop().await;
    }
}

/// An upstream that answers before it has the body leaves the rest of it on the app's way; it is not to be taken for requests.
#[tokio::test]
async fn what_is_left_of_a_body_that_was_answered_early_is_never_a_request() {
    let rest = "GET /evil HTTP/1.1\r\nHost: up.test\r\n\r\n";
    for (framing, begun, left) in [
        (format!("Content-Length: {}", 4 + rest.len()), "abcd".to_owned(), rest.to_owned()),
        (
            "Transfer-Encoding: chunked".to_owned(),
            "4\r\nabcd\r\n".to_owned(),
            format!("{:x}\r\n{rest}\r\n0\r\n\r\n", rest.len()),
        ),
        (format!("Expect: 100-continue\r\nContent-Length: {}", rest.len()), String::new(), rest.to_owned()),
    ] {
        let origin = Origin::scripted(|mut conn| async move {
            while let Some(seen) = conn.head().await {
                conn.remember(&seen);
                let answer = if seen.line().contains("/early") {
                    "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nok"
                } else {
                    "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood"
                };
                if conn.try_send(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        })
        .await;
        let proxy = Proxy::for_origin(&origin, POLICIES).await;
        let (mut app, mut held) = (proxy.connect().await, Vec::new());
        app.send(format!("POST http://up.test/early HTTP/1.1\r\nHost: up.test\r\n{framing}\r\n\r\n{begun}")).await;
        let (got, _) = final_answer(&mut app, &mut held, Asked::Other).await;
        assert!(matches!(&got, Got::Whole(answer) if answer.status == 413), "{framing}: {got:?}");
        // The connection may be closing already.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut app.stream, left.as_bytes()).await;
        let follow = b"GET http://up.test/good HTTP/1.1\r\nHost: up.test\r\nConnection: close\r\n\r\n";
        let _ = tokio::io::AsyncWriteExt::write_all(&mut app.stream, follow).await;
        let (_, mut held) = (final_answer(&mut app, &mut held, Asked::Other).await, Vec::new());
        // Others get their own.
        let mut other = proxy.connect().await;
        other.send("GET http://up.test/good HTTP/1.1\r\nHost: up.test\r\n\r\n").await;
        let (got, _) = final_answer(&mut other, &mut held, Asked::Other).await;
        assert!(matches!(&got, Got::Whole(answer) if answer.message.body == b"good"), "{framing}: {got:?}");
        assert!(!origin.seen().iter().any(|seen| seen.line().contains("evil")), "{framing}: {:?}", origin.seen());
        proxy.stop().await;
    }
}

/// Informational answers without end are no answer: the attempt's clock goes on.
#[tokio::test]
async fn informational_answers_without_end_are_a_time_out() {
    let origin = Origin::scripted(|mut conn| async move {
        conn.request().await.unwrap();
        while conn.try_send(&b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(100)).await.is_ok() {}
    })
    .await;
    let proxy = Proxy::for_origin(&origin, "    retry: off\n    timeouts: {attempt: 300ms}\n").await;
    let got = proxy.talk(b"GET http://up.test/ HTTP/1.1\r\nHost: up.test\r\nConnection: close\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 504 "), "{got}");
    proxy.stop().await;
}

/// Some clients ask for an upgrade with every request (`h2c`). Their connections live on all the same.
#[tokio::test]
async fn a_connection_whose_upgrade_nobody_takes_lives_on() {
    // Nobody listens there.
    let gone = Origin::closing("").await.address();
    let proxy =
        Proxy::start(&format!("upstreams:\n  up: {{hosts: [up.test], to: [\"http://{gone}\"], retry: off}}\n")).await;
    let (mut app, mut held) = (proxy.connect().await, Vec::new());
    for _ in 0..3 {
        app.send(
            "POST http://up.test/ HTTP/1.1\r\nHost: up.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n",
        )
        .await;
        app.send("HTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 2\r\n\r\nhi").await;
        let (got, open) = final_answer(&mut app, &mut held, Asked::Other).await;
        let Got::Whole(answer) = got else { panic!("{got:?}") };
        assert!(answer.status == 502 && open && answer.message.all("connection").is_empty(), "{answer:?}");
    }
    proxy.stop().await;
}

/// What an upstream says on a connection that nobody asks anything of is taken for no answer.
#[tokio::test]
async fn an_answer_that_comes_on_an_idle_connection_is_nobodys() {
    let (said, mut heard) = tokio::sync::mpsc::channel::<()>(1);
    let origin = Origin::scripted(move |mut conn| {
        let said = said.clone();
        async move {
            while let Some(seen) = conn.request().await {
                let first = seen.line().contains("/first");
                conn.send(format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{}",
                    if first { "good" } else { "next" }
                ))
                .await;
                if first {
                    // The connection is back in the pool by then.
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    let _ = conn.try_send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil").await;
                    said.send(()).await.unwrap();
                }
            }
        }
    })
    .await;
    let proxy = Proxy::for_origin(&origin, POLICIES).await;
    for _ in 0..20 {
        let (mut app, mut held) = (proxy.connect().await, Vec::new());
        for (path, body) in [("first", b"good"), ("next", b"next")] {
            app.send(format!("GET http://up.test/{path} HTTP/1.1\r\nHost: up.test\r\n\r\n")).await;
            let (got, _) = final_answer(&mut app, &mut held, Asked::Other).await;
            assert!(matches!(&got, Got::Whole(answer) if answer.message.body == body), "{path}: {got:?}");
            if path == "first" {
                heard.recv().await.unwrap();
            }
        }
    }
    proxy.stop().await;
}
