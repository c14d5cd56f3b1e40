//! ACPI power management registers: PM1a event and control blocks, PM timer. ACPI Specification 6.5, *ACPI Fixed
//! Hardware Registers*.
//!
//! The machine is always in ACPI mode (there is no SMI to enter it by), so SCI_EN reads as one.

use std::sync::{Arc, Weak};

use crate::bus::BusDevice;
use crate::clock::{Clock, Timer};
use crate::device::Device;
use crate::interrupt::IrqLine;
use crate::lock_rank::device::{Mutex, MutexGuard};
use crate::system::{SystemControl, SystemRequest};

pub mod spec;
#[cfg(test)]
mod tests;

use spec::{pm1, pm1_cnt};

#[derive(Default)]
struct Registers {
    status: u16,
    enable: u16,
    control: u16,
    /// The timer's value when its most significant bit was last looked at.
    timer_seen: u64,
}

/// Power management: one block of I/O ports, laid out by [`spec`].
pub struct AcpiPm {
    registers: Mutex<Registers>,
    sci: IrqLine,
    clock: Arc<dyn Clock>,
    control: Arc<dyn SystemControl>,
    timer: Box<dyn Timer>,
}

/// Half of the timer's range: how far apart changes of its most significant bit are, in ticks.
const HALF_RANGE: u64 = 1 << 31;
const NS_PER_SECOND: u128 = 1_000_000_000;

impl AcpiPm {
    /// Registers after power-on. `sci` is level-triggered; S5 is asked of `control`.
    pub fn new(sci: IrqLine, clock: Arc<dyn Clock>, control: Arc<dyn SystemControl>) -> Arc<Self> {
        Arc::new_cyclic(|own: &Weak<Self>| {
            let own = Weak::clone(own);
            let due = move || {
                if let Some(own) = own.upgrade() {
                    own.update(&mut own.lock());
                }
            };
            let timer = clock.new_timer("ACPI PM timer", Arc::new(due));
            Self { registers: Mutex::default(), sci, clock, control, timer }
        })
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().expect("no holder of the PM lock panics")
    }

    /// Ticks of the PM timer since the machine was built; the register shows the low 32 bits.
    fn ticks(&self) -> u64 {
        (u128::from(self.clock.now_ns()) * u128::from(spec::PM_TIMER_HZ) / NS_PER_SECOND) as u64
    }

    /// Brings TMR_STS, the SCI and the timer that watches for the carry up to date.
    fn update(&self, registers: &mut Registers) {
        let ticks = self.ticks();
        if ticks / HALF_RANGE != registers.timer_seen / HALF_RANGE {
            registers.status |= pm1::TMR;
        }
        registers.timer_seen = ticks;
        self.sci.set_level(registers.status & registers.enable & pm1::ENABLES != 0);
        if registers.enable & pm1::TMR != 0 && registers.status & pm1::TMR == 0 {
            let carry = (ticks / HALF_RANGE + 1) * HALF_RANGE;
            let carry_ns = (u128::from(carry) * NS_PER_SECOND).div_ceil(u128::from(spec::PM_TIMER_HZ));
            self.timer.arm(u64::try_from(carry_ns).unwrap_or(u64::MAX));
        } else {
            self.timer.cancel();
        }
    }

    /// The user presses the power button: a guest that listens shuts itself down.
    pub fn press_power_button(&self) {
        let mut registers = self.lock();
        registers.status |= pm1::PWRBTN;
        self.update(&mut registers);
    }

    fn bytes(&self, registers: &mut Registers) -> [u8; spec::PORTS as usize] {
        self.update(registers);
        let mut bytes = [0; spec::PORTS as usize];
        bytes[0..2].copy_from_slice(&registers.status.to_le_bytes());
        bytes[2..4].copy_from_slice(&registers.enable.to_le_bytes());
        bytes[4..6].copy_from_slice(&(registers.control | pm1_cnt::SCI_EN).to_le_bytes());
        bytes[8..12].copy_from_slice(&(self.ticks() as u32).to_le_bytes());
        bytes
    }

    /// Writes the byte at `offset`; `true` if it asks for S5.
    fn write_byte(registers: &mut Registers, offset: u64, byte: u8) -> bool {
        let shift = 8 * (offset & 1);
        let (mask, value) = (0xff << shift, u16::from(byte) << shift);
        match offset & !1 {
            // Status bits are cleared by writing one.
            0 => registers.status &= !value,
            2 => registers.enable = ((registers.enable & !mask) | value) & pm1::ENABLES,
            spec::PM1A_CNT_BLK => {
                let writable = pm1_cnt::BM_RLD | pm1_cnt::SLP_TYP_MASK << pm1_cnt::SLP_TYP_SHIFT;
                registers.control = ((registers.control & !mask) | value) & writable;
                let sleep_type = registers.control >> pm1_cnt::SLP_TYP_SHIFT & pm1_cnt::SLP_TYP_MASK;
                return value & pm1_cnt::SLP_EN != 0 && sleep_type == spec::SLP_TYP_S5;
            }
            _ => {}
        }
        false
    }
}

impl BusDevice for AcpiPm {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.bytes(&mut self.lock());
        for (offset, byte) in (offset..).zip(data) {
            *byte = bytes.get(offset as usize).copied().unwrap_or(0);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut registers = self.lock();
        self.update(&mut registers);
        let mut power_off = false;
        for (offset, &byte) in (offset..).zip(data) {
            power_off |= Self::write_byte(&mut registers, offset, byte);
        }
        self.update(&mut registers);
        drop(registers);
        if power_off {
            self.control.request(SystemRequest::PowerOff);
        }
    }
}

impl Device for AcpiPm {
    fn name(&self) -> &'static str {
        "ACPI PM"
    }

    fn reset(&self) {
        let mut registers = self.lock();
        *registers = Registers { timer_seen: self.ticks(), ..Registers::default() };
        self.update(&mut registers);
    }
}
