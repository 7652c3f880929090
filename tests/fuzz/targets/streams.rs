//! What an app says on the proxy port over HTTP/2.

use std::cell::RefCell;

use super::frames::{self, PREFACE};
use super::requests::{clean, upstream};
use super::rig::{Notes, Rig, script};

const UPSTREAMS: &str = r#"
upstreams:
  up:
    hosts: [up.test, "*.up.test"]
    to: ["http://{origin}"]
    allow_addresses: [loopback]
    timeouts: {attempt: 1s, request: 2s, idle: 2s}
    retry: off
    circuit_breaker: off
"#;

thread_local! {
    static RIG: RefCell<Rig> = RefCell::new(Rig::new(UPSTREAMS));
}

/// An app may send any frames: what its upstream hears are requests that a careful reader understands, no more of them than
/// there were streams; the answer is made of frames; and the connection ends.
pub fn streams(data: &[u8]) {
    let frames = frames::encode(data);
    let asked = frames.windows(9).filter(|window| window[3] == 1).count();
    let said = [PREFACE, &frames].concat();
    RIG.with_borrow_mut(|rig| {
        let notes = Notes::new();
        let log = notes.clone();
        rig.run(
            |app| {
                let (notes, said) = (notes.clone(), &said);
                async move {
                    notes.take();
                    let mut dialogue = app.say(said).await;
                    dialogue.finish().await?;
                    let heard = notes.take();
                    if heard.len() > asked {
                        return Err(format!("{} requests became of {asked} heads", heard.len()));
                    }
                    for request in heard {
                        let request = request?;
                        clean(&request)?;
                        let host =
                            request.message.all("host").first().copied().unwrap_or_default().to_ascii_lowercase();
                        let name = host.split(|&b| b == b':').next().unwrap_or_default();
                        let name = name.strip_suffix(b".").unwrap_or(name);
                        if name != b"up.test" && !name.ends_with(b".up.test") {
                            return Err(format!("a request for {:?} was passed on", String::from_utf8_lossy(&host)));
                        }
                    }
                    let counts = frames::decode(&dialogue.heard)?;
                    if counts[4] == 0 && !dialogue.heard.is_empty() {
                        return Err("the proxy did not begin with SETTINGS".to_owned());
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
