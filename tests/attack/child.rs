//! The real binary as a process of its own, on an address of its own, so that what happens to a process can be done to it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Client, Origin, eventually};

/// Ends with the value.
pub(crate) struct Child {
    process: std::process::Child,
    ip: Ipv4Addr,
    dir: tempfile::TempDir,
}

/// `up.test` (and `up2.test`, with connections of its own) lead to the origin. `more` is indented into both upstreams' maps
/// where it begins with spaces, and follows them otherwise.
pub(crate) fn text(origin: &Origin, policies: &str, more: &str) -> String {
    let upstream = |name: &str| {
        format!(
            "  {name}:\n    hosts: [{name}.test, \"127.0.0.1:{}\"]\n    to: [\"http://{}\"]\n    allow_addresses: [loopback]\n{policies}",
            if name == "up" { origin.address().port() } else { 1 },
            origin.address()
        )
    };
    format!("upstreams:\n{}{}{more}", upstream("up"), upstream("up2"))
}

impl Child {
    /// From everything but `version` and `listeners`, its log thrown away.
    pub(crate) async fn start(text: &str) -> Child {
        let child = Child::spawn("", Stdio::null(), Stdio::inherit(), text);
        child.ready().await;
        child
    }

    /// After a piece of shell, such as `ulimit -n 128;`. It may not be ready yet.
    pub(crate) fn spawn(shell: &str, stdout: Stdio, stderr: Stdio, text: &str) -> Child {
        // All of 127.0.0.0/8 is this machine: nobody else has this address.
        let ip = Ipv4Addr::new(127, fastrand::u8(1..), fastrand::u8(..), fastrand::u8(1..255));
        let dir = tempfile::tempdir().unwrap();
        let mut child = Child { process: Command::new("true").spawn().unwrap(), ip, dir };
        child.process.wait().unwrap();
        child.write(text);
        child.process = Command::new("sh")
            .args(["-c", &format!("{shell} exec \"$0\" run --config \"$1\"")])
            .arg(env!("CARGO_BIN_EXE_outrigger"))
            .arg(child.dir.path().join("outrigger.yaml"))
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .unwrap();
        child
    }

    /// Another configuration, as [`Child::start`] takes it.
    pub(crate) fn write(&self, text: &str) {
        let [proxy, admin, probes] = ["proxy", "admin", "probes"].map(|listener| self.address(listener));
        let text =
            format!("version: 1\nlisteners: {{proxy: \"{proxy}\", admin: \"{admin}\", probes: \"{probes}\"}}\n{text}");
        let file = self.dir.path().join("outrigger.yaml");
        let new = self.dir.path().join("new.yaml");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, file).unwrap();
    }

    /// A directory that goes with it.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Waits until it is ready.
    pub(crate) async fn ready(&self) {
        eventually("the child is ready", async || tokio::net::TcpStream::connect(self.address("probes")).await.is_ok())
            .await;
    }

    pub(crate) fn address(&self, listener: &str) -> SocketAddr {
        let port = match listener {
            "proxy" => 7171,
            "admin" => 7172,
            "probes" => 7173,
            other => panic!("no listener {other}"),
        };
        SocketAddr::from((self.ip, port))
    }

    /// A connection to the proxy port.
    pub(crate) async fn connect(&self) -> Client {
        Client::connect(self.address("proxy")).await
    }

    /// Asks a listener on a connection of its own.
    pub(crate) async fn ask(&self, listener: &str, method: &str, path: &str) -> String {
        let mut client = Client::connect(self.address(listener)).await;
        let address = self.address(listener);
        client
            .send(format!(
                "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            ))
            .await;
        String::from_utf8_lossy(&client.rest().await).into_owned()
    }

    /// A request to `up.test`, on a connection of its own.
    pub(crate) async fn get(&self) -> String {
        self.talk("GET http://up.test/ HTTP/1.1\r\nHost: up.test\r\nConnection: close\r\n\r\n").await
    }

    /// Sends bytes to the proxy port, on a connection of their own, and returns what comes, whatever ends it.
    pub(crate) async fn talk(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut client = self.connect().await;
        client.send(bytes).await;
        String::from_utf8_lossy(&client.end().await.0).into_owned()
    }

    pub(crate) async fn metrics(&self) -> String {
        self.ask("probes", "GET", "/metrics").await
    }

    /// One series, 0 where it isn't there.
    pub(crate) async fn figure(&self, series: &str) -> f64 {
        let metrics = self.metrics().await;
        let found = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
        found.unwrap_or(0.0)
    }

    /// Waits until a series has this value.
    pub(crate) async fn comes_to(&self, series: &str, value: f64) {
        eventually(&format!("{series} {value}"), async || self.figure(series).await == value).await;
    }

    /// Its resident memory in KiB.
    pub(crate) fn resident(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The most that was ever resident, in KiB.
    pub(crate) fn peak(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// A size of `/proc/<pid>/status` in KiB (proc(5)).
    fn status(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Waits until its memory is within a fifth of what it was.
    pub(crate) async fn shrinks_to(&self, idle: u64) {
        let mut now = 0;
        let deadline = tokio::time::Instant::now() + crate::support::PATIENCE;
        while tokio::time::Instant::now() < deadline {
            // The allocator gives back what is free when it is used.
            self.metrics().await;
            now = self.resident();
            if now <= idle + idle / 5 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        panic!("{now} KiB, {idle} KiB before");
    }

    /// Pipes that it has open.
    pub(crate) fn pipes(&self) -> usize {
        let all = std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap();
        let links = all.filter_map(|one| std::fs::read_link(one.ok()?.path()).ok());
        let mut pipes: Vec<_> = links.filter(|link| link.to_string_lossy().starts_with("pipe:")).collect();
        pipes.sort();
        pipes.dedup();
        pipes.len()
    }

    /// Processor time that it took so far, in ticks: hundredths of a second on every usual system.
    pub(crate) fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        let (_, behind) = stat.rsplit_once(')').unwrap();
        behind.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> std::process::ExitStatus {
        let mut status = None;
        eventually("the child ends", async || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }

    /// What it wrote to standard error, once it has ended.
    pub(crate) fn complaint(&mut self) -> String {
        std::io::read_to_string(self.process.stderr.take().unwrap()).unwrap()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
