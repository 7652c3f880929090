//! The process.

/// glibc's allocator keeps what a burst of connections needed, and spends nearly twice the memory on an idle one.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    outrigger::cli::main()
}
