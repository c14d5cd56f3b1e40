//! The local APIC's timer: one-shot, periodic and TSC-deadline. SDM vol. 3A, *APIC Timer*.

use std::sync::Arc;

use super::spec;
use crate::clock::{Clock, GuestTsc, Timer, TimerCallback};
use crate::lock_rank::irqchip::{Mutex, MutexGuard};

/// LVT Timer bits 18:17.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum TimerMode {
    #[default]
    OneShot,
    Periodic,
    TscDeadline,
    Reserved,
}

impl TimerMode {
    pub(super) fn from_lvt(lvt: u32) -> Self {
        match lvt >> spec::lvt::TIMER_MODE_SHIFT & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }

    fn counts(self) -> bool {
        matches!(self, Self::OneShot | Self::Periodic)
    }
}

/// Periods below this would keep the host busy with nothing else: they are stretched to it.
const MIN_PERIOD_NS: u64 = 100_000;
const NS_PER_SECOND: u128 = 1_000_000_000;

#[derive(Debug, Default)]
struct State {
    mode: TimerMode,
    divide_configuration: u32,
    initial_count: u32,
    /// When the count started (one-shot) or last wrapped (periodic).
    start_ns: u64,
    /// The one-shot count has not run out, or the periodic one runs.
    is_running: bool,
    tsc_deadline: u64,
}

impl State {
    /// Nanoseconds per count.
    fn tick_ns(&self) -> u64 {
        let bits = (self.divide_configuration & 3) | (self.divide_configuration >> 1 & 4);
        // 000b divides by 2 ... 110b by 128, 111b by 1.
        let divider = 1 << ((bits + 1) & 7);
        divider * (NS_PER_SECOND as u64 / spec::TIMER_HZ)
    }

    fn period_ns(&self) -> u64 {
        let period_ns = u64::from(self.initial_count) * self.tick_ns();
        if self.mode == TimerMode::Periodic { period_ns.max(MIN_PERIOD_NS) } else { period_ns }
    }

    fn current_count(&self, now_ns: u64) -> u32 {
        if !self.is_running || !self.mode.counts() {
            return 0;
        }
        let mut elapsed_ns = now_ns.saturating_sub(self.start_ns);
        if self.mode == TimerMode::Periodic {
            elapsed_ns %= self.period_ns();
        }
        let elapsed = u32::try_from(elapsed_ns / self.tick_ns()).unwrap_or(u32::MAX);
        self.initial_count.saturating_sub(elapsed)
    }
}

/// The timer of one local APIC.
pub(super) struct ApicTimer {
    clock: Arc<dyn Clock>,
    tsc: Arc<dyn GuestTsc>,
    state: Mutex<State>,
    timer: Box<dyn Timer>,
}

impl ApicTimer {
    /// A stopped timer; `expired` is to call [`ApicTimer::expire`].
    pub(super) fn new(clock: Arc<dyn Clock>, tsc: Arc<dyn GuestTsc>, expired: TimerCallback) -> Self {
        let timer = clock.new_timer("local APIC timer", expired);
        Self { clock, tsc, state: Mutex::default(), timer }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the APIC timer's lock panics")
    }

    /// The clock reached the deadline. True if the timer interrupt is due.
    pub(super) fn expire(&self) -> bool {
        let mut state = self.lock();
        match state.mode {
            TimerMode::OneShot if state.is_running => {
                let end_ns = state.start_ns.saturating_add(state.period_ns());
                if self.clock.now_ns() < end_ns {
                    self.timer.arm(end_ns);
                    return false;
                }
                state.is_running = false;
                true
            }
            TimerMode::Periodic if state.is_running => {
                let period_ns = state.period_ns();
                let periods = self.clock.now_ns().saturating_sub(state.start_ns) / period_ns;
                // Periods that passed unseen make one interrupt: a late host must not bury the guest in them.
                state.start_ns += periods * period_ns;
                self.timer.arm(state.start_ns + period_ns);
                periods > 0
            }
            TimerMode::TscDeadline => self.check_deadline(&mut state),
            _ => false,
        }
    }

    /// True if the armed deadline has passed, which disarms it; else the clock is told when it will.
    fn check_deadline(&self, state: &mut State) -> bool {
        if state.tsc_deadline == 0 {
            self.timer.cancel();
            return false;
        }
        let left = state.tsc_deadline.saturating_sub(self.tsc.read());
        if left == 0 {
            state.tsc_deadline = 0;
            self.timer.cancel();
            return true;
        }
        let left_ns = (u128::from(left) * NS_PER_SECOND).div_ceil(u128::from(self.tsc.hz()));
        let left_ns = u64::try_from(left_ns).unwrap_or(u64::MAX);
        self.timer.arm(self.clock.now_ns().saturating_add(left_ns));
        false
    }

    fn start(&self, state: &mut State, start_ns: u64) {
        state.start_ns = start_ns;
        state.is_running = state.initial_count != 0 && state.mode.counts();
        if state.is_running {
            self.timer.arm(start_ns.saturating_add(state.period_ns()));
        } else {
            self.timer.cancel();
        }
    }

    /// LVT Timer was written. Into and out of TSC-deadline mode, the timer is disarmed.
    pub(super) fn set_mode(&self, mode: TimerMode) {
        let mut state = self.lock();
        if state.mode == mode {
            return;
        }
        if state.mode.counts() && mode.counts() {
            // The count goes on from where it is.
            let (start_ns, is_running) = (state.start_ns, state.is_running);
            state.mode = mode;
            if is_running {
                self.start(&mut state, start_ns);
            }
            return;
        }
        state.mode = mode;
        state.initial_count = 0;
        state.is_running = false;
        state.tsc_deadline = 0;
        self.timer.cancel();
    }

    pub(super) fn set_initial_count(&self, value: u32) {
        let mut state = self.lock();
        if state.mode == TimerMode::TscDeadline {
            return;
        }
        state.initial_count = value;
        let now_ns = self.clock.now_ns();
        self.start(&mut state, now_ns);
    }

    pub(super) fn initial_count(&self) -> u32 {
        self.lock().initial_count
    }

    pub(super) fn current_count(&self) -> u32 {
        self.lock().current_count(self.clock.now_ns())
    }

    pub(super) fn set_divide_configuration(&self, value: u32) {
        let mut state = self.lock();
        let now_ns = self.clock.now_ns();
        let counted = state.initial_count - state.current_count(now_ns);
        state.divide_configuration = value & spec::DIVIDE_WRITABLE;
        if state.is_running {
            let start_ns = now_ns.saturating_sub(u64::from(counted) * state.tick_ns());
            self.start(&mut state, start_ns);
        }
    }

    pub(super) fn divide_configuration(&self) -> u32 {
        self.lock().divide_configuration
    }

    /// Writes IA32_TSC_DEADLINE; ignored in the other modes. True if the deadline has passed already.
    pub(super) fn set_tsc_deadline(&self, value: u64) -> bool {
        let mut state = self.lock();
        if state.mode != TimerMode::TscDeadline {
            return false;
        }
        state.tsc_deadline = value;
        self.check_deadline(&mut state)
    }

    /// IA32_TSC_DEADLINE: zero unless armed.
    pub(super) fn tsc_deadline(&self) -> u64 {
        self.lock().tsc_deadline
    }

    /// The time-stamp counter was moved. True if the deadline has passed thereby.
    pub(super) fn tsc_changed(&self) -> bool {
        let mut state = self.lock();
        state.mode == TimerMode::TscDeadline && self.check_deadline(&mut state)
    }

    pub(super) fn reset(&self) {
        *self.lock() = State::default();
        self.timer.cancel();
    }
}
