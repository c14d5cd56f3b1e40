//! I/O APIC. Intel 82093AA, order 290566-001.

use std::sync::Arc;

use super::apic_set::{ApicMessage, DeliveryMode, Destination, LocalApicSet, Trigger};
use crate::bus::BusDevice;
use crate::lock_rank::irqchip::{Mutex, MutexGuard};

pub mod spec;
#[cfg(test)]
mod tests;

use spec::redtbl;

struct Registers {
    select: u8,
    id: u32,
    entries: [u64; spec::PINS],
    /// Levels of the input pins, bit per pin.
    lines: u32,
}

/// Where an entry's message goes. `None` if its delivery mode is reserved.
fn message(entry: u64) -> Option<ApicMessage> {
    Some(ApicMessage {
        destination: Destination::narrow((entry >> redtbl::DEST_SHIFT) as u8, entry & redtbl::DESTMOD != 0),
        mode: DeliveryMode::from_bits((entry >> redtbl::DELMOD_SHIFT) as u8 & 7)?,
        vector: (entry & redtbl::INTVEC) as u8,
        trigger: if entry & redtbl::TRIGGER_LEVEL != 0 { Trigger::Level } else { Trigger::Edge },
    })
}

impl Registers {
    fn reset(&mut self) {
        self.select = 0;
        self.id = 0;
        self.entries = [redtbl::MASK; spec::PINS];
    }

    fn line(&self, pin: usize) -> bool {
        self.lines & (1 << pin) != 0
    }

    /// Sends the pin's message unless the entry holds it back.
    fn service(&mut self, pin: usize, cpus: &LocalApicSet) {
        let entry = self.entries[pin];
        if entry & (redtbl::MASK | redtbl::REMOTE_IRR) != 0 {
            return;
        }
        let Some(message) = message(entry) else { return };
        // The 82093AA's ExtINT asks that the PIC hang on the pin, which it does not here; SMM does not exist.
        if matches!(message.mode, DeliveryMode::ExtInt | DeliveryMode::Smi) {
            tracing::debug!(target: "irq", pin, ?message, "I/O APIC delivery mode not connected");
            return;
        }
        let accepted = cpus.deliver(&message);
        let has_remote_irr = matches!(message.mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        if accepted && has_remote_irr && message.trigger == Trigger::Level {
            self.entries[pin] |= redtbl::REMOTE_IRR;
        }
    }

    /// Services a level-triggered pin that is asserted.
    fn reevaluate(&mut self, pin: usize, cpus: &LocalApicSet) {
        if self.line(pin) && self.entries[pin] & redtbl::TRIGGER_LEVEL != 0 {
            self.service(pin, cpus);
        }
    }

    fn read(&self, index: u8) -> u32 {
        match index {
            spec::IOAPICID | spec::IOAPICARB => self.id,
            spec::IOAPICVER => spec::VERSION | (spec::PINS as u32 - 1) << spec::MAX_ENTRY_SHIFT,
            _ => match self.entry_half(index) {
                Some((pin, 0)) => self.entries[pin] as u32,
                Some((pin, _)) => (self.entries[pin] >> 32) as u32,
                None => u32::MAX,
            },
        }
    }

    /// The pin and the half (0 or 1) that a register index means.
    fn entry_half(&self, index: u8) -> Option<(usize, u32)> {
        let index = index.checked_sub(spec::IOREDTBL)?;
        let pin = usize::from(index / 2);
        (pin < spec::PINS).then_some((pin, u32::from(index % 2)))
    }

    fn write(&mut self, index: u8, value: u32, cpus: &LocalApicSet) {
        if index == spec::IOAPICID {
            self.id = value & spec::ID_MASK;
            return;
        }
        let Some((pin, half)) = self.entry_half(index) else { return };
        let old = self.entries[pin];
        let shift = 32 * half;
        let keep = !(u64::from(u32::MAX) << shift) | redtbl::READ_ONLY;
        let mut entry = (old & keep) | (u64::from(value) << shift & redtbl::IMPLEMENTED & !keep);
        // Software without an EOI register clears Remote IRR by making the entry edge-triggered for a moment.
        if entry & redtbl::TRIGGER_LEVEL == 0 {
            entry &= !redtbl::REMOTE_IRR;
        }
        self.entries[pin] = entry;
        self.reevaluate(pin, cpus);
    }

    fn eoi(&mut self, vector: u8, cpus: &LocalApicSet) {
        for pin in 0..spec::PINS {
            let entry = self.entries[pin];
            if entry & redtbl::REMOTE_IRR != 0 && entry & redtbl::INTVEC == u64::from(vector) {
                self.entries[pin] = entry & !redtbl::REMOTE_IRR;
                self.reevaluate(pin, cpus);
            }
        }
    }
}

/// The I/O APIC with its 24 pins.
///
/// It delivers to the local APICs under its lock; they take none, so an EOI that comes back here from a CPU waits
/// at most for that.
pub struct IoApic {
    registers: Mutex<Registers>,
    cpus: Arc<LocalApicSet>,
}

impl IoApic {
    /// An I/O APIC after power-on that sends to `cpus`.
    pub fn new(cpus: Arc<LocalApicSet>) -> Arc<Self> {
        let entries = [redtbl::MASK; spec::PINS];
        Arc::new(Self { registers: Mutex::new(Registers { select: 0, id: 0, entries, lines: 0 }), cpus })
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().expect("no holder of the I/O APIC's lock panics")
    }

    /// Drives input `pin`; a pin that does not exist is ignored. `level` is "asserted": the polarity bit is kept for
    /// software to read and has no effect, as wires here have no polarity.
    pub fn set_pin(&self, pin: usize, level: bool) {
        if pin >= spec::PINS {
            return;
        }
        let mut registers = self.lock();
        let bit = 1 << pin;
        let was = registers.line(pin);
        registers.lines = if level { registers.lines | bit } else { registers.lines & !bit };
        // An edge on a masked pin is lost (82093AA, *Interrupt Mask*); a level is served when it is unmasked.
        if level && !was {
            registers.service(pin, &self.cpus);
        }
    }

    /// A CPU ended its service of level-triggered `vector`.
    pub fn eoi(&self, vector: u8) {
        self.lock().eoi(vector, &self.cpus);
    }

    /// Power-on state. Pins stay at the level that their lines drive.
    pub fn reset(&self) {
        self.lock().reset();
    }
}

impl BusDevice for IoApic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = self.lock();
        let value = match offset & !3 {
            spec::IOREGSEL => u32::from(registers.select),
            spec::IOWIN => registers.read(registers.select),
            _ => 0,
        };
        let bytes = (u64::from(value) >> (8 * (offset & 3))).to_le_bytes();
        for (byte, value) in data.iter_mut().zip(bytes) {
            *byte = value;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // Registers are written whole; the select register's one byte may be written alone.
        let mut bytes = [0; 4];
        let len = data.len().min(4);
        bytes[..len].copy_from_slice(&data[..len]);
        let value = u32::from_le_bytes(bytes);
        let mut registers = self.lock();
        match offset {
            spec::IOREGSEL => registers.select = value as u8,
            spec::IOWIN if data.len() >= 4 => {
                let index = registers.select;
                registers.write(index, value, &self.cpus);
            }
            spec::EOIR => registers.eoi(value as u8, &self.cpus),
            _ => {}
        }
    }
}
