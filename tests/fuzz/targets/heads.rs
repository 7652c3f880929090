//! What judges an app's bytes before hyper parses them, byte by byte, against the second reader.

use outrigger::proxy::head::{Bounds, Inspector, Verdict};

use super::strict::{Read, framed_request};

const BOUNDS: Bounds = Bounds { bytes: 512, fields: 12 };
/// Each byte is shown alone, so long inputs say nothing new.
const LONGEST: usize = 2048;

/// Where requests end, by what is let pass when the bytes come in pieces of this size, and whether all was let pass.
fn ends(bytes: &[u8], piece: usize) -> (Vec<usize>, usize, bool) {
    let mut inspector = Inspector::new(BOUNDS);
    let (mut passed, mut shown, mut ends) = (0, 0, Vec::new());
    while shown < bytes.len() {
        shown = (shown + piece).min(bytes.len());
        let (good, over) = match inspector.inspect(&bytes[passed..shown]) {
            Verdict::Pass(good) => (good, false),
            Verdict::Refuse(good, _) | Verdict::Broken(good, _) => (good, true),
        };
        assert!(passed + good <= shown, "more was let pass than was shown");
        passed += good;
        if good > 0 && inspector.in_head() {
            ends.push(passed);
        }
        if over {
            return (ends, passed, false);
        }
        if inspector.opaque() {
            ends.push(passed);
            return (ends, passed, true);
        }
    }
    (ends, passed, true)
}

/// Requests end where a careful reader says, however the bytes are cut; what is passed on of a malformed one is never whole.
pub fn heads(data: &[u8]) {
    let data = &data[..data.len().min(LONGEST)];
    let (found, passed, all) = ends(data, 1);
    let mut at = 0;
    for end in found {
        // A CONNECT's head is a request without a body, whatever follows it.
        let Read::Whole(request, length) = framed_request(&data[at..]) else {
            panic!("{:?} is taken for a request", String::from_utf8_lossy(&data[at..end]));
        };
        assert_eq!(at + length, end, "{request:?} ends elsewhere");
        at = end;
        if request.method == "CONNECT" {
            return;
        }
    }
    if all && let Read::Bad(why) = framed_request(&data[at..]) {
        panic!("{why} is overlooked in {:?}", String::from_utf8_lossy(&data[at..]));
    }
    for piece in [3, data.len().max(1)] {
        let (_, other, still) = ends(data, piece);
        assert_eq!((other, still), (passed, all), "pieces of {piece} bytes are judged differently");
    }
}
