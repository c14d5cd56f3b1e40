//! The conformance suite on the accelerators of this crate: the scripted one, which tests the suite, and the CPU-less.

use accel::Accelerator;

mod scripted {
    fn make() -> Result<Box<dyn super::Accelerator>, String> {
        Ok(Box::new(accel::conformance::ScriptedAccelerator::default()))
    }
    accel::conformance_tests!(make);
}

mod qtest {
    fn make() -> Result<Box<dyn super::Accelerator>, String> {
        Ok(Box::new(accel::qtest::QtestAccelerator::new()))
    }
    accel::conformance_tests!(make);
}
