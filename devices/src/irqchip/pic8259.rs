//! 8259A interrupt controller pair, cascaded as in a PC. Intel 8259A, order 231468-003.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::lock_rank::irqchip::{Mutex, MutexGuard};

pub mod spec;
#[cfg(test)]
mod tests;

use spec::{icw1, icw4, ocw2, ocw3};

/// Driven with the level of the master's INT output, under the pair's lock: must not come back to it.
pub type IntrOutput = Box<dyn Fn(bool) + Send + Sync>;

/// What the next write to A0=1 is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expect {
    #[default]
    Ocw1,
    Icw2,
    Icw3,
    Icw4,
}

#[derive(Debug, Default)]
struct Chip {
    is_master: bool,
    irr: u8,
    isr: u8,
    imr: u8,
    elcr: u8,
    lines: u8,
    vector_base: u8,
    expect: Expect,
    wants_icw3: bool,
    wants_icw4: bool,
    aeoi: bool,
    rotate_on_aeoi: bool,
    special_fully_nested: bool,
    special_mask: bool,
    read_isr: bool,
    poll: bool,
    /// The input with the highest priority.
    first: u8,
}

impl Chip {
    fn reset(&mut self) {
        *self = Self { is_master: self.is_master, lines: self.lines, ..Self::default() };
    }

    fn set_line(&mut self, input: u8, level: bool) {
        let bit = 1 << input;
        let rising = level && self.lines & bit == 0;
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
        // The cascade input follows the slave: a request that the slave withdraws must not linger here.
        if self.elcr & bit != 0 || (self.is_master && input == spec::CASCADE) {
            self.irr = if level { self.irr | bit } else { self.irr & !bit };
        } else if rising {
            self.irr |= bit;
        }
    }

    /// Distance from the highest priority of the best input in `inputs`.
    fn priority(&self, inputs: u8) -> Option<u8> {
        let rotated = inputs.rotate_right(u32::from(self.first));
        (rotated != 0).then(|| rotated.trailing_zeros() as u8)
    }

    /// The input that asks for INTA.
    fn requested(&self) -> Option<u8> {
        let request = self.priority(self.irr & !self.imr)?;
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        if self.special_fully_nested && self.is_master {
            in_service &= !(1 << spec::CASCADE);
        }
        if self.priority(in_service).is_some_and(|level| level <= request) {
            return None;
        }
        Some((request + self.first) % spec::INPUTS)
    }

    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        if self.aeoi {
            if self.rotate_on_aeoi {
                self.first = (input + 1) % spec::INPUTS;
            }
        } else {
            self.isr |= bit;
        }
        let level = self.elcr & bit != 0 || (self.is_master && input == spec::CASCADE);
        if !level {
            self.irr &= !bit;
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & icw1::INIT != 0 {
            self.write_icw1(value);
        } else if value & ocw3::SELECT != 0 {
            if value & ocw3::P != 0 {
                self.poll = true;
            }
            if value & ocw3::RR != 0 {
                self.read_isr = value & ocw3::RIS != 0;
            }
            if value & ocw3::ESMM != 0 {
                self.special_mask = value & ocw3::SMM != 0;
            }
        } else {
            self.write_ocw2(value);
        }
    }

    /// Starts initialisation; requests latched on edges are forgotten (8259A, *Initialization Command Words*).
    fn write_icw1(&mut self, value: u8) {
        let level = self.elcr | if self.is_master { 1 << spec::CASCADE } else { 0 };
        *self = Self {
            is_master: self.is_master,
            irr: self.irr & level,
            elcr: self.elcr,
            lines: self.lines,
            vector_base: self.vector_base,
            expect: Expect::Icw2,
            wants_icw3: value & icw1::SNGL == 0,
            wants_icw4: value & icw1::IC4 != 0,
            ..Self::default()
        };
    }

