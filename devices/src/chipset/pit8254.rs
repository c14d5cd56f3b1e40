//! 8254 interval timer, with port 0x61. Intel 8254, order 231164-005.

use std::sync::{Arc, Weak};

use crate::bus::BusDevice;
use crate::clock::{Clock, Timer};
use crate::device::Device;
use crate::interrupt::IrqLine;
use crate::lock_rank::device::{Mutex, MutexGuard};

mod counter;
pub mod spec;
#[cfg(test)]
mod tests;

use counter::Counter;
use spec::{control, nmi_sc, read_back};

/// Interrupts closer than this are merged: a guest must not keep the host busy with nothing but its timer.
const MIN_PERIOD_NS: u64 = 100_000;

struct State {
    counters: [Counter; 3],
    nmi_sc: u8,
    /// When the timer fires for counter 0.
    due_ns: Option<u64>,
}

impl State {
    fn power_on() -> Self {
        // The gates of counters 0 and 1 are tied high; counter 2's is port 0x61 bit 0.
        Self {
            counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
            nmi_sc: 0,
            due_ns: None,
        }
    }
}

/// The interval timer: counter 0 interrupts, 1 refreshed the memory of old, 2 sounds the speaker and measures time.
pub struct Pit8254 {
    state: Mutex<State>,
    irq: IrqLine,
    clock: Arc<dyn Clock>,
    timer: Box<dyn Timer>,
}

impl Pit8254 {
    /// A timer after power-on; `irq` follows counter 0's OUT.
    pub fn new(irq: IrqLine, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new_cyclic(|own: &Weak<Self>| {
            let own = Weak::clone(own);
            let due = move || {
                if let Some(own) = own.upgrade() {
                    own.due();
                }
            };
            let timer = clock.new_timer("8254 counter 0", Arc::new(due));
            Self { state: Mutex::new(State::power_on()), irq, clock, timer }
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the PIT's lock panics")
    }

    /// Port 0x61.
    pub fn nmi_status_port(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(NmiStatusPort(Arc::clone(self)))
    }

    /// Plans counter 0's next rising edge, at `not_before_ns` or later.
    fn schedule(&self, state: &mut State, now_ns: u64, not_before_ns: u64) {
        state.due_ns = state.counters[0].next_rise_ns(now_ns).map(|at_ns| at_ns.max(not_before_ns));
        match state.due_ns {
            Some(due_ns) => self.timer.arm(due_ns),
            None => self.timer.cancel(),
        }
    }

    /// Counter 0 was written.
    fn reprogrammed(&self, state: &mut State, now_ns: u64) {
        let output = state.counters[0].output(now_ns);
        self.irq.set_level(output);
        self.schedule(state, now_ns, 0);
    }

    /// The timer fired. Edges that passed unseen, on a busy host, are one interrupt.
    fn due(&self) {
        let mut state = self.lock();
        let now_ns = self.clock.now_ns();
        match state.due_ns {
            Some(due_ns) if now_ns >= due_ns => {}
            // Programmed anew in between, and armed for that.
            _ => return,
        }
        self.irq.set_level(false);
        self.irq.set_level(true);
        self.schedule(&mut state, now_ns, now_ns.saturating_add(MIN_PERIOD_NS));
    }

    fn write_control(&self, state: &mut State, word: u8, now_ns: u64) {
        let select = word >> control::SC_SHIFT;
        if select == control::READ_BACK {
            for (i, counter) in state.counters.iter_mut().enumerate() {
                if word & read_back::COUNTER_0 << i == 0 {
                    continue;
                }
                if word & read_back::NOT_COUNT == 0 {
                    counter.latch_count(now_ns);
                }
                if word & read_back::NOT_STATUS == 0 {
                    counter.latch_status(now_ns);
                }
            }
            return;
        }
        let is_latch = word >> control::RW_SHIFT & 3 == 0;
        state.counters[usize::from(select)].write_control(word, now_ns);
        if select == 0 && !is_latch {
            self.reprogrammed(state, now_ns);
        }
    }
}

impl BusDevice for Pit8254 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.lock();
        let now_ns = self.clock.now_ns();
        for (offset, byte) in (offset..).zip(data) {
            // The control word cannot be read; the bus floats.
            *byte = state.counters.get_mut(offset as usize).map_or(0xff, |counter| counter.read(now_ns));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        let now_ns = self.clock.now_ns();
        for (offset, &byte) in (offset..).zip(data) {
            match state.counters.get_mut(offset as usize) {
                Some(counter) => {
                    counter.write(byte, now_ns);
                    if offset == 0 {
                        self.reprogrammed(&mut state, now_ns);
                    }
                }
                None => self.write_control(&mut state, byte, now_ns),
            }
        }
    }
}

impl Device for Pit8254 {
    fn name(&self) -> &'static str {
        "8254"
    }

    fn reset(&self) {
        let mut state = self.lock();
        *state = State::power_on();
        self.timer.cancel();
        self.irq.set_level(false);
    }
}

struct NmiStatusPort(Arc<Pit8254>);

impl BusDevice for NmiStatusPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        let mut state = self.0.lock();
        let now_ns = self.0.clock.now_ns();
        let is_even = (now_ns / nmi_sc::REFRESH_NS).is_multiple_of(2);
        let toggle = if is_even { 0 } else { nmi_sc::REF_TOGGLE };
        let output = if state.counters[2].output(now_ns) { nmi_sc::TMR2_OUT_STS } else { 0 };
        data.fill(state.nmi_sc | toggle | output);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        let mut state = self.0.lock();
        let now_ns = self.0.clock.now_ns();
        state.nmi_sc = value & nmi_sc::WRITABLE;
        state.counters[2].set_gate(value & nmi_sc::TIM_CNT2_EN != 0, now_ns);
    }
}
