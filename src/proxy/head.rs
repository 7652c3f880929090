//! What an app's HTTP/1 bytes must look like before hyper sees them.
//!
//! hyper parses; this only judges, in the same pass over the bytes that arrive: it follows the framing (heads, lengths,
//! chunks) and refuses what hyper would repair or hide, such as a `Content-Length` beside a `Transfer-Encoding`, a bare
//! line feed or a fragment (RFC 9112 sections 2.2, 3, 5 and 6). It copies nothing and keeps a few counters.

use memchr::memchr;

use crate::error::{Error, HeadBound};
use crate::origin;

/// The method of the request that stands in for a refused one, so that the refusal keeps its place among pipelined
/// answers. A real request with this method is refused itself.
pub(crate) const REFUSED_METHOD: &str = "OUTRIGGER-REFUSED";

/// What stands in for a refused head.
pub(crate) const REFUSED_HEAD: &[u8] = b"OUTRIGGER-REFUSED / HTTP/1.1\r\nHost: refused\r\nConnection: close\r\n\r\n";

/// The longest target that [`http::Uri`] holds.
const MAX_TARGET: usize = 65_000;
/// The longest line with a chunk's size and its extensions.
const MAX_CHUNK_LINE: usize = 1024;
/// Empty lines that may stand before a request line (RFC 9112 section 2.2).
const MAX_EMPTY_LINES: u32 = 4;

/// Bounds of one head.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// `limits.max_header_bytes`
    pub bytes: usize,
    /// `limits.max_headers`
    pub fields: usize,
}

/// What becomes of bytes that were looked at.
#[derive(Debug)]
pub enum Verdict {
    /// So many are good; what follows them is an element that is not complete yet, to be shown again with more.
    Pass(usize),
    /// So many are good, then comes a head that is not.
    Refuse(usize, Error),
    /// So many are good, then the framing of a body breaks.
    Broken(usize, &'static str),
}

/// Where in the stream of messages the next byte stands.
#[derive(Debug)]
enum State {
    /// In a head, or before one.
    Head(Head),
    /// So many bytes of a body are still to come.
    Length(u64),
    /// At the line with a chunk's size. How many bytes of it were searched for its end.
    ChunkSize(usize),
    /// So many bytes of a chunk are still to come.
    ChunkData(u64),
    /// At the line end behind a chunk.
    ChunkEnd,
    /// In the trailer section. How many bytes of it have passed.
    Trailers(usize),
    /// Behind a request with `Upgrade`: what follows is HTTP or not, which its answer decides.
    Undecided,
    /// Behind a CONNECT: not ours to judge.
    Opaque,
}

/// The head so far.
#[derive(Debug, Default)]
struct Head {
    /// Where the current line begins.
    line: usize,
    /// Up to where it was searched for its end.
    searched: usize,
    /// Empty lines before the request line.
    empty: u32,
    /// The request line was good.
    started: bool,
    http10: bool,
    /// Its method is HEAD, whose answer has no body whatever becomes of it.
    bodiless: bool,
    connect: bool,
    fields: usize,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    /// It is an OPTIONS; whether of a URL without path and query.
    options: Option<bool>,
}

/// Follows one connection.
#[derive(Debug)]
pub struct Inspector {
    state: State,
    bounds: Bounds,
    /// The request that is under way has an `Upgrade`.
    upgrade: bool,
    /// For each OPTIONS whose head has passed: whether it is of a URL without path and query.
    options: Vec<bool>,
}

impl Inspector {
    /// At the first head of a connection.
    pub fn new(bounds: Bounds) -> Inspector {
        Inspector { state: State::Head(Head::default()), bounds, upgrade: false, options: Vec::new() }
    }

    /// Whether a head is what comes next or is under way.
    pub fn in_head(&self) -> bool {
        matches!(self.state, State::Head(_))
    }

    /// Whether no request is under way whose body has not passed. Part of a head may have.
    pub(crate) fn between(&self) -> bool {
        matches!(self.state, State::Head(_) | State::Undecided)
    }

    /// Whether the head that is read now is that of a HEAD.
    pub(crate) fn reads_head_request(&self) -> bool {
        matches!(&self.state, State::Head(head) if head.bodiless)
    }

    /// Whether a CONNECT was seen, so that what follows is not ours to judge.
    pub fn opaque(&self) -> bool {
        matches!(self.state, State::Opaque)
    }

