//! HTTP/2 by hand: frames of any shape, header blocks without a table, and a peer that reads what comes back.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::PATIENCE;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types (RFC 9113 section 6).
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

/// Flags.
pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// Error codes (RFC 9113 section 7).
pub(crate) const NO_ERROR: u32 = 0;
pub(crate) const PROTOCOL_ERROR: u32 = 1;
pub(crate) const INTERNAL_ERROR: u32 = 2;
pub(crate) const REFUSED_STREAM: u32 = 7;
pub(crate) const CANCEL: u32 = 8;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

/// Settings.
pub(crate) const HEADER_TABLE_SIZE: u16 = 1;
pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(crate) const MAX_FRAME_SIZE: u16 = 5;

/// Any frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// HEADERS with a whole block.
pub(crate) fn headers(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, stream, block(fields))
}

/// A GET of `http://up.test/`.
pub(crate) fn get(stream: u32) -> Vec<u8> {
    headers(stream, END_STREAM, &request("GET", "/"))
}

/// The fields of a request for `http://up.test`.
pub(crate) fn request<'a>(method: &'a str, path: &'a str) -> [(&'a str, &'a str); 4] {
    [(":method", method), (":scheme", "http"), (":authority", "up.test"), (":path", path)]
}

pub(crate) fn data(stream: u32, flags: u8, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    frame(DATA, flags, stream, bytes)
}

pub(crate) fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, code.to_be_bytes())
}

pub(crate) fn window_update(stream: u32, more: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, more.to_be_bytes())
}

pub(crate) fn ping() -> Vec<u8> {
    frame(PING, 0, 0, *b"attacker")
}

pub(crate) fn goaway(last: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, [last.to_be_bytes(), code.to_be_bytes()].concat())
}

pub(crate) fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> =
        values.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    frame(SETTINGS, 0, 0, payload)
}

/// Fields as literals that are never indexed and not Huffman-coded (RFC 7541 section 6.2.2): every byte goes, valid or not.
pub(crate) fn block<N: AsRef<[u8]>, V: AsRef<[u8]>>(fields: &[(N, V)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        string(&mut bytes, name.as_ref());
        string(&mut bytes, value.as_ref());
    }
    bytes
}

fn string(bytes: &mut Vec<u8>, text: &[u8]) {
    integer(bytes, 0, 7, text.len());
    bytes.extend(text);
}

/// An integer behind `first`, whose last `bits` bits it takes (RFC 7541 section 5.1).
pub(crate) fn integer(bytes: &mut Vec<u8>, first: u8, bits: u8, mut value: usize) {
    let most = (1 << bits) - 1;
    if value < most {
        bytes.push(first | value as u8);
        return;
    }
    bytes.push(first | most as u8);
    value -= most;
    while value >= 128 {
        bytes.push(value as u8 | 128);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The error code of RST_STREAM or GOAWAY.
    pub(crate) fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// The `:status` of the first answer on a connection: later ones may be in the table, which nobody keeps here.
    pub(crate) fn status(&self) -> u16 {
        // A table may be resized first.
        let block = &self.payload[self.payload.iter().take_while(|byte| **byte & 0xe0 == 0x20).count()..];
        match block[0] {
            0x88 => 200,
            0x89 => 204,
            0x8a => 206,
            0x8b => 304,
            0x8c => 400,
            0x8d => 404,
            0x8e => 500,
            0x48 | 0x08 | 0x18 if block[1] & 0x80 == 0 => std::str::from_utf8(&block[2..5]).unwrap().parse().unwrap(),
            0x48 | 0x08 | 0x18 => digits(&block[2..]),
            other => panic!("no status: {other:#x}"),
        }
    }
}

/// Three Huffman-coded digits (RFC 7541 appendix B).
fn digits(bytes: &[u8]) -> u16 {
    let mut bits = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| u16::from(byte >> bit & 1)));
    let mut take = |n: usize| bits.by_ref().take(n).fold(0, |value, bit| value << 1 | bit);
    (0..3).fold(0, |number, _| {
        let five = take(5);
        number * 10 + if five < 3 { five } else { (five << 1 | take(1)) - 0b011001 + 3 }
    })
}

