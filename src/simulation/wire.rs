//! HTTP/1.1 messages as strict readers at both ends take them: whatever is not exactly right is an error. Bytes are pushed in,
//! items come out.

use std::sync::OnceLock;

/// A message's first line and fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// Request line or status line.
    pub(crate) first: String,
    /// Names in lower case.
    pub(crate) fields: Vec<(String, String)>,
}

impl Head {
    /// A field's value, where there is one.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// A status line's number.
    pub(crate) fn status(&self) -> u16 {
        self.first.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
    }

    /// The number that a request's path carries.
    pub(crate) fn id(&self) -> Option<u32> {
        id_in(self.first.as_bytes())
    }
}

/// The number behind `/r/`, where it is there to its end.
pub(crate) fn id_in(text: &[u8]) -> Option<u32> {
    let at = text.windows(3).position(|three| three == b"/r/")? + 3;
    let digits = text[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    text.get(at + digits)?;
    std::str::from_utf8(&text[at..at + digits]).ok()?.parse().ok()
}

/// What a reader finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// A head. Its body follows.
    Head(Head),
    /// A part of the body.
    Data(Vec<u8>),
    /// The message is complete.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Length(u64),
    Size,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    UntilClose,
    /// Not HTTP any more.
    Raw,
}

/// Reads one message after another.
#[derive(Debug)]
pub(crate) struct Reader {
    requests: bool,
    bytes: Vec<u8>,
    /// So many of them hold no end of a head.
    scanned: usize,
    state: State,
    /// The answer to come has no body: HEAD.
    bare: bool,
    /// The answer to come opens a tunnel if it is a 2xx.
    connects: bool,
}

impl Reader {
    /// Of requests.
    pub(crate) fn requests() -> Reader {
        Reader { requests: true, bytes: Vec::new(), scanned: 0, state: State::Head, bare: false, connects: false }
    }

    /// Of answers.
    pub(crate) fn answers() -> Reader {
        Reader { requests: false, ..Reader::requests() }
    }

    /// The next answer is that to a request of this method.
    pub(crate) fn expect(&mut self, method: &str) {
        self.bare = method == "HEAD";
        self.connects = method == "CONNECT";
    }

