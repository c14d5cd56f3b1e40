//! The conformance suite on the translator.

use accel::contract::{Accelerator, Threading};
use accel_tcg::{Tcg, TcgOptions};

fn make() -> Result<Box<dyn Accelerator>, String> {
    let options = TcgOptions { threading: Threading::PerCpu, ..TcgOptions::default() };
    Tcg::new(options).map(|tcg| Box::new(tcg) as Box<dyn Accelerator>).map_err(|error| error.to_string())
}

accel::conformance_tests!(make);
