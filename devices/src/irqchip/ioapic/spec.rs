//! Registers of the Intel 82093AA I/O Advanced Programmable Interrupt Controller (order 290566-001), with the EOI
//! register of its successors (Intel I/O Controller Hub 9, *I/O APIC Registers*).

/// Physical address of the register window.
pub const BASE: u64 = 0xfec0_0000;
/// Length of the register window in bytes.
pub const WINDOW: u64 = 0x1000;

/// Input pins.
pub const PINS: usize = 24;

/// I/O Register Select (offset).
pub const IOREGSEL: u64 = 0x00;
/// I/O Window (offset).
pub const IOWIN: u64 = 0x10;
/// End of Interrupt (offset): the vector in bits 7:0.
pub const EOIR: u64 = 0x40;

/// Index of IOAPICID.
pub const IOAPICID: u8 = 0x00;
/// Index of IOAPICVER.
pub const IOAPICVER: u8 = 0x01;
/// Index of IOAPICARB.
pub const IOAPICARB: u8 = 0x02;
/// Index of the lower half of IOREDTBL\[0\]; the upper half follows, then the next entry.
pub const IOREDTBL: u8 = 0x10;

/// Version that has the EOI register.
pub const VERSION: u32 = 0x20;
/// IOAPICVER: shift of the maximum redirection entry.
pub const MAX_ENTRY_SHIFT: u32 = 16;
/// IOAPICID, IOAPICARB: bits 27:24.
pub const ID_MASK: u32 = 0x0f00_0000;

/// Fields of a redirection table entry.
pub mod redtbl {
    /// INTVEC, bits 7:0.
    pub const INTVEC: u64 = 0xff;
    /// DELMOD: shift of bits 10:8.
    pub const DELMOD_SHIFT: u32 = 8;
    /// DESTMOD: logical.
    pub const DESTMOD: u64 = 1 << 11;
    /// DELIVS: send pending.
    pub const DELIVS: u64 = 1 << 12;
    /// INTPOL: low active.
    pub const INTPOL: u64 = 1 << 13;
    /// Remote IRR.
    pub const REMOTE_IRR: u64 = 1 << 14;
    /// Trigger mode: level.
    pub const TRIGGER_LEVEL: u64 = 1 << 15;
    /// Interrupt mask.
    pub const MASK: u64 = 1 << 16;
    /// Destination field: shift of bits 63:56.
    pub const DEST_SHIFT: u32 = 56;
    /// Bits that software cannot write.
    pub const READ_ONLY: u64 = DELIVS | REMOTE_IRR;
    /// Bits that exist.
    pub const IMPLEMENTED: u64 = 0xff00_0000_0001_ffff;
}
