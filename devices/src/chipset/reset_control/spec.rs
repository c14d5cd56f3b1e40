//! Reset Control Register (Intel 82371AB PIIX4, *RC—Reset Control Register*) and System Control Port A (IBM PS/2 Hardware
//! Interface Technical Reference).

/// Reset Control.
pub const RC_PORT: u16 = 0xcf9;
/// System Control Port A.
pub const PORT_A: u16 = 0x92;

/// Reset Control.
pub mod rc {
    /// System reset (hard), else a soft reset.
    pub const SRST: u8 = 1 << 1;
    /// Reset CPU: its rising edge resets.
    pub const RCPU: u8 = 1 << 2;
    /// What ACPI's RESET_VALUE holds for this register.
    pub const HARD_RESET: u8 = SRST | RCPU;
}

/// System Control Port A.
pub mod port_a {
    /// Alternate hot reset: its rising edge resets.
    pub const HOT_RESET: u8 = 1 << 0;
    /// Alternate gate A20.
    pub const GATE_A20: u8 = 1 << 1;
}
