//! Whole requests over loopback on kept connections: an app, the proxy and an upstream, all on one thread. What app and
//! upstream cost is `request/direct`.

use std::net::SocketAddr;
use std::sync::Arc;

use outrigger::app::App;
use outrigger::reload::Source;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;

use super::Part;
use super::configuration::{config, host, path, routes, upstreams};

/// The head of an answer of 1 KiB.
const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: 1024\r\n\r\n";
const KIB: usize = 1 << 10;

pub fn parts() -> Vec<Part> {
    let get = |n, path: String| request("GET", n, &path, 0);
    vec![
        Part::new("request/direct", 400, move || requests(None, vec![get(0, path(0))])),
        Part::new("request/all-policies", 400, move || requests(Some((1, "")), vec![get(0, path(0))])),
        Part::new("request/all-policies/post-16k", 400, || {
            requests(Some((1, "")), vec![request("POST", 0, &path(0), 16 * KIB)])
        }),
        Part::new("request/upstreams/1000", 1_000, move || {
            // A pool each would make a connection each. Those that answer are few, those that are known are many.
            requests(Some((1_000, "")), (0..20).map(|n| get(n * 50, path(0))).collect())
        }),
        Part::new("request/routes/100", 400, move || requests(Some((1, &routes(100))), vec![get(0, path(99))])),
    ]
}

/// As an app sends it that takes us for its proxy.
fn request(method: &str, n: usize, path: &str, body: usize) -> Vec<u8> {
    let host = host(n);
    let length = if body > 0 { format!("content-length: {body}\r\n") } else { String::new() };
    let head = format!(
        "{method} http://{host}{path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: an-app/1.2.3\r\naccept: */*\r\n{length}\r\n"
    );
    let mut request = head.into_bytes();
    request.resize(request.len() + body, b'x');
    request
}

/// Sends one request after the other on one connection, through so many upstreams with so much in each, or to the upstream
/// itself.
fn requests(through: Option<(usize, &str)>, requests: Vec<Vec<u8>>) -> impl FnMut() + use<> {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (app, mut stream) = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let origin = listener.local_addr().expect("it listens");
        tokio::spawn(answer_all(listener));
        let app = through.map(|(count, more)| {
            let text = upstreams(count, origin.port(), more);
            let config = Arc::into_inner(config(&text)).expect("nobody else has it");
            App::start(config, Source::Text(text.into())).expect("its port is free")
        });
        let address: SocketAddr = app.as_ref().map_or(origin, |app| app.address("proxy"));
        let stream = TcpStream::connect(address).await.expect("it listens");
        stream.set_nodelay(true).expect("it is open");
        (app, stream)
    });
    let mut turns = (0..requests.len()).cycle();
    let mut got = vec![0; 4 * KIB];
    move || {
        let _ = &app;
        let request = &requests[turns.next().expect("it has no end")];
        runtime.block_on(async {
            stream.write_all(request).await.expect("it is taken");
            let mut n = 0;
            while !whole(&got[..n]) {
                let more = stream.read(&mut got[n..]).await.expect("it is answered");
                assert!(more > 0, "the connection was closed");
                n += more;
            }
            assert!(got.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&got[..n]));
        });
    }
}

fn whole(got: &[u8]) -> bool {
    end_of_head(got).is_some_and(|end| got.len() >= end + KIB)
}

fn end_of_head(got: &[u8]) -> Option<usize> {
    got.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// An upstream that does as little as it can.
async fn answer_all(listener: TcpListener) {
    let mut answer = ANSWER.as_bytes().to_vec();
    answer.resize(answer.len() + KIB, b'x');
    loop {
        let (stream, _) = listener.accept().await.expect("it listens");
        stream.set_nodelay(true).expect("it is open");
        tokio::spawn(serve(stream, answer.clone()));
    }
}

async fn serve(mut stream: TcpStream, answer: Vec<u8>) {
    let mut got = vec![0; 64 * KIB];
    let mut n = 0;
    loop {
        match stream.read(&mut got[n..]).await {
            Ok(more) if more > 0 => n += more,
            Ok(_) | Err(_) => return,
        }
        let Some(end) = end_of_head(&got[..n]) else { continue };
        // The only requests that have a body.
        let body = if got.starts_with(b"POST") { 16 * KIB } else { 0 };
        if n < end + body {
            continue;
        }
        n = 0;
        if stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}
