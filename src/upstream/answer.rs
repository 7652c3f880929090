//! What comes back: an upstream's answer, looked at more strictly than hyper does, and its body, which holds the connection.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use http::{StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::error::{Error, Result, Sent};
use crate::fields::Fields;
use crate::message;
use crate::trailers;
use crate::upstream::balance::Load;
use crate::upstream::connection::{chain, h2_error};
use crate::upstream::pool::Lease;
use crate::upstream::upload::Watch;

/// Refuses an answer that two parties could understand differently, and makes the rest fit to be passed on.
///
/// # Errors
/// A sentence: framing that is ambiguous (RFC 9112 section 6.3), or a 101 that nobody asked for.
pub(super) fn check(head: &mut http::response::Parts, asked_to_upgrade: bool, max_fields: usize) -> Result<(), String> {
    if head.status == StatusCode::SWITCHING_PROTOCOLS && (!asked_to_upgrade || head.version == Version::HTTP_2) {
        return Err("it switches protocols, unasked".to_owned());
    }
    // hyper bounds HTTP/1.1 heads by itself.
    if head.version == Version::HTTP_2 {
        if head.headers.len() > max_fields {
            return Err(format!("its head has more than {max_fields} fields (limits.max_headers)"));
        }
        if message::has_odd_name(&head.headers) {
            return Err("a field's name has a byte that no name has".to_owned());
        }
    }
    check_framing(&mut head.headers)?;
    head.version = Version::HTTP_11;
    Ok(())
}

fn check_framing(headers: &mut HeaderMap) -> Result<(), String> {
    let fields = Fields::of(headers);
    if fields.has(Fields::TRANSFER_ENCODING) {
        check_coding(headers, fields)?;
    }
    if fields.has(Fields::CONTENT_LENGTH) { check_length(headers) } else { Ok(()) }
}

/// The only coding is `chunked`, and it is the only framing.
fn check_coding(headers: &HeaderMap, fields: Fields) -> Result<(), String> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() {
            return Err("it has several Transfer-Encoding fields".to_owned());
        }
        if !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return Err("its Transfer-Encoding is not exactly `chunked`".to_owned());
        }
        if fields.has(Fields::CONTENT_LENGTH) {
            return Err("it has both Transfer-Encoding and Content-Length".to_owned());
        }
    }
    Ok(())
}

/// All lengths are numbers and the same.
fn check_length(headers: &mut HeaderMap) -> Result<(), String> {
    let (mut length, mut repeated) = (None, false);
    for value in headers.get_all(CONTENT_LENGTH) {
        for part in value.as_bytes().split(|byte| *byte == b',') {
            let part = part.trim_ascii();
            let number = std::str::from_utf8(part).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            let Some(number) = number.and_then(|text| text.parse::<u64>().ok()) else {
                return Err("its Content-Length is not a number".to_owned());
            };
            if length.is_some_and(|length| length != number) {
                return Err("it has differing Content-Lengths".to_owned());
            }
            repeated |= length.is_some();
            length = Some(number);
        }
    }
    if let (true, Some(length)) = (repeated, length) {
        // The same number several times means itself (RFC 9110 section 8.6); one field can't be misread.
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(())
}

/// An answer's body, holding its connection. Dropped before its end it gives the connection up.
pub struct UpstreamBody {
    incoming: Incoming,
    lease: Option<Lease>,
    upload: Option<Arc<Watch>>,
    load: Option<Load>,
    upgraded: bool,
    /// It came over HTTP/2, where the end of a stream says whether it is complete.
    http2: bool,
}

impl UpstreamBody {
    pub(super) fn new(
        incoming: Incoming,
        lease: Lease,
        upload: Option<Arc<Watch>>,
        load: Option<Load>,
        upgraded: bool,
        http2: bool,
    ) -> UpstreamBody {
        let mut body = UpstreamBody { incoming, lease: Some(lease), upload, load, upgraded, http2 };
        if !upgraded && body.incoming.is_end_stream() {
            body.finish();
        }
        body
    }

    /// The answer is complete.
    fn finish(&mut self) {
        self.load = None;
        let sent_whole = self.upload.as_ref().is_none_or(|upload| upload.is_done());
        match self.lease.take() {
            Some(lease) if sent_whole => lease.finish(),
            // An answer to half a request: the rest of it is not wanted, and the connection is of no use.
            held @ (Some(_) | None) => self.give_up(held),
        }
        self.upload = None;
    }

    /// It ends before its end. What to say of that.
    fn broke(&mut self, how: &str) -> Error {
        let reused = self.lease.as_ref().is_some_and(|lease| lease.reused);
        let app = self.upload.as_ref().and_then(|upload| upload.error());
        let lease = self.lease.take();
        self.give_up(lease);
        self.load = None;
        app.unwrap_or_else(|| Error::Reset {
            sent: Sent::Maybe,
            reused,
            answer_began: true,
            detail: format!("its body broke off: {how}"),
        })
    }

    fn give_up(&self, lease: Option<Lease>) {
        if let Some(upload) = &self.upload {
            upload.cancel();
        }
        drop(lease);
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                if let Some(trailers) = frame.trailers_mut() {
                    trailers::clean(trailers);
                }
                if !this.upgraded && this.lease.is_some() && this.incoming.is_end_stream() {
                    this.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(this.broke(&body_detail(&error))))),
            // hyper takes a reset or a GOAWAY without an error for the end. It is one only behind END_STREAM.
            Poll::Ready(None) if this.http2 && this.lease.is_some() && !this.incoming.is_end_stream() => {
                Poll::Ready(Some(Err(this.broke("HTTP/2 NO_ERROR, but the stream was not ended"))))
            }
            Poll::Ready(None) => {
                if !this.upgraded && this.lease.is_some() {
                    this.finish();
                }
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for UpstreamBody {
    fn drop(&mut self) {
        let lease = self.lease.take();
        if lease.is_some() {
            self.give_up(lease);
        }
    }
}

fn body_detail(error: &hyper::Error) -> String {
    match h2_error(error).and_then(|error| error.reason()) {
        Some(reason) => format!("HTTP/2 {reason:?}"),
        None => chain(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framing(lines: &[(&'static str, &'static str)]) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        check_framing(&mut headers).map(|()| headers)
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        for lines in [
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")][..],
            &[("transfer-encoding", "chunked, chunked")],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "xchunked")],
            &[("transfer-encoding", "chunked"), ("content-length", "3")],
            &[("content-length", "3"), ("content-length", "4")],
            &[("content-length", "3, 4")],
            &[("content-length", "+3")],
            &[("content-length", "")],
        ] {
            assert!(framing(lines).is_err(), "{lines:?}");
        }
    }

    #[test]
    fn the_same_length_twice_becomes_one() {
        let headers = framing(&[("content-length", "3"), ("content-length", "3, 3")]).unwrap();
        assert_eq!(headers.get_all(CONTENT_LENGTH).iter().count(), 1);
        assert_eq!(headers[CONTENT_LENGTH], "3");
        assert!(framing(&[("transfer-encoding", "Chunked")]).is_ok());
    }

    #[test]
    fn an_unasked_switch_is_refused() {
        let head = |version| {
            http::Response::builder().status(101).version(version).body(()).map(|r| r.into_parts().0).unwrap()
        };
        assert!(check(&mut head(Version::HTTP_11), false, 100).is_err());
        assert!(check(&mut head(Version::HTTP_11), true, 100).is_ok());
        assert!(check(&mut head(Version::HTTP_2), true, 100).is_err());
    }
}
