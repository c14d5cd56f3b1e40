//! The hypervisor front end: command line, machine assembly, boot protocols, run state, main loop.

pub mod accelerator;
pub mod acpi;
pub mod back_ends;
pub mod boot;
pub mod chardevs;
pub mod consoles;
pub mod disks;
pub mod exit_code;
pub mod firmware;
mod inherited;
pub mod local_time;
pub mod log;
pub mod machine;
pub mod mp_table;
pub mod networks;
pub mod options;
pub mod run;
pub mod run_state;
pub mod shares;
pub mod signals;
pub mod smbios;
pub mod sockets;
pub mod tell;
pub mod terminal;
pub mod vhost;
pub mod writable;

use std::io::Write;
use std::process::ExitCode;

use options::Command;

/// The program.
pub fn run() -> ExitCode {
    match options::parse(std::env::args_os().skip(1)) {
        Ok(Command::Print(text)) => match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(exit_code::ERROR),
        },
        Ok(Command::Run(options)) => run_guest(&options),
        Err(error) => {
            run::complain(&error);
            ExitCode::from(exit_code::ERROR)
        }
    }
}

fn run_guest(options: &options::Options) -> ExitCode {
    end_on_panic();
    let log = log::start(&options.log);
    match run::run(options, &log) {
        Ok(run::Ending::Status(status)) => ExitCode::from(status),
        Ok(run::Ending::Signal(signal)) => signals::die_of(signal),
        Err(error) => {
            terminal::restore();
            run::complain(&error);
            ExitCode::from(exit_code::ERROR)
        }
    }
}

/// A panic on any thread is the program's end: half a machine is worse than none. The terminal comes first, so that the
/// message can be read.
fn end_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        terminal::restore();
        report(panic);
        std::process::abort();
    }));
}
