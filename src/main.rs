//! The process.

fn main() -> std::process::ExitCode {
    outrigger::cli::main()
}
