//! The machine's clock: guest time in nanoseconds, and the timers that run on it.
//!
//! Every time source a guest can see (TSC, PIT, LAPIC timer, RTC, PM timer) derives from one [`Clock`], so
//! that a starved host makes a guest slow, never wrong. Guest time stands still while the machine is paused.

use std::sync::Arc;

/// What a timer runs on expiry. Called without locks of the clock held, on the thread that drives the clock.
pub type TimerCallback = Arc<dyn Fn() + Send + Sync>;

/// Guest time.
pub trait Clock: Send + Sync {
    /// Nanoseconds of guest time since the machine was built. Monotonic; stands still while paused.
    fn now_ns(&self) -> u64;
    /// A new, disarmed timer. `label` names it in diagnostics.
    fn new_timer(&self, label: &'static str, callback: TimerCallback) -> Box<dyn Timer>;
}

/// A one-shot timer. Dropping it cancels it.
pub trait Timer: Send + Sync {
    /// Fires once when guest time reaches `deadline_ns`; at once if that has passed. Replaces an earlier deadline.
    fn arm(&self, deadline_ns: u64);
    /// Forgets the deadline. A callback that is already running goes on.
    fn cancel(&self);
}
