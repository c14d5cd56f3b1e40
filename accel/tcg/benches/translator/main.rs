//! Micro-benchmarks of the translator: how fast it is, what it makes of which instructions, and what the slow ways cost.
//!
//!     cargo bench -p accel_tcg --bench translator -- --json FILE [ELF:MODE...]
//!
//! The .text of each ELF file is translated as a program's (MODE `user`) or a kernel's (`kernel`). Run by
//! resources/bench/translator.sh.

mod classes;
mod costs;
#[path = "../../tests/support/long_guest.rs"]
mod long_guest;
mod report;
mod sweep;

use std::path::Path;

use report::Report;
use sweep::Mode;

fn main() {
    let mut report = Report::default();
    let mut json = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => json = arguments.next(),
            // Cargo's own.
            "--bench" => {}
            _ => {
                let (path, mode) = argument.rsplit_once(':').expect("ELF:MODE");
                let mode = match mode {
                    "user" => Mode::User,
                    "kernel" => Mode::Kernel,
                    _ => panic!("{mode}: user or kernel"),
                };
                let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"));
                let name = Path::new(path)
                    .file_name()
                    .map_or_else(String::new, |name| name.to_string_lossy().into());
                sweep::run(&name, &sweep::text_of(&bytes), mode, &mut report);
            }
        }
    }
    costs::run(&mut report);
    if let Some(path) = json {
        std::fs::write(&path, report.json()).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
}
