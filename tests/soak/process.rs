//! The Outrigger process: started, reloaded in each of the ways there are, asked how it is, and ended.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::bytes::empty;
use crate::settings::Place;
use crate::tally::Tally;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Process {
    child: Child,
    pub(crate) proxy: SocketAddr,
    pub(crate) admin: SocketAddr,
    tally: Arc<Tally>,
}

impl Process {
    /// Started, and accepting.
    pub(crate) fn start(binary: &Path, place: &Place, tally: Arc<Tally>) -> Process {
        std::fs::write(place.file(), place.text(0)).unwrap();
        let mut child = Command::new(binary)
            .args(["run", "--config"])
            .arg(place.file())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let parsed = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap_or_default();
        let address = |line: &serde_json::Value, name: &str| line[name].as_str().and_then(|text| text.parse().ok());
        let (proxy, admin) = loop {
            let line = lines.next().expect("it says that it is ready before it ends").unwrap();
            let line = parsed(&line);
            if let (Some(proxy), Some(admin)) = (address(&line, "proxy"), address(&line, "admin")) {
                break (proxy, admin);
            }
        };
        let log = tally.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if parsed(&line)["level"] == "error" {
                    log.broken(format!("it logged {line}"));
                }
            }
        });
        Process { child, proxy, admin, tally }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// False where it has ended by itself, which it must not.
    pub(crate) fn is_alive(&mut self) -> bool {
        let ended = self.child.try_wait().ok().flatten();
        if let Some(status) = ended {
            self.tally.broken(format!("it ended with {status}"));
        }
        ended.is_none()
    }

    /// The next configuration, taken by request, by signal, or by itself.
    pub(crate) async fn reload(&self, place: &Place, number: u64) {
        let file = place.file();
        let fresh = file.with_extension("fresh");
        std::fs::write(&fresh, place.text(number)).unwrap();
        std::fs::rename(&fresh, &file).unwrap();
        match number % 3 {
            0 => match self.ask("POST", "/reload").await {
                Some((200, _)) => {}
                other => self.tally.broken(format!("reload {number} was answered with {other:?}")),
            },
            1 => {
                let pid = Pid::from_raw(self.pid() as i32).expect("a process has a number");
                kill_process(pid, Signal::Hup).unwrap();
            }
            // The file is watched.
            _ => {}
        }
    }

    /// The metrics.
    pub(crate) async fn metrics(&self) -> Option<String> {
        self.ask("GET", "/metrics").await.map(|(_, body)| body)
    }

    async fn ask(&self, method: &str, path: &str) -> Option<(u16, String)> {
        let asked = async {
            let stream = TcpStream::connect(self.admin).await.ok()?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
            let task = tokio::spawn(connection);
            let request = Request::builder().method(method).uri(path).header("host", self.admin.to_string());
            let answer = sender.send_request(request.body(empty()).unwrap()).await.ok()?;
            let status = answer.status().as_u16();
            let body = answer.into_body().collect().await.ok()?.to_bytes();
            task.abort();
            Some((status, String::from_utf8_lossy(&body).into_owned()))
        };
        let answer = timeout(PATIENCE, asked).await.ok().flatten();
        if answer.is_none() {
            self.tally.broken(format!("{method} {path} on the admin port was not answered"));
        }
        answer
    }

    /// Ends it in good order.
    pub(crate) async fn stop(mut self) -> Result<(), String> {
        let pid = Pid::from_raw(self.pid() as i32).expect("a process has a number");
        kill_process(pid, Signal::Term).map_err(|error| format!("it had ended before: {error}"))?;
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(None) => sleep(Duration::from_millis(50)).await,
                Ok(Some(_)) | Err(_) => break,
            }
        }
        Err(format!("on SIGTERM it ended with {:?}", self.child.try_wait()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
