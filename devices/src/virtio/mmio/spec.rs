//! Registers of the MMIO transport (Virtio 1.2, *MMIO Device Register Layout*).

/// Bytes of a device's window, as QEMU's microvm has them: registers, then the configuration space.
pub const WINDOW: u64 = 0x200;
/// "virt".
pub const MAGIC: u32 = 0x7472_6976;
/// Not the legacy interface.
pub const VERSION: u32 = 2;
/// Who made the device; drivers do not mind.
pub const VENDOR: u32 = u32::from_le_bytes(*b"BVSR");

/// Offsets.
pub mod register {
    #![expect(missing_docs, reason = "the specification's names")]

    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

pub use crate::virtio::registers::{isr, status};

use crate::virtio::registers::{Half, Part};

/// Which address of a queue a register holds half of.
pub(super) fn queue_address(offset: u64) -> Option<(Part, Half)> {
    Some(match offset {
        register::QUEUE_DESC_LOW => (Part::Descriptors, Half::Low),
        register::QUEUE_DESC_HIGH => (Part::Descriptors, Half::High),
        register::QUEUE_DRIVER_LOW => (Part::Driver, Half::Low),
        register::QUEUE_DRIVER_HIGH => (Part::Driver, Half::High),
        register::QUEUE_DEVICE_LOW => (Part::Device, Half::Low),
        register::QUEUE_DEVICE_HIGH => (Part::Device, Half::High),
        _ => return None,
    })
}
