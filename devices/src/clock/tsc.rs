//! A CPU's time-stamp counter (SDM vol. 3B, *Time-Stamp Counter*) as its interrupt controller sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Clock;

/// The time-stamp counter of one CPU. It belongs to the engine that runs the CPU: RDTSC and the TSC-deadline timer
/// read the same counter. After the guest moves it (IA32_TIME_STAMP_COUNTER, IA32_TSC_ADJUST), the engine calls
/// [`LocalInterrupts::tsc_changed`](crate::cpu_interrupts::LocalInterrupts::tsc_changed).
pub trait GuestTsc: Send + Sync {
    /// The counter's present value. Any thread.
    fn read(&self) -> u64;
    /// Its frequency.
    fn hz(&self) -> u64;
}

/// A time-stamp counter made of guest time: `clock.now_ns()` scaled to a frequency, plus an offset.
pub struct ScaledTsc {
    clock: Arc<dyn Clock>,
    hz: u64,
    offset: AtomicU64,
}

/// The frequency at which the counter is guest time itself.
const NS_PER_SECOND: u64 = 1_000_000_000;

impl ScaledTsc {
    /// A counter of `hz` per second of guest time, zero when `clock` is. `hz` is not zero.
    pub fn new(clock: Arc<dyn Clock>, hz: u64) -> Arc<Self> {
        assert!(hz != 0, "a time-stamp counter counts");
        Arc::new(Self { clock, hz, offset: AtomicU64::new(0) })
    }

    /// What is added to scaled guest time (modulo 2^64).
    pub fn offset(&self) -> u64 {
        self.offset.load(Ordering::Relaxed)
    }

    /// Sets what is added to scaled guest time. The CPU's own thread, or while it is stopped.
    pub fn set_offset(&self, offset: u64) {
        self.offset.store(offset, Ordering::Relaxed);
    }

    /// Makes the counter read `value` now, as a write of IA32_TIME_STAMP_COUNTER does. Returns what was added to
    /// the offset: the change of IA32_TSC_ADJUST.
    pub fn write(&self, value: u64) -> u64 {
        let change = value.wrapping_sub(self.read());
        self.set_offset(self.offset().wrapping_add(change));
        change
    }
}

impl GuestTsc for ScaledTsc {
    fn read(&self) -> u64 {
        let now_ns = self.clock.now_ns();
        let scaled = if self.hz == NS_PER_SECOND {
            now_ns
        } else {
            (u128::from(now_ns) * u128::from(self.hz) / u128::from(NS_PER_SECOND)) as u64
        };
        scaled.wrapping_add(self.offset())
    }

    fn hz(&self) -> u64 {
        self.hz
    }
}

#[cfg(test)]
mod tests {
    use super::super::ManualClock;
    use super::*;

    #[test]
    fn scales_and_offsets() {
        let clock = ManualClock::new();
        let tsc = ScaledTsc::new(clock.clone(), 2_500_000_000);
        clock.advance(1000);
        assert_eq!(tsc.read(), 2500);
        assert_eq!(tsc.write(100), 100u64.wrapping_sub(2500));
        clock.advance(1000);
        assert_eq!(tsc.read(), 2600);
        tsc.set_offset(0);
        assert_eq!(tsc.read(), 5000);
    }
}
