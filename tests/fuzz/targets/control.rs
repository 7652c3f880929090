//! What a stranger says on the control port: a page in the operator's browser can reach it.

use std::cell::RefCell;

use super::requests::{upstream, url};
use super::rig::{End, Notes, Rig, script};
use super::strict::{Answer, Asked, Read, Request, answer, framed_request};

const UPSTREAMS: &str = r#"
upstreams:
  up: {hosts: [up.test], to: ["http://{origin}"], allow_addresses: [loopback]}
"#;

thread_local! {
    static RIG: RefCell<Rig> = RefCell::new(Rig::with_admin(UPSTREAMS));
}

/// The control port answers whatever it is told and ends every connection. It serves nothing to a Host that is not its own, and
/// changes nothing but by a POST that no other page sent.
pub fn control(data: &[u8]) {
    RIG.with_borrow_mut(|rig| {
        let admin = rig.address("admin");
        rig.run(
            |app| async move {
                let mut dialogue = app.to(admin).say(data).await;
                if let Err(why) = dialogue.finish().await {
                    // Events go on until somebody ends them, also where the app has nothing more to say.
                    let heard = String::from_utf8_lossy(&dialogue.heard);
                    return if heard.contains("\r\ncontent-type: text/event-stream") { Ok(()) } else { Err(why) };
                }
                // The loop below would find nothing to judge.
                if dialogue.heard.is_empty() && matches!(framed_request(data), Read::Whole(..)) {
                    return Err("nothing is answered".to_owned());
                }
                let (mut at, mut of) = (0, 0);
                while at < dialogue.heard.len() {
                    let rest = &dialogue.heard[at..];
                    // hyper reads what a strict reader doesn't, such as bare line feeds: of that nothing is known.
                    let Read::Whole(request, length) = framed_request(&data[of..]) else { return Ok(()) };
                    of += length;
                    match answer(rest, Asked::by(&request.method), dialogue.end == End::Closed) {
                        Read::Whole(answer, length) => {
                            at += length;
                            judge(&request, &answer, &admin.to_string())?;
                        }
                        // Events go on until somebody ends them.
                        Read::Part(_) if request.target.ends_with("/api/events") => return Ok(()),
                        Read::Part(_) | Read::Bad(_) => {
                            return Err(format!("this is no answer: {:?}", String::from_utf8_lossy(rest)));
                        }
                    }
                }
                Ok(())
            },
            || script(|stream| upstream(stream, Notes::new())),
        );
    });
}

fn judge(request: &Request, answer: &Answer, admin: &str) -> Result<(), String> {
    if answer.status >= 300 || answer.status == 100 {
        return Ok(());
    }
    let served = |why: &str| Err(format!("{why} is served: {request:?}"));
    let hosts: Vec<_> =
        request.message.all("host").iter().map(|host| String::from_utf8_lossy(host).to_ascii_lowercase()).collect();
    let asked = match url(request) {
        Some(rest) => rest.split(['/', '?', '#']).next().unwrap_or_default().to_ascii_lowercase(),
        None => hosts.first().cloned().unwrap_or_default(),
    };
    let name = asked.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map_or(&*asked, |(name, _)| name);
    let name = name.strip_suffix('.').unwrap_or(name);
    let ours = name == "localhost" || name.ends_with(".localhost") || name.starts_with("127.") || name.starts_with('[');
    if !ours {
        return served("a Host that is not ours");
    }
    let safe = matches!(&*request.method, "GET" | "HEAD");
    let foreign = request.message.all("origin").iter().any(|origin| {
        let origin = String::from_utf8_lossy(origin).to_ascii_lowercase();
        // The same host and port, however they are written.
        !hosts.iter().any(|host| {
            origin
                .trim_end_matches(":80")
                .trim_end_matches('.')
                .contains(host.trim_end_matches(":80").trim_end_matches('.'))
        })
    });
    let crossed = request.message.all("sec-fetch-site").iter().any(|site| *site != b"same-origin" && *site != b"none");
    match &*request.method {
        _ if safe => Ok(()),
        "POST" if !foreign && !crossed => Ok(()),
        "POST" => served(&format!("another page's POST (admin is {admin})")),
        _ => served("another method"),
    }
}
