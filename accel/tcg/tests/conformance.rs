//! The conformance suite on the translator, with a thread per CPU and with one for all.

use accel::contract::{Accelerator, Threading};
use accel_tcg::{Tcg, TcgOptions};

fn tcg(threading: Threading) -> Result<Box<dyn Accelerator>, String> {
    let options = TcgOptions { threading, ..TcgOptions::default() };
    Tcg::new(options).map(|tcg| Box::new(tcg) as Box<dyn Accelerator>).map_err(|error| error.to_string())
}

fn make() -> Result<Box<dyn Accelerator>, String> {
    tcg(Threading::PerCpu)
}

accel::conformance_tests!(make);

mod round_robin {
    fn make() -> Result<Box<dyn super::Accelerator>, String> {
        super::tcg(super::Threading::RoundRobin)
    }

    accel::conformance_tests!(make, not_applicable: {
        "two_cpus_run_on_each_other": "CPUs of one thread are refused",
    });
}
