//! The keyboard controller of a PC. IBM PS/2 Hardware Interface Technical Reference, *Keyboard and Auxiliary Device
//! Controller*.

/// Data port.
pub const DATA_PORT: u16 = 0x60;
/// Status (read) and command (write) port.
pub const COMMAND_PORT: u16 = 0x64;
/// ISA interrupt of the keyboard.
pub const KEYBOARD_IRQ: u8 = 1;
/// ISA interrupt of the auxiliary device.
pub const AUX_IRQ: u8 = 12;

/// Status register.
pub mod status {
    /// Output buffer full.
    pub const OBF: u8 = 1 << 0;
    /// The controller passed its self-test: as in the command byte.
    pub const SYS: u8 = 1 << 2;
    /// The last byte written was a command.
    pub const COMMAND: u8 = 1 << 3;
    /// The keyboard is not locked.
    pub const UNLOCKED: u8 = 1 << 4;
    /// The output buffer's byte is the auxiliary device's.
    pub const AUX: u8 = 1 << 5;
    /// The device did not answer.
    pub const TIMEOUT: u8 = 1 << 6;
}

/// Command byte, RAM location 0.
pub mod command_byte {
    /// Keyboard interrupt.
    pub const KEYBOARD_INTERRUPT: u8 = 1 << 0;
    /// Auxiliary device interrupt.
    pub const AUX_INTERRUPT: u8 = 1 << 1;
    /// System flag.
    pub const SYS: u8 = 1 << 2;
    /// Keyboard disabled.
    pub const KEYBOARD_DISABLED: u8 = 1 << 4;
    /// Auxiliary device disabled.
    pub const AUX_DISABLED: u8 = 1 << 5;
}

/// Commands.
pub mod command {
    /// Read RAM, first of 32 locations.
    pub const READ_RAM: u8 = 0x20;
    /// Write RAM, first of 32 locations.
    pub const WRITE_RAM: u8 = 0x60;
    /// Disable the auxiliary device.
    pub const DISABLE_AUX: u8 = 0xa7;
    /// Enable the auxiliary device.
    pub const ENABLE_AUX: u8 = 0xa8;
    /// Test the auxiliary device's lines.
    pub const TEST_AUX: u8 = 0xa9;
    /// Self-test.
    pub const SELF_TEST: u8 = 0xaa;
    /// Test the keyboard's lines.
    pub const TEST_KEYBOARD: u8 = 0xab;
    /// Disable the keyboard.
    pub const DISABLE_KEYBOARD: u8 = 0xad;
    /// Enable the keyboard.
    pub const ENABLE_KEYBOARD: u8 = 0xae;
    /// Read the input port.
    pub const READ_INPUT_PORT: u8 = 0xc0;
    /// Read the output port.
    pub const READ_OUTPUT_PORT: u8 = 0xd0;
    /// Write the output port.
    pub const WRITE_OUTPUT_PORT: u8 = 0xd1;
    /// The next byte comes back as the keyboard's.
    pub const WRITE_KEYBOARD_BUFFER: u8 = 0xd2;
    /// The next byte comes back as the auxiliary device's.
    pub const WRITE_AUX_BUFFER: u8 = 0xd3;
    /// The next byte goes to the auxiliary device.
    pub const WRITE_AUX: u8 = 0xd4;
    /// Pulse low the output port's bits 3:0 that are clear, first of sixteen.
    pub const PULSE: u8 = 0xf0;
}

/// Answer to the self-test: passed.
pub const SELF_TEST_PASSED: u8 = 0x55;
/// Answer to a test of lines: the clock line is stuck low, as where nothing is connected.
pub const CLOCK_STUCK_LOW: u8 = 0x01;
/// What the controller puts in the device's place when that does not answer.
pub const RESEND: u8 = 0xfe;

/// Output port.
pub mod output_port {
    /// Low resets the system.
    pub const NOT_RESET: u8 = 1 << 0;
    /// Gate A20.
    pub const GATE_A20: u8 = 1 << 1;
    /// After reset.
    pub const AT_RESET: u8 = NOT_RESET | GATE_A20;
}
