//! The conformance suite on the translator: with a thread per CPU, with one for all, and counting instructions.

use accel::contract::{Accelerator, Threading};
use accel_tcg::{Tcg, TcgOptions};
use devices::clock::icount::{Pace, Shift, Sleep};

fn tcg(options: TcgOptions) -> Result<Box<dyn Accelerator>, String> {
    Tcg::new(options).map(|tcg| Box::new(tcg) as Box<dyn Accelerator>).map_err(|error| error.to_string())
}

fn make() -> Result<Box<dyn Accelerator>, String> {
    tcg(TcgOptions::default())
}

accel::conformance_tests!(make);

mod round_robin {
    fn make() -> Result<Box<dyn super::Accelerator>, String> {
        super::tcg(super::TcgOptions { threading: super::Threading::RoundRobin, ..Default::default() })
    }

    accel::conformance_tests!(make, not_applicable: {
        "two_cpus_run_on_each_other": "CPUs of one thread are refused",
    });
}

mod icount {
    use super::{Pace, Shift, Sleep, TcgOptions};

    fn make() -> Result<Box<dyn super::Accelerator>, String> {
        let pace = Pace { shift: Shift::Auto, sleep: Sleep::Off, align: false };
        super::tcg(TcgOptions { icount: Some(pace), ..TcgOptions::default() })
    }

    accel::conformance_tests!(make, not_applicable: {
        "two_cpus_run_on_each_other": "CPUs of one thread are refused",
    });
}
