//! The local APIC's registers as the CPU reads and writes them: the xAPIC page and the MSRs.
//! SDM vol. 3A, *Local APIC Registers* and *Extended XAPIC (x2APIC)*.

use std::sync::atomic::Ordering::SeqCst;

use super::spec::{self, apic_base, esr, icr, lvt, register, svr};
use super::timer::TimerMode;
use super::{LocalApic, NoSuchRegister};
use crate::irqchip::apic_set::{ApicMessage, DeliveryMode, Destination, Trigger};

/// Destination shorthand, bits 19:18 of the ICR.
mod shorthand {
    pub const NONE: u64 = 0;
    pub const SELF: u64 = 1;
    pub const ALL: u64 = 2;
}

/// The index of an LVT entry by its register.
fn lvt_index(offset: u16) -> usize {
    usize::from((offset - register::LVT_TIMER) >> 4)
}

impl LocalApic {
    /// Reads a register that both modes have.
    fn read_register(&self, offset: u16) -> Result<u32, NoSuchRegister> {
        let word = |first: u16| usize::from((offset - first) >> 4);
        Ok(match offset {
            register::VERSION => spec::VERSION,
            register::TPR => self.tpr.load(SeqCst),
            register::PPR => u32::from(self.processor_priority()),
            register::SVR => self.svr.load(SeqCst),
            register::ISR..register::TMR => self.isr.word(word(register::ISR)),
            register::TMR..register::IRR => self.tmr.word(word(register::TMR)),
            register::IRR..=register::IRR_LAST => self.irr.word(word(register::IRR)),
            register::ESR => self.esr.load(SeqCst),
            register::ICR_LOW => self.icr.load(SeqCst) as u32,
            register::LVT_TIMER..=register::LVT_ERROR => self.lvt[lvt_index(offset)].load(SeqCst),
            register::TIMER_INITIAL => self.timer.initial_count(),
            register::TIMER_CURRENT => self.timer.current_count(),
            register::TIMER_DIVIDE => self.timer.divide_configuration(),
            _ => return Err(NoSuchRegister),
        })
    }

    /// Writes a register that both modes have, but for the ICR.
    fn write_register(&self, offset: u16, value: u32) -> Result<(), NoSuchRegister> {
        match offset {
            register::TPR => self.set_tpr(value as u8),
            register::EOI => self.end_of_interrupt(),
            register::SVR => self.write_svr(value),
            register::ESR => self.esr.store(self.pending_errors.swap(0, SeqCst), SeqCst),
            register::LVT_TIMER..=register::LVT_ERROR => self.write_lvt(lvt_index(offset), value),
            register::TIMER_INITIAL => self.timer.set_initial_count(value),
            register::TIMER_DIVIDE => self.timer.set_divide_configuration(value),
            _ => return Err(NoSuchRegister),
        }
        Ok(())
    }

    fn write_svr(&self, value: u32) {
        self.svr.store(value & svr::WRITABLE, SeqCst);
        if value & svr::ENABLE == 0 {
            // A software-disabled APIC has its LVT masked, and keeps it so.
            for entry in &self.lvt {
                entry.fetch_or(lvt::MASK, SeqCst);
            }
            self.lower_and_look();
        }
    }

    fn write_lvt(&self, index: usize, value: u32) {
        let mut value = value & lvt::WRITABLE[index];
        if self.svr.load(SeqCst) & svr::ENABLE == 0 {
            value |= lvt::MASK;
        }
        self.lvt[index].store(value, SeqCst);
        match index {
            lvt::TIMER => self.timer.set_mode(TimerMode::from_lvt(value)),
            lvt::LINT0 => self.lower_and_look(),
            _ => {}
        }
    }

