//! Files that turn into something else while Outrigger runs.

use std::fs;
use std::process::Command;

use crate::support::{Origin, PATIENCE, Proxy};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const ASK: &[u8] = b"GET / HTTP/1.1\r\nHost: up.test\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn a_configuration_that_becomes_a_pipe_is_refused_and_the_next_good_one_taken() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "").await;
    fs::remove_file(proxy.file()).unwrap();
    assert!(Command::new("mkfifo").arg(proxy.file()).status().unwrap().success());
    let status = tokio::time::timeout(PATIENCE, proxy.reload_what_is_there()).await.expect("the reload hangs");
    assert!(!status.took_effect());
    assert!(status.problems[0].message.ends_with("can't be read: it is not a regular file"), "{:?}", status.problems);
    assert!(proxy.talk(ASK).await.starts_with("HTTP/1.1 200 "));
    fs::remove_file(proxy.file()).unwrap();
    let reload = proxy.reload("upstreams: {}\negress: {unmatched: deny}\n");
    let status = tokio::time::timeout(PATIENCE, reload).await.expect("the next reload hangs");
    assert!(status.took_effect(), "{:?}", status.problems);
    assert!(proxy.talk(ASK).await.starts_with("HTTP/1.1 403 "));
    proxy.stop().await;
}

#[tokio::test]
async fn a_configuration_that_grows_without_bound_is_refused_unread() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "").await;
    // Sparse: it has no blocks on the disk, and would fill memory if it were read.
    fs::OpenOptions::new().write(true).open(proxy.file()).unwrap().set_len(1 << 40).unwrap();
    let status = tokio::time::timeout(PATIENCE, proxy.reload_what_is_there()).await.expect("all of it is read");
    assert!(!status.took_effect());
    assert!(status.problems[0].message.starts_with("the file is larger than the 1MiB"), "{:?}", status.problems);
    assert!(proxy.talk(ASK).await.starts_with("HTTP/1.1 200 "));
    proxy.stop().await;
}
