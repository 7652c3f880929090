//! The fuzz targets with a toolchain that has no fuzzer: first the committed corpus as it is, then mutations of it for a while.
//! A failure prints what repeats it. How to run them with libFuzzer is in `README.md`.
//!
//! | variable | means |
//! | --- | --- |
//! | `FUZZ_SECONDS` | how long each target is tried; 2 where it is not set |
//! | `FUZZ_SEED` | which mutations; 1 where it is not set, so that what passed once passes again; `clock` chooses one and prints it |
//! | `FUZZ_INPUT` | a file to be tried alone |
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what was tried is shown to who asks for it")]

mod mutate;
mod targets;

use std::cell::Cell;
use std::env;
use std::fs;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mutate::Mutator;

thread_local! {
    /// Panics on this thread, also those that the proxy survives.
    static PANICS: Cell<usize> = const { Cell::new(0) };
}

static HOOK: Once = Once::new();

/// No input takes so long, on any machine.
const LONGEST: Duration = Duration::from_secs(120);

/// What is being tried, and since when; gone when the target is done.
type Trial = Arc<Mutex<(Instant, Vec<u8>)>>;

/// Ends the process where a target does not come back: a test that hangs says nothing.
fn watch(name: &'static str) -> Trial {
    let trial = Trial::new(Mutex::new((Instant::now(), Vec::new())));
    let watched = Arc::downgrade(&trial);
    thread::spawn(move || {
        while let Some(trial) = watched.upgrade() {
            let (since, input) = trial.lock().unwrap_or_else(PoisonError::into_inner).clone();
            drop(trial);
            if since.elapsed() > LONGEST {
                eprintln!("{name} does not come back from {}", told(name, &input, ""));
                process::abort();
            }
            // Whoever hangs for two minutes is found soon enough.
            thread::sleep(Duration::from_secs(1));
        }
    });
    trial
}

/// Tries a target.
fn drive(name: &'static str, target: fn(&[u8])) {
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            before(info);
        }));
    });
    let trial = watch(name);
    let attempt = |input: &[u8], which: &str| {
        *trial.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), input.to_vec());
        let before = PANICS.get();
        let result = catch_unwind(AssertUnwindSafe(|| target(input)));
        assert!(result.is_ok() && PANICS.get() == before, "{name} breaks on {}", told(name, input, which));
    };
    if let Some(file) = env::var_os("FUZZ_INPUT") {
        return attempt(&fs::read(file).unwrap(), "");
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
    let mut corpus = read_all(&here.join("corpus").join(name));
    assert!(!corpus.is_empty(), "{name} has no corpus");
    if name == "config" {
        corpus.extend(["broken", "valid"].iter().flat_map(|kind| read_all(&here.join("../config").join(kind))));
    }
    for (path, input) in &corpus {
        attempt(input, &format!("which is {}", path.display()));
    }
    let number = |name| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 % 1_000_000;
    let seed = if env::var("FUZZ_SEED").is_ok_and(|seed| seed == "clock") {
        clock()
    } else {
        number("FUZZ_SEED").unwrap_or(1)
    };
    let until = Instant::now() + Duration::from_secs(number("FUZZ_SECONDS").unwrap_or(2));
    let words = fs::read_to_string(here.join("dict").join(name)).unwrap_or_default();
    let mut mutator = Mutator::new(seed, corpus.into_iter().map(|(_, input)| input).collect(), &words);
    let mut tried = 0_u64;
    while Instant::now() < until {
        let input = mutator.next();
        attempt(&input, &format!("number {tried} of FUZZ_SEED={seed}"));
        tried += 1;
    }
    println!("{name}: {tried} mutations, FUZZ_SEED={seed}");
}

/// Every file of a directory, in the order of their names.
fn read_all(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut paths: Vec<_> = fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// What repeats a failure.
fn told(name: &str, input: &[u8], which: &str) -> String {
    let file = env::temp_dir().join(format!("outrigger-fuzz-{name}-{}", process::id()));
    fs::write(&file, input).unwrap();
    let shown = String::from_utf8_lossy(input);
    format!(
        "{shown:?} {which}\nagain: FUZZ_INPUT={} cargo test --test fuzz, with the name of this test",
        file.display()
    )
}

/// A target, and what it shows.
macro_rules! targets {
    ($($promise:ident: $target:ident;)*) => {
        const TARGETS: &[&str] = &[$(stringify!($target)),*];

        $(
            #[test]
            fn $promise() {
                drive(stringify!($target), targets::$target);
            }
        )*
    };
}

targets! {
    requests_reach_the_upstream_as_a_strict_reader_reads_them_or_not_at_all: requests;
    any_http2_frames_of_an_app_end_in_clean_requests_or_none: streams;
    any_answer_is_passed_on_whole_or_visibly_broken: answers;
    any_http2_answer_is_passed_on_whole_or_visibly_broken: answers2;
    any_bytes_inside_an_intercepted_tunnel_end_it_or_are_served: tunnels;
    the_control_port_serves_no_foreign_host_and_obeys_no_foreign_page: control;
    heads_end_where_a_strict_reader_says_however_the_bytes_are_cut: heads;
    a_request_is_led_to_the_host_that_a_naive_reader_finds: urls;
    a_configuration_that_loads_can_run_and_the_schema_accepts_it: config;
    inject_keeps_what_was_there_and_does_nothing_twice: manifests;
    retry_after_is_seconds_or_a_date_or_absent: waits;
    durations_and_sizes_are_written_as_they_are_read: units;
    a_hosts_file_gives_only_what_stands_in_it: hosts_file;
}

#[test]
fn every_target_has_a_driver_for_libfuzzer_a_corpus_and_a_line_in_the_readme() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
    let read = |name: &str| fs::read_to_string(here.join(name)).unwrap();
    let (manifest, readme) = (read("Cargo.toml"), read("README.md"));
    for target in TARGETS {
        assert!(read(&format!("fuzz_targets/{target}.rs")).contains(&format!("targets::{target}(data)")), "{target}");
        assert!(manifest.contains(&format!("name = \"{target}\"\npath = \"fuzz_targets/{target}.rs\"")), "{target}");
        assert!(readme.contains(&format!("| `{target}` |")), "{target}");
        assert!(!read_all(&here.join("corpus").join(target)).is_empty(), "{target}");
    }
    assert_eq!(fs::read_dir(here.join("fuzz_targets")).unwrap().count(), TARGETS.len());
}
