//! A second reader of HTTP/1, to the letter of RFC 9112 and RFC 9110, and of nobody's making that is in the proxy: what it
//! does not read as a message is none. It repairs nothing and guesses nothing. The attacks (`tests/attack`) read with it too.
//!
//! What the proxy writes is read by [`request`] and [`answer`]. What a stranger writes to it may be odd in what has no part in
//! where a message ends: [`framed_request`] and [`framed_answer`] look at nothing else.

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) http10: bool,
    pub(crate) message: Message,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) http10: bool,
    pub(crate) message: Message,
}

/// What both have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) fields: Vec<Field>,
    pub(crate) body: Vec<u8>,
    pub(crate) chunked: bool,
    pub(crate) trailers: Vec<Field>,
}

/// A field line; the value without the white space around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) value: Vec<u8>,
}

/// What stands at the beginning of some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Read<T> {
    /// A message, and how long it is.
    Whole(T, usize),
    /// The beginning of one, or nothing. Whether its head is there.
    Part(bool),
    /// Something that is none.
    Bad(&'static str),
}

/// How an answer is framed, where its head does not say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// By anything but HEAD.
    Other,
    /// By HEAD: whatever the head says, there is no body.
    Head,
}

enum Stop {
    Part,
    Bad(&'static str),
}

type Step<T> = Result<T, Stop>;

fn bad<T>(what: &'static str) -> Step<T> {
    Err(Stop::Bad(what))
}

impl Message {
    /// The values of a field, in order.
    pub(crate) fn all(&self, name: &str) -> Vec<&[u8]> {
        self.fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).map(|field| &*field.value).collect()
    }

    /// The elements of a list field, in lower case.
    pub(crate) fn list(&self, name: &str) -> Vec<String> {
        let values = self.all(name).into_iter();
        values
            .flat_map(|value| {
                let text = String::from_utf8_lossy(value).to_ascii_lowercase();
                text.split(',').map(|one| one.trim_matches([' ', '\t']).to_owned()).collect::<Vec<_>>()
            })
            .filter(|one| !one.is_empty())
            .collect()
    }
}

impl Asked {
    /// By this method.
    pub(crate) fn by(method: &str) -> Asked {
        if method == "HEAD" { Asked::Head } else { Asked::Other }
    }
}

/// What of a message is judged.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Judged {
    /// All.
    All,
    /// Where it ends.
    Framing,
}

/// The request that `bytes` begin with.
pub(crate) fn request(bytes: &[u8]) -> Read<Request> {
    read_request(bytes, 0, Judged::All)
}

/// The same where only its framing counts: its target may be any, its Host may be missing, empty lines may stand before it, and
/// a line is not judged before it has ended.
pub(crate) fn framed_request(bytes: &[u8]) -> Read<Request> {
    let empty = bytes.chunks(2).take_while(|two| two == b"\r\n").count();
    read_request(bytes, 2 * empty, Judged::Framing)
}

fn read_request(bytes: &[u8], at: usize, judged: Judged) -> Read<Request> {
    let mut head = false;
    read(&mut Cursor { bytes, at, judged }, &mut head, |from, head| {
        let line = from.line()?;
        let (method, target, http10) = request_line(line)?;
        if judged == Judged::All {
            check_target(&method, &target)?;
        }
        let fields = from.fields()?;
        *head = true;
        let message = Message { fields, ..Message::default() };
        if judged == Judged::All {
            check_host(&method, &target, http10, &message)?;
        }
        let length = framing(&message)?;
        if http10 && length == Length::Chunked {
            return bad("Transfer-Encoding in HTTP/1.0");
        }
        if method == "CONNECT" && length != Length::None {
            return bad("a body behind CONNECT");
        }
        let message = from.body(message, length)?;
        Ok(Request { method, target, http10, message })
    })
}

/// The answer that `bytes` begin with; `closed`: nothing more will come.
pub(crate) fn answer(bytes: &[u8], asked: Asked, closed: bool) -> Read<Answer> {
    read_answer(bytes, asked, closed, Judged::All)
}

/// The same where an answer that has no body by its status may say how long the body is.
pub(crate) fn framed_answer(bytes: &[u8], asked: Asked, closed: bool) -> Read<Answer> {
    read_answer(bytes, asked, closed, Judged::Framing)
}

