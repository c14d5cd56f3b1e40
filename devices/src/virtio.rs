//! Virtio devices (Virtio 1.2, *Basic Facilities of a Virtio Device*): what a device owes its transport and the transport
//! the device.
//!
//! A transport (virtio-mmio, virtio-pci) has the registers: it negotiates features, takes the queues' addresses, and gives the device
//! its queues once the driver is ready. The device works on them on threads of its own ([`worker`]), woken by doorbells, and
//! answers through the transport's interrupt. What a driver does wrong with its rings is a value: the device then
//! needs a reset, and does nothing until it comes.

pub mod balloon;
pub mod blk;
pub mod console;
pub mod mmio;
pub mod net;
pub mod p9;
pub mod pci;
pub mod queue;
pub mod registers;
pub mod rng;
pub mod session;
mod transport;
pub mod vhost;
pub mod vhost_user;
pub mod vsock;
pub mod worker;

#[cfg(test)]
mod testing;

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use self::worker::Worker;

pub use queue::{ActiveQueue, RingError};
pub use session::Session;

/// Feature bits that belong to the rings and transports (Virtio 1.2, *Reserved Feature Bits*).
pub mod feature {
    /// Descriptors may refer to tables of descriptors.
    pub const RING_INDIRECT_DESC: u64 = 1 << 28;
    /// Both sides say at which index they want to be told.
    pub const RING_EVENT_IDX: u64 = 1 << 29;
    /// Virtio 1.0 or later.
    pub const VERSION_1: u64 = 1 << 32;
}

/// What a transport gives a device that its driver has made ready.
pub struct Activation {
    /// One for each of the device's queues, in their order; `None`: the driver does not use it.
    pub queues: Vec<Option<ActiveQueue>>,
    /// What was negotiated.
    pub features: u64,
    /// The time until the next reset. Guest memory is touched within it only.
    pub session: Arc<Session>,
    /// How the driver is told.
    pub interrupt: Arc<dyn VirtioInterrupt>,
}

/// How a device tells its driver. Any thread, with no lock of the device's rank held.
pub trait VirtioInterrupt: Send + Sync {
    /// Buffers of `queue` have been used.
    fn queue_used(&self, queue: u16);
    /// Writes of `event` mean that buffers of `queue` have been used, until the next reset. Whoever reads them calls
    /// [`VirtioInterrupt::queue_used`]; where that can be they are an interrupt before.
    fn used_by_event(&self, _queue: u16, _event: &Arc<EventFd>) {}
    /// The configuration space has changed.
    fn config_changed(&self);
    /// The driver's rings make no sense: the device does nothing until it is reset.
    fn needs_reset(&self);
}

/// How a driver's notification of one queue reaches the device.
pub enum Doorbell {
    /// This is written: by the transport on the CPU's thread, or by the kernel, which spares the exit.
    Event(EventFd),
    /// This is called on the CPU's thread, with no lock held. For machines whose time is what was executed.
    Call(Box<dyn Fn() + Send + Sync>),
}

impl Doorbell {
    /// The driver has notified.
    pub fn ring(&self) {
        match self {
            // Full only after 2^64 - 2 notifications that nobody took.
            Self::Event(event) => drop(event.write(1)),
            Self::Call(call) => call(),
        }
    }
}

/// A virtio device without its transport. Called with no ranked lock held.
///
/// The transport calls one after the other: [`VirtioDevice::activate`] once between two resets, [`VirtioDevice::pause`]
/// while no CPU runs.
pub trait VirtioDevice: Send + Sync {
    /// Name for diagnostics, QEMU's.
    fn name(&self) -> &'static str;
    /// Device ID (Virtio 1.2, *Device Types*).
    fn device_id(&self) -> u32;
    /// Feature bits of this kind of device; the transport adds those of the rings.
    fn features(&self) -> u64;
    /// The largest size of each queue: powers of two.
    fn queue_sizes(&self) -> &[u16];
    /// A doorbell for each queue. They stay the same, so that the kernel can be given them.
    fn doorbells(&self) -> &[Arc<Doorbell>];
    /// The threads that serve them.
    fn workers(&self) -> &[Worker];
    /// The configuration space, where it never changes.
    fn config(&self) -> &[u8] {
        &[]
    }
    /// Reads from the configuration space; zero beyond its end. What changes is read here, in one access as it was at one
    /// time; that it did is told with [`VirtioInterrupt::config_changed`].
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(self.config(), offset, data);
    }
    /// The driver writes to the configuration space, of which most devices have nothing to be written. At any time, ready or
    /// not.
    fn write_config(&self, _offset: u64, _data: &[u8]) {}
    /// The driver is ready (DRIVER_OK): work begins.
    fn activate(&self, activation: Activation);
    /// Forgets what [`VirtioDevice::activate`] gave. Its session has ended already. Never waits for the device's threads:
    /// they may be waiting for this CPU.
    fn reset(&self) {
        self.workers().iter().for_each(Worker::stop);
    }
    /// No CPU runs: returns when the device's threads are idle, and they stay so.
    fn pause(&self) {
        self.workers().iter().for_each(Worker::pause);
    }
    /// Undoes [`VirtioDevice::pause`].
    fn resume(&self) {
        self.workers().iter().for_each(Worker::resume);
    }
}

/// Copies the part of a configuration space that an access asks for; zero beyond its end.
pub(crate) fn read_config_bytes(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    if let Some(rest) = usize::try_from(offset).ok().and_then(|offset| space.get(offset..)) {
        let len = rest.len().min(data.len());
        data[..len].copy_from_slice(&rest[..len]);
    }
}
