//! Names of fields with a quote: no name has one, HTTP/2 libraries let it through, and HTTP/1 has no way to write it.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::Empty;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Origin, Proxy};

fn odd() -> HeaderName {
    HeaderName::from_lowercase(b"co\"tent-length").unwrap()
}

#[tokio::test]
async fn a_field_of_http2_whose_name_is_none_is_refused() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let stream = TcpStream::connect(proxy.address("proxy")).await.unwrap();
    let (mut app, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://up.test/").header(odd(), "2").body(Empty::<Bytes>::new()).unwrap();
    assert_eq!(app.send_request(request).await.unwrap().status(), 400);
    assert!(origin.seen().is_empty(), "{:?}", origin.seen());
    proxy.stop().await;
}

#[tokio::test]
async fn an_answer_over_http2_with_a_field_whose_name_is_none_is_502() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|_| async {
                let mut answer = Response::new(Empty::<Bytes>::new());
                answer.headers_mut().insert(odd(), HeaderValue::from_static("2"));
                Ok::<_, Infallible>(answer)
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    let text = format!(
        "upstreams:\n  up:\n    hosts: [up.test]\n    to: [\"http://{address}\"]\n    allow_addresses: [loopback]\n    connections: {{http: 2}}\n    retry: off\n"
    );
    let proxy = Proxy::start(&text).await;
    let got = proxy.talk(b"GET http://up.test/ HTTP/1.1\r\nHost: up.test\r\nConnection: close\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 502 "), "{got}");
    proxy.stop().await;
}
