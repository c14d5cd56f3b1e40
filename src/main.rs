//! The program's entry.

fn main() -> std::process::ExitCode {
    bivisor::run()
}
