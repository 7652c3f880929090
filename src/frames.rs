//! HTTP/2 frames as they pass, by their heads alone: where a field block is half there, and what is a flood. What frames
//! mean is the h2 crate's business.

use std::io::IoSlice;
use std::time::Duration;

use tokio::time::Instant;

/// What an HTTP/2 connection begins with (RFC 9113 section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Error codes (RFC 9113 section 7).
pub(crate) const NO_ERROR: u32 = 0;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

/// Frames that carry nothing of a message: so many may come at once…
const BURST: u32 = 1000;
/// …and so many more for each that does, either way: acknowledgements of bytes, PINGs that measure…
const FOR_EACH: u32 = 10;
/// …where each counts once more for so many bytes of it: some acknowledge every small read, for the stream and the connection.
const BYTES: usize = 4096;
/// The burst may come again after this.
const WINDOW: Duration = Duration::from_secs(1);

/// GOAWAY as the last that is said. Any stream may have been acted upon, so none is offered for being repeated.
pub(crate) fn goaway(code: u32) -> [u8; HEAD + 8] {
    let mut frame = [0; HEAD + 8];
    frame[2] = 8;
    frame[3] = GOAWAY;
    frame[HEAD..HEAD + 4].copy_from_slice(&i32::MAX.to_be_bytes());
    frame[HEAD + 4..].copy_from_slice(&code.to_be_bytes());
    frame
}

/// One direction.
#[derive(Debug)]
struct Walk {
    /// The head of the frame that is passing, as far as it came.
    head: [u8; HEAD],
    have: usize,
    /// Bytes of its payload that are still to come. The preface passes as a payload.
    left: usize,
    /// A field block has begun and not ended.
    in_block: bool,
    /// A frame has begun.
    begun: bool,
    /// How many of them, less those that go on with a field block.
    wholes: u32,
}

impl Walk {
    fn new(preface: bool) -> Walk {
        Walk {
            head: [0; HEAD],
            have: 0,
            left: if preface { PREFACE.len() } else { 0 },
            in_block: false,
            begun: false,
            wholes: 0,
        }
    }

    /// Lets bytes pass. `each` is told of each frame that begins what it is worth: 0 where it carries nothing of a message.
    fn pass(&mut self, mut bytes: &[u8], mut each: impl FnMut(u32)) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let n = self.left.min(bytes.len());
                self.left -= n;
                bytes = &bytes[n..];
                continue;
            }
            let n = (HEAD - self.have).min(bytes.len());
            self.head[self.have..self.have + n].copy_from_slice(&bytes[..n]);
            self.have += n;
            bytes = &bytes[n..];
            if self.have == HEAD {
                self.have = 0;
                self.begun = true;
                self.wholes = self.wholes.wrapping_add(u32::from(!self.in_block));
                self.left = u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]) as usize;
                let [.., kind, flags, _, _, _, _] = self.head;
                if matches!(kind, HEADERS | CONTINUATION) {
                    self.in_block = flags & END_HEADERS == 0;
                }
                // A length has 24 bits.
                each(if matches!(kind, DATA | HEADERS) { 1 + (self.left / BYTES) as u32 } else { 0 });
            }
        }
    }

    /// Whether the other side owes the rest of something other than a body.
    fn is_owed(&self) -> bool {
        !self.begun || self.have > 0 || self.in_block || self.left > 0 && self.head[3] != DATA
    }

    fn is_between_frames(&self) -> bool {
        self.have == 0 && self.left == 0
    }
}

/// Too many frames that carry nothing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Flood;

/// Both directions of one connection.
#[derive(Debug)]
pub(crate) struct Traffic {
    read: Walk,
    written: Walk,
    /// Frames that came since `since` and carry nothing of a message.
    idle: u32,
    /// Frames that do, either way, by what they are worth.
    useful: u32,
    since: Instant,
}

impl Traffic {
    /// A new connection: of an app's, which sends a preface, or to an upstream, which is sent one.
    pub(crate) fn new(of_app: bool, now: Instant) -> Traffic {
        Traffic { read: Walk::new(of_app), written: Walk::new(!of_app), idle: 0, useful: 0, since: now }
    }

