//! An upstream that misbehaves as it is told, while traffic flows, and counts what it saw. Real sockets on loopback; chance
//! comes from a seed. For bytes that no proper server would send, tests have a scripted origin instead.

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::demo::behaviour::{Behaviour, Fault, State, Verdict};
use crate::demo::seen::{Call, Seen};

/// Of a request body. Bytes.
const BODY_LIMIT: usize = 1 << 20;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// See the module. It ends when it is dropped.
pub struct Upstream {
    address: SocketAddr,
    /// Bound and never listening: the port stays ours while connections to it are refused.
    _place: Socket,
    state: Arc<Mutex<State>>,
    /// Ends what listens and every connection; `None` while connections are refused.
    up: Mutex<Option<DropGuard>>,
}

impl Upstream {
    /// A healthy one, on a free port of 127.0.0.1. Equal seeds fail the same requests, counted in the order in which they
    /// come. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When there is no port or descriptor left.
    pub fn start(seed: u64) -> io::Result<Upstream> {
        let place = bound(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let address = place.local_addr()?.as_socket().ok_or_else(|| io::Error::other("the socket has no address"))?;
        let upstream =
            Upstream { address, _place: place, state: Arc::new(Mutex::new(State::new(seed))), up: Mutex::new(None) };
        upstream.behave(Behaviour::Healthy)?;
        Ok(upstream)
    }

    /// Where it listens, also while it does not.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Behaves so from the next request on; what hangs goes on hanging. [`Behaviour::Refusing`] closes every connection,
    /// and whatever comes after it listens again.
    ///
    /// # Errors
    /// When it can't listen again, since no descriptor is left.
    pub fn behave(&self, behaviour: Behaviour) -> io::Result<()> {
        let mut up = lock(&self.up);
        let refusing = behaviour == Behaviour::Refusing;
        lock(&self.state).behave(behaviour);
        if refusing {
            *up = None;
        } else if up.is_none() {
            let socket = bound(self.address)?;
            socket.listen(BACKLOG)?;
            socket.set_nonblocking(true)?;
            let listener = TcpListener::from_std(socket.into())?;
            let token = CancellationToken::new();
            tokio::spawn(serve(listener, self.state.clone(), token.clone()));
            *up = Some(token.drop_guard());
        }
        Ok(())
    }

    /// Every answer takes at least this long from now on; at first none does.
    pub fn answer_after(&self, latency: Duration) {
        lock(&self.state).latency = latency;
    }

    /// What it saw so far.
    pub fn seen(&self) -> Seen {
        lock(&self.state).seen()
    }
}

/// A socket that other sockets of ours can be bound beside, as long as only one listens.
fn bound(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>, up: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = up.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely: accepting at once again would only spin.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        lock(&state).connected();
        let (state, up) = (state.clone(), up.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = up.cancelled() => {}
                () = connection(stream, state) => {}
            }
        });
    }
}

async fn connection(stream: TcpStream, state: Arc<Mutex<State>>) {
    // Where it fails, answers are late, not wrong.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| Box::pin(answer(request, state.clone())));
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    let ended = poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
    if ended.is_err() {
        // A linger of zero makes the end a reset. Where it can't be set the connection is closed, which is broken too.
        let _ = SockRef::from(connection.into_parts().io.inner()).set_linger(Some(Duration::ZERO));
    }
}

/// What ends a connection in the middle: it is broken on purpose, or the request was.
#[derive(Debug)]
struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("broken on purpose")
    }
}

impl std::error::Error for Broken {}

impl From<Infallible> for Broken {
    fn from(never: Infallible) -> Broken {
        match never {}
    }
}

async fn answer(request: Request<Incoming>, state: Arc<Mutex<State>>) -> Result<Response<Text>, Broken> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, BODY_LIMIT).collect().await.map_err(|_| Broken)?.to_bytes();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let call = Call::new(&head.method, path, &head.headers, &body);
    let (verdict, latency) = {
        let mut state = lock(&state);
        (state.judge(call, Instant::now()), state.latency)
    };
    if !latency.is_zero() {
        sleep(latency).await;
    }
    let text = expected(path);
    let mut response = Response::new(Text::whole(text));
    match verdict {
        Verdict::Answer => {}
        Verdict::Limited { retry_after } => {
            *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(retry_after));
        }
        Verdict::Fault(Fault::Status(status)) => *response.status_mut() = status,
        Verdict::Fault(Fault::Reset) => return Err(Broken),
        Verdict::Fault(Fault::Hang) => pending::<()>().await,
        Verdict::Fault(Fault::CutShort) => response.body_mut().cut_short(),
    }
    Ok(response)
}

/// The body of every answer, so that a client can tell a whole one.
pub fn expected(path: &str) -> Bytes {
    format!("an answer for {path}\n").into()
}

/// The body of an answer.
struct Text {
    rest: Option<Bytes>,
    length: u64,
    then: Then,
}

/// What follows the last byte of a [`Text`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    End,
    /// The connection breaks, once what was there is written.
    Write,
    Break,
}

impl Text {
    fn whole(text: Bytes) -> Text {
        Text { length: text.len() as u64, rest: Some(text), then: Then::End }
    }

    /// Announces twice what will come.
    fn cut_short(&mut self) {
        self.length *= 2;
        self.then = Then::Write;
    }
}

impl Body for Text {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if let Some(text) = self.rest.take() {
            return Poll::Ready(Some(Ok(Frame::data(text))));
        }
        match self.then {
            Then::End => Poll::Ready(None),
            // The server writes what it has while the body makes it wait.
            Then::Write => {
                self.then = Then::Break;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Then::Break => Poll::Ready(Some(Err(Broken))),
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
