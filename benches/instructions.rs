//! What is counted rather than timed: `instructions NAME TIMES` sets a part up, does it so often, and prints how often it
//! allocated and how many bytes. `instructions list` names the parts, each with how often `benches/count` does it.
//! Under callgrind with `--toggle-collect=*measured_part*` nothing but the part itself is counted.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::expect_used,
    reason = "a benchmark that cannot go on panics, and prints what it saw"
)]
#![allow(missing_docs, unreachable_pub, reason = "a program")]

mod parts;

use std::alloc::System;
use std::process::ExitCode;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

/// glibc's, since jemalloc cannot be counted so. What is asked of an allocator does not depend on which it is.
#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["list"] => {
            for part in parts::all() {
                println!("{} {}", part.name, part.times);
            }
            ExitCode::SUCCESS
        }
        [name, times] => match (parts::all().into_iter().find(|part| part.name == name), times.parse()) {
            (Some(part), Ok(times)) => {
                count(&part, times);
                ExitCode::SUCCESS
            }
            (None, _) | (_, Err(_)) => usage(),
        },
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: instructions list | instructions NAME TIMES\n`benches/count` runs it for every part.");
    ExitCode::from(2)
}

fn count(part: &parts::Part, times: u32) {
    let mut act = part.set_up();
    // Connections are made, lazy values too, and tables have grown to their size.
    for _ in 0..times.div_ceil(10) {
        act();
    }
    let region = Region::new(ALLOCATOR);
    measured_part(&mut act, times);
    let change = region.change();
    println!("{} {}", change.allocations + change.reallocations, change.bytes_allocated);
}

/// What callgrind looks at.
#[inline(never)]
fn measured_part(act: &mut parts::Act, times: u32) {
    for _ in 0..times {
        act();
    }
}