    /// The ICR was written: sends the IPI.
    fn send_ipi(&self, command: u64, destination: Destination) {
        let Some(mode) = DeliveryMode::from_bits((command >> icr::DELIVERY_SHIFT) as u8 & 7) else { return };
        let is_level = command & icr::TRIGGER_LEVEL != 0;
        // INIT level de-assert: a synchronisation of arbitration IDs that CPUs since the Pentium 4 do not have.
        if mode == DeliveryMode::Init && is_level && command & icr::ASSERT == 0 {
            return;
        }
        let vector = (command & icr::VECTOR) as u8;
        let has_vector = matches!(mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        if has_vector && vector < spec::FIRST_VECTOR {
            self.report_error(esr::SEND_ILLEGAL_VECTOR);
            return;
        }
        // Fixed IPIs are edge-triggered whatever the trigger mode says (SDM: it is used for INIT de-assert only).
        let trigger = Trigger::Edge;
        let message = ApicMessage { destination, mode, vector, trigger };
        let shorthand = command >> icr::SHORTHAND_SHIFT & 3;
        if shorthand == shorthand::SELF {
            self.accept(mode, vector, trigger);
            return;
        }
        let Some(cpus) = self.cpus.upgrade() else { return };
        match shorthand {
            shorthand::NONE => _ = cpus.deliver(&message),
            shorthand::ALL => cpus.deliver_all(None, &message),
            _ => cpus.deliver_all(Some(self.apic_id), &message),
        }
    }

    fn read_xapic(&self, offset: u16) -> Result<u32, NoSuchRegister> {
        Ok(match offset {
            register::ID => self.apic_id << 24,
            register::APR => u32::from(self.processor_priority()),
            register::RRD | register::EOI => 0,
            register::LDR => self.ldr.load(SeqCst),
            register::DFR => self.dfr.load(SeqCst),
            register::ICR_HIGH => (self.icr.load(SeqCst) >> 32) as u32,
            _ => return self.read_register(offset),
        })
    }

    fn write_xapic(&self, offset: u16, value: u32) -> Result<(), NoSuchRegister> {
        match offset {
            register::ICR_LOW => {
                let high = self.icr.load(SeqCst) & !u64::from(u32::MAX);
                let command = high | u64::from(value) & icr::WRITABLE_LOW;
                self.icr.store(command, SeqCst);
                let id = (command >> icr::XAPIC_DESTINATION_SHIFT) as u8;
                self.send_ipi(command, Destination::narrow(id, command & icr::LOGICAL != 0));
            }
            register::ICR_HIGH => {
                let low = self.icr.load(SeqCst) & u64::from(u32::MAX);
                self.icr.store(low | u64::from(value & 0xff00_0000) << 32, SeqCst);
            }
            register::LDR => self.ldr.store(value & 0xff00_0000, SeqCst),
            register::DFR => self.dfr.store(value | !spec::DFR_MODEL, SeqCst),
            // Read-only, and known: not an error.
            register::ID
            | register::VERSION
            | register::APR
            | register::PPR
            | register::RRD
            | register::ISR..=register::IRR_LAST
            | register::TIMER_CURRENT => {}
            _ => return self.write_register(offset, value),
        }
        Ok(())
    }

    /// A load from the xAPIC page: within the first four bytes of a register, else zero.
    pub(super) fn read_page(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let (register, byte) = ((offset & 0xff0) as u16, (offset & 0xf) as usize);
        if byte + data.len() > 4 {
            return;
        }
        match self.read_xapic(register) {
            Ok(value) => data.copy_from_slice(&value.to_le_bytes()[byte..byte + data.len()]),
            Err(NoSuchRegister) => self.report_error(esr::ILLEGAL_REGISTER),
        }
    }

    /// A store to the xAPIC page: all four bytes of a register, or nothing.
    pub(super) fn write_page(&self, offset: u64, data: &[u8]) {
        let Ok(bytes) = <[u8; 4]>::try_from(data) else { return };
        if offset & 0xf != 0 {
            return;
        }
        if self.write_xapic((offset & 0xff0) as u16, u32::from_le_bytes(bytes)).is_err() {
            self.report_error(esr::ILLEGAL_REGISTER);
        }
    }

    /// Reads one of the MSRs in [`LocalInterrupts::read_msr`](super::LocalInterrupts::read_msr).
    pub(super) fn msr(&self, index: u32) -> Result<u64, NoSuchRegister> {
        match index {
            spec::IA32_APIC_BASE => Ok(self.apic_base.load(SeqCst)),
            spec::IA32_TSC_DEADLINE => Ok(self.timer.tsc_deadline()),
            spec::X2APIC_BASE..=spec::X2APIC_LAST if self.is_x2apic() => {
                let offset = ((index - spec::X2APIC_BASE) << 4) as u16;
                match offset {
                    register::ID => Ok(u64::from(self.apic_id)),
                    register::LDR => Ok(u64::from(self.x2apic_ldr())),
                    register::ICR_LOW => Ok(self.icr.load(SeqCst)),
                    _ => self.read_register(offset).map(u64::from),
                }
            }
            _ => Err(NoSuchRegister),
        }
    }

    /// Writes one of the MSRs in [`LocalInterrupts::write_msr`](super::LocalInterrupts::write_msr).
    pub(super) fn set_msr(&self, index: u32, value: u64) -> Result<(), NoSuchRegister> {
        match index {
            spec::IA32_APIC_BASE => self.set_apic_base(value),
            spec::IA32_TSC_DEADLINE => {
                if self.timer.set_tsc_deadline(value) {
                    self.timer_interrupt();
                }
                Ok(())
            }
            spec::X2APIC_BASE..=spec::X2APIC_LAST if self.is_x2apic() => {
                self.write_x2apic(((index - spec::X2APIC_BASE) << 4) as u16, value)
            }
            _ => Err(NoSuchRegister),
        }
    }

    fn write_x2apic(&self, offset: u16, value: u64) -> Result<(), NoSuchRegister> {
        if offset == register::ICR_LOW {
            let high = value & !u64::from(u32::MAX);
            // CPUs ignore delivery status here, though an x2APIC has none.
            let value = value & !icr::DELIVERY_STATUS;
            if value & !(high | icr::WRITABLE_LOW) != 0 {
                return Err(NoSuchRegister);
            }
            self.icr.store(value, SeqCst);
            let id = (value >> icr::X2APIC_DESTINATION_SHIFT) as u32;
            self.send_ipi(value, Destination::wide(id, value & icr::LOGICAL != 0));
            return Ok(());
        }
        let value = u32::try_from(value).map_err(|_| NoSuchRegister)?;
        let writable = match offset {
            register::EOI | register::ESR => 0,
            register::TPR | register::SELF_IPI => 0xff,
            register::SVR => svr::WRITABLE,
            register::TIMER_DIVIDE => spec::DIVIDE_WRITABLE,
            _ => u32::MAX,
        };
        if value & !writable != 0 {
            return Err(NoSuchRegister);
        }
        match offset {
            register::SELF_IPI => {
                let fixed = u64::from(value) | shorthand::SELF << icr::SHORTHAND_SHIFT;
                self.send_ipi(fixed, Destination::wide(self.apic_id, false));
                Ok(())
            }
            _ => self.write_register(offset, value),
        }
    }

    /// IA32_APIC_BASE and its mode changes (SDM vol. 3A, *x2APIC State Transitions*).
    fn set_apic_base(&self, value: u64) -> Result<(), NoSuchRegister> {
        const MODE: u64 = apic_base::EN | apic_base::EXTD;
        let old = self.apic_base.load(SeqCst);
        let address = apic_base::ADDRESS & ((1u64 << self.address_bits.min(52)) - 1);
        if value & !(address | MODE | apic_base::BSP) != 0 {
            return Err(NoSuchRegister);
        }
        let (from, to) = (old & MODE, value & MODE);
        if matches!((from, to), (_, apic_base::EXTD) | (0, MODE) | (MODE, apic_base::EN)) {
            return Err(NoSuchRegister);
        }
        self.apic_base.store(value, SeqCst);
        if from != to {
            match to {
                // Everything but the base is lost.
                0 => self.reset_registers(),
                // The ICR's halves become one register.
                MODE => self.icr.store(0, SeqCst),
                _ => {}
            }
            self.lower_and_look();
        }
        Ok(())
    }
}
