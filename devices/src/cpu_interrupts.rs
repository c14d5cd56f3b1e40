//! The seam between a CPU and its interrupt controller, where the controller is ours (not the kernel's).
//!
//! The controller raises its CPU through [`InterruptTarget`] (from any thread); the CPU asks its controller
//! through [`LocalInterrupts`] (on its own thread).

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

/// A CPU's interrupt controller as the CPU sees it: its local APIC with the PIC behind LINT0.
/// Called on the CPU's own thread only, except where said otherwise.
pub trait LocalInterrupts: Send + Sync {
    /// Whether a maskable interrupt could be taken now, IF permitting: IRR above PPR, or ExtINT. Any thread.
    fn has_interrupt(&self) -> bool;
    /// INTA: moves the highest pending vector to in-service and returns it. `None` if it went away meanwhile.
    /// Lowers [`InterruptKind::Hard`], and raises it again if yet another vector could be taken.
    fn acknowledge(&self) -> Option<u8>;
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
