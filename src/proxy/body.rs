//! An answer's body on its way to the app, with the record of its request.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::error::{Error, Result};
use crate::message::Exchange;
use crate::policy::carry::Carry;
use crate::proxy::idle::UnderWay;
use crate::proxy::link::Link;
use crate::proxy::record::Record;
use crate::upstream::transport::UpstreamBody;

/// What the app is sent behind a head.
pub struct ResponseBody {
    inner: Inner,
    record: Option<Box<Record>>,
    sent: u64,
    /// Where clients take an end of the connection for the end of the body, it ends with a reset until the body is whole.
    reset: Option<Arc<Link>>,
    /// It has no body, but its `Content-Length` is the upstream's word on what a body would be (304).
    claims_length: bool,
    /// It broke; said once hyper had a chance to send what came before.
    broken: Option<Error>,
    /// Over HTTP/1, until hyper has all of it.
    under_way: Option<UnderWay>,
}

enum Inner {
    Upstream(Box<Carry<UpstreamBody>>),
    Full(Bytes),
    Empty,
    #[cfg(test)]
    Boxed(http_body_util::combinators::UnsyncBoxBody<Bytes, Error>),
}

impl ResponseBody {
    fn new(inner: Inner, record: Option<Box<Record>>) -> ResponseBody {
        ResponseBody { inner, record, sent: 0, reset: None, claims_length: false, broken: None, under_way: None }
    }

    /// No body; the answer is not the end of its request.
    pub(crate) fn empty() -> ResponseBody {
        ResponseBody::new(Inner::Empty, None)
    }

    /// An answer of our own.
    pub(crate) fn full(body: Bytes, record: Option<Box<Record>>) -> ResponseBody {
        let inner = if body.is_empty() { Inner::Empty } else { Inner::Full(body) };
        ResponseBody::new(inner, record)
    }

    /// An upstream's answer.
    pub(crate) fn upstream(body: Box<Carry<UpstreamBody>>, mut record: Box<Record>) -> ResponseBody {
        if body.is_end_stream() {
            record.answered();
        }
        ResponseBody::new(Inner::Upstream(body), Some(record))
    }

    /// The answer has no body by its status or the request's method, whatever its `Content-Length` says.
    pub(crate) fn without_content(mut self, claims_length: bool) -> ResponseBody {
        if let Some(record) = &mut self.record {
            record.answered();
        }
        self.claims_length = claims_length;
        self
    }

    /// A connection that ends before the body does is to end with a reset.
    pub(crate) fn reset_if_broken(mut self, link: &Arc<Link>) -> ResponseBody {
        if !self.inner.is_end_stream() {
            link.reset(true);
            self.reset = Some(Arc::clone(link));
        }
        self
    }

    /// Its request is under way for as long as it lives.
    pub(crate) fn hold(&mut self, under_way: UnderWay) {
        self.under_way = Some(under_way);
    }

    /// Whose bytes it is, and how long the app may leave them untaken.
    pub(crate) fn pace(&self) -> (Option<Arc<Exchange>>, Option<Duration>) {
        let Some(record) = &self.record else { return (None, None) };
        (Some(Arc::clone(&record.exchange)), record.idle())
    }

    #[cfg(test)]
    pub(crate) fn boxed(body: impl Body<Data = Bytes, Error = Error> + Send + 'static) -> ResponseBody {
        ResponseBody::new(Inner::Boxed(http_body_util::BodyExt::boxed_unsync(body)), None)
    }

    fn complete(&mut self) {
        if let Some(link) = self.reset.take() {
            link.reset(false);
        }
        if let Some(mut record) = self.record.take() {
            record.answered();
        }
    }
}

impl Inner {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        match self {
            Inner::Upstream(body) => Pin::new(&mut **body).poll_frame(cx),
            Inner::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Inner::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Inner::Empty => Poll::Ready(None),
            #[cfg(test)]
            Inner::Boxed(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Inner::Upstream(body) => body.size_hint(),
            Inner::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Inner::Empty => SizeHint::with_exact(0),
            #[cfg(test)]
            Inner::Boxed(body) => body.size_hint(),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Inner::Upstream(body) => body.is_end_stream(),
            Inner::Full(_) => false,
            Inner::Empty => true,
            #[cfg(test)]
            Inner::Boxed(body) => body.is_end_stream(),
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        let me = self.get_mut();
        if let Some(error) = me.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let polled = match catch_unwind(AssertUnwindSafe(|| me.inner.poll(cx))) {
            Ok(polled) => polled,
            Err(_) => {
                // Whatever state the panic left behind is never looked at again, but what it holds is given back.
                me.inner = Inner::Empty;
                Poll::Ready(Some(Err(Error::Panic)))
            }
        };
        match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                me.complete();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    me.sent += data.len() as u64;
                    if let Some(record) = &me.record {
                        record.exchange.bytes_out.store(me.sent, Ordering::Relaxed);
                    }
                }
                // Trailers are the end of a body (RFC 9112 section 7.1). hyper asks no more once it has a body's length, and
                // over HTTP/2 the end may come after the last byte.
                let last = frame.is_trailers() || me.inner.is_end_stream();
                if last || me.reset.is_some() && me.inner.size_hint().exact() == Some(0) {
                    me.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                if let Some(mut record) = me.record.take() {
                    record.broke(error.clone());
                }
                // hyper drops what it has not written yet when a body fails, the head included. It flushes first when
                // the body has nothing for it.
                me.broken = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        !self.claims_length && self.broken.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.claims_length {
            // hyper takes the Content-Length from the headers then.
            return SizeHint::default();
        }
        self.inner.size_hint()
    }
}
