//! The seam between a CPU and its interrupt controller, where the controller is ours (not the kernel's).
//!
//! The controller raises its CPU through [`InterruptTarget`] (from any thread); the CPU asks its controller
//! through [`LocalInterrupts`] (on its own thread).

use std::fmt;

/// Something that a controller asks of a CPU. The bits of `interrupt_request`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptKind {
    /// A maskable interrupt is pending: [`LocalInterrupts::acknowledge`] has its vector.
    Hard,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT: reset the CPU, then wait for SIPI (an AP) or start over (the bootstrap CPU).
    Init,
    /// Start-up IPI: [`LocalInterrupts::take_sipi`] has its vector.
    Sipi,
}

/// A CPU as its interrupt controller sees it. Publish first (IRR bit, vector), then raise.
pub trait InterruptTarget: Send + Sync {
    /// Marks `kind` pending and kicks the CPU. Any thread.
    fn raise(&self, kind: InterruptKind);
    /// Withdraws a pending [`InterruptKind::Hard`] (the PIC lowered INTR, the TPR rose).
    fn lower_hard(&self);
}

/// The guest accessed a register that the controller does not have in its present mode: the CPU raises #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such local APIC register")]
pub struct NoSuchRegister;

/// What a local APIC has for its CPU, for the user who finds that it hangs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ApicSummary {
    /// Vectors that are requested, a bit each.
    pub irr: [u32; 8],
    /// Vectors that are in service, a bit each.
    pub isr: [u32; 8],
    /// Task priority.
    pub tpr: u8,
    /// Spurious-vector register: bit 8 enables the APIC.
    pub svr: u32,
}

impl fmt::Display for ApicSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, name: &str, words: &[u32; 8]| {
            write!(f, "{name}")?;
            let mut vectors =
                (0..256).filter(|vector| words[vector / 32] >> (vector % 32) & 1 != 0).peekable();
            match vectors.peek() {
                None => write!(f, " empty"),
                Some(_) => vectors.try_for_each(|vector| write!(f, " {vector:02x}")),
            }
        };
        list(f, "IRR", &self.irr)?;
        list(f, ", ISR", &self.isr)?;
        write!(f, ", TPR {:02x}", self.tpr)?;
        if self.svr & 1 << 8 == 0 { write!(f, ", APIC disabled") } else { Ok(()) }
    }
}

/// A CPU's interrupt controller as the CPU sees it: its local APIC with the PIC behind LINT0.
/// Called on the CPU's own thread only, except where said otherwise.
pub trait LocalInterrupts: Send + Sync {
    /// Whether a maskable interrupt could be taken now, IF permitting: IRR above PPR, or ExtINT. Any thread.
    fn has_interrupt(&self) -> bool;
    /// INTA: moves the highest pending vector to in-service and returns it. `None` if it went away meanwhile.
    /// Lowers [`InterruptKind::Hard`], and raises it again if yet another vector could be taken.
    fn acknowledge(&self) -> Option<u8>;
    /// What there is to take, and what keeps it from being taken. Any thread.
    fn summary(&self) -> ApicSummary {
        ApicSummary::default()
    }
    /// The vector of a pending start-up IPI, taken.
    fn take_sipi(&self) -> Option<u8>;
    /// The CPU's time-stamp counter was moved (IA32_TIME_STAMP_COUNTER, IA32_TSC_ADJUST): an armed IA32_TSC_DEADLINE is
    /// measured anew.
    fn tsc_changed(&self);
    /// The INIT that the CPU has just processed reaches its local APIC (SDM vol. 3A, *Local APIC State After INIT*).
    fn init(&self);
    /// CR8: bits 7:4 of the task priority.
    fn cr8(&self) -> u8;
    /// Writes CR8 (0 to 15).
    fn set_cr8(&self, value: u8);
    /// Reads IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register (`0x800..=0x8ff`).
    fn read_msr(&self, index: u32) -> Result<u64, NoSuchRegister>;
    /// Writes IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register (`0x800..=0x8ff`).
    fn write_msr(&self, index: u32, value: u64) -> Result<(), NoSuchRegister>;
    /// Physical address of the xAPIC page while it is mapped (enabled and not in x2APIC mode). Any thread.
    fn mmio_base(&self) -> Option<u64>;
    /// Reads the xAPIC page at `offset` (0 to 0xfff).
    fn mmio_read(&self, offset: u64, data: &mut [u8]);
    /// Writes the xAPIC page at `offset` (0 to 0xfff).
    fn mmio_write(&self, offset: u64, data: &[u8]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_names_vectors() {
        let mut summary = ApicSummary { svr: 0x1ff, ..ApicSummary::default() };
        assert_eq!(summary.to_string(), "IRR empty, ISR empty, TPR 00");
        (summary.irr[1], summary.irr[7], summary.isr[2]) = (1 << 1, 1 << 31, 1);
        (summary.tpr, summary.svr) = (0x20, 0xff);
        assert_eq!(summary.to_string(), "IRR 21 ff, ISR 40, TPR 20, APIC disabled");
    }
}
