//! tracing, stdout, and what happens when nobody reads it or it can't be written: lines are dropped and counted, nothing ever
//! waits.
//!
//! Only Outrigger's own events are written, and errors of the libraries below it: at `debug` an HTTP library prints whole
//! messages, secrets included.

use std::fmt;
use std::io::{self, BufWriter, Write};
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::{self, LogLevel};
use crate::telemetry::line::Line;

/// Lines that wait for a slow reader before new ones are dropped.
const WAITING_LINES: usize = 8192;
/// How long the thread that writes lets lines gather once it has written all: to wake it for each would cost a request more than the
/// line itself.
const GATHER: Duration = Duration::from_millis(10);

/// The process's log.
#[derive(Clone)]
pub struct Logging {
    writer: NonBlocking,
    json: Arc<AtomicBool>,
    level: reload::Handle<Targets, Registry>,
    unwritten: Arc<AtomicU64>,
}

impl Logging {
    /// Logs to standard output from now on, panics included. The guard writes what is left when it is dropped.
    ///
    /// # Errors
    /// A sentence when the process logs elsewhere already.
    pub fn install(log: &config::Log) -> Result<(Logging, WorkerGuard), String> {
        let (logging, guard, subscriber) = Logging::over(BufWriter::with_capacity(64 << 10, std::io::stdout()), log);
        tracing::subscriber::set_global_default(subscriber).map_err(|error| error.to_string())?;
        std::panic::set_hook(Box::new(tell_panic));
        Ok((logging, guard))
    }

    fn over(
        out: impl Write + Send + 'static,
        log: &config::Log,
    ) -> (Logging, WorkerGuard, impl Subscriber + Send + Sync) {
        let unwritten = Arc::<AtomicU64>::default();
        let out = Counted { out, unwritten: unwritten.clone() };
        let (writer, guard) =
            NonBlockingBuilder::default().buffered_lines_limit(WAITING_LINES).thread_name("log").finish(out);
        let json = Arc::new(AtomicBool::new(log.json));
        let (filter, level) = reload::Layer::new(targets(log.level));
        let lines = Lines { json: json.clone(), writer: writer.clone() };
        (Logging { writer, json, level, unwritten }, guard, Registry::default().with(filter).with(lines))
    }

    /// A reload changed `log`.
    pub fn apply(&self, log: &config::Log) {
        self.json.store(log.json, Ordering::Relaxed);
        // It fails only where the subscriber is gone.
        let _ = self.level.reload(targets(log.level));
    }

    /// Where access lines go.
    pub fn writer(&self) -> NonBlocking {
        self.writer.clone()
    }

    /// How many lines were dropped so far: nobody read them in time, or they could not be written.
    pub fn dropped(&self) -> impl Fn() -> u64 + Send + 'static {
        let counter = self.writer.error_counter();
        let unwritten = self.unwritten.clone();
        move || counter.dropped_lines() as u64 + unwritten.load(Ordering::Relaxed)
    }
}

/// Counts the lines that could not be written: the disk is full, the reader is gone. The thread that writes tells nobody.
struct Counted<W> {
    out: W,
    unwritten: Arc<AtomicU64>,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    /// A line.
    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        let written = self.out.write_all(line);
        if written.is_err() {
            self.unwritten.fetch_add(1, Ordering::Relaxed);
        }
        written
    }

    /// It has caught up. So the first line after a while is written at once, and those that follow by the dozen.
    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.out.flush();
        thread::sleep(GATHER);
        flushed
    }
}

/// The payload may quote a request, so only the place is told.
fn tell_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string);
    tracing::error!(place, thread = std::thread::current().name(), "a panic");
}

fn targets(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    Targets::new().with_default(LevelFilter::ERROR).with_target("outrigger", level)
}

/// Writes each event as one line.
struct Lines {
    json: Arc<AtomicBool>,
    writer: NonBlocking,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        let level = event.metadata().level().as_str();
        let mut line = Line::new(self.json.load(Ordering::Relaxed), level, &message.0);
        event.record(&mut Fields(&mut line));
        // A writer that drops lines when it is full reports no errors.
        let _ = self.writer.clone().write_all(line.finish().as_bytes());
    }
}

/// Finds the sentence, wherever it stands among the fields.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

/// Writes everything but the sentence.
struct Fields<'a>(&'a mut Line);

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.0.number(field.name(), value);
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.integer(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.integer(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.number(field.name(), value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.text(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() != "message" {
            self.0.text(field.name(), &format!("{value:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn settings(json: bool, level: LogLevel) -> config::Log {
        config::Log { json, level, access: config::AccessLog::Off, path: config::LogPath::Off }
    }

    fn written(log: &config::Log, act: impl FnOnce(&Logging)) -> String {
        let memory = Memory::default();
        let (logging, guard, subscriber) = Logging::over(memory.clone(), log);
        tracing::subscriber::with_default(subscriber, || act(&logging));
        drop(guard);
        String::from_utf8(memory.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn an_event_is_a_line_of_json() {
        let text = written(&settings(true, LogLevel::Info), |_| {
            tracing::warn!(upstream = "a", times = 3_u64, on = true, "the circuit changed");
            tracing::debug!("not shown");
        });
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["message"], "the circuit changed");
        assert_eq!(
            (&json["level"], &json["upstream"], &json["times"], &json["on"]),
            (&"warn".into(), &"a".into(), &3.into(), &true.into())
        );
    }

    #[test]
    fn level_and_format_change_while_it_runs() {
        let text = written(&settings(true, LogLevel::Error), |logging| {
            tracing::info!("before");
            logging.apply(&settings(false, LogLevel::Debug));
            tracing::debug!(n = 1, "after");
        });
        assert!(text.ends_with(" DEBUG after n=1\n") && !text.contains("before"), "{text}");
    }

    /// A full disk.
    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        let (logging, guard, subscriber) = Logging::over(Full, &settings(true, LogLevel::Info));
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..3 {
                tracing::info!("lost");
            }
        });
        drop(guard);
        assert_eq!(logging.dropped()(), 3);
    }

    #[test]
    fn libraries_are_heard_when_they_fail_only() {
        let text = written(&settings(true, LogLevel::Debug), |_| {
            tracing::debug!(target: "h2::codec", "authorization: Bearer secret");
            tracing::error!(target: "rustls", "broken");
        });
        assert!(!text.contains("secret") && text.contains("broken"), "{text}");
    }

    #[test]
    fn a_panic_is_told_by_its_place_and_without_its_words() {
        let text = written(&settings(true, LogLevel::Debug), |_| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(tell_panic));
            let ended = std::panic::catch_unwind(|| panic!("authorization: {}", "hunter2"));
            std::panic::set_hook(before);
            assert!(ended.is_err());
        });
        assert!(text.contains("a panic") && text.contains("logging.rs:") && !text.contains("hunter2"), "{text}");
    }
}
