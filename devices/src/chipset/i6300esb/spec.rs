//! Registers of the watchdog timer of the 6300ESB I/O Controller Hub (Intel 300641-004, *Watchdog Timer*, D29:F4).

/// PCI device ID; the vendor is Intel.
pub const DEVICE: u16 = 0x25ab;
/// Class: another system peripheral.
pub const CLASS: u32 = 0x08_8000;
/// The memory window.
pub const WINDOW: u64 = 16;
/// The clock that is divided, in kHz.
pub const PCI_CLOCK_KHZ: u64 = 33_000;

/// Registers in the configuration space.
pub mod config {
    /// WDT Configuration, 16 bits.
    pub const CONFIG: usize = 0x60;
    /// WDT Lock, 8 bits.
    pub const LOCK: usize = 0x68;
}

/// WDT Configuration.
pub mod configuration {
    /// The output does nothing when the second stage ends.
    pub const OUTPUT_DISABLED: u16 = 1 << 5;
    /// The clock is divided by 2^5 and not by 2^15.
    pub const PRESCALER_1_MHZ: u16 = 1 << 2;
    /// What the end of the first stage interrupts with.
    pub const INTERRUPT_TYPE: u16 = 0b11;
    /// What can be written.
    pub const WRITABLE: u16 = OUTPUT_DISABLED | PRESCALER_1_MHZ | INTERRUPT_TYPE;
}

/// WDT Lock.
pub mod lock {
    /// The timer starts again after the second stage.
    pub const FREE_RUNNING: u8 = 1 << 2;
    /// The timer runs.
    pub const ENABLE: u8 = 1 << 1;
    /// This register cannot be written any more.
    pub const LOCK: u8 = 1 << 0;
    /// What can be written.
    pub const WRITABLE: u8 = FREE_RUNNING | ENABLE | LOCK;
}

/// Registers in memory.
pub mod register {
    /// Preload Value 1, 20 bits.
    pub const PRELOAD_1: u64 = 0x0;
    /// Preload Value 2, 20 bits.
    pub const PRELOAD_2: u64 = 0x4;
    /// Reload, 16 bits.
    pub const RELOAD: u64 = 0xc;
}

/// Bits of a preload value.
pub const PRELOAD: u32 = 0xf_ffff;
/// Written to Reload one after the other, they let the next write through.
pub const UNLOCK: [u16; 2] = [0x80, 0x86];

/// Reload.
pub mod reload {
    /// The first stage begins again.
    pub const RELOAD: u16 = 1 << 8;
    /// The timer had run out before the last reset; writing it clears it.
    pub const TIMEOUT: u16 = 1 << 9;
    /// Where Linux's driver looks for [`TIMEOUT`].
    pub const TIMEOUT_OF_LINUX: u16 = 1 << 12;
}