    /// More has come.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Between two messages, with nothing of the next one.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.state == State::Head && self.bytes.is_empty()
    }

    /// What came of a head that is not complete.
    pub(crate) fn partial_head(&self) -> &[u8] {
        if self.state == State::Head { &self.bytes } else { &[] }
    }

    /// The bytes behind the head of a tunnel.
    pub(crate) fn take_raw(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// The connection ended in good order. Whether the message is complete by that.
    pub(crate) fn ends_here(&self) -> bool {
        self.state == State::UntilClose
    }

    /// In the middle of a body whose end is known by its length alone.
    pub(crate) fn counts_bytes(&self) -> bool {
        matches!(self.state, State::Length(_))
    }

    /// The next item, where enough has come.
    pub(crate) fn next(&mut self) -> Result<Option<Item>, String> {
        loop {
            match self.state {
                State::Head => {
                    let Some(at) = find(&self.bytes[self.scanned..], b"\r\n\r\n") else {
                        self.scanned = self.bytes.len().saturating_sub(3);
                        return Ok(None);
                    };
                    let at = at + std::mem::take(&mut self.scanned);
                    let head: Vec<u8> = self.bytes.drain(..at + 4).collect();
                    let head = parse(&head[..at])?;
                    self.state = self.framing(&head)?;
                    return Ok(Some(Item::Head(head)));
                }
                State::Length(0) => {
                    self.state = State::Head;
                    return Ok(Some(Item::End));
                }
                State::Length(left) | State::Chunk(left) => {
                    let n = usize::try_from(left).unwrap_or(usize::MAX).min(self.bytes.len());
                    if n == 0 {
                        return Ok(None);
                    }
                    let rest = left - n as u64;
                    self.state = match self.state {
                        State::Chunk(_) if rest == 0 => State::ChunkEnd,
                        State::Chunk(_) => State::Chunk(rest),
                        _ => State::Length(rest),
                    };
                    return Ok(Some(Item::Data(self.bytes.drain(..n).collect())));
                }
                State::Size => {
                    let Some(at) = find(&self.bytes, b"\r\n") else { return Ok(None) };
                    let line: Vec<u8> = self.bytes.drain(..at + 2).collect();
                    let text = std::str::from_utf8(&line[..at]).map_err(|_| "a chunk size that is no text")?;
                    let size = u64::from_str_radix(text, 16).map_err(|_| format!("a chunk size {text:?}"))?;
                    self.state = if size == 0 { State::Trailers } else { State::Chunk(size) };
                }
                State::ChunkEnd => {
                    if self.bytes.len() < 2 {
                        return Ok(None);
                    }
                    if !self.bytes.starts_with(b"\r\n") {
                        return Err("a chunk without its end".to_owned());
                    }
                    self.bytes.drain(..2);
                    self.state = State::Size;
                }
                State::Trailers => {
                    let Some(at) = find(&self.bytes, b"\r\n") else { return Ok(None) };
                    self.bytes.drain(..at + 2);
                    if at == 0 {
                        self.state = State::Head;
                        return Ok(Some(Item::End));
                    }
                }
                State::UntilClose => {
                    if self.bytes.is_empty() {
                        return Ok(None);
                    }
                    return Ok(Some(Item::Data(std::mem::take(&mut self.bytes))));
                }
                State::Raw => return Ok(None),
            }
        }
    }

    fn framing(&self, head: &Head) -> Result<State, String> {
        let coding = head.field("transfer-encoding");
        let lengths: Vec<&str> =
            head.fields.iter().filter(|(name, _)| name == "content-length").map(|(_, value)| value.as_str()).collect();
        if lengths.len() > 1 || (coding.is_some() && !lengths.is_empty()) {
            return Err(format!("ambiguous framing: {head:?}"));
        }
        let length = match lengths.first() {
            Some(text) => Some(text.parse::<u64>().map_err(|_| format!("a length {text:?}"))?),
            None => None,
        };
        if !self.requests {
            let status = head.status();
            if status == 101 || (self.connects && (200..300).contains(&status)) {
                return Ok(State::Raw);
            }
            if self.bare || status < 200 || status == 204 || status == 304 {
                // An interim answer is followed by the next head, without an end of its own.
                return Ok(if status < 200 { State::Head } else { State::Length(0) });
            }
        }
        match (coding, length) {
            (Some("chunked"), _) => Ok(State::Size),
            (Some(coding), _) => Err(format!("a coding {coding:?}")),
            (None, Some(length)) => Ok(State::Length(length)),
            (None, None) if self.requests => Ok(State::Length(0)),
            (None, None) => Ok(State::UntilClose),
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn parse(bytes: &[u8]) -> Result<Head, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "a head that is no text")?;
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or("").to_owned();
    if first.split(' ').count() < 3 {
        return Err(format!("a first line {first:?}"));
    }
    let mut fields = Vec::new();
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { return Err(format!("a field {line:?}")) };
        if name.is_empty() || name.contains([' ', '\t']) || line.contains(['\r', '\n', '\0']) {
            return Err(format!("a field {line:?}"));
        }
        fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Ok(Head { first, fields })
}

/// The bodies of a run are windows into this: to make and to compare one costs next to nothing.
fn pattern() -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    PATTERN.get_or_init(|| {
        let mut rng = fastrand::Rng::with_seed(7);
        (0..PATTERN_LENGTH).map(|_| rng.u8(..)).collect()
    })
}

const PATTERN_LENGTH: usize = 256 * 1024;

fn window(seed: u32, from: u64, length: usize) -> Option<&'static [u8]> {
    // Bodies of different seeds begin at different places.
    let start = seed.wrapping_mul(0x9E37_79B1) as usize % (PATTERN_LENGTH / 2) + from as usize;
    pattern().get(start..start + length)
}

/// A part of the body that only the two ends know that know its seed.
pub(crate) fn body(seed: u32, from: u64, length: usize) -> Vec<u8> {
    window(seed, from, length).expect("bodies are shorter than half of the pattern").to_vec()
}

/// Whether `bytes` stand at `from` in such a body.
pub(crate) fn is_body(seed: u32, from: u64, bytes: &[u8]) -> bool {
    window(seed, from, bytes.len()) == Some(bytes)
}
