//! The conformance suite on the accelerators of this crate: the scripted one, which tests the suite, and the CPU-less.

use accel::Accelerator;

mod scripted {
    fn make() -> Result<Box<dyn super::Accelerator>, String> {
        Ok(Box::new(accel::conformance::ScriptedAccelerator::new(accel::Threading::PerCpu)))
    }
    accel::conformance_tests!(make, not_applicable: {
        "a_machine_check_is_taken": "its CPUs have no banks for errors",
        "a_machine_check_that_cannot_be_taken_ends_the_cpu": "its CPUs have no banks for errors",
    });
}

mod round_robin {
    fn make() -> Result<Box<dyn super::Accelerator>, String> {
        Ok(Box::new(accel::conformance::ScriptedAccelerator::new(accel::Threading::RoundRobin)))
    }
    accel::conformance_tests!(make, not_applicable: {
        "two_cpus_run_on_each_other": "CPUs of one thread are refused: see `run_on_within_a_thread`",
        "a_machine_check_is_taken": "its CPUs have no banks for errors",
        "a_machine_check_that_cannot_be_taken_ends_the_cpu": "its CPUs have no banks for errors",
    });
}

mod qtest {
    fn make() -> Result<Box<dyn super::Accelerator>, String> {
        Ok(Box::new(accel::qtest::QtestAccelerator::new()))
    }
    accel::conformance_tests!(make);
}
