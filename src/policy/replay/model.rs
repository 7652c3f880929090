//! The replay buffer against the list of everything that the app sent.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use proptest::prelude::*;
use tokio::time::Instant;

use super::{Cursor, FRAME, Replay, ReplayMemory};
use crate::error::Error;
use crate::message::{AppBody, Exchange};

#[derive(Clone, Debug)]
enum Step {
    /// The app sends so many bytes.
    Send(usize),
    Trailers,
    End,
    HangUp,
    /// A further attempt, where the buffer says that there may be one.
    Attempt,
    /// An attempt reads a frame; the earlier ones' connections go on trying.
    Read(usize),
    /// An attempt is over.
    Drop(usize),
    /// No other attempt will come.
    Release,
    /// Other requests hold so much of the process's memory.
    Others(u64),
    /// A reload changes the process's memory.
    Cap(u64),
    /// It changes so that the next frame just fits, or just does not.
    Tight(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..40_usize).prop_map(Step::Send),
        1 => Just(Step::Trailers),
        1 => Just(Step::End),
        1 => Just(Step::HangUp),
        4 => Just(Step::Attempt),
        14 => (0..3_usize).prop_map(Step::Read),
        1 => (0..3_usize).prop_map(Step::Drop),
        1 => Just(Step::Release),
        1 => (0..600_u64).prop_map(Step::Others),
        1 => (0..1_500_u64).prop_map(Step::Cap),
        2 => any::<bool>().prop_map(Step::Tight),
    ]
}

/// How the app's body ended.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Clean,
    Trailers,
    Broken,
}

/// What the app has sent: the real buffer reads it as a stream, the model as a list.
#[derive(Default)]
struct App {
    unread: VecDeque<Bytes>,
    end: Option<End>,
}

struct Stream {
    app: Arc<Mutex<App>>,
    length: Option<u64>,
}

