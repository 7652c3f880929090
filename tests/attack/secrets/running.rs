//! The program under test, with secrets in its environment.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::known::secret;
use crate::support::{Client, eventually};

/// A command of the program's, for this file.
pub(super) fn outrigger(arguments: &[&str], config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command.args(arguments).arg("--config").arg(config);
    command
        .env("HOOK", secret("hook-in-env"))
        .env("TENANT_HEADER", format!("x-{}", secret("header-in-env")))
        .env("AWS_SECRET_ACCESS_KEY", secret("process-env"))
        .env("OTEL_EXPORTER_OTLP_HEADERS", format!("authorization=Bearer%20{}", secret("collector-headers")))
        .env("OTEL_BSP_SCHEDULE_DELAY", "5");
    command
}

/// The program with its output in a file.
pub(super) struct Running {
    process: Child,
    log: PathBuf,
    addresses: Value,
}

impl Running {
    pub(super) async fn start(config: &Path, collector: &str) -> Running {
        let log = config.with_extension("log");
        let file = File::create(&log).unwrap();
        let mut command = outrigger(&["run"], config);
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", collector);
        let process = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        let mut running = Running { process, log, addresses: Value::Null };
        eventually("it is ready", async || {
            let text = std::fs::read_to_string(&running.log).unwrap();
            let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            running.addresses = lines.into_iter().find(|line| line["message"] == "ready").unwrap_or_default();
            !running.addresses.is_null()
        })
        .await;
        running
    }

    pub(super) async fn connect(&self, listener: &str) -> Client {
        Client::connect(self.addresses[listener].as_str().unwrap().parse().unwrap()).await
    }

    /// Sends bytes and reads what comes until the connection ends or a moment has passed without more.
    pub(super) async fn talk(&self, listener: &str, bytes: &[u8]) -> Vec<u8> {
        let mut client = self.connect(listener).await;
        // It may be refused before all of it was sent.
        let _ = client.stream.write_all(bytes).await;
        client.end().await.0
    }

    pub(super) async fn admin(&self, method: &str, path: &str, body: &str) -> Vec<u8> {
        let (token, length) = (secret("admin-token"), body.len());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\
             Authorization: Bearer {token}\r\n\r\n{body}"
        );
        self.talk("admin", request.as_bytes()).await
    }

    /// Ends it, and gives all it said.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).unwrap()).unwrap();
        kill_process(pid, Signal::Term).unwrap();
        assert!(self.process.wait().unwrap().success());
        std::fs::read(&self.log).unwrap()
    }
}