    /// Whether a request with `Upgrade` has passed that is not answered yet. Nothing passes meanwhile.
    pub(crate) fn undecided(&self) -> bool {
        matches!(self.state, State::Undecided)
    }

    /// The upgrade was accepted: what follows is not ours to judge.
    pub fn open(&mut self) {
        self.state = State::Opaque;
    }

    /// The upgrade was not accepted: what follows is HTTP.
    pub(crate) fn go_on(&mut self) {
        self.state = State::Head(Head::default());
    }

    /// For each OPTIONS whose head has passed since this was asked: whether it is of a URL without path and query, which is not
    /// that of its root (RFC 9112 section 3.2.4) and looks like it to [`http::Uri`].
    pub(crate) fn take_options(&mut self) -> Vec<bool> {
        std::mem::take(&mut self.options)
    }

    /// A request has passed whole.
    fn finish(&mut self) {
        self.state = if std::mem::take(&mut self.upgrade) { State::Undecided } else { State::Head(Head::default()) };
    }

    /// Looks at bytes that begin where the last [`Verdict::Pass`] ended.
    pub fn inspect(&mut self, bytes: &[u8]) -> Verdict {
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            match &mut self.state {
                State::Opaque | State::Undecided => return Verdict::Pass(at),
                State::Head(head) => match head.inspect(rest, self.bounds) {
                    Ok(None) => return Verdict::Pass(at),
                    Ok(Some(len)) => {
                        at += len;
                        self.upgrade = head.upgrade;
                        self.options.extend(head.options);
                        match head.framing() {
                            Some(state) => self.state = state,
                            None => self.finish(),
                        }
                    }
                    Err(error) => return Verdict::Refuse(at, error),
                },
                State::Length(left) => {
                    let take = min(rest.len(), *left);
                    at += take;
                    *left -= take as u64;
                    if *left > 0 {
                        return Verdict::Pass(at);
                    }
                    self.finish();
                }
                State::ChunkSize(searched) => match chunk_size(rest, searched) {
                    Ok(None) => return Verdict::Pass(at),
                    Ok(Some((len, 0))) => {
                        at += len;
                        self.state = State::Trailers(0);
                    }
                    Ok(Some((len, size))) => {
                        at += len;
                        self.state = State::ChunkData(size);
                    }
                    Err(what) => return Verdict::Broken(at, what),
                },
                State::ChunkData(left) => {
                    let take = min(rest.len(), *left);
                    at += take;
                    *left -= take as u64;
                    if *left > 0 {
                        return Verdict::Pass(at);
                    }
                    self.state = State::ChunkEnd;
                }
                State::ChunkEnd => match rest {
                    [b'\r', b'\n', ..] => {
                        at += 2;
                        self.state = State::ChunkSize(0);
                    }
                    [] | [b'\r'] => return Verdict::Pass(at),
                    _ => return Verdict::Broken(at, "a chunk is longer than it says"),
                },
                State::Trailers(passed) => match line(rest, 0) {
                    // The empty line at their end is none of them, also while half of it has come.
                    Ok(None) if *passed + rest.len() > self.bounds.bytes && rest != b"\r" => {
                        return Verdict::Broken(at, "the trailers are too large");
                    }
                    Ok(None) => return Verdict::Pass(at),
                    Ok(Some([])) => {
                        at += 2;
                        self.finish();
                    }
                    Ok(Some(text)) => {
                        *passed += text.len() + 2;
                        if *passed > self.bounds.bytes {
                            return Verdict::Broken(at, "the trailers are too large");
                        }
                        if let Err(what) = field(text) {
                            return Verdict::Broken(at, what);
                        }
                        at += text.len() + 2;
                    }
                    Err(what) => return Verdict::Broken(at, what),
                },
            }
            if at == bytes.len() {
                return Verdict::Pass(at);
            }
        }
    }
}

