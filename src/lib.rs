//! The hypervisor front end: command line, machine assembly, boot protocols, run state, main loop.

pub mod acpi;
pub mod boot;
pub mod console;
pub mod exit_code;
pub mod log;
pub mod machine;
pub mod options;
pub mod run_state;
pub mod signals;
pub mod terminal;

use std::process::ExitCode;

/// The program.
pub fn run() -> ExitCode {
    match options::parse(std::env::args_os().skip(1)) {
        Ok(options::Command::Print(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(options::Command::Run(_)) => {
            eprintln!("bivisor: running a guest: not built yet");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bivisor: {error}");
            ExitCode::FAILURE
        }
    }
}
