//! Apps that go on sending after they were refused.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::Proxy;

#[tokio::test]
async fn an_app_that_reads_nothing_before_all_is_sent_still_gets_the_refusal() {
    let proxy = Proxy::start("egress: {unmatched: deny}\n").await;
    // More than what the sockets' buffers hold.
    let size = 48 << 20;
    let mut app = proxy.connect().await;
    app.send(format!("POST http://nowhere.test/ HTTP/1.1\r\nHost: nowhere.test\r\nContent-Length: {size}\r\n\r\n"))
        .await;
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..48 {
        app.send(&piece).await;
    }
    let got = String::from_utf8(app.rest().await).unwrap();
    assert!(got.starts_with("HTTP/1.1 403 ") && got.contains("denied_unmatched"), "{got}");
    proxy.stop().await;
}

#[tokio::test]
async fn the_answer_of_an_upstream_that_hangs_up_in_the_middle_of_an_upload_is_passed_on() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_exact(&mut [0; 16]).await.unwrap();
            stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
            // The rest of the request is unread, so this is a reset.
        }
    });
    let proxy =
        Proxy::start(&format!("upstreams:\n  up:\n    hosts: [up.test]\n    to: [\"http://{address}\"]\n")).await;
    let size = 4 << 20;
    let mut request = format!(
        "POST http://up.test/ HTTP/1.1\r\nHost: up.test\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
    )
    .into_bytes();
    request.resize(request.len() + size, b'x');
    for _ in 0..20 {
        let got = proxy.talk(&request).await;
        assert!(got.starts_with("HTTP/1.1 413 ") && got.ends_with("\r\n\r\nno"), "{got}");
    }
    proxy.stop().await;
}
