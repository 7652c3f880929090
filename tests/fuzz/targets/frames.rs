//! HTTP/2 frames (RFC 9113 section 4.1) from a fuzzer's bytes, so that most of what is tried is a frame and not noise; and what
//! came back, read.

/// What a client begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame's payload are fields, written as text (see [`block`]).
const HEADERS_AS_TEXT: u8 = 10;
const CONTINUATION_AS_TEXT: u8 = 11;
/// What follows is no frame.
const RAW: u8 = 12;
/// In an operation: many times the same frame.
const FLOOD: u8 = 0x80;
const MANY: usize = 300;

/// Frames as a script of operations: what (a type, or one of the above), flags, stream, how long, and so many bytes.
pub fn encode(script: &[u8]) -> Vec<u8> {
    let (mut rest, mut frames) = (script, Vec::new());
    while let [what, flags, stream, length, payload @ ..] = rest {
        let (payload, behind) = payload.split_at(usize::from(*length).min(payload.len()));
        rest = behind;
        let kind = what & !FLOOD;
        let times = if what & FLOOD == 0 { 1 } else { MANY };
        let one = match kind {
            HEADERS_AS_TEXT => frame(1, *flags, u32::from(*stream), &block(payload)),
            CONTINUATION_AS_TEXT => frame(9, *flags, u32::from(*stream), &block(payload)),
            RAW => payload.to_vec(),
            kind => frame(kind, *flags, u32::from(*stream), payload),
        };
        (0..times).for_each(|_| frames.extend_from_slice(&one));
        if frames.len() > 1 << 18 {
            break;
        }
    }
    frames
}

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Fields of lines such as `:method: GET`, as HPACK writes them plainly: literal, never indexed (RFC 7541 section 6.2.3).
pub fn block(text: &[u8]) -> Vec<u8> {
    let mut block = Vec::new();
    for line in text.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
        let colon = line.iter().skip(1).position(|&b| b == b':').map_or(line.len(), |at| at + 1);
        let (name, value) = line.split_at(colon);
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        block.push(0x10);
        for part in [name, value] {
            let part = &part[..part.len().min(126)];
            block.push(part.len() as u8);
            block.extend_from_slice(part);
        }
    }
    block
}

/// Reads frames, which must be whole where the connection was closed properly. How many there are of each type.
///
/// # Errors
/// What is no frame.
pub fn decode(mut bytes: &[u8]) -> Result<[usize; 10], String> {
    let mut counts = [0; 10];
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = bytes {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        if length > 16_384 {
            return Err(format!("a frame of {length} bytes"));
        }
        let Some(count) = counts.get_mut(usize::from(*kind)) else { return Err(format!("a frame of type {kind}")) };
        *count += 1;
        bytes = rest.get(length..).unwrap_or(&[]);
    }
    Ok(counts)
}
