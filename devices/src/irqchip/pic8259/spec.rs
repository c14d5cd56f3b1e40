//! Registers of the Intel 8259A Programmable Interrupt Controller (order 231468-003) and of the edge/level control
//! registers beside it (Intel 82371AB PIIX4, *Interrupt Controller Registers*).

/// I/O port of the master's A0=0 register; A0=1 follows.
pub const MASTER_PORT: u16 = 0x20;
/// I/O port of the slave's A0=0 register; A0=1 follows.
pub const SLAVE_PORT: u16 = 0xa0;
/// I/O port of ELCR1; ELCR2 follows.
pub const ELCR_PORT: u16 = 0x4d0;

/// Inputs of one chip.
pub const INPUTS: u8 = 8;
/// The master's input that the slave's INT output drives.
pub const CASCADE: u8 = 2;
/// The input whose vector a request that went away before INTA gets.
pub const SPURIOUS: u8 = 7;

/// ICW1 (A0=0, bit 4 set).
pub mod icw1 {
    /// ICW4 follows.
    pub const IC4: u8 = 1 << 0;
    /// Single: no ICW3.
    pub const SNGL: u8 = 1 << 1;
    /// Tells ICW1 from OCW2 and OCW3.
    pub const INIT: u8 = 1 << 4;
}

/// ICW4.
pub mod icw4 {
    /// Automatic end of interrupt.
    pub const AEOI: u8 = 1 << 1;
    /// Special fully nested mode.
    pub const SFNM: u8 = 1 << 4;
}

/// Bits of the vector that ICW2 gives (8086 mode).
pub const ICW2_VECTOR: u8 = 0xf8;

/// OCW2 (A0=0, bits 4:3 = 00): the command in bits 7:5, a level in bits 2:0.
pub mod ocw2 {
    /// Bits 2:0.
    pub const LEVEL: u8 = 0x07;
    /// Rotate in automatic EOI mode: clear.
    pub const ROTATE_AEOI_CLEAR: u8 = 0;
    /// Non-specific EOI.
    pub const EOI: u8 = 1;
    /// Specific EOI.
    pub const SPECIFIC_EOI: u8 = 3;
    /// Rotate in automatic EOI mode: set.
    pub const ROTATE_AEOI_SET: u8 = 4;
    /// Rotate on non-specific EOI.
    pub const ROTATE_EOI: u8 = 5;
    /// Set priority.
    pub const SET_PRIORITY: u8 = 6;
    /// Rotate on specific EOI.
    pub const ROTATE_SPECIFIC_EOI: u8 = 7;
}

/// OCW3 (A0=0, bits 4:3 = 01).
pub mod ocw3 {
    /// Tells OCW3 from OCW2.
    pub const SELECT: u8 = 1 << 3;
    /// Read ISR (set) or IRR (clear), with RR.
    pub const RIS: u8 = 1 << 0;
    /// RIS is valid.
    pub const RR: u8 = 1 << 1;
    /// Poll command.
    pub const P: u8 = 1 << 2;
    /// Special mask mode on (set) or off (clear), with ESMM.
    pub const SMM: u8 = 1 << 5;
    /// SMM is valid.
    pub const ESMM: u8 = 1 << 6;
}

/// Poll word: an interrupt was requested; its input in bits 2:0.
pub const POLL_INTERRUPT: u8 = 0x80;

/// ELCR1: inputs that may be level-triggered (0, 1 and 2 are edge).
pub const ELCR1_WRITABLE: u8 = 0xf8;
/// ELCR2: inputs that may be level-triggered (8 and 13 are edge).
pub const ELCR2_WRITABLE: u8 = 0xde;
