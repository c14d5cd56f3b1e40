//! The watchdog timer of the 6300ESB I/O Controller Hub (Intel 300641-004, *Watchdog Timer*).
//!
//! Two stages, one after the other, each of a length of its own; a guest that does not begin again in time is taken to hang
//! when the second one ends. The end of the first interrupts in hardware; no driver uses that, and nothing is wired here.

use std::sync::{Arc, Weak};

use crate::clock::{Clock, Timer};
use crate::device::Device;
use crate::lock_rank::device::{Mutex, MutexGuard};
use crate::system::{SystemControl, SystemRequest};

mod function;
pub mod spec;
#[cfg(test)]
mod tests;

use spec::{configuration, lock, register, reload};

/// No stage is shorter, so that a guest cannot keep the host busy with timers.
const SHORTEST_NS: u64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    First,
    Second,
}

#[derive(Debug)]
struct State {
    configuration: u16,
    lock: u8,
    preload: [u32; 2],
    /// How many words of the unlocking sequence were written.
    unlocked: usize,
    stage: Stage,
    /// It had run out; a reset does not change that.
    timed_out: bool,
}

impl State {
    fn power_on() -> Self {
        Self {
            configuration: 0,
            lock: 0,
            preload: [spec::PRELOAD; 2],
            unlocked: 0,
            stage: Stage::First,
            timed_out: false,
        }
    }

    fn stage_ns(&self) -> u64 {
        let shift = if self.configuration & configuration::PRESCALER_1_MHZ != 0 { 5 } else { 15 };
        let preload = match self.stage {
            Stage::First => self.preload[0],
            Stage::Second => self.preload[1],
        };
        let ticks = u64::from(preload) << shift;
        (ticks * 1_000_000 / spec::PCI_CLOCK_KHZ).max(SHORTEST_NS)
    }

    /// Whether this write to Reload is a step of the sequence.
    fn unlock(&mut self, value: u16) -> bool {
        let step = spec::UNLOCK.get(self.unlocked) == Some(&value);
        // The first word may come again.
        let again = value == spec::UNLOCK[0];
        if step {
            self.unlocked += 1;
        } else if again {
            self.unlocked = 1;
        }
        step || again
    }

    /// Whether the sequence was written; the next write needs it again.
    fn take_unlocked(&mut self) -> bool {
        std::mem::take(&mut self.unlocked) == spec::UNLOCK.len()
    }
}

/// The watchdog.
pub struct I6300Esb {
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
    timer: Box<dyn Timer>,
    control: Arc<dyn SystemControl>,
}

impl I6300Esb {
    /// A watchdog that does not run. It tells `control` when it has run out.
    pub fn new(clock: Arc<dyn Clock>, control: Arc<dyn SystemControl>) -> Arc<Self> {
        Arc::new_cyclic(|own: &Weak<Self>| {
            let own = Weak::clone(own);
            let due = move || {
                if let Some(own) = own.upgrade() {
                    own.stage_ended();
                }
            };
            let timer = clock.new_timer("i6300esb", Arc::new(due));
            Self { state: Mutex::new(State::power_on()), clock, timer, control }
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the watchdog's lock panics")
    }

    fn begin(&self, state: &mut State, stage: Stage) {
        state.stage = stage;
        self.timer.arm(self.clock.now_ns() + state.stage_ns());
    }

    fn stage_ended(&self) {
        let mut state = self.lock();
        if state.lock & lock::ENABLE == 0 {
            return;
        }
        if state.stage == Stage::First {
            return self.begin(&mut state, Stage::Second);
        }
        if state.lock & lock::FREE_RUNNING != 0 {
            self.begin(&mut state, Stage::First);
        }
        if state.configuration & configuration::OUTPUT_DISABLED == 0 {
            state.timed_out = true;
            drop(state);
            self.control.request(SystemRequest::Watchdog);
        }
    }

    /// WDT Configuration and WDT Lock.
    pub fn config(&self) -> (u16, u8) {
        let state = self.lock();
        (state.configuration, state.lock)
    }

    /// Software has written WDT Configuration.
    pub fn write_configuration(&self, value: u16) {
        self.lock().configuration = value & configuration::WRITABLE;
    }

    /// Software has written WDT Lock.
    pub fn write_lock(&self, value: u8) {
        let mut state = self.lock();
        if state.lock & lock::LOCK != 0 {
            return;
        }
        let before = std::mem::replace(&mut state.lock, value & lock::WRITABLE);
        match (before & lock::ENABLE != 0, value & lock::ENABLE != 0) {
            (false, true) => self.begin(&mut state, Stage::First),
            (true, false) => self.timer.cancel(),
            _ => {}
        }
    }

    /// Reads the window.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (register::RELOAD, [low, high]) = (offset, data)
            && self.lock().timed_out
        {
            [*low, *high] = (reload::TIMEOUT | reload::TIMEOUT_OF_LINUX).to_le_bytes();
        }
    }

    /// Writes the window.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        let Some(into) = bytes.get_mut(..data.len()) else { return };
        into.copy_from_slice(data);
        let value = u32::from_le_bytes(bytes);
        let low = value as u16;
        let mut state = self.lock();
        if offset == register::RELOAD && state.unlock(low) {
            return;
        }
        // A byte is a word of the sequence, or nothing.
        if data.len() == 1 || !state.take_unlocked() {
            return;
        }
        match (offset, data.len()) {
            (register::PRELOAD_1, 4) => state.preload[0] = value & spec::PRELOAD,
            (register::PRELOAD_2, 4) => state.preload[1] = value & spec::PRELOAD,
            (register::RELOAD, 2) => {
                if low & reload::TIMEOUT != 0 {
                    state.timed_out = false;
                }
                if low & reload::RELOAD != 0 && state.lock & lock::ENABLE != 0 {
                    self.begin(&mut state, Stage::First);
                }
            }
            _ => {}
        }
    }
}

impl Device for I6300Esb {
    fn name(&self) -> &'static str {
        "i6300esb"
    }

    fn reset(&self) {
        let mut state = self.lock();
        *state = State { timed_out: state.timed_out, ..State::power_on() };
        self.timer.cancel();
    }
}
