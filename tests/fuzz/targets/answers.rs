//! What an upstream says, over HTTP/1 and HTTP/2, and what the app then hears: the same answer, or one that says what was
//! wrong, or one that is visibly broken.

use std::cell::RefCell;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::frames;
use super::requests::answered;
use super::rig::{Caller, End, Rig, script};
use super::strict::{Answer, Asked, Read, Request, answer, framed_answer, framed_request};

const SETTINGS: &str = r#"
upstreams:
  up:
    hosts: [up.test]
    to: ["http://{origin}"]
    allow_addresses: [loopback]
    connections: {http: {version}}
    timeouts: {attempt: 1s, request: 2s, idle: 2s, tunnel_idle: 2s}
    retry: off
    circuit_breaker: off
"#;

/// What the app asks: the first byte of an input chooses.
const QUESTIONS: [&str; 6] = [
    "GET /get HTTP/1.1\r\nHost: up.test\r\nConnection: close\r\n\r\n",
    "HEAD /head HTTP/1.1\r\nHost: up.test\r\nConnection: close\r\n\r\n",
    "POST /post HTTP/1.1\r\nHost: up.test\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
    "POST /chunks HTTP/1.1\r\nHost: up.test\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\nConnection: close, TE\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "GET /socket HTTP/1.1\r\nHost: up.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    "GET /old HTTP/1.0\r\nHost: up.test\r\n\r\n",
];

thread_local! {
    static RIG: RefCell<Rig> = RefCell::new(Rig::new(&SETTINGS.replace("{version}", "1")));
    static RIG2: RefCell<Rig> = RefCell::new(Rig::new(&SETTINGS.replace("{version}", "2")));
}

/// Says its part as soon as a request's head is there.
async fn speak(mut stream: TcpStream, said: Rc<[u8]>) {
    let mut held = Vec::new();
    while !held.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read_buf(&mut held).await {
            Ok(n) if n > 0 => {}
            Ok(_) | Err(_) => return,
        }
    }
    end(stream, &said).await;
}

/// As [`speak`], over HTTP/2: begins with SETTINGS unless told not to, and goes on when a request is there.
async fn speak2(mut stream: TcpStream, properly: bool, said: Rc<[u8]>) {
    let mut held = Vec::new();
    if properly && stream.write_all(&frames::frame(4, 0, 0, &[])).await.is_err() {
        return;
    }
    let asked = |held: &[u8]| {
        let frames = held.get(frames::PREFACE.len()..)?;
        frames::decode(frames).ok().filter(|counts| counts[1] > 0)
    };
    while properly && asked(&held).is_none() {
        match stream.read_buf(&mut held).await {
            Ok(n) if n > 0 => {}
            Ok(_) | Err(_) => return,
        }
    }
    end(stream, &said).await;
}

async fn end(mut stream: TcpStream, said: &[u8]) {
    if stream.write_all(said).await.is_ok() && stream.shutdown().await.is_ok() {
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await.is_ok_and(|n| n > 0) {}
    }
}

/// An upstream may say anything: the app hears the same answer whole, or an answer of Outrigger's, or one that is visibly
/// broken; and the connection ends.
pub fn answers(data: &[u8]) {
    let Some((choice, said)) = data.split_first() else { return };
    let question = QUESTIONS[usize::from(*choice) % QUESTIONS.len()];
    let said: Rc<[u8]> = said.into();
    let spoken = said.clone();
    RIG.with_borrow_mut(|rig| {
        rig.run(
            |app| {
                let spoken = spoken.clone();
                async move {
                    let (asked, heard, end) = ask(app, question).await?;
                    judge(&asked, &spoken, &heard, end)
                }
            },
            || {
                let said = said.clone();
                script(move |stream| speak(stream, said.clone()))
            },
        );
    });
}

