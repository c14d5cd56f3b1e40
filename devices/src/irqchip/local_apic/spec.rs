//! Registers of the local APIC. SDM vol. 3A, *Advanced Programmable Interrupt Controller*; MSRs from SDM vol. 4.

/// Length of the register page in bytes.
pub const PAGE: u64 = 0x1000;
/// Frequency of the timer before its divider. CPUID 15H gives it to the guest as the core crystal clock.
pub const TIMER_HZ: u64 = 1_000_000_000;

/// Offsets in the register page. An x2APIC register's MSR is `X2APIC_BASE + offset / 16`.
pub mod register {
    /// Local APIC ID.
    pub const ID: u16 = 0x020;
    /// Version.
    pub const VERSION: u16 = 0x030;
    /// Task Priority.
    pub const TPR: u16 = 0x080;
    /// Arbitration Priority (xAPIC).
    pub const APR: u16 = 0x090;
    /// Processor Priority.
    pub const PPR: u16 = 0x0a0;
    /// End of Interrupt.
    pub const EOI: u16 = 0x0b0;
    /// Remote Read (xAPIC).
    pub const RRD: u16 = 0x0c0;
    /// Logical Destination.
    pub const LDR: u16 = 0x0d0;
    /// Destination Format (xAPIC).
    pub const DFR: u16 = 0x0e0;
    /// Spurious Interrupt Vector.
    pub const SVR: u16 = 0x0f0;
    /// In-Service, first of eight.
    pub const ISR: u16 = 0x100;
    /// Trigger Mode, first of eight.
    pub const TMR: u16 = 0x180;
    /// Interrupt Request, first of eight.
    pub const IRR: u16 = 0x200;
    /// The last of the IRR.
    pub const IRR_LAST: u16 = 0x270;
    /// Error Status.
    pub const ESR: u16 = 0x280;
    /// Interrupt Command, low half (xAPIC) or all of it (x2APIC).
    pub const ICR_LOW: u16 = 0x300;
    /// Interrupt Command, high half (xAPIC).
    pub const ICR_HIGH: u16 = 0x310;
    /// LVT Timer.
    pub const LVT_TIMER: u16 = 0x320;
    /// LVT Thermal Sensor.
    pub const LVT_THERMAL: u16 = 0x330;
    /// LVT Performance Monitoring Counters.
    pub const LVT_PERFORMANCE: u16 = 0x340;
    /// LVT LINT0.
    pub const LVT_LINT0: u16 = 0x350;
    /// LVT LINT1.
    pub const LVT_LINT1: u16 = 0x360;
    /// LVT Error.
    pub const LVT_ERROR: u16 = 0x370;
    /// Initial Count.
    pub const TIMER_INITIAL: u16 = 0x380;
    /// Current Count.
    pub const TIMER_CURRENT: u16 = 0x390;
    /// Divide Configuration.
    pub const TIMER_DIVIDE: u16 = 0x3e0;
    /// Self IPI (x2APIC).
    pub const SELF_IPI: u16 = 0x3f0;
}

/// Entries of the local vector table.
pub const LVT_ENTRIES: usize = 6;

/// Version 14H, EOI-broadcast suppression, [`LVT_ENTRIES`] - 1 as the highest entry.
pub const VERSION: u32 = 0x14 | (LVT_ENTRIES as u32 - 1) << 16 | 1 << 24;

/// Spurious Interrupt Vector Register.
pub mod svr {
    /// Vector.
    pub const VECTOR: u32 = 0xff;
    /// APIC software enable.
    pub const ENABLE: u32 = 1 << 8;
    /// No EOI broadcast for level-triggered vectors.
    pub const SUPPRESS_EOI_BROADCAST: u32 = 1 << 12;
    /// After reset.
    pub const RESET: u32 = 0xff;
    /// Bits that exist.
    pub const WRITABLE: u32 = VECTOR | ENABLE | SUPPRESS_EOI_BROADCAST;
}

/// Local vector table entries.
pub mod lvt {
    /// Vector.
    pub const VECTOR: u32 = 0xff;
    /// Delivery mode: shift of bits 10:8.
    pub const DELIVERY_SHIFT: u32 = 8;
    /// Delivery mode: NMI.
    pub const DELIVERY_NMI: u32 = 4;
    /// Delivery mode: ExtINT.
    pub const DELIVERY_EXT_INT: u32 = 7;
    /// Trigger mode (LINT0, LINT1): level.
    pub const TRIGGER_LEVEL: u32 = 1 << 15;
    /// Mask.
    pub const MASK: u32 = 1 << 16;
    /// Timer mode: shift of bits 18:17.
    pub const TIMER_MODE_SHIFT: u32 = 17;
    /// Bits that exist, by entry from LVT Timer to LVT Error.
    pub const WRITABLE: [u32; super::LVT_ENTRIES] =
        [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
    /// Index of LVT Timer.
    pub const TIMER: usize = 0;
    /// Index of LVT LINT0.
    pub const LINT0: usize = 3;
    /// Index of LVT LINT1.
    pub const LINT1: usize = 4;
    /// Index of LVT Error.
    pub const ERROR: usize = 5;
}

/// Interrupt Command Register.
pub mod icr {
    /// Vector.
    pub const VECTOR: u64 = 0xff;
    /// Delivery mode: shift of bits 10:8.
    pub const DELIVERY_SHIFT: u32 = 8;
    /// Destination mode: logical.
    pub const LOGICAL: u64 = 1 << 11;
    /// Delivery status, read-only.
    pub const DELIVERY_STATUS: u64 = 1 << 12;
    /// Level: assert.
    pub const ASSERT: u64 = 1 << 14;
    /// Trigger mode: level.
    pub const TRIGGER_LEVEL: u64 = 1 << 15;
    /// Destination shorthand: shift of bits 19:18.
    pub const SHORTHAND_SHIFT: u32 = 18;
    /// Bits of the low half that software writes (delivery status is not one).
    pub const WRITABLE_LOW: u64 = 0x000c_cfff;
    /// Destination of an xAPIC: shift of bits 63:56.
    pub const XAPIC_DESTINATION_SHIFT: u32 = 56;
    /// Destination of an x2APIC: shift of bits 63:32.
    pub const X2APIC_DESTINATION_SHIFT: u32 = 32;
}

/// Error Status Register.
pub mod esr {
    /// Send illegal vector.
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    /// Receive illegal vector.
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    /// Illegal register address.
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// The lowest vector that an APIC delivers.
pub const FIRST_VECTOR: u8 = 16;

/// Destination Format Register: flat model in bits 31:28 all ones, cluster model all zeroes.
pub const DFR_MODEL: u32 = 0xf000_0000;
/// Divide Configuration Register: bits that exist.
pub const DIVIDE_WRITABLE: u32 = 0b1011;

/// IA32_APIC_BASE.
pub const IA32_APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
pub const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// The first x2APIC MSR.
pub const X2APIC_BASE: u32 = 0x800;
/// The last x2APIC MSR.
pub const X2APIC_LAST: u32 = 0x8ff;

/// Bits of IA32_APIC_BASE.
pub mod apic_base {
    /// Bootstrap processor.
    pub const BSP: u64 = 1 << 8;
    /// x2APIC mode.
    pub const EXTD: u64 = 1 << 10;
    /// APIC global enable.
    pub const EN: u64 = 1 << 11;
    /// The page's physical address, before MAXPHYADDR cuts it.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// The page after reset.
    pub const RESET_ADDRESS: u64 = 0xfee0_0000;
}
