//! What an app says inside a tunnel that is intercepted: a client hello, HTTP, or neither.

use std::cell::RefCell;

use super::requests::{clean, upstream};
use super::rig::{Notes, Rig, script};

const UPSTREAMS: &str = r#"
intercept: {generate: true, dir: "{dir}"}
upstreams:
  up:
    hosts: [up.test, other.test]
    to: ["http://{origin}"]
    allow_addresses: [loopback]
    https: intercept
    retry: off
    circuit_breaker: off
"#;

const CONNECT: &[u8] = b"CONNECT up.test:443 HTTP/1.1\r\nHost: up.test:443\r\n\r\n";
const OPENED: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";

thread_local! {
    static RIG: RefCell<Rig> = RefCell::new(Rig::new(UPSTREAMS));
}

/// An app may say anything inside of an intercepted tunnel: nothing reaches its upstream but whole requests for the host that
/// the tunnel is for, and the connection ends.
pub fn tunnels(data: &[u8]) {
    let Some((early, said)) = data.split_first() else { return };
    RIG.with_borrow_mut(|rig| {
        let notes = Notes::new();
        let log = notes.clone();
        rig.run(
            |app| {
                let notes = notes.clone();
                async move {
                    notes.take();
                    let mut dialogue = if early & 1 == 1 {
                        app.say(&[CONNECT, said].concat()).await
                    } else {
                        let mut dialogue = app.say(CONNECT).await;
                        dialogue.say(said).await;
                        dialogue
                    };
                    dialogue.finish().await?;
                    if !dialogue.heard.starts_with(OPENED) {
                        let heard = String::from_utf8_lossy(&dialogue.heard);
                        return Err(format!("the tunnel was not opened: {heard:?}"));
                    }
                    for request in notes.take() {
                        let request = request?;
                        clean(&request)?;
                        let host =
                            request.message.all("host").first().copied().unwrap_or_default().to_ascii_lowercase();
                        let host = host.strip_suffix(b":443").unwrap_or(&host);
                        if host.strip_suffix(b".").unwrap_or(host) != b"up.test" {
                            return Err(format!("a request for {:?} was passed on", String::from_utf8_lossy(host)));
                        }
                    }
                    Ok(())
                }
            },
            || {
                let log = log.clone();
                script(move |stream| upstream(stream, log.clone()))
            },
        );
    });
}