/// One end of a connection.
pub(crate) struct Peer {
    pub(crate) stream: TcpStream,
    held: Vec<u8>,
}

impl Peer {
    /// An app that has sent its preface and empty SETTINGS.
    pub(crate) async fn app(address: SocketAddr) -> Peer {
        Peer::app_with(address, &[]).await
    }

    /// An app that has sent its preface and these SETTINGS.
    pub(crate) async fn app_with(address: SocketAddr, values: &[(u16, u32)]) -> Peer {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut peer = Peer { stream, held: Vec::new() };
        peer.send([PREFACE, &settings(values)].concat()).await;
        peer
    }

    /// An upstream that has read the preface and sent these SETTINGS.
    pub(crate) async fn upstream(stream: TcpStream, values: &[(u16, u32)]) -> Peer {
        let mut peer = Peer { stream, held: Vec::new() };
        let mut preface = [0; 24];
        peer.stream.read_exact(&mut preface).await.unwrap();
        assert_eq!(preface, PREFACE);
        peer.send(settings(values)).await;
        peer
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// An error where the other side has closed.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// The next frame; `None` at the connection's end, however that comes.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        next(&mut self.stream, &mut self.held).await
    }

    /// Reads on to the next frame of this kind.
    pub(crate) async fn until(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.unwrap_or_else(|| panic!("closed before a frame of type {kind}"));
            if frame.kind == kind {
                return frame;
            }
            assert_ne!(frame.kind, GOAWAY, "GOAWAY {} before a frame of type {kind}", frame.code());
        }
    }

    /// Reads on to the connection's end: the codes of the GOAWAYs that came.
    pub(crate) async fn end(&mut self) -> Vec<u32> {
        let mut codes = Vec::new();
        while let Some(frame) = self.next().await {
            if frame.kind == GOAWAY {
                codes.push(frame.code());
            }
        }
        codes
    }

    /// Sends this so many times, while reading. The codes of the GOAWAYs where the connection ended by that; `None` where all
    /// of it was taken, and a PING behind it is answered.
    pub(crate) async fn flood(
        self,
        times: usize,
        piece: impl Fn(usize) -> Vec<u8> + Send + 'static,
    ) -> Option<Vec<u32>> {
        let (mut read, mut write) = self.stream.into_split();
        let mut held = self.held;
        let writer = tokio::spawn(async move {
            for from in (0..times).step_by(64) {
                let pieces: Vec<u8> = (from..times.min(from + 64)).flat_map(&piece).collect();
                write.write_all(&pieces).await?;
            }
            write.write_all(&frame(PING, 0, 0, *b"the last")).await?;
            Ok::<_, std::io::Error>(write)
        });
        let mut codes = Vec::new();
        loop {
            match next(&mut read, &mut held).await {
                Some(frame) if frame.kind == GOAWAY => codes.push(frame.code()),
                Some(frame) if frame.kind == PING && frame.payload == b"the last" => {
                    assert!(codes.is_empty(), "still there after GOAWAY {codes:?}");
                    return None;
                }
                Some(_) => {}
                None => {
                    writer.abort();
                    return Some(codes);
                }
            }
        }
    }
}

/// The next frame of a connection.
async fn next(from: &mut (impl AsyncRead + Unpin), held: &mut Vec<u8>) -> Option<Frame> {
    loop {
        if let Some(length) = held.get(..9) {
            let length = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
            if held.len() >= 9 + length {
                let bytes: Vec<u8> = held.drain(..9 + length).collect();
                let stream = u32::from_be_bytes(bytes[5..9].try_into().unwrap());
                return Some(Frame { kind: bytes[3], flags: bytes[4], stream, payload: bytes[9..].to_vec() });
            }
        }
        match timeout(PATIENCE, from.read_buf(held)).await.expect("the proxy says something") {
            Ok(n) if n > 0 => {}
            Ok(_) | Err(_) => return None,
        }
    }
}
