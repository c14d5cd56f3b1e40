//! The machine's clock: guest time in nanoseconds, and the timers that run on it.
//!
//! Every time source a guest can see (TSC, PIT, LAPIC timer, RTC, PM timer) derives from one [`Clock`], so
//! that a starved host makes a guest slow, never wrong. Guest time stands still while the machine is paused.

use std::os::fd::RawFd;
use std::sync::Arc;

mod host;
pub mod icount;
mod manual;
mod queue;
mod tsc;

pub use host::HostClock;
pub use icount::IcountClock;
pub use manual::ManualClock;
pub use tsc::{GuestTsc, ScaledTsc};

/// What a timer runs on expiry. Called without locks of the clock held, on the thread that drives the clock.
pub type TimerCallback = Arc<dyn Fn() + Send + Sync>;

/// Guest time.
pub trait Clock: Send + Sync {
    /// Nanoseconds of guest time since the machine was built. Monotonic; stands still while paused.
    fn now_ns(&self) -> u64;
    /// A new, disarmed timer. `label` names it in diagnostics.
    fn new_timer(&self, label: &'static str, callback: TimerCallback) -> Box<dyn Timer>;
    /// Guest time stops; no timer fires until [`Clock::resume`]. Idempotent.
    fn pause(&self);
    /// Guest time goes on from where it stopped. Idempotent.
    fn resume(&self);
    /// The earliest deadline of any timer, in guest time.
    fn next_deadline_ns(&self) -> Option<u64>;
    /// Runs the callbacks of the timers that have expired, in the order of their deadlines. For the thread that
    /// drives the clock, with no lock held.
    fn run_expired(&self);
    /// Polls readable (`POLLIN`) when [`Clock::run_expired`] has something to do, which also makes it unreadable
    /// again; nobody reads it. `None` where time is driven otherwise.
    fn wakeup_fd(&self) -> Option<RawFd>;
}

/// A one-shot timer. Dropping it cancels it.
pub trait Timer: Send + Sync {
    /// Fires once when guest time reaches `deadline_ns`; at once if that has passed. Replaces an earlier deadline.
    /// Cheap enough for a vCPU thread on every guest tick; allowed inside callbacks.
    fn arm(&self, deadline_ns: u64);
    /// Forgets the deadline. A callback that is already running goes on.
    fn cancel(&self);
}