fn read_answer(bytes: &[u8], asked: Asked, closed: bool, judged: Judged) -> Read<Answer> {
    let mut head = false;
    read(&mut Cursor { bytes, at: 0, judged }, &mut head, |from, head| {
        let line = from.line()?;
        let (status, http10) = status_line(line)?;
        let fields = from.fields()?;
        *head = true;
        let message = Message { fields, ..Message::default() };
        let length = framing(&message)?;
        let bare = status < 200 || status == 204;
        if judged == Judged::All && bare && length != Length::None {
            return bad("framing in an answer that has no body by its status");
        }
        if http10 && length == Length::Chunked {
            return bad("Transfer-Encoding in HTTP/1.0");
        }
        if bare || status == 304 || asked == Asked::Head {
            let chunked = length == Length::Chunked;
            return Ok(Answer { status, http10, message: Message { chunked, ..message } });
        }
        if length == Length::None {
            if !closed {
                return Err(Stop::Part);
            }
            let body = from.rest().to_vec();
            return Ok(Answer { status, http10, message: Message { body, ..message } });
        }
        let message = from.body(message, length)?;
        Ok(Answer { status, http10, message })
    })
}

fn read<T>(from: &mut Cursor<'_>, head: &mut bool, one: impl FnOnce(&mut Cursor<'_>, &mut bool) -> Step<T>) -> Read<T> {
    match one(from, head) {
        Ok(message) => Read::Whole(message, from.at),
        Err(Stop::Part) => Read::Part(*head),
        Err(Stop::Bad(what)) => Read::Bad(what),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Length {
    None,
    Bytes(u64),
    Chunked,
}

/// RFC 9112 section 6.
fn framing(message: &Message) -> Step<Length> {
    let (codings, lengths) = (message.all("transfer-encoding"), message.all("content-length"));
    match (&codings[..], &lengths[..]) {
        ([], []) => Ok(Length::None),
        ([], [length]) => number(length, 10).map(Length::Bytes),
        ([], [_, _, ..]) => bad("several Content-Lengths"),
        ([coding], []) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Length::Chunked),
        ([_, ..], []) => bad("a Transfer-Encoding other than chunked"),
        ([_, ..], [_, ..]) => bad("Transfer-Encoding and Content-Length"),
    }
}

fn number(digits: &[u8], radix: u32) -> Step<u64> {
    let fits = !digits.is_empty() && digits.iter().all(|&byte| char::from(byte).is_digit(radix));
    let text = std::str::from_utf8(digits).ok().filter(|_| fits);
    text.and_then(|text| u64::from_str_radix(text, radix).ok()).ok_or(Stop::Bad("a length that is no number"))
}

/// RFC 9112 section 3.
fn request_line(line: &[u8]) -> Step<(String, String, bool)> {
    let mut parts = line.split(|&byte| byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return bad("a request line without two spaces");
    };
    if method.is_empty() || !method.iter().all(|&byte| is_token(byte)) {
        return bad("a method that is no token");
    }
    let http10 = version_of(version)?;
    if target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
        return bad("a byte in the target that nothing has");
    }
    Ok((text(method), text(target), http10))
}

/// RFC 9112 section 3.2.
fn check_target(method: &str, target: &str) -> Step<()> {
    // Of what RFC 3986 leaves out, `[ ] { } | \ ^ " `` pass: apps send them, and none of them ends anything.
    if target.contains(['#', '<', '>']) {
        return bad("a byte in the target that no target has");
    }
    let form = match method {
        "CONNECT" => target.rsplit_once(':').is_some_and(|(host, port)| is_host(host) && is_port(port)),
        "OPTIONS" if target == "*" => true,
        _ if target.starts_with('/') => true,
        _ => absolute(target).is_some(),
    };
    if form { Ok(()) } else { bad("a target in none of the four forms") }
}

/// Authority and the rest of a URL.
pub(crate) fn absolute(target: &str) -> Option<(&str, &str)> {
    let lower = target.to_ascii_lowercase();
    let scheme = ["http://", "https://"].into_iter().find(|scheme| lower.starts_with(scheme))?;
    let rest = &target[scheme.len()..];
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    is_authority(authority).then_some((authority, path))
}

/// RFC 9112 section 3.2: one Host, in HTTP/1.1, which is a host with an optional port.
fn check_host(method: &str, target: &str, http10: bool, message: &Message) -> Step<()> {
    match &message.all("host")[..] {
        [] if http10 && (method == "CONNECT" || absolute(target).is_some()) => Ok(()),
        [] => bad("no Host"),
        [host] if is_authority(&text(host)) => Ok(()),
        [_] => bad("a Host that is none"),
        [_, _, ..] => bad("several Hosts"),
    }
}

