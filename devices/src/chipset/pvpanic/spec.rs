//! The register of the panic device (QEMU, *PVPANIC DEVICE*).

/// Default port (`ioport=`).
pub const PORT: u16 = 0x505;
/// Its length.
pub const PORTS: u64 = 1;

/// Events: what a read offers, and a write tells.
pub mod event {
    /// The kernel has panicked, and does nothing more.
    pub const PANICKED: u8 = 1 << 0;
    /// The kernel has panicked, and a crash kernel takes over.
    pub const CRASH_LOADED: u8 = 1 << 1;
    /// The guest shuts down.
    pub const SHUTDOWN: u8 = 1 << 2;
    /// All of them.
    pub const ALL: u8 = PANICKED | CRASH_LOADED | SHUTDOWN;
}
