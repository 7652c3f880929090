//! `outrigger demo`: the process around a [`Demo`].

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use rustix::termios::tcgetwinsize;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use crate::cli::{colour, complain};
use crate::demo::screen::{Screen, Size, Style};
use crate::demo::table::Paint;
use crate::demo::{Demo, lock};

/// How often the terminal is drawn.
const FRAME: Duration = Duration::from_millis(250);
/// Where there is no terminal, or it does not tell.
const USUAL: Size = Size { columns: 80, rows: 24 };

/// Below the options.
pub(crate) const HELP: &str = "\
Examples:
  outrigger demo            every phase once, in about 40 seconds
  outrigger demo --hold     phase after phase, with the dashboard to look at

Signals:
  SIGINT, SIGTERM   end it, with a summary of what was seen so far

Exit status:
  0  it ran, or was ended early
  1  it can't run: standard error says why
  2  the command line is wrong";

/// What `demo` is told.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Repeats the phases and keeps proxy and dashboard until Ctrl-C.
    #[arg(long)]
    hold: bool,
}

/// Runs the demonstration. 0 also where it was stopped early; 1 with the reason on standard error where it can't run.
pub(crate) fn demo(options: &Options) -> ExitCode {
    // Two threads, so that a terminal which is slow to write to does not hold up what is measured.
    let runtime = match Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("the runtime can't be started: {error}")),
    };
    let ended = runtime.block_on(show(options.hold));
    // A look-up that hangs must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => failed(&reason),
    }
}

fn failed(reason: &str) -> ExitCode {
    complain(reason);
    ExitCode::FAILURE
}

async fn show(hold: bool) -> Result<(), String> {
    let hear = |kind| signal(kind).map_err(|error| format!("signals can't be heard: {error}"));
    let (mut interrupt, mut terminate) = (hear(SignalKind::interrupt())?, hear(SignalKind::terminate())?);
    let demo = Demo::start(1.0)?;
    let board = demo.board();
    let now = || lock(&board).clone();
    let out = io::stdout();
    let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    let style = Style { live: out.is_terminal() && !dumb, paint: Paint(colour(&out)) };
    let mut screen = Screen::new(out, style, hold);
    if let Err(error) = screen.begin(&now(), size()) {
        return unread(&error);
    }
    let mut run = tokio::spawn(async move {
        loop {
            demo.round().await?;
            if !hold {
                return Ok::<_, String>(());
            }
        }
    });
    let mut frames = interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ended = loop {
        tokio::select! {
            _ = interrupt.recv() => break Ok(()),
            _ = terminate.recv() => break Ok(()),
            ended = &mut run => break ended.unwrap_or_else(|error| Err(format!("the demonstration broke off: {error}"))),
            _ = frames.tick() => {
                if let Err(error) = screen.update(&now(), size()) {
                    return unread(&error);
                }
            }
        }
    };
    // The update tells what has happened since the last frame.
    match screen.update(&now(), size()).and_then(|()| screen.end(&now(), size())) {
        Ok(()) => ended,
        Err(error) => ended.and_then(|()| unread(&error)),
    }
}

/// What was shown could not be written. That nobody reads any more, as after `| head`, is no failure.
fn unread(error: &io::Error) -> Result<(), String> {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(format!("standard output can't be written to: {error}")),
    }
}

/// The terminal's size, as it is now.
fn size() -> Size {
    let at_least_one = |n: u16, usual| if n > 0 { usize::from(n) } else { usual };
    match tcgetwinsize(io::stdout()) {
        Ok(size) => {
            Size { columns: at_least_one(size.ws_col, USUAL.columns), rows: at_least_one(size.ws_row, USUAL.rows) }
        }
        Err(_) => USUAL,
    }
}