fn trailers() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", http::HeaderValue::from_static("7"));
    trailers
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut app = self.app.lock().unwrap();
        if let Some(data) = app.unread.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match app.end {
            None => Poll::Pending,
            Some(End::Clean) => Poll::Ready(None),
            Some(End::Trailers) => Poll::Ready(Some(Ok(Frame::trailers(trailers())))),
            Some(End::Broken) => Poll::Ready(Some(Err(Error::AppGone))),
        }
    }

    fn is_end_stream(&self) -> bool {
        let app = self.app.lock().unwrap();
        app.unread.is_empty() && app.end == Some(End::Clean)
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ended {
    No,
    Trailers,
    Yes,
}

struct Reader {
    cursor: Cursor,
    attempt: u32,
    /// Frames read.
    read: usize,
    ended: Ended,
}

struct Model {
    /// All data frames that were taken from the app, the first one first.
    taken: Vec<Bytes>,
    /// All frames are kept for a later attempt.
    keeping: bool,
    /// Frames before this one are let go; those from here to the end of `taken` are held.
    held_from: usize,
    attempts: u32,
    refused: u64,
}

#[derive(Debug, PartialEq)]
enum Seen {
    Data(Bytes),
    Trailers,
    End,
    Error,
    Waits,
}

impl Model {
    fn held(&self) -> u64 {
        self.taken[self.held_from..].iter().map(|frame| frame.len() as u64 + FRAME).sum()
    }

    fn take(&mut self, frame: &Bytes, most: u64, memory: &ReplayMemory, others: u64) {
        let kept: u64 = self.taken[self.held_from..].iter().map(|frame| frame.len() as u64).sum();
        let bytes = frame.len() as u64;
        let fits_here = self.keeping && kept + bytes <= most;
        let cap = memory.cap.load(Ordering::Relaxed);
        let fits_process = others + self.held() + bytes + FRAME <= cap;
        self.refused += u64::from(fits_here && !fits_process);
        self.taken.push(frame.clone());
        if !(fits_here && fits_process) {
            self.keeping = false;
            self.held_from = self.taken.len();
        }
    }
}

proptest! {
    #![proptest_config(crate::policy::crowd::cases())]

    #[test]
    fn every_attempt_reads_what_the_app_sent_and_no_more_is_held_than_may_be(
        steps in prop::collection::vec(step(), 1..120),
        most in 0..300_u64,
        length in prop::option::of(0..400_u64),
    ) {
        let memory = ReplayMemory::new(2_000);
        let app = Arc::new(Mutex::new(App::default()));
        let exchange = Exchange::new(Instant::now());
        let body = AppBody::Boxed(Stream { app: app.clone(), length }.boxed_unsync());
        let replay = Replay::new(body, most, memory.clone(), exchange.clone());
        let mut model = Model { taken: Vec::new(), keeping: true, held_from: 0, attempts: 0, refused: 0 };
        let mut readers: Vec<Reader> = Vec::new();
        let (mut others, mut sent) = (0, 0_u64);
        let mut released = false;
        for (number, step) in steps.into_iter().enumerate() {
            let ended = app.lock().unwrap().end;
            match step {
                Step::Send(bytes) if ended.is_none() => {
                    // An app that told a length keeps to it.
                    let bytes = length.map_or(bytes, |length| bytes.min((length - sent) as usize));
                    sent += bytes as u64;
                    app.lock().unwrap().unread.push_back(Bytes::from(vec![number as u8; bytes]));
                }
                Step::Trailers if ended.is_none() => app.lock().unwrap().end = Some(End::Trailers),
                Step::End if ended.is_none() => app.lock().unwrap().end = Some(End::Clean),
                Step::HangUp if ended.is_none() => app.lock().unwrap().end = Some(End::Broken),
                Step::Send(_) | Step::Trailers | Step::End | Step::HangUp => {}
                Step::Attempt => if !released && replay.replayable() {
                    model.attempts += 1;
                    let cursor = replay.cursor();
                    readers.push(Reader { cursor, attempt: model.attempts, read: 0, ended: Ended::No });
                },
                Step::Read(nth) if !readers.is_empty() => {
                    let nth = nth % readers.len();
                    let reader = &mut readers[nth];
                    let current = reader.attempt == model.attempts;
                    let looks = current && reader.ended != Ended::Trailers;
                    let expected = if !current {
                        Seen::Error
                    } else if reader.ended == Ended::Trailers {
                        Seen::End
                    } else if let Some(frame) = model.taken.get(reader.read) {
                        reader.read += 1;
                        Seen::Data(frame.clone())
                    } else {
                        let next = app.lock().unwrap().unread.front().cloned();
                        match (next, ended) {
                            (Some(frame), _) => {
                                model.take(&frame, most, &memory, others);
                                reader.read += 1;
                                Seen::Data(frame)
                            }
                            (None, None) => Seen::Waits,
                            (None, Some(End::Broken)) => Seen::Error,
                            (None, Some(End::Clean)) => {
                                reader.ended = Ended::Yes;
                                Seen::End
                            }
                            (None, Some(End::Trailers)) => {
                                reader.ended = Ended::Trailers;
                                Seen::Trailers
                            }
                        }
                    };
                    // Frames that the reader is past are let go once no other attempt will come, at its next look.
                    if looks && !model.keeping {
                        let past = reader.read - usize::from(matches!(expected, Seen::Data(_)));
                        model.held_from = model.held_from.max(past);
                    }
                    let mut cx = Context::from_waker(Waker::noop());
                    let seen = match Pin::new(&mut reader.cursor).poll_frame(&mut cx) {
                        Poll::Pending => Seen::Waits,
                        Poll::Ready(None) => Seen::End,
                        Poll::Ready(Some(Err(_))) => Seen::Error,
                        Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                            Ok(data) => Seen::Data(data),
                            Err(frame) => {
                                prop_assert_eq!(frame.into_trailers().ok(), Some(trailers()));
                                Seen::Trailers
                            }
                        },
                    };
                    prop_assert_eq!(seen, expected);
                    if current {
                        let read: u64 = model.taken[..reader.read].iter().map(|frame| frame.len() as u64).sum();
                        prop_assert_eq!(reader.cursor.size_hint().exact(), length.map(|length| length - read));
                    }
                }
                Step::Drop(nth) if !readers.is_empty() => {
                    readers.remove(nth % readers.len());
                }
                Step::Read(_) | Step::Drop(_) => {}
                Step::Release => {
                    replay.release();
                    released = true;
                    model.keeping = false;
                    if model.attempts == 1 {
                        model.held_from = model.taken.len();
                    }
                }
                Step::Others(bytes) => {
                    memory.release(others);
                    others = if memory.reserve(bytes) { bytes } else {
                        model.refused += 1;
                        0
                    };
                }
                Step::Cap(bytes) => memory.set_cap(bytes),
                Step::Tight(fits) => {
                    let next = app.lock().unwrap().unread.front().map_or(0, Bytes::len) as u64;
                    memory.set_cap(memory.held() + next + FRAME - u64::from(!fits));
                }
            }
            prop_assert_eq!(replay.replayable(), model.keeping);
            prop_assert_eq!(memory.held(), others + model.held());
            prop_assert_eq!(memory.refused(), model.refused);
            let taken: u64 = model.taken.iter().map(|frame| frame.len() as u64).sum();
            prop_assert_eq!(exchange.bytes_in.load(Ordering::Relaxed), taken);
            for reader in readers.iter().filter(|reader| reader.attempt == model.attempts) {
                let (unread, end) = {
                    let app = app.lock().unwrap();
                    (app.unread.len(), app.end)
                };
                let all_read = reader.read == model.taken.len() && unread == 0;
                let over = match end {
                    Some(End::Clean) => all_read,
                    Some(End::Trailers) => all_read && reader.ended == Ended::Trailers,
                    None | Some(End::Broken) => false,
                };
                // It may say so later than it could, never earlier.
                prop_assert!(over || !reader.cursor.is_end_stream());
            }
        }
        drop((replay, readers));
        prop_assert_eq!(memory.held(), others);
    }
}
