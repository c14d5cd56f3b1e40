//! Base address registers (PCI Local Bus Specification 3.0, *Base Addresses*).

/// What a register's window is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere. The next register holds the upper half.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

/// A base address register of a function: a window that software places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    kind: BarKind,
    bytes: u64,
}

impl Bar {
    /// A window of `bytes`, a power of two: 4 to 256 of ports, 16 to 2 GiB of memory.
    ///
    /// Panics on another size: that is for whoever designs a device to see.
    pub fn new(kind: BarKind, bytes: u64) -> Self {
        let sizes = if kind == BarKind::Io { 4..=256 } else { 16..=1 << 31 };
        assert!(bytes.is_power_of_two() && sizes.contains(&bytes), "{kind:?} BAR of {bytes:#x} bytes");
        Self { kind, bytes }
    }

    /// What it is in.
    pub fn kind(self) -> BarKind {
        self.kind
    }

    /// Its length.
    pub fn bytes(self) -> u64 {
        self.bytes
    }

    /// Whether it takes two registers.
    pub fn is_wide(self) -> bool {
        matches!(self.kind, BarKind::Memory64 { .. })
    }

    /// The bits of the register, or the two, that are the address.
    pub fn address_mask(self) -> u64 {
        let width = if self.is_wide() { u64::MAX } else { u64::from(u32::MAX) };
        !(self.bytes - 1) & width
    }
}
