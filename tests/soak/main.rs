//! The soak: an Outrigger process between mixed apps and upstreams whose faults change every few seconds, with a reload every
//! two. It prints what it saw and ends with 1 where a promise was broken. Not a part of `cargo test`; see docs/soak.md.
//!
//! `cargo test --release --test soak -- --minutes 30`, or with `OUTRIGGER_BIN` the binary of your choice. Linux only.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that cannot go on panics, and prints what it saw"
)]
#![allow(missing_docs, reason = "a program")]

mod app;
mod bytes;
mod figures;
mod process;
mod settings;
mod tally;
mod upstream;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::app::Apps;
use crate::figures::Figures;
use crate::process::Process;
use crate::settings::Place;
use crate::tally::Tally;
use crate::upstream::{Speaks, Upstream};

const HELP: &str = "The soak. Options: --minutes N (30; SOAK_MINUTES), --binary FILE (OUTRIGGER_BIN; else the \
                    one that cargo built)";

/// How often the configuration changes.
const RELOAD: Duration = Duration::from_secs(2);
/// How long the process has to come to rest when the apps are gone.
const REST: Duration = Duration::from_secs(45);

struct Options {
    minutes: f64,
    binary: PathBuf,
}

fn options() -> Result<Options, String> {
    let variable = |name: &str| std::env::var(name).ok();
    let mut minutes = variable("SOAK_MINUTES").unwrap_or_else(|| "30".to_owned());
    let mut binary = variable("OUTRIGGER_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_outrigger").to_owned());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let place = match argument.as_str() {
            "--minutes" => &mut minutes,
            "--binary" => &mut binary,
            other => return Err(format!("`{other}` is not known. {HELP}")),
        };
        *place = arguments.next().ok_or_else(|| format!("`{argument}` needs a value. {HELP}"))?;
    }
    let minutes = minutes.parse().ok().filter(|minutes| *minutes >= 0.5 && *minutes < 1e5);
    Ok(Options { minutes: minutes.ok_or("--minutes must be a number from 0.5")?, binary: binary.into() })
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::from(2);
        }
    };
    println!("soak of {} for {} minutes", options.binary.display(), options.minutes);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(soak(&options))
}

async fn soak(options: &Options) -> ExitCode {
    let tally = Arc::new(Tally::default());
    let folder = tempfile::tempdir().unwrap();
    let authority = upstream::authority(folder.path());
    let plain = Upstream::start(Speaks::Plain, &authority, tally.clone());
    let tls1 = Upstream::start(Speaks::Tls1, &authority, tally.clone());
    let tls2 = Upstream::start(Speaks::Tls2, &authority, tally.clone());
    let place =
        Place { folder: folder.path().to_owned(), plain: plain.address(), tls1: tls1.address(), tls2: tls2.address() };
    let mut process = Process::start(&options.binary, &place, tally.clone());
    println!("proxy on {}, dashboard on http://{}/", process.proxy, process.admin);
    let mut figures = Figures::new(process.pid());
    figures.sample(&process).await;

    let apps = Apps::start(process.proxy, &place, tally.clone());
    let faults: Vec<_> = [&plain, &tls1, &tls2].map(|upstream| tokio::spawn(upstream.clone().misbehave())).into();
    let end = Instant::now() + Duration::from_secs_f64(options.minutes * 60.0);
    let (mut reloads, mut told) = (0, Instant::now());
    while Instant::now() < end && process.is_alive() {
        sleep(RELOAD / 2).await;
        figures.sample(&process).await;
        sleep(RELOAD / 2).await;
        figures.sample(&process).await;
        reloads += 1;
        process.reload(&place, reloads).await;
        if told.elapsed() >= Duration::from_secs(60) {
            told = Instant::now();
            println!("{} requests, {} reloads, {}", tally.total(), reloads, figures.now());
        }
    }
    faults.into_iter().for_each(|task| task.abort());
    for upstream in [&plain, &tls1, &tls2] {
        upstream.heal().await;
    }
    apps.stop().await;
    let rest = figures.rest(&process, REST).await;
    let ended = process.stop().await;

    tally.count("reloads", "done", reloads);
    println!("\n{}", tally.table());
    println!("{}", figures.table());
    let mut broken = tally.wrong();
    broken.extend(figures.wrong());
    broken.extend(rest.err());
    broken.extend(ended.err());
    if broken.is_empty() {
        println!("every promise was kept");
        return ExitCode::SUCCESS;
    }
    for one in &broken {
        println!("BROKEN: {one}");
    }
    ExitCode::FAILURE
}