impl Head {
    /// Reads on; `bytes` begin with the head. Its length once it is complete.
    fn inspect(&mut self, bytes: &[u8], bounds: Bounds) -> Result<Option<usize>, Error> {
        loop {
            if !self.started {
                self.bodiless = bytes[self.line..].starts_with(b"HEAD ");
            }
            let from = self.searched.max(self.line);
            let text = match line(&bytes[self.line..], from - self.line) {
                Ok(Some(text)) => text,
                Ok(None) => {
                    self.searched = bytes.len();
                    return if bytes.len() > bounds.bytes { Err(self.too_large()) } else { Ok(None) };
                }
                Err(what) => return Err(Error::BadRequest(what)),
            };
            let end = self.line + text.len() + 2;
            if end > bounds.bytes {
                return Err(self.too_large());
            }
            self.line = end;
            if !self.started {
                if text.is_empty() {
                    self.empty += 1;
                    if self.empty > MAX_EMPTY_LINES {
                        return Err(Error::BadRequest("there are empty lines where a request should be"));
                    }
                    continue;
                }
                self.request_line(text)?;
                self.started = true;
                continue;
            }
            if text.is_empty() {
                self.check()?;
                return Ok(Some(end));
            }
            self.fields += 1;
            if self.fields > bounds.fields {
                return Err(Error::HeadersTooLarge(HeadBound::Fields));
            }
            self.field(text)?;
        }
    }

    fn too_large(&self) -> Error {
        if self.started { Error::HeadersTooLarge(HeadBound::Bytes) } else { Error::UriTooLong }
    }

    /// `method SP target SP HTTP/1.x` (RFC 9112 section 3).
    fn request_line(&mut self, text: &[u8]) -> Result<(), Error> {
        let bad = Error::BadRequest;
        let method_end = memchr(b' ', text).ok_or(bad("the request line is not one"))?;
        let (method, rest) = (&text[..method_end], &text[method_end + 1..]);
        if method.is_empty() || !method.iter().all(|&b| is_token(b)) {
            return Err(bad("the method has a byte that no method has"));
        }
        if method == REFUSED_METHOD.as_bytes() {
            return Err(bad("this method is not one"));
        }
        let target_end = memchr(b' ', rest).ok_or(bad("the request line has no HTTP version"))?;
        let (target, version) = (&rest[..target_end], &rest[target_end + 1..]);
        self.http10 = match version {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            _ => return Err(bad("the HTTP version is neither 1.1 nor 1.0")),
        };
        if target.len() > MAX_TARGET {
            return Err(Error::UriTooLong);
        }
        // One pass without a way out of it: targets are good, and the processor takes many bytes at a time.
        let (odd, quoted) = target.iter().fold((false, false), |(odd, quoted), &b| {
            let bad = !(0x21..0x7f).contains(&b) | matches!(b, b'#' | b'<' | b'>');
            (odd | bad, quoted | matches!(b, b'"' | b'`'))
        });
        if target.is_empty() || odd {
            return Err(bad(
                "the target is empty or has a byte that must be percent-encoded (a space, '#', '<', '>', a control byte…)",
            ));
        }
        if method == b"OPTIONS" {
            let url = target.windows(3).position(|three| three == b"://").map(|at| &target[at + 3..]);
            self.options =
                Some(url.is_some_and(|url| !url.iter().any(|b| matches!(b, b'/' | b'?'))) && target[0] != b'/');
        }
        self.connect = method == b"CONNECT";
        if self.connect {
            let text = std::str::from_utf8(target).map_err(|_| bad("the target is not ASCII"))?;
            return match origin::parse_authority(text) {
                Ok((_, Some(_))) => Ok(()),
                Ok((_, None)) | Err(_) => Err(bad("CONNECT takes host:port and nothing else")),
            };
        }
        // What begins with a slash is made of good bytes by now; anything else http::Uri has to understand too, so that
        // hyper has no reason to answer by itself.
        if target[0] != b'/' && http::Uri::try_from(target).is_err() {
            return Err(bad("the target is not a URL"));
        }
        if quoted && http::Uri::try_from(target).is_err() {
            return Err(bad("the target has a byte that must be percent-encoded"));
        }
        Ok(())
    }