fn is_authority(authority: &str) -> bool {
    let bracket = authority.find(']').unwrap_or(0);
    match authority[bracket..].find(':') {
        Some(colon) => is_host(&authority[..bracket + colon]) && is_port(&authority[bracket + colon + 1..]),
        None => is_host(authority),
    }
}

fn is_host(host: &str) -> bool {
    match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok()),
        None => {
            let name = host.strip_suffix('.').unwrap_or(host);
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            !name.is_empty() && name.len() <= 253 && name.bytes().all(plain) && !name.split('.').any(str::is_empty)
        }
    }
}

fn is_port(port: &str) -> bool {
    port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// RFC 9112 section 4.
fn status_line(line: &[u8]) -> Step<(u16, bool)> {
    let mut parts = line.splitn(3, |&byte| byte == b' ');
    let (Some(version), Some(status), Some(reason)) = (parts.next(), parts.next(), parts.next()) else {
        return bad("a status line without two spaces");
    };
    let http10 = version_of(version)?;
    let status = number(status, 10).ok().filter(|number| status.len() == 3 && *number >= 100);
    if reason.iter().any(|&byte| byte < 0x20 && byte != b'\t' || byte == 0x7f) {
        return bad("a control byte in the reason");
    }
    Ok((status.ok_or(Stop::Bad("a status that is none"))? as u16, http10))
}

/// True: 1.0.
fn version_of(version: &[u8]) -> Step<bool> {
    match version {
        b"HTTP/1.1" => Ok(false),
        b"HTTP/1.0" => Ok(true),
        _ => bad("a version that is neither 1.0 nor 1.1"),
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    judged: Judged,
}

impl<'a> Cursor<'a> {
    fn rest(&mut self) -> &'a [u8] {
        let rest = &self.bytes[self.at..];
        self.at = self.bytes.len();
        rest
    }

    /// To a CRLF. A line feed without its carriage return, or the other way round, ends nothing.
    fn line(&mut self) -> Step<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        if self.judged == Judged::Framing && !rest.contains(&b'\n') {
            return Err(Stop::Part);
        }
        for (at, &byte) in rest.iter().enumerate() {
            match (byte, rest.get(at + 1)) {
                (b'\r', Some(b'\n')) => {
                    self.at += at + 2;
                    return Ok(&rest[..at]);
                }
                (b'\r', None) => return Err(Stop::Part),
                (b'\r', Some(_)) => return bad("a bare CR"),
                (b'\n', _) => return bad("a bare LF"),
                (0, _) => return bad("a zero byte"),
                _ => {}
            }
        }
        Err(Stop::Part)
    }

    /// To the empty line (RFC 9112 section 5).
    fn fields(&mut self) -> Step<Vec<Field>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(fields);
            }
            if matches!(line[0], b' ' | b'\t') {
                return bad("a folded line");
            }
            let Some(colon) = line.iter().position(|&byte| byte == b':') else {
                return bad("a field line without a colon");
            };
            let (name, value) = (&line[..colon], &line[colon + 1..]);
            if name.is_empty() || !name.iter().all(|&byte| is_token(byte)) {
                return bad("a field name that is no token");
            }
            if value.iter().any(|&byte| byte < 0x20 && byte != b'\t' || byte == 0x7f) {
                return bad("a control byte in a field value");
            }
            let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
            let from = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
            let to = value.iter().rposition(|byte| !blank(byte)).map_or(from, |last| last + 1);
            fields.push(Field { name: text(name), value: value[from..to].to_vec() });
        }
    }

    fn take(&mut self, n: u64) -> Step<&'a [u8]> {
        let left = &self.bytes[self.at..];
        match usize::try_from(n) {
            Ok(n) if n <= left.len() => {
                self.at += n;
                Ok(&left[..n])
            }
            Ok(_) | Err(_) => Err(Stop::Part),
        }
    }

    fn body(&mut self, mut message: Message, length: Length) -> Step<Message> {
        match length {
            Length::None => {}
            Length::Bytes(n) => message.body = self.take(n)?.to_vec(),
            Length::Chunked => {
                message.chunked = true;
                loop {
                    let size = chunk_size(self.line()?)?;
                    if size == 0 {
                        break;
                    }
                    message.body.extend(self.take(size)?);
                    match (self.bytes.get(self.at), self.bytes.get(self.at + 1)) {
                        (Some(b'\r'), Some(b'\n')) => self.at += 2,
                        (None, _) | (Some(b'\r'), None) => return Err(Stop::Part),
                        (Some(_), _) => return bad("a chunk that is longer than it says"),
                    }
                }
                message.trailers = self.fields()?;
            }
        }
        Ok(message)
    }
}

