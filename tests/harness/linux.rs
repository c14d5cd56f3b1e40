//! A Linux guest: how it is started, and what its end must look like.

use std::time::Duration;

use super::guests::path;
use super::log::complaints;
use super::session::{Outcome, Session, bivisor};

/// A machine that boots a kernel of the guests' folder.
pub struct Linux<'a> {
    /// The engine.
    pub accel: &'a str,
    /// Guest memory.
    pub megabytes: &'a str,
    /// The kernel's file.
    pub kernel: &'a str,
    /// The initramfs' file.
    pub initrd: &'a str,
    /// The kernel's command line.
    pub append: &'a str,
    /// Further options.
    pub more: &'a [&'a str],
}

impl Linux<'_> {
    /// Starts it.
    pub fn boot(&self, limit: Duration) -> Session {
        let (kernel, initrd) = (path(self.kernel), path(self.initrd));
        #[rustfmt::skip]
        let words = [
            "-accel", self.accel, "-M", "microvm", "-m", self.megabytes, "-kernel", &kernel, "-initrd", &initrd,
            "-append", self.append, "-nographic",
        ];
        Session::start(&bivisor(), &[&words, self.more].concat(), limit)
    }
}

/// The guest switched itself off, and its log is clean.
#[track_caller]
pub fn ended_well(outcome: &Outcome) {
    outcome.check(outcome.status.code() == Some(0), "the exit code is not 0");
    outcome.check(outcome.serial.contains("reboot: Power down"), "the guest did not power off");
    let complaints = complaints(&outcome.serial, &[]);
    outcome.check(complaints.is_empty(), &format!("the log complains: {complaints:#?}"));
}
