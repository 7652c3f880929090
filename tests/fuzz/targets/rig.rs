//! The whole proxy with an upstream behind it, on loopback sockets and paused time: one thread, so that time goes on only
//! when nobody has anything to do. A wait of minutes takes no time, and what waits for ever is seen at once.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outrigger::app::App;
use outrigger::config::load::{Options, load_text};
use outrigger::reload::Source;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// Nothing happened for so long: nothing will without a further word. Longer than the clocks of the rig's configuration that
/// let something go on.
pub const QUIET: Duration = Duration::from_secs(4);
/// Whatever has not ended by then never will.
const PATIENCE: Duration = Duration::from_secs(600);

/// The settings that all targets share. `{origin}` is where the upstream is, and `{dir}` a directory that is written to.
pub const SETTINGS: &str = r#"
version: 1
listeners: {proxy: "127.0.0.1:0", admin: off, probes: off}
egress: {unmatched: deny, connect_ports: [1, 443]}
limits: {max_header_bytes: 8KiB, max_headers: 40, header_timeout: 2s, max_connections: 1000}
log: {access: off}
"#;

/// What the upstream does with a connection.
pub type Script = Rc<dyn Fn(TcpStream) -> Pin<Box<dyn Future<Output = ()>>>>;

/// See the module.
pub struct Rig {
    runtime: Runtime,
    tasks: tokio::task::LocalSet,
    app: App,
    origin: Rc<TcpListener>,
    _dir: tempfile::TempDir,
    /// Longer waits in real time, for a machine that has much else to do.
    patient: bool,
}

impl Rig {
    /// From the configuration behind [`SETTINGS`].
    pub fn new(upstreams: &str) -> Rig {
        Rig::from(&format!("{SETTINGS}{upstreams}"))
    }

    /// As [`Rig::new`], with a control port.
    pub fn with_admin(upstreams: &str) -> Rig {
        Rig::from(&format!("{SETTINGS}{upstreams}").replace("admin: off", "admin: \"127.0.0.1:0\""))
    }

    fn from(text: &str) -> Rig {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime can be made");
        let dir = tempfile::tempdir().expect("there is a place for temporary files");
        let (app, origin) = runtime.block_on(async {
            let origin = TcpListener::bind("127.0.0.1:0").await.expect("loopback is there");
            let address = origin.local_addr().expect("it is bound").to_string();
            let text = text.replace("{origin}", &address);
            let text = text.replace("{dir}", &dir.path().to_string_lossy());
            let loaded = load_text(&text, Path::new("rig.yaml"), Options::default(), &|_| None);
            let config = loaded.config.unwrap_or_else(|| panic!("{:?}", loaded.problems));
            let app = App::start(config, Source::Text(text.into())).expect("it starts");
            (app, origin)
        });
        Rig { runtime, tasks: tokio::task::LocalSet::new(), app, origin: Rc::new(origin), _dir: dir, patient: false }
    }

    /// Where a listener of the proxy is.
    pub fn address(&self, listener: &str) -> SocketAddr {
        self.app.address(listener)
    }

    /// Runs `act` as the app while the upstream runs `script`, to the end of both, and then looks at what is left. A fault is
    /// believed only when it shows again with more time in between: loopback may be slow on a busy machine.
    pub fn run<F>(&mut self, act: impl Fn(Caller) -> F, script: impl Fn() -> Script)
    where
        F: Future<Output = Result<(), String>>,
    {
        let mut fault = String::new();
        for attempt in 0..3 {
            self.patient = attempt > 0;
            match self.once(&act, script()) {
                Ok(()) => return,
                Err(why) => fault = why,
            }
        }
        panic!("{fault}");
    }

    fn once<F>(&self, act: impl Fn(Caller) -> F, script: Script) -> Result<(), String>
    where
        F: Future<Output = Result<(), String>>,
    {
        let (origin, patient, proxy) = (self.origin.clone(), self.patient, self.app.address("proxy"));
        let metrics = self.app.metrics();
        self.runtime.block_on(self.tasks.run_until(async move {
            let upstream = tokio::task::spawn_local(async move {
                let mut connections = JoinSet::new();
                while let Ok((stream, _)) = origin.accept().await {
                    let _ = stream.set_zero_linger();
                    connections.spawn_local(script(stream));
                }
            });
            let result = act(Caller { proxy, patient }).await;
            upstream.abort();
            let _ = upstream.await;
            // The proxy notices, and its connections end.
            let begun = Instant::now();
            let left = || metrics.sample("outrigger_downstream_connections").unwrap_or(0.0);
            let mut wait = Duration::from_millis(1);
            settle(patient, wait).await;
            while result.is_ok() && left() > 0.0 {
                if begun.elapsed() > PATIENCE {
                    return Err(format!("{} connections of apps are left over", left()));
                }
                // A look costs more than a wait.
                wait *= 8;
                settle(patient, wait).await;
            }
            result
        }))
    }
}