/// RFC 9112 section 7.1. What an extension says means nothing to anybody here, so that any text is one; a control byte isn't text.
fn chunk_size(line: &[u8]) -> Step<u64> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let extension = &line[digits..];
    let blank = extension.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    if !extension.is_empty() && extension.get(blank) != Some(&b';') {
        return bad("a chunk size that is no number");
    }
    if extension.iter().any(|&byte| byte < 0x20 && byte != b'\t' || byte == 0x7f) {
        return bad("a control byte in a chunk extension");
    }
    number(&line[..digits], 16)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

#[test]
fn the_strict_reader_reads_what_is_a_request_and_nothing_else() {
    let whole = |bytes: &[u8]| match request(bytes) {
        Read::Whole(request, length) if length == bytes.len() => request,
        other => panic!("{:?}: {other:?}", String::from_utf8_lossy(bytes)),
    };
    whole(b"GET /a?b HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n");
    let chunked = whole(b"POST http://a:1 HTTP/1.1\r\nHost: b\r\ntransfer-encoding: Chunked\r\n\r\n2;x=\"y\"\r\nhi\r\n0\r\nT: v\r\n\r\n");
    assert_eq!((&*chunked.message.body, chunked.message.trailers.len()), (&b"hi"[..], 1));
    assert_eq!(whole(b"PUT / HTTP/1.1\r\nHost: [::1]:80\r\nContent-Length: 2\r\n\r\nhi").message.body, b"hi");
    for part in [
        "",
        "GET / HTTP/1.1\r",
        "GET / HTTP/1.1\r\nHost: a\r\n\r",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n",
    ] {
        assert!(matches!(request(part.as_bytes()), Read::Part(_)), "{part:?}");
    }
    for wrong in [
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n X: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
        "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        assert!(matches!(request(wrong.as_bytes()), Read::Bad(_)), "{wrong:?}");
    }
}

#[test]
fn the_strict_reader_reads_what_is_an_answer_and_nothing_else() {
    let read = |bytes: &str, asked, closed| answer(bytes.as_bytes(), asked, closed);
    assert!(matches!(read("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", Asked::Other, false), Read::Whole(..)));
    assert!(matches!(read("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n", Asked::Head, false), Read::Whole(..)));
    assert!(matches!(read("HTTP/1.1 200 OK\r\n\r\na", Asked::Other, false), Read::Part(true)));
    assert!(matches!(read("HTTP/1.1 200 OK\r\n\r\na", Asked::Other, true), Read::Whole(..)));
    assert!(matches!(read("HTTP/1.1 204 No\r\nContent-Length: 1\r\n\r\na", Asked::Other, true), Read::Bad(_)));
    assert!(matches!(read("HTTP/1.1 20 OK\r\n\r\n", Asked::Other, true), Read::Bad(_)));
}

#[test]
fn what_only_frames_is_read_alike_and_nothing_else_is_looked_at() {
    for odd in [
        "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET a#b HTTP/1.1\r\nHost: a\r\nHost: b/c\r\n\r\n",
        "PUT <> HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi",
    ] {
        assert!(matches!(framed_request(odd.as_bytes()), Read::Whole(_, length) if length == odd.len()), "{odd:?}");
        assert!(matches!(request(odd.as_bytes()), Read::Bad(_)), "{odd:?}");
    }
    assert!(matches!(framed_request(b"GET / HTTP/1.1\r\nX: a\rb"), Read::Part(false)));
    for wrong in [
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nX: a\rb\r\n",
        "GET / HTTP/1.1\r\nX: a\0b\r\n",
        "GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n\r\n",
    ] {
        assert!(matches!(framed_request(wrong.as_bytes()), Read::Bad(_)), "{wrong:?}");
    }
    let bare = b"HTTP/1.1 204 No\r\nContent-Length: 1\r\n\r\n";
    assert!(matches!(framed_answer(bare, Asked::Other, true), Read::Whole(_, length) if length == bare.len()));
    let both = b"HTTP/1.1 204 No\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert!(matches!(framed_answer(both, Asked::by("HEAD"), true), Read::Bad(_)));
}