    fn write_ocw2(&mut self, value: u8) {
        let level = value & ocw2::LEVEL;
        match value >> 5 {
            ocw2::ROTATE_AEOI_CLEAR => self.rotate_on_aeoi = false,
            ocw2::ROTATE_AEOI_SET => self.rotate_on_aeoi = true,
            command @ (ocw2::EOI | ocw2::ROTATE_EOI) => {
                // In special mask mode a masked input's service is not what a non-specific EOI ends.
                let candidates = if self.special_mask { self.isr & !self.imr } else { self.isr };
                if let Some(priority) = self.priority(candidates) {
                    let input = (priority + self.first) % spec::INPUTS;
                    self.isr &= !(1 << input);
                    if command == ocw2::ROTATE_EOI {
                        self.first = (input + 1) % spec::INPUTS;
                    }
                }
            }
            ocw2::SPECIFIC_EOI => self.isr &= !(1 << level),
            ocw2::SET_PRIORITY => self.first = (level + 1) % spec::INPUTS,
            ocw2::ROTATE_SPECIFIC_EOI => {
                self.isr &= !(1 << level);
                self.first = (level + 1) % spec::INPUTS;
            }
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        self.expect = match self.expect {
            Expect::Ocw1 => {
                self.imr = value;
                Expect::Ocw1
            }
            Expect::Icw2 => {
                self.vector_base = value & spec::ICW2_VECTOR;
                match (self.wants_icw3, self.wants_icw4) {
                    (true, _) => Expect::Icw3,
                    (false, true) => Expect::Icw4,
                    (false, false) => Expect::Ocw1,
                }
            }
            // The cascade is wired, whatever ICW3 says.
            Expect::Icw3 if self.wants_icw4 => Expect::Icw4,
            Expect::Icw3 => Expect::Ocw1,
            Expect::Icw4 => {
                self.aeoi = value & icw4::AEOI != 0;
                self.special_fully_nested = value & icw4::SFNM != 0;
                Expect::Ocw1
            }
        };
    }

    fn read(&mut self, a0: bool) -> u8 {
        if self.poll {
            self.poll = false;
            return match self.requested() {
                Some(input) => {
                    self.acknowledge(input);
                    spec::POLL_INTERRUPT | input
                }
                None => 0,
            };
        }
        match (a0, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr,
        }
    }
}

struct Pair {
    master: Chip,
    slave: Chip,
    intr: bool,
}

/// The two 8259A of a PC, their cascade and the edge/level control registers.
pub struct Pic8259 {
    pair: Mutex<Pair>,
    output: IntrOutput,
}

impl Pic8259 {
    /// A pair after power-on that drives `output`.
    pub fn new(output: IntrOutput) -> Arc<Self> {
        let chip = |is_master| Chip { is_master, ..Chip::default() };
        Arc::new(Self {
            pair: Mutex::new(Pair { master: chip(true), slave: chip(false), intr: false }),
            output,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Pair> {
        self.pair.lock().expect("no holder of the PIC's lock panics")
    }

    /// Brings the cascade and the output in line with the chips.
    fn update(&self, pair: &mut Pair) {
        let slave = pair.slave.requested().is_some();
        pair.master.set_line(spec::CASCADE, slave);
        let intr = pair.master.requested().is_some();
        if pair.intr != intr {
            pair.intr = intr;
            (self.output)(intr);
        }
    }

    /// Drives ISA interrupt `irq` (0 to 15; the cascade, 2, is not an input).
    pub fn set_irq(&self, irq: u8, level: bool) {
        let mut pair = self.lock();
        match irq {
            spec::CASCADE => return,
            0..spec::INPUTS => pair.master.set_line(irq, level),
            spec::INPUTS..16 => pair.slave.set_line(irq - spec::INPUTS, level),
            _ => return,
        }
        self.update(&mut pair);
    }

    /// INTA: the vector of the highest request, now in service; the spurious vector if it went away.
    pub fn acknowledge(&self) -> u8 {
        let mut pair = self.lock();
        let vector = match pair.master.requested() {
            None => pair.master.vector_base | spec::SPURIOUS,
            Some(spec::CASCADE) => {
                pair.master.acknowledge(spec::CASCADE);
                let input = pair.slave.requested();
                if let Some(input) = input {
                    pair.slave.acknowledge(input);
                }
                pair.slave.vector_base | input.unwrap_or(spec::SPURIOUS)
            }
            Some(input) => {
                pair.master.acknowledge(input);
                pair.master.vector_base | input
            }
        };
        self.update(&mut pair);
        vector
    }

    /// Power-on state. Inputs stay at the level that their lines drive.
    pub fn reset(&self) {
        let mut pair = self.lock();
        pair.master.reset();
        pair.slave.reset();
        self.update(&mut pair);
    }

    /// Ports 0x20 and 0x21.
    pub fn master_ports(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(ChipPorts { pic: Arc::clone(self), is_master: true })
    }

    /// Ports 0xa0 and 0xa1.
    pub fn slave_ports(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(ChipPorts { pic: Arc::clone(self), is_master: false })
    }

    /// Ports 0x4d0 and 0x4d1.
    pub fn elcr_ports(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(ElcrPorts(Arc::clone(self)))
    }
}

struct ChipPorts {
    pic: Arc<Pic8259>,
    is_master: bool,
}

impl ChipPorts {
    fn with_chip<R>(&self, f: impl FnOnce(&mut Chip) -> R) -> R {
        let mut pair = self.pic.lock();
        let result = f(if self.is_master { &mut pair.master } else { &mut pair.slave });
        self.pic.update(&mut pair);
        result
    }
}

impl BusDevice for ChipPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (port, byte) in (offset..).zip(data) {
            *byte = self.with_chip(|chip| chip.read(port & 1 != 0));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (port, &byte) in (offset..).zip(data) {
            self.with_chip(
                |chip| if port & 1 == 0 { chip.write_command(byte) } else { chip.write_data(byte) },
            );
        }
    }
}

struct ElcrPorts(Arc<Pic8259>);

impl BusDevice for ElcrPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let pair = self.0.lock();
        for (port, byte) in (offset..).zip(data) {
            *byte = if port & 1 == 0 { pair.master.elcr } else { pair.slave.elcr };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut pair = self.0.lock();
        for (port, &byte) in (offset..).zip(data) {
            if port & 1 == 0 {
                pair.master.elcr = byte & spec::ELCR1_WRITABLE;
            } else {
                pair.slave.elcr = byte & spec::ELCR2_WRITABLE;
            }
        }
    }
}
