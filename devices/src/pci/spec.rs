//! Registers of a PCI function and of the host bridge's configuration mechanisms (PCI Local Bus Specification 3.0,
//! *Configuration Space Organization*, *MSI-X Capability and Table Structure*; PCI Express Base Specification, *PCI Express
//! Enhanced Configuration Access Mechanism*).

/// Bytes of a function's configuration space as conventional PCI has it. There are no extended capabilities.
pub const CONFIG_BYTES: usize = 256;
/// Bytes of a function's part of the ECAM window.
pub const ECAM_FUNCTION_BYTES: u64 = 4096;
/// Bytes of a bus's part of the ECAM window: 32 slots of 8 functions.
pub const ECAM_BUS_BYTES: u64 = ECAM_FUNCTION_BYTES * SLOTS as u64 * FUNCTIONS as u64;
/// Slots of a bus.
pub const SLOTS: u8 = 32;
/// Functions of a slot.
pub const FUNCTIONS: u8 = 8;
/// Base address registers of a function.
pub const BARS: usize = 6;

/// Offsets in the configuration space (header type 0).
pub mod register {
    #![expect(missing_docs, reason = "the specification's names")]

    pub const VENDOR_ID: usize = 0x00;
    pub const DEVICE_ID: usize = 0x02;
    pub const COMMAND: usize = 0x04;
    pub const STATUS: usize = 0x06;
    pub const REVISION_ID: usize = 0x08;
    pub const CLASS_CODE: usize = 0x09;
    pub const CACHE_LINE_SIZE: usize = 0x0c;
    pub const LATENCY_TIMER: usize = 0x0d;
    pub const HEADER_TYPE: usize = 0x0e;
    pub const BAR0: usize = 0x10;
    pub const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
    pub const SUBSYSTEM_ID: usize = 0x2e;
    pub const CAPABILITIES_POINTER: usize = 0x34;
    pub const INTERRUPT_LINE: usize = 0x3c;
    pub const INTERRUPT_PIN: usize = 0x3d;
    /// What follows the header.
    pub const DEVICE_SPECIFIC: usize = 0x40;
}

/// Bits of the command register.
pub mod command {
    /// I/O BARs are decoded.
    pub const IO_SPACE: u16 = 1 << 0;
    /// Memory BARs are decoded.
    pub const MEMORY_SPACE: u16 = 1 << 1;
    /// The function may reach memory, messages included.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// Parity errors are reported.
    pub const PARITY_ERROR_RESPONSE: u16 = 1 << 6;
    /// SERR# is driven.
    pub const SERR_ENABLE: u16 = 1 << 8;
    /// INTx is not driven.
    pub const INTERRUPT_DISABLE: u16 = 1 << 10;
    /// What software can write.
    pub const WRITABLE: u16 =
        IO_SPACE | MEMORY_SPACE | BUS_MASTER | PARITY_ERROR_RESPONSE | SERR_ENABLE | INTERRUPT_DISABLE;
}

/// Bits of the status register.
pub mod status {
    /// INTx would be driven.
    pub const INTERRUPT: u16 = 1 << 3;
    /// There is a list of capabilities.
    pub const CAPABILITIES_LIST: u16 = 1 << 4;
}

/// Header type: the slot has more than one function.
pub const MULTI_FUNCTION: u8 = 1 << 7;

/// Type bits of a base address register.
pub mod bar {
    /// I/O space.
    pub const IO: u32 = 1;
    /// A 64-bit register with the next one.
    pub const MEMORY_64: u32 = 2 << 1;
    /// Reads have no side effects.
    pub const PREFETCHABLE: u32 = 1 << 3;
}

/// Capability IDs.
pub mod capability {
    /// The vendor's own.
    pub const VENDOR_SPECIFIC: u8 = 0x09;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
}

/// The MSI-X capability, table and pending bits.
pub mod msix {
    /// Message Control (offset in the capability).
    pub const MESSAGE_CONTROL: usize = 2;
    /// Bytes of the capability with its ID and pointer.
    pub const CAPABILITY_BYTES: usize = 12;
    /// Message Control: all vectors are masked.
    pub const FUNCTION_MASK: u16 = 1 << 14;
    /// Message Control: messages are sent instead of INTx.
    pub const ENABLE: u16 = 1 << 15;
    /// Bytes of a table entry: address, data, vector control.
    pub const ENTRY_BYTES: usize = 16;
    /// Vector control (offset in an entry).
    pub const VECTOR_CONTROL: usize = 12;
    /// Vector control: the vector is masked.
    pub const MASK: u8 = 1;
    /// Vectors that a function may have.
    pub const MAX_VECTORS: u16 = 2048;
}

/// The configuration mechanism of ports.
pub mod ports {
    /// CONFIG_ADDRESS.
    pub const CONFIG_ADDRESS: u16 = 0xcf8;
    /// Ports of CONFIG_ADDRESS and CONFIG_DATA each.
    pub const WIDTH: u64 = 4;
    /// CONFIG_DATA.
    pub const CONFIG_DATA: u16 = 0xcfc;
    /// CONFIG_ADDRESS: the other fields mean a register.
    pub const ENABLE: u32 = 1 << 31;
}
