//! Registers of the Intel 8254 Programmable Interval Timer (order 231164-005), and of the NMI status and control
//! register that holds its third gate (Intel 82371AB PIIX4, *NMI Status and Control Register*).

/// First of the four ports.
pub const PORT: u16 = 0x40;
/// Ports.
pub const PORTS: u64 = 4;
/// NMI Status and Control.
pub const NMI_SC_PORT: u16 = 0x61;
/// ISA interrupt of counter 0.
pub const IRQ: u8 = 0;

/// Input frequency of all counters.
pub const HZ: u64 = 1_193_182;
/// Offset of the control word.
pub const CONTROL: u64 = 3;

/// Control word.
pub mod control {
    /// Select counter: shift of bits 7:6.
    pub const SC_SHIFT: u32 = 6;
    /// SC: read-back command.
    pub const READ_BACK: u8 = 3;
    /// Read/write: shift of bits 5:4.
    pub const RW_SHIFT: u32 = 4;
    /// Mode: shift of bits 3:1.
    pub const MODE_SHIFT: u32 = 1;
    /// Binary coded decimal.
    pub const BCD: u8 = 1 << 0;
}

/// Read-back command.
pub mod read_back {
    /// Clear: latch the count.
    pub const NOT_COUNT: u8 = 1 << 5;
    /// Clear: latch the status.
    pub const NOT_STATUS: u8 = 1 << 4;
    /// Counter 0; 1 and 2 follow.
    pub const COUNTER_0: u8 = 1 << 1;
}

/// Status byte.
pub mod status {
    /// The level of OUT.
    pub const OUTPUT: u8 = 1 << 7;
    /// The count written has not been loaded.
    pub const NULL_COUNT: u8 = 1 << 6;
}

/// NMI Status and Control.
pub mod nmi_sc {
    /// Counter 2's gate.
    pub const TIM_CNT2_EN: u8 = 1 << 0;
    /// Speaker data, and the error enables: stored.
    pub const WRITABLE: u8 = 0x0f;
    /// Refresh cycle toggle.
    pub const REF_TOGGLE: u8 = 1 << 4;
    /// Counter 2's OUT.
    pub const TMR2_OUT_STS: u8 = 1 << 5;
    /// Nanoseconds between toggles of [`REF_TOGGLE`].
    pub const REFRESH_NS: u64 = 15_085;
}
