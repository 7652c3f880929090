//! Apps that go on sending after they were refused.

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
