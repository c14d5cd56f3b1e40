//! What a device may ask of the whole machine.

/// A request to the machine's run state. The first one stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemRequest {
    /// The guest switched itself off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset (i8042, ACPI reset register, port 0x92, port 0xcf9).
    Reset,
    /// The guest's kernel has panicked (pvpanic).
    Panicked,
    /// The guest's kernel has panicked, and its crash kernel goes on (pvpanic).
    CrashLoaded,
    /// A watchdog was not fed in time.
    Watchdog,
    /// The guest ends the VMM with this exit status (ISA debug-exit).
    Exit(u8),
}

/// Takes requests from devices. Never blocks: the machine acts on its own thread, and the requesting CPU
/// is stopped before it executes much further.
pub trait SystemControl: Send + Sync {
    /// Files `request`.
    fn request(&self, request: SystemRequest);
}
