//! `outrigger run`: the process around an [`App`].

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_appender::non_blocking::WorkerGuard;

use crate::app::App;
use crate::cli::complain;
use crate::cli::spans::Spans;
use crate::config::Config;
use crate::config::load::{self, Options};
use crate::reload;
use crate::telemetry::logging::Logging;

/// How long whoever reads the log may take for its last lines.
const LAST_LINES: Duration = Duration::from_millis(1500);

/// Descriptors besides connections: listeners, files, the runtime's own.
const OTHER_DESCRIPTORS: u64 = 64;

/// Below the options.
pub(crate) const HELP: &str = "\
Examples:
  outrigger run --config outrigger.yaml
  curl -x http://127.0.0.1:7171 http://example.com/   a call through it, from another terminal

Signals:
  SIGTERM, SIGINT   end once nothing is in flight, at `shutdown.grace` at the latest; the second one at once
  SIGHUP            read the file again; edits are noticed without it too

Exit status:
  0  ended as it was told to
  1  the configuration can't be read or is invalid, or a listener can't be opened: standard error says which
  2  the command line is wrong";

/// Runs the proxy until it is told to end. 0 after a drain; 1 with the reason on standard error when the configuration is
/// invalid or a listener can't be opened.
pub fn run(config: PathBuf) -> ExitCode {
    match start(&config) {
        Ok(code) => code,
        Err(reason) => {
            complain(&reason);
            ExitCode::FAILURE
        }
    }
}

fn start(path: &Path) -> Result<ExitCode, String> {
    let loaded = load::load(path, Options::default()).map_err(|error| format!("{}: {error}", path.display()))?;
    let Some(config) = loaded.config else {
        let problems: Vec<String> = loaded.problems.errors.iter().map(ToString::to_string).collect();
        return Err(format!("{} is not valid\n{}", path.display(), problems.join("\n")));
    };
    let (logging, written) = Logging::install(&config.log)?;
    for warning in &loaded.problems.warnings {
        reload::warn(warning);
    }
    raise_descriptor_limit(&config);
    let spans = Spans::from_env()?;
    let runtime = runtime().map_err(|error| format!("the runtime can't be started: {error}"))?;
    let ended = runtime.block_on(serve(config, path, logging, spans));
    // A look-up that hangs must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    finish(written);
    ended
}

/// Lets the log be written to its end. Where nobody reads standard output, dropping the guard would wait for ever: it prints
/// its complaint there too.
fn finish(written: WorkerGuard) {
    let (done, is_done) = mpsc::channel();
    std::thread::spawn(move || {
        drop(written);
        // Whoever waited for it may have given up.
        let _ = done.send(());
    });
    let _ = is_done.recv_timeout(LAST_LINES);
}

/// One thread needs no scheduler that moves work between threads.
fn runtime() -> std::io::Result<Runtime> {
    let one = std::thread::available_parallelism().is_ok_and(|threads| threads.get() == 1);
    let chosen = std::env::var_os("TOKIO_WORKER_THREADS");
    let single = chosen.map_or(one, |threads| threads == "1");
    if single {
        Builder::new_current_thread().enable_all().build()
    } else {
        Builder::new_multi_thread().enable_all().build()
    }
}

async fn serve(config: Config, path: &Path, logging: Logging, spans: Spans) -> Result<ExitCode, String> {
    // SIGPIPE needs nothing: Rust's own start-up ignores it.
    let hear = |kind| signal(kind).map_err(|error| format!("signals can't be heard: {error}"));
    let mut terminate = hear(SignalKind::terminate())?;
    let mut interrupt = hear(SignalKind::interrupt())?;
    let mut hangup = hear(SignalKind::hangup())?;
    let app = Arc::new(App::start_traced(config, path.to_owned(), Some(logging), |proxy| spans.start(proxy))?);
    let reloading = app.clone();
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            reloading.reload_now().await;
        }
    });
    told_to_end(&mut terminate, &mut interrupt).await;
    tokio::select! {
        _ = app.drain() => Ok(ExitCode::SUCCESS),
        () = told_to_end(&mut terminate, &mut interrupt) => {
            tracing::warn!("a second signal came, ending at once");
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn told_to_end(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Every connection is a descriptor, and the soft limit that processes start with is often 1024.
fn raise_descriptor_limit(config: &Config) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, "the limit of open files can't be raised");
    }
    let now = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let upstreams: u64 = config.upstreams.iter().map(|one| u64::from(one.connections.max.get())).sum();
    let needed = u64::from(config.limits.max_connections.get())
        + upstreams
        + u64::from(config.unmatched.connections.max.get())
        + OTHER_DESCRIPTORS;
    if now < needed {
        tracing::warn!(
            limit = now,
            needed,
            "the limit of open files is lower than limits.max_connections and the upstreams' connections.max together"
        );
    }
}