    /// A field line: its syntax, and what frames the body.
    fn field(&mut self, text: &[u8]) -> Result<(), Error> {
        let (name, value) = field(text).map_err(Error::BadRequest)?;
        if name.eq_ignore_ascii_case(b"content-length") {
            if self.length.is_some() {
                return Err(Error::BadRequest("there is more than one Content-Length"));
            }
            let digits = value.len() <= 18 && !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            if !digits {
                return Err(Error::BadRequest("the Content-Length is not a number"));
            }
            self.length = Some(value.iter().fold(0, |sum, &b| sum * 10 + u64::from(b - b'0')));
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked {
                return Err(Error::BadRequest("there is more than one Transfer-Encoding"));
            }
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Error::BadRequest("the only Transfer-Encoding understood is chunked"));
            }
            self.chunked = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            self.upgrade = true;
        }
        Ok(())
    }

    /// What only the whole head shows (RFC 9112 section 6.1).
    fn check(&self) -> Result<(), Error> {
        if self.chunked && self.length.is_some() {
            return Err(Error::BadRequest("there are both Content-Length and Transfer-Encoding"));
        }
        if self.chunked && self.http10 {
            return Err(Error::BadRequest("HTTP/1.0 has no Transfer-Encoding"));
        }
        if self.connect && (self.chunked || self.length.is_some_and(|length| length > 0)) {
            return Err(Error::BadRequest("CONNECT has no body"));
        }
        Ok(())
    }

    /// What of the request follows the head.
    fn framing(&self) -> Option<State> {
        match (self.connect, self.chunked, self.length) {
            (true, _, _) => Some(State::Opaque),
            (false, true, _) => Some(State::ChunkSize(0)),
            (false, false, Some(length)) if length > 0 => Some(State::Length(length)),
            (false, false, _) => None,
        }
    }
}

/// The first line without its end, once that is there. `searched` bytes are known to hold no line feed.
fn line(bytes: &[u8], searched: usize) -> Result<Option<&[u8]>, &'static str> {
    match memchr(b'\n', &bytes[searched..]) {
        None => Ok(None),
        Some(at) => match bytes[..searched + at].split_last() {
            Some((b'\r', text)) => Ok(Some(text)),
            Some(_) | None => Err("a line ends in a bare line feed"),
        },
    }
}

/// A field line's name and value (RFC 9112 section 5).
fn field(text: &[u8]) -> Result<(&[u8], &[u8]), &'static str> {
    let colon = match text.iter().position(|&b| !is_token(b)) {
        Some(0) if matches!(text[0], b' ' | b'\t') => return Err("a header line is folded"),
        Some(0) => return Err("a header line has no name"),
        Some(at) if text[at] == b':' => at,
        Some(at) if matches!(text[at], b' ' | b'\t') => return Err("there is a space in or behind a header's name"),
        Some(_) => return Err("a header's name has a byte that no name has"),
        None => return Err("a header line has no colon"),
    };
    let value = trim(&text[colon + 1..]);
    let control = |b: u8| (b < 0x20 && b != b'\t') || b == 0x7f;
    if value.iter().fold(false, |found, &b| found | control(b)) {
        return Err("a header's value has a control byte");
    }
    Ok((&text[..colon], value))
}

/// Without the white space of HTTP around it, which is less than that of ASCII (RFC 9110 section 5.6.3).
fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// The line with a chunk's size (RFC 9112 section 7.1): how long it is and what it says.
fn chunk_size(bytes: &[u8], searched: &mut usize) -> Result<Option<(usize, u64)>, &'static str> {
    let Some(text) = line(bytes, *searched)? else {
        *searched = bytes.len();
        return if bytes.len() > MAX_CHUNK_LINE { Err("a chunk's extension is too long") } else { Ok(None) };
    };
    let digits = text.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    // Sixteen digits would overflow what can be counted.
    if digits == 0 || digits > 15 {
        return Err("a chunk's size is not a number");
    }
    // White space may stand before an extension and nowhere else.
    let rest = &text[digits..];
    if !rest.is_empty() && trim(rest).first() != Some(&b';') {
        return Err("a chunk's size is not a number");
    }
    if rest.iter().any(|&b| (b < 0x20 && b != b'\t') || b == 0x7f) || text.len() > MAX_CHUNK_LINE {
        return Err("a chunk's extension is malformed");
    }
    let size = text[..digits].iter().fold(0, |sum, &b| {
        let digit = match b {
            b'0'..=b'9' => b - b'0',
            b'a'..=b'f' => b - b'a' + 10,
            _ => b - b'A' + 10,
        };
        sum << 4 | u64::from(digit)
    });
    Ok(Some((text.len() + 2, size)))
}

fn min(len: usize, left: u64) -> usize {
    usize::try_from(left).map_or(len, |left| left.min(len))
}

/// RFC 9110 section 5.6.2.
fn is_token(b: u8) -> bool {
    TOKEN[usize::from(b)]
}

static TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut b = 0;
    while b < 128 {
        let byte = b as u8;
        table[b] = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            );
        b += 1;
    }
    table
};

#[cfg(test)]
mod tests;
