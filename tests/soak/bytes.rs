//! Bodies that can be told apart: every byte follows from the request's number and its place.

use std::time::Duration;

use ::bytes::Bytes;
use futures_util::stream;
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};

/// What both sides break bodies with.
#[derive(Debug)]
pub(crate) struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("broken on purpose")
    }
}

impl std::error::Error for Broken {}

pub(crate) type Text = UnsyncBoxBody<Bytes, Broken>;

const CHUNK: usize = 16 * 1024;

fn byte(id: u64, at: usize) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16)) as u8 ^ (id.wrapping_mul(167) >> 3) as u8
}

/// A part of the body of request `id`.
pub(crate) fn part(id: u64, from: usize, to: usize) -> Bytes {
    (from..to).map(|at| byte(id, at)).collect()
}

/// A body of `size` bytes, in chunks, with a wait before each; broken off at `cut`, where that is before the end.
pub(crate) fn streamed(id: u64, size: usize, cut: Option<usize>, wait: Duration) -> Text {
    let frames = stream::unfold(0, move |at| async move {
        let end = cut.unwrap_or(size).min(size);
        if at >= end {
            return (cut.is_some_and(|cut| cut < size) && at == end).then(|| (Err(Broken), size + 1));
        }
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let to = (at + CHUNK).min(end);
        Some((Ok(Frame::data(part(id, at, to))), to))
    });
    StreamBody::new(frames).boxed_unsync()
}

pub(crate) fn empty() -> Text {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// How a body that was read compares to what it should be.
#[derive(Debug, PartialEq)]
pub(crate) enum Read {
    Exact,
    /// It ended visibly broken; what had come was right.
    Broken,
    Wrong(String),
}

/// Reads the body of request `id`, waiting after each frame.
pub(crate) async fn read<B: Body<Data = Bytes> + Unpin>(mut body: B, id: u64, size: usize, wait: Duration) -> Read {
    let mut at = 0;
    loop {
        match body.frame().await {
            None if at == size => return Read::Exact,
            None => return Read::Wrong(format!("a body of {size} bytes ends after {at} as if it were whole")),
            Some(Err(_)) => return Read::Broken,
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                if data != part(id, at, at + data.len()) || at + data.len() > size {
                    return Read::Wrong(format!("the bytes from {at} of {size} are not those that were sent"));
                }
                at += data.len();
            }
        }
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}