/// As [`answers`], over HTTP/2.
pub fn answers2(data: &[u8]) {
    let Some((choice, script_of_frames)) = data.split_first() else { return };
    let question = QUESTIONS[usize::from(*choice & 0x7f) % QUESTIONS.len()];
    let properly = choice & 0x80 == 0;
    let said: Rc<[u8]> = frames::encode(script_of_frames).into();
    RIG2.with_borrow_mut(|rig| {
        rig.run(
            |app| async move {
                let (asked, heard, end) = ask(app, question).await?;
                whole(&asked, &heard, end).map(|_| ())
            },
            || {
                let said = said.clone();
                script(move |stream| speak2(stream, properly, said.clone()))
            },
        );
    });
}

async fn ask(app: Caller, question: &str) -> Result<(Request, Vec<u8>, End), String> {
    let Read::Whole(asked, _) = framed_request(question.as_bytes()) else {
        return Err("the question is none".to_owned());
    };
    let mut dialogue = app.say(question.as_bytes()).await;
    let end = dialogue.end;
    if dialogue.heard.is_empty() && end != End::Reset {
        return Err("there is no answer, only silence or a closed connection".to_owned());
    }
    dialogue.finish().await?;
    Ok((asked, dialogue.heard, end))
}

/// Reads what the app heard. `None`: it is visibly broken.
fn whole(asked: &Request, heard: &[u8], end: End) -> Result<Option<Answer>, String> {
    if heard.is_empty() {
        return Ok(None);
    }
    let mut at = 0;
    loop {
        match answer(&heard[at..], Asked::by(&asked.method), end == End::Closed) {
            Read::Whole(answer, length) if answer.status == 100 => at += length,
            Read::Whole(answer, length) => {
                at += length;
                super::fields::check(&answer)?;
                if answer.status == 101 {
                    return Ok(Some(answer));
                }
                if at < heard.len() {
                    return Err(format!("something is behind the answer: {:?}", String::from_utf8_lossy(&heard[at..])));
                }
                return Ok(Some(answer));
            }
            Read::Part(_) => return Ok(None),
            Read::Bad(why) => return Err(format!("{why} is no HTTP: {:?}", String::from_utf8_lossy(&heard[at..]))),
        }
    }
}

/// What a careful reader finds in what the upstream said, behind all 1xx.
fn meant(asked: &Request, said: &[u8]) -> Option<Read<Answer>> {
    let mut at = 0;
    loop {
        match framed_answer(&said[at..], Asked::by(&asked.method), true) {
            Read::Whole(answer, _) if answer.status == 101 => return None,
            Read::Whole(answer, length) if answer.status < 200 => at += length,
            read => return Some(read),
        }
    }
}

fn judge(asked: &Request, said: &[u8], heard: &[u8], end: End) -> Result<(), String> {
    if asked.target != "/socket" {
        answered(std::slice::from_ref(asked), heard, End::Reset).or_else(|why| {
            // Nothing of the upstream's says that it answered.
            if why.starts_with("nobody says") || why.starts_with("an answer is cut off") { Ok(0) } else { Err(why) }
        })?;
    }
    let Some(answer) = whole(asked, heard, end)? else { return Ok(()) };
    let ours = answer.message.all("proxy-status").iter().any(|value| value.starts_with(b"outrigger; error="));
    if ours || answer.status == 101 {
        return Ok(());
    }
    match meant(asked, said) {
        Some(Read::Whole(meant, _)) => {
            if meant.status != answer.status {
                return Err(format!("{} became {}", meant.status, answer.status));
            }
            let bare = asked.method == "HEAD" || matches!(meant.status, 204 | 304);
            if !bare && meant.message.body != answer.message.body {
                return Err(format!("{meant:?} became {answer:?}"));
            }
            Ok(())
        }
        Some(Read::Part(_)) => {
            // The head says how much there should be. Without a length or chunks nobody can tell.
            let bare = asked.method == "HEAD" || matches!(answer.status, 100..200 | 204 | 304);
            match framed_answer(said, Asked::by(&asked.method), true) {
                Read::Part(_) if !bare => Err(format!("half an answer became a whole one: {answer:?}")),
                _ => Ok(()),
            }
        }
        // What is odd may be understood, as long as it is passed on cleanly.
        Some(Read::Bad(_)) | None => Ok(()),
    }
}
