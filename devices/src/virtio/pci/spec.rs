//! Registers of the PCI transport (Virtio 1.2, *Virtio Over PCI Bus*), without the legacy interface.

use crate::virtio::registers::{Half, Part};

/// Red Hat, whose IDs all virtio devices have.
pub const VENDOR: u16 = 0x1af4;
/// The device ID is this and the kind of virtio device.
pub const FIRST_DEVICE: u16 = 0x1040;
/// Subsystem ID, which drivers do not look at.
pub const SUBSYSTEM: u16 = 0x1100;
/// Not the legacy interface's.
pub const REVISION: u8 = 1;
/// MSI-X's BAR, and that of the device's registers: QEMU's.
pub const MSIX_BAR: usize = 1;
/// The registers' BAR.
pub const REGISTERS_BAR: usize = 4;
/// Bytes of each part of the registers' BAR.
pub const PART_BYTES: u64 = 0x1000;
/// Bytes between two queues' notification addresses.
pub const NOTIFY_OFF_MULTIPLIER: u32 = 4;
/// No vector: nothing is sent.
pub const NO_VECTOR: u16 = 0xffff;

/// The class of a kind of virtio device, as QEMU has it.
pub fn class(device_id: u32) -> u32 {
    match device_id {
        // Network card.
        1 => 0x02_0000,
        // Disk (mass storage, SCSI).
        2 => 0x01_0000,
        // Console.
        3 => 0x07_8000,
        // 9p (network, other).
        9 => 0x02_8000,
        // Sockets (communication, other).
        19 => 0x07_8000,
        // File system (mass storage, other).
        26 => 0x01_8000,
        // Unclassified.
        _ => 0x00_ff00,
    }
}

/// Types of capabilities.
pub mod cfg_type {
    #![expect(missing_docs, reason = "the specification's names")]

    pub const COMMON: u8 = 1;
    pub const NOTIFY: u8 = 2;
    pub const ISR: u8 = 3;
    pub const DEVICE: u8 = 4;
    pub const PCI: u8 = 5;
}

/// The capability by which configuration space reads and writes the BAR (*PCI configuration access capability*). It is the
/// first one. Offsets in the configuration space.
pub mod window {
    use crate::pci::spec::register::DEVICE_SPECIFIC;

    /// Which BAR.
    pub const BAR: usize = DEVICE_SPECIFIC + 4;
    /// Where in it, 4 bytes.
    pub const OFFSET: usize = DEVICE_SPECIFIC + 8;
    /// How many bytes: 1, 2 or 4. 4 bytes.
    pub const LENGTH: usize = DEVICE_SPECIFIC + 12;
    /// The bytes.
    pub const DATA: usize = DEVICE_SPECIFIC + 16;
    /// Room for them.
    pub const DATA_BYTES: usize = 4;
}

/// Offsets of the common configuration, each read and written whole.
pub mod common {
    #![expect(missing_docs, reason = "the specification's names")]

    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const DEVICE_STATUS: u64 = 0x14;
    pub const CONFIG_GENERATION: u64 = 0x15;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
    /// Where the registers end. What Virtio 1.2 adds here is for features that are not offered.
    pub const BYTES: u64 = 0x38;

    /// Bytes of the register at `offset`; `None`: none begins there.
    pub fn width(offset: u64) -> Option<usize> {
        Some(match offset {
            DEVICE_FEATURE_SELECT | DEVICE_FEATURE | DRIVER_FEATURE_SELECT | DRIVER_FEATURE => 4,
            CONFIG_MSIX_VECTOR | NUM_QUEUES | QUEUE_SELECT | QUEUE_SIZE | QUEUE_MSIX_VECTOR
            | QUEUE_ENABLE | QUEUE_NOTIFY_OFF => 2,
            DEVICE_STATUS | CONFIG_GENERATION => 1,
            QUEUE_DESC..BYTES if offset.is_multiple_of(4) => 4,
            _ => return None,
        })
    }
}

/// Which address of a queue a register of the common configuration holds half of.
pub(super) fn queue_address(offset: u64) -> Option<(Part, Half)> {
    let part = match offset & !7 {
        common::QUEUE_DESC => Part::Descriptors,
        common::QUEUE_DRIVER => Part::Driver,
        common::QUEUE_DEVICE => Part::Device,
        _ => return None,
    };
    match offset & 7 {
        0 => Some((part, Half::Low)),
        4 => Some((part, Half::High)),
        _ => None,
    }
}
