//! What a driver writes to its transport, whichever that is: features, status, and where the queues are (Virtio 1.2, *Driver
//! Requirements: Device Initialization*).

use virtio_queue::{Queue, QueueT};

use super::VirtioDevice;

/// Bits of the device status (Virtio 1.2, *Device Status Field*).
pub mod status {
    /// The driver has found the device.
    pub const ACKNOWLEDGE: u32 = 1;
    /// It can drive it.
    pub const DRIVER: u32 = 2;
    /// It is ready.
    pub const DRIVER_OK: u32 = 4;
    /// The features are agreed on.
    pub const FEATURES_OK: u32 = 8;
    /// The device has had enough.
    pub const DEVICE_NEEDS_RESET: u32 = 64;
    /// The driver has given up.
    pub const FAILED: u32 = 128;
    /// What a driver may set.
    pub const OF_DRIVER: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
}

/// Bits of the interrupt status (Virtio 1.2, *ISR Status Capability*, *MMIO Device Register Layout*).
pub mod isr {
    /// A queue has used buffers.
    pub const USED_BUFFER: u32 = 1;
    /// The configuration has changed, or the device needs a reset.
    pub const CONFIG_CHANGE: u32 = 2;
}

/// One of a queue's three addresses.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    /// The descriptor table.
    Descriptors,
    /// The available ring.
    Driver,
    /// The used ring.
    Device,
}

/// Half of a 64-bit register.
#[derive(Clone, Copy, Debug)]
pub(super) enum Half {
    Low,
    High,
}

impl Half {
    /// Half 0 or 1.
    fn of(sel: u32) -> Option<Self> {
        match sel {
            0 => Some(Self::Low),
            1 => Some(Self::High),
            _ => None,
        }
    }

    fn shift(self) -> u32 {
        match self {
            Self::Low => 0,
            Self::High => 32,
        }
    }
}

/// What the driver has written.
#[derive(Default)]
pub(super) struct Registers {
    pub status: u32,
    pub device_features_sel: u32,
    pub driver_features_sel: u32,
    pub driver_features: u64,
    pub queue_sel: u32,
    pub queues: Vec<Queue>,
}

fn half(value: u64, half: Option<Half>) -> u32 {
    half.map_or(0, |half| (value >> half.shift()) as u32)
}

impl Registers {
    /// As they are after a reset of `device`.
    pub fn new(device: &dyn VirtioDevice) -> Self {
        let make = |&size: &u16| Queue::new(size).expect("a device's queue sizes are powers of two");
        Self { queues: device.queue_sizes().iter().map(make).collect(), ..Self::default() }
    }

    /// The selected half of what the device offers.
    pub fn device_features(&self, offered: u64) -> u32 {
        half(offered, Half::of(self.device_features_sel))
    }

    /// The selected half of what the driver has accepted.
    pub fn driver_features(&self) -> u32 {
        half(self.driver_features, Half::of(self.driver_features_sel))
    }

    /// The driver accepts features, the selected half of them, until they are agreed on.
    pub fn accept_features(&mut self, value: u32) {
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        if let Some(half) = Half::of(self.driver_features_sel) {
            let shift = half.shift();
            self.driver_features = self.driver_features & !(0xffff_ffff << shift) | u64::from(value) << shift;
        }
    }

    /// The selected queue.
    pub fn queue(&self) -> Option<&Queue> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    /// The selected queue, as long as the driver may say where it is: not once it is ready itself.
    fn queue_to_set(&mut self) -> Option<&mut Queue> {
        if self.status & status::DRIVER_OK != 0 {
            return None;
        }
        self.queues.get_mut(usize::try_from(self.queue_sel).ok()?)
    }

    /// The selected queue is ready, or not.
    pub fn set_queue_ready(&mut self, ready: bool) {
        if let Some(queue) = self.queue_to_set() {
            queue.set_ready(ready);
        }
    }

    /// Sets the length of the selected queue. A size that is none is ignored: the device says no to the queue as it was,
    /// or to the rings.
    pub fn set_queue_size(&mut self, size: u32) {
        if let Some(queue) = self.queue_to_set().filter(|queue| !queue.ready()) {
            queue.set_size(u16::try_from(size).unwrap_or(0));
        }
    }

    /// Sets half of an address of the selected queue.
    pub fn set_queue_address(&mut self, part: Part, half: Half, value: u32) {
        let Some(queue) = self.queue_to_set().filter(|queue| !queue.ready()) else { return };
        let (low, high) = match half {
            Half::Low => (Some(value), None),
            Half::High => (None, Some(value)),
        };
        match part {
            Part::Descriptors => queue.set_desc_table_address(low, high),
            Part::Driver => queue.set_avail_ring_address(low, high),
            Part::Device => queue.set_used_ring_address(low, high),
        }
    }

    /// Half of an address of the selected queue.
    pub fn queue_address(&self, part: Part, which: Half) -> u32 {
        let address = self.queue().map_or(0, |queue| match part {
            Part::Descriptors => queue.desc_table(),
            Part::Driver => queue.avail_ring(),
            Part::Device => queue.used_ring(),
        });
        half(address, Some(which))
    }
}
