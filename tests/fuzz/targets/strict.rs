//! A second reader of HTTP/1, written from RFC 9110 and RFC 9112 alone: what it reads is what a careful server or client
//! would. It repairs nothing, and where two readings are possible it has none.

/// What bytes come to.
#[derive(Debug, PartialEq, Eq)]
pub enum Read<T> {
    /// A whole message, and how many bytes it takes.
    Whole(T, usize),
    /// More bytes are needed.
    Short,
    /// No continuation makes a message of it.
    Bad(&'static str),
}

/// A field line: the name as it is written, the value without the white space around it.
pub type Field = (String, Vec<u8>);

/// A request or an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Method, or HTTP version.
    pub first: String,
    /// Target, or status.
    pub second: String,
    /// HTTP version, or reason.
    pub third: String,
    /// In their order.
    pub fields: Vec<Field>,
    /// Decoded.
    pub body: Vec<u8>,
    /// Of a chunked body.
    pub trailers: Vec<Field>,
    /// How its body is framed.
    pub framing: Framing,
}

/// How a body is framed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    #[default]
    None,
    /// By its length.
    Length,
    /// By chunks.
    Chunked,
    /// By the end of the connection.
    Close,
}

impl Message {
    /// The values of a field.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(move |(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }

    /// The elements of a list field, in lower case.
    pub fn tokens(&self, name: &str) -> Vec<String> {
        let elements = self.all(name).flat_map(|value| value.split(|&b| b == b','));
        let words = elements.map(|element| String::from_utf8_lossy(trim(element)).to_ascii_lowercase());
        words.filter(|word| !word.is_empty()).collect()
    }

    /// Of an answer.
    pub fn status(&self) -> u16 {
        self.second.parse().unwrap_or(0)
    }
}

/// Reads one request. `lenient`: empty lines may stand before it, and HTTP/1.0 will do.
pub fn request(bytes: &[u8], lenient: bool) -> Read<Message> {
    let mut at = 0;
    while lenient && bytes[at..].starts_with(b"\r\n") {
        at += 2;
    }
    let (mut message, head) = match head(&bytes[at..]) {
        Read::Whole(message, length) => (message, at + length),
        Read::Short => return Read::Short,
        Read::Bad(why) => return Read::Bad(why),
    };
    if message.first.is_empty() || !message.first.bytes().all(is_token) {
        return Read::Bad("the method");
    }
    if message.second.is_empty() || !message.second.bytes().all(|b| (0x21..0x7f).contains(&b)) {
        return Read::Bad("the target");
    }
    let old = match (&*message.third, lenient) {
        ("HTTP/1.1", _) => false,
        ("HTTP/1.0", true) => true,
        _ => return Read::Bad("the version"),
    };
    message.framing = match framing(&message, old) {
        Ok(framing) => framing.unwrap_or(Framing::None),
        Err(why) => return Read::Bad(why),
    };
    body(bytes, head, message)
}

/// Reads one answer to a request of this method. `ended`: the connection is closed behind these bytes.
pub fn answer(bytes: &[u8], method: &str, ended: bool) -> Read<Message> {
    let (mut message, head) = match head(bytes) {
        Read::Whole(message, length) => (message, length),
        Read::Short => return Read::Short,
        Read::Bad(why) => return Read::Bad(why),
    };
    let old = match &*message.first {
        "HTTP/1.1" => false,
        "HTTP/1.0" => true,
        _ => return Read::Bad("the version"),
    };
    if message.second.len() != 3 || !message.second.bytes().all(|b| b.is_ascii_digit()) || message.status() < 100 {
        return Read::Bad("the status");
    }
    let framed = match framing(&message, old) {
        Ok(framing) => framing,
        Err(why) => return Read::Bad(why),
    };
    let bare = method == "HEAD" || matches!(message.status(), 100..200 | 204 | 304);
    if bare {
        return Read::Whole(message, head);
    }
    match framed {
        Some(framing) => {
            message.framing = framing;
            body(bytes, head, message)
        }
        None if ended => {
            message.framing = Framing::Close;
            message.body = bytes[head..].to_vec();
            Read::Whole(message, bytes.len())
        }
        None => Read::Short,
    }
}

/// The start line in three, and the fields.
fn head(bytes: &[u8]) -> Read<Message> {
    let mut message = Message::default();
    let (text, mut at) = match line(bytes, 0) {
        Read::Whole(text, at) => (text, at),
        Read::Short => return Read::Short,
        Read::Bad(why) => return Read::Bad(why),
    };
    let text = String::from_utf8_lossy(text);
    if text.matches(' ').count() < 2 {
        return Read::Bad("the start line");
    }
    let mut words = text.splitn(3, ' ');
    for word in [&mut message.first, &mut message.second, &mut message.third] {
        *word = words.next().unwrap_or_default().to_owned();
    }
    match fields(bytes, &mut at) {
        Read::Whole(fields, _) => message.fields = fields,
        Read::Short => return Read::Short,
        Read::Bad(why) => return Read::Bad(why),
    }
    Read::Whole(message, at)
}