    /// These bytes came.
    ///
    /// # Errors
    /// A flood: more frames without content than the burst, and than the traffic can explain, within a second.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Result<(), Flood> {
        let (mut idle, mut useful) = (0, 0);
        self.read.pass(bytes, |worth| if worth > 0 { useful += worth } else { idle += 1 });
        self.useful = self.useful.saturating_add(useful);
        self.idle = self.idle.saturating_add(idle);
        if self.useful > BURST {
            // What was useful long ago explains nothing.
            (self.idle, self.useful) = (self.idle / 2, self.useful / 2);
        }
        if idle == 0 || self.idle <= BURST.saturating_add(self.useful.saturating_mul(FOR_EACH)) {
            return Ok(());
        }
        // Most connections never look at the clock.
        let now = Instant::now();
        let quick = now.saturating_duration_since(self.since) < WINDOW;
        (self.idle, self.useful, self.since) = (0, 0, now);
        if quick { Err(Flood) } else { Ok(()) }
    }

    /// These bytes went.
    pub(crate) fn wrote(&mut self, bytes: &[u8]) {
        let useful = &mut self.useful;
        self.written.pass(bytes, |worth| *useful = useful.saturating_add(worth));
    }

    /// The first `n` bytes of these went.
    pub(crate) fn wrote_vectored(&mut self, bufs: &[IoSlice<'_>], mut n: usize) {
        for buf in bufs {
            let went = n.min(buf.len());
            self.wrote(&buf[..went]);
            n -= went;
        }
    }

    /// Whether the other side owes the rest of a head, or its first SETTINGS. The number tells one debt from the next.
    pub(crate) fn owed(&self) -> Option<u32> {
        self.read.is_owed().then_some(self.read.wholes)
    }

    /// Whether a frame of our own may be written behind what was.
    pub(crate) fn is_between_frames(&self) -> bool {
        self.written.is_between_frames()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let mut bytes = vec![0, (length >> 8) as u8, length as u8, kind, flags, 0, 0, 0, 1];
        bytes.resize(HEAD + length, 0xaa);
        bytes
    }

    #[tokio::test(start_paused = true)]
    async fn however_bytes_are_cut_it_is_known_where_frames_end() {
        let settings = [PREFACE, &frame(4, 0, 6)].concat();
        let all = [&settings[..], &frame(HEADERS, 0, 20), &frame(CONTINUATION, END_HEADERS, 3), &frame(DATA, 0, 300)];
        let owed: Vec<usize> =
            all.iter().scan(0, |end, part| Some(std::mem::replace(end, *end + part.len()))).collect();
        let bytes = all.concat();
        for step in [1, 2, 5, 9, 10, 400] {
            let mut traffic = Traffic::new(true, Instant::now());
            let mut at = 0;
            for piece in bytes.chunks(step) {
                traffic.read(piece).unwrap();
                at += piece.len();
                let body = owed[3] + HEAD;
                let expected = at != owed[1] && at != owed[3] && at < body;
                assert_eq!(traffic.owed().is_some(), expected, "{step} {at}");
            }
            assert!(traffic.read.is_between_frames());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_forgiven_after_a_while_and_traffic_explains_more() {
        let ping = frame(6, 0, 8);
        let mut traffic = Traffic::new(false, Instant::now());
        for _ in 0..3 {
            traffic.read(&ping.repeat(1000)).unwrap();
            tokio::time::advance(WINDOW).await;
        }
        let mut traffic = Traffic::new(false, Instant::now());
        traffic.wrote(&[PREFACE, &frame(DATA, 0, 10).repeat(100)].concat());
        traffic.read(&frame(8, 0, 4).repeat(2000)).unwrap();
        assert_eq!(traffic.read(&ping), Err(Flood));
        assert!(traffic.is_between_frames());
        let mut traffic = Traffic::new(false, Instant::now());
        for _ in 0..1000 {
            traffic.read(&frame(DATA, 0, 10).repeat(1000)).unwrap();
        }
        let most = (BURST + BURST * FOR_EACH) as usize;
        assert_eq!(traffic.read(&ping.repeat(most + 1)), Err(Flood), "the past explains no more than this");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_acknowledges_every_small_read_of_large_frames_is_no_flood() {
        let mut traffic = Traffic::new(false, Instant::now());
        traffic.wrote(PREFACE);
        for _ in 0..100 {
            traffic.wrote(&frame(DATA, 0, 32 * 1024));
            // For the stream and for the connection.
            traffic.read(&frame(8, 0, 4).repeat(2 * 32 * 1024 / 1024)).unwrap();
        }
    }

    #[test]
    fn a_goaway_offers_no_stream_for_repetition() {
        assert_eq!(goaway(ENHANCE_YOUR_CALM), [0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 11]);
    }
}
