//! Real-time clock and CMOS RAM. Motorola MC146818A, order ADI856R2.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::bus::BusDevice;
use crate::clock::{Clock, Timer};
use crate::device::Device;
use crate::interrupt::IrqLine;
use crate::lock_rank::device::{Mutex, MutexGuard};

mod calendar;
mod clockwork;
pub mod spec;
#[cfg(test)]
mod tests;

use clockwork::Clockwork;
use spec::register;

/// What the CMOS RAM tells about memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemorySize {
    /// Bytes of RAM from 0 up to the hole below 4 GiB.
    pub below_4g_bytes: u64,
    /// Bytes of RAM from 4 GiB up.
    pub above_4g_bytes: u64,
}

struct State {
    index: u8,
    clockwork: Clockwork,
}

/// The clock, its interrupts and 114 bytes of RAM.
///
/// It starts at the host's time and then follows guest time: while the machine is paused it stands still.
pub struct RtcMc146818 {
    state: Mutex<State>,
    irq: IrqLine,
    clock: Arc<dyn Clock>,
    timer: Box<dyn Timer>,
}

impl RtcMc146818 {
    /// A clock that shows `unix_time` (since 1970, UTC) now.
    pub fn new(irq: IrqLine, clock: Arc<dyn Clock>, unix_time: Duration, memory: MemorySize) -> Arc<Self> {
        let now_ns = clock.now_ns();
        let mut clockwork = Clockwork::new(unix_time, now_ns);
        fill_memory_size(&mut clockwork.ram, memory);
        Arc::new_cyclic(|own: &Weak<Self>| {
            let own = Weak::clone(own);
            let due = move || {
                if let Some(own) = own.upgrade() {
                    own.update(&mut own.lock());
                }
            };
            let timer = clock.new_timer("MC146818", Arc::new(due));
            Self { state: Mutex::new(State { index: 0, clockwork }), irq, clock, timer }
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the RTC's lock panics")
    }

    /// Brings flags, wire and timer up to the present.
    fn update(&self, state: &mut State) {
        let now_ns = self.clock.now_ns();
        state.clockwork.advance(now_ns);
        self.irq.set_level(state.clockwork.is_interrupting());
        match state.clockwork.next_event_ns(now_ns) {
            Some(event_ns) => self.timer.arm(event_ns),
            None => self.timer.cancel(),
        }
    }

    fn read_data(&self, state: &mut State) -> u8 {
        let now_ns = self.clock.now_ns();
        match state.index {
            register::C => {
                self.update(state);
                let value = state.clockwork.take_flags();
                self.update(state);
                value
            }
            index => state.clockwork.read(index, now_ns),
        }
    }

    fn write_data(&self, state: &mut State, value: u8) {
        self.update(state);
        state.clockwork.write(state.index, value, self.clock.now_ns());
        self.update(state);
    }
}

/// The bytes that firmware writes for those who ask the CMOS about memory.
fn fill_memory_size(ram: &mut [u8; spec::BYTES], memory: MemorySize) {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    let mut store = |at: u8, bytes: usize, value: u64| {
        let value = value.min((1 << (8 * bytes)) - 1);
        ram[usize::from(at)..][..bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    };
    store(register::BASE_MEMORY, 2, (memory.below_4g_bytes / KIB).min(640));
    let extended_kib = memory.below_4g_bytes.saturating_sub(MIB) / KIB;
    store(register::EXTENDED_MEMORY, 2, extended_kib);
    store(register::EXTENDED_MEMORY_COPY, 2, extended_kib);
    store(register::MEMORY_ABOVE_16M, 2, memory.below_4g_bytes.saturating_sub(16 * MIB) / (64 * KIB));
    store(register::MEMORY_ABOVE_4G, 3, memory.above_4g_bytes / (64 * KIB));
}

impl BusDevice for RtcMc146818 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.lock();
        for (offset, byte) in (offset..).zip(data) {
            // The index port cannot be read; the bus floats.
            *byte = if offset == 1 { self.read_data(&mut state) } else { 0xff };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        for (offset, &byte) in (offset..).zip(data) {
            match offset {
                0 => state.index = byte & (spec::BYTES as u8 - 1),
                _ => self.write_data(&mut state, byte),
            }
        }
    }
}

impl Device for RtcMc146818 {
    fn name(&self) -> &'static str {
        "MC146818"
    }

    /// The battery keeps time and RAM; interrupts are off (data sheet, *RESET*).
    fn reset(&self) {
        let mut state = self.lock();
        state.index = 0;
        state.clockwork.reset();
        self.update(&mut state);
    }
}