/// The app's side.
#[derive(Clone, Copy)]
pub struct Caller {
    proxy: SocketAddr,
    patient: bool,
}

impl Caller {
    /// The same, towards another port.
    pub fn to(self, port: SocketAddr) -> Caller {
        Caller { proxy: port, ..self }
    }

    /// Sends bytes on a connection of their own, and takes what comes until nothing comes any more.
    pub async fn say(self, bytes: &[u8]) -> Dialogue {
        let stream = TcpStream::connect(self.proxy).await.expect("the proxy listens");
        let _ = stream.set_zero_linger();
        let mut dialogue = Dialogue { stream: Some(stream), heard: Vec::new(), end: End::Open, patient: self.patient };
        dialogue.say(bytes).await;
        dialogue
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Not yet.
    Open,
    /// As it should.
    Closed,
    /// By a reset.
    Reset,
}

/// A connection to the proxy.
pub struct Dialogue {
    stream: Option<TcpStream>,
    /// Everything so far.
    pub heard: Vec<u8>,
    /// Whether the proxy ended it.
    pub end: End,
    patient: bool,
}

impl Dialogue {
    /// Sends more, and listens until it is quiet.
    pub async fn say(&mut self, bytes: &[u8]) {
        let Some(stream) = &mut self.stream else { return };
        let (mut read, mut write) = stream.split();
        let mut sending = std::pin::pin!(async {
            // The proxy may have had enough.
            let _ = write.write_all(bytes).await;
        });
        let mut sent = false;
        let mut asked = 0;
        let begun = Instant::now();
        // Some answers never end.
        while begun.elapsed() < 4 * QUIET {
            let mut piece = [0; 4096];
            tokio::select! {
                () = &mut sending, if !sent => sent = true,
                got = timeout(QUIET / 4, read.read(&mut piece)) => match got {
                    Ok(got) => {
                        asked = 0;
                        if let Some(end) = heard(&mut self.heard, got, &piece) {
                            self.end = end;
                            return;
                        }
                    }
                    Err(_) => {
                        asked += 1;
                        pause(self.patient);
                        if asked >= 4 {
                            return;
                        }
                    }
                },
            }
        }
    }

    /// Says that nothing more will be said, and listens to the end.
    ///
    /// # Errors
    /// There is none.
    pub async fn finish(&mut self) -> Result<(), String> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let _ = stream.shutdown().await;
        let begun = Instant::now();
        while self.end == End::Open {
            if begun.elapsed() > PATIENCE {
                let heard = String::from_utf8_lossy(&self.heard);
                return Err(format!("the connection never ends; it said {heard:?}"));
            }
            let mut piece = [0; 4096];
            match timeout(Duration::from_secs(30), stream.read(&mut piece)).await {
                Ok(got) => {
                    if let Some(end) = heard(&mut self.heard, got, &piece) {
                        self.end = end;
                    }
                }
                Err(_) => pause(self.patient),
            }
        }
        self.stream = None;
        Ok(())
    }
}

fn heard(all: &mut Vec<u8>, got: io::Result<usize>, piece: &[u8]) -> Option<End> {
    match got {
        Ok(0) => Some(End::Closed),
        Ok(n) => {
            all.extend_from_slice(&piece[..n]);
            None
        }
        Err(_) => Some(End::Reset),
    }
}

/// What happens on loopback happens at once, unless the machine is busy: then the kernel needs real time, and has no event for being done.
fn pause(patient: bool) {
    if patient {
        std::thread::sleep(Duration::from_millis(20));
    }
}

async fn settle(patient: bool, wait: Duration) {
    pause(patient);
    tokio::time::sleep(wait).await;
}

/// Something that all connections of an upstream write down.
#[derive(Clone, Default)]
pub struct Notes<T>(Arc<Mutex<Vec<T>>>);

impl<T> Notes<T> {
    /// None yet.
    pub fn new() -> Notes<T> {
        Notes(Arc::default())
    }

    /// One more.
    pub fn add(&self, note: T) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(note);
    }

    /// All of them.
    pub fn take(&self) -> Vec<T> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A script from a function.
pub fn script<F: Future<Output = ()> + 'static>(act: impl Fn(TcpStream) -> F + 'static) -> Script {
    Rc::new(move |stream| Box::pin(act(stream)))
}