fn fields(bytes: &[u8], at: &mut usize) -> Read<Vec<Field>> {
    let mut fields = Vec::new();
    loop {
        let (text, next) = match line(bytes, *at) {
            Read::Whole(text, next) => (text, next),
            Read::Short => return Read::Short,
            Read::Bad(why) => return Read::Bad(why),
        };
        *at = next;
        if text.is_empty() {
            return Read::Whole(fields, next);
        }
        let Some(colon) = text.iter().position(|&b| b == b':') else { return Read::Bad("a field has no colon") };
        let (name, value) = (&text[..colon], trim(&text[colon + 1..]));
        if name.is_empty() || !name.iter().all(|&b| is_token(b)) {
            return Read::Bad("a field's name");
        }
        if value.iter().any(|&b| (b < 0x20 && b != b'\t') || b == 0x7f) {
            return Read::Bad("a field's value");
        }
        fields.push((String::from_utf8_lossy(name).into_owned(), value.to_vec()));
    }
}

/// A line without its end. A line feed that has no carriage return before it is no end.
fn line(bytes: &[u8], at: usize) -> Read<&[u8]> {
    match bytes[at..].iter().position(|&b| b == b'\n') {
        None => Read::Short,
        Some(0) => Read::Bad("a bare line feed"),
        Some(end) if bytes[at + end - 1] != b'\r' => Read::Bad("a bare line feed"),
        Some(end) if bytes[at..at + end - 1].contains(&b'\r') => Read::Bad("a bare carriage return"),
        Some(end) => Read::Whole(&bytes[at..at + end - 1], at + end + 1),
    }
}

fn framing(message: &Message, old: bool) -> Result<Option<Framing>, &'static str> {
    let codings: Vec<_> = message.all("transfer-encoding").collect();
    let lengths: Vec<_> = message.all("content-length").collect();
    match (&codings[..], &lengths[..]) {
        ([], []) => Ok(None),
        ([], [length]) if !length.is_empty() && length.iter().all(u8::is_ascii_digit) => Ok(Some(Framing::Length)),
        ([], _) => Err("the Content-Length"),
        ([coding], []) if !old && coding.eq_ignore_ascii_case(b"chunked") => Ok(Some(Framing::Chunked)),
        ([_], []) => Err("the Transfer-Encoding"),
        _ => Err("both framings, or several"),
    }
}

fn body(bytes: &[u8], mut at: usize, mut message: Message) -> Read<Message> {
    match message.framing {
        Framing::None | Framing::Close => Read::Whole(message, at),
        Framing::Length => {
            let length = message.all("content-length").next().unwrap_or_default();
            let Ok(length) = String::from_utf8_lossy(length).parse::<usize>() else {
                return Read::Bad("the Content-Length");
            };
            if bytes.len() - at < length {
                return Read::Short;
            }
            message.body = bytes[at..at + length].to_vec();
            Read::Whole(message, at + length)
        }
        Framing::Chunked => {
            loop {
                let (text, next) = match line(bytes, at) {
                    Read::Whole(text, next) => (text, next),
                    Read::Short => return Read::Short,
                    Read::Bad(why) => return Read::Bad(why),
                };
                at = next;
                let digits = text.split(|&b| b == b';').next().unwrap_or_default();
                let (digits, extended) = (trim_end(digits), digits.len() < text.len());
                if !extended && digits.len() < text.len() {
                    return Read::Bad("a chunk's size");
                }
                if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
                    return Read::Bad("a chunk's size");
                }
                if text.iter().any(|&b| (b < 0x20 && b != b'\t') || b == 0x7f) {
                    return Read::Bad("a chunk's extension");
                }
                let Ok(size) = usize::from_str_radix(&String::from_utf8_lossy(digits), 16) else {
                    return Read::Bad("a chunk's size");
                };
                if size == 0 {
                    break;
                }
                if bytes.len() - at < size {
                    return Read::Short;
                }
                message.body.extend_from_slice(&bytes[at..at + size]);
                at += size;
                match &bytes[at..] {
                    [b'\r', b'\n', ..] => at += 2,
                    [] | [b'\r'] => return Read::Short,
                    _ => return Read::Bad("a chunk's end"),
                }
            }
            match fields(bytes, &mut at) {
                Read::Whole(trailers, _) => message.trailers = trailers,
                Read::Short => return Read::Short,
                Read::Bad(why) => return Read::Bad(why),
            }
            Read::Whole(message, at)
        }
    }
}

fn trim(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|b| !matches!(b, b' ' | b'\t')).unwrap_or(text.len());
    trim_end(&text[start..])
}

fn trim_end(text: &[u8]) -> &[u8] {
    let end = text.iter().rposition(|b| !matches!(b, b' ' | b'\t')).map_or(0, |at| at + 1);
    &text[..end]
}

fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}
