//! A driver for the tests: it writes registers and lays rings in memory by hand, rightly or wrongly.

use std::fs::File;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};

use rustix::fs::MemfdFlags;
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::mmio::VirtioMmio;
use super::mmio::spec::{register, status};
use super::{VirtioDevice, feature};
use crate::bus::BusDevice;
use crate::clock::ManualClock;
use crate::dma::{DmaMemory, DmaObserver};
use crate::interrupt::{Gsi, InterruptSink, IrqPin, MsiMessage, MsiRoute, RouteError};

/// Bytes of the test's memory.
pub const MEMORY: u64 = 1 << 20;
/// Where data may be.
pub const DATA: u64 = 0x4_0000;

/// Descriptors of each queue.
pub const QUEUE_SIZE: u16 = 16;

/// Rings of queue `n`, one page after the other.
const fn table(queue: u16) -> u64 {
    0x1000 + queue as u64 * 0x3000
}

const fn available(queue: u16) -> u64 {
    table(queue) + 0x1000
}

const fn used(queue: u16) -> u64 {
    table(queue) + 0x2000
}

/// The level of one pin.
#[derive(Default)]
struct Level(Mutex<bool>);

impl InterruptSink for Level {
    fn set_gsi(&self, _gsi: Gsi, level: bool) {
        *self.0.lock().unwrap() = level;
    }
    fn send_msi(&self, _message: MsiMessage) {}
    fn new_route(&self) -> Result<Box<dyn MsiRoute>, RouteError> {
        Err(RouteError::Exhausted)
    }
}

/// Remembers what it was told.
#[derive(Default)]
pub struct Written(pub Mutex<Vec<(u64, u64)>>);

impl DmaObserver for Written {
    fn written(&self, gpa: u64, len: u64) {
        self.0.lock().unwrap().push((gpa, len));
    }
}

/// One descriptor's buffer.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    pub address: u64,
    pub len: u32,
    pub writable: bool,
}

/// A buffer that the device reads.
pub fn readable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: false }
}

/// A buffer that the device writes.
pub fn writable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: true }
}

/// A driver's memory with its rings.
pub struct Rings {
    pub memory: GuestMemoryMmap,
    /// Chains made available, by queue.
    made: [u16; 16],
}

impl Rings {
    /// Memory, all zero, which another process could map.
    pub fn new() -> Self {
        let file = File::from(rustix::fs::memfd_create("guest-ram", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(MEMORY).unwrap();
        let range = (GuestAddress(0), MEMORY as usize, Some(FileOffset::new(file, 0)));
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        Self { memory, made: [0; 16] }
    }

    /// Empties the rings of `queue`.
    pub fn clear(&self, queue: u16) {
        self.memory.write_slice(&[0; 0x3000], GuestAddress(table(queue))).unwrap();
    }

    /// The driver begins anew: nothing was made available.
    pub fn restart(&mut self) {
        self.made = [0; 16];
    }

    /// Where the rings of `queue` are: descriptors, available ring, used ring.
    pub fn places(queue: u16) -> [u64; 3] {
        [table(queue), available(queue), used(queue)]
    }

    /// Writes descriptor `index` of `queue`.
    pub fn describe(&self, queue: u16, index: u16, buffer: Buffer, next: Option<u16>) {
        let mut flags = if buffer.writable { VRING_DESC_F_WRITE as u16 } else { 0 };
        if next.is_some() {
            flags |= VRING_DESC_F_NEXT as u16;
        }
        let mut bytes = buffer.address.to_le_bytes().to_vec();
        bytes.extend(buffer.len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.unwrap_or(0).to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(table(queue) + u64::from(index) * 16)).unwrap();
    }

    /// Makes the chain that begins with descriptor `head` available.
    pub fn offer(&mut self, queue: u16, head: u16) {
        let made = &mut self.made[usize::from(queue)];
        let slot = available(queue) + 4 + u64::from(*made % QUEUE_SIZE) * 2;
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        *made = made.wrapping_add(1);
        self.memory.write_obj(*made, GuestAddress(available(queue) + 2)).unwrap();
    }

    /// Lays a chain of these buffers at descriptor `head` and on, and makes it available.
    pub fn add(&mut self, queue: u16, head: u16, buffers: &[Buffer]) {
        for (index, &buffer) in (head..).zip(buffers) {
            let last = usize::from(index - head) + 1 == buffers.len();
            self.describe(queue, index, buffer, (!last).then_some(index + 1));
        }
        self.offer(queue, head);
    }

    /// Chains that the device has given back.
    pub fn used_index(&self, queue: u16) -> u16 {
        self.memory.read_obj(GuestAddress(used(queue) + 2)).unwrap()
    }

    /// The `n`th of them: first descriptor, bytes written.
    pub fn used(&self, queue: u16, n: u16) -> (u32, u32) {
        let at = used(queue) + 4 + u64::from(n % QUEUE_SIZE) * 8;
        let get = |at| self.memory.read_obj(GuestAddress(at)).unwrap();
        (get(at), get(at + 4))
    }

    /// Sets the available index as no driver would.
    pub fn set_available_index(&self, queue: u16, index: u16) {
        self.memory.write_obj(index, GuestAddress(available(queue) + 2)).unwrap();
    }
}

/// A driver and its device.
pub struct Driver {
    rings: Rings,
    pub transport: Arc<VirtioMmio>,
    pub clock: Arc<ManualClock>,
    pub written: Arc<Written>,
    level: Arc<Level>,
}

impl Deref for Driver {
    type Target = Rings;
    fn deref(&self) -> &Rings {
        &self.rings
    }
}

impl DerefMut for Driver {
    fn deref_mut(&mut self) -> &mut Rings {
        &mut self.rings
    }
}

impl Driver {
    /// A driver of the device that `make` makes, which works when the clock says so.
    pub fn new(make: impl FnOnce(&super::worker::Pace) -> Arc<dyn VirtioDevice>) -> Self {
        let clock = ManualClock::new();
        let device = make(&super::worker::Pace::Clock(clock.clone()));
        let rings = Rings::new();
        let (level, written) = (Arc::new(Level::default()), Arc::new(Written::default()));
        let line = IrqPin::new(Gsi(16), level.clone()).line("virtio");
        let dma = DmaMemory::new(rings.memory.clone(), Some(written.clone()));
        let transport = VirtioMmio::new(device, line, dma);
        Self { rings, transport, clock, written, level }
    }

    pub fn get(&self, offset: u64) -> u32 {
        let mut data = [0xee; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn set(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    pub fn interrupted(&self) -> bool {
        *self.level.0.lock().unwrap()
    }

    /// Device status.
    pub fn status(&self) -> u32 {
        self.get(register::STATUS)
    }

    /// All the features that the device offers.
    pub fn offered(&self) -> u64 {
        [0, 1].into_iter().fold(0, |features, sel| {
            self.set(register::DEVICE_FEATURES_SEL, sel);
            features | u64::from(self.get(register::DEVICE_FEATURES)) << (32 * sel)
        })
    }

    /// Up to the agreement on `features`.
    pub fn negotiate(&self, features: u64) {
        self.set(register::STATUS, 0);
        self.set(register::STATUS, status::ACKNOWLEDGE);
        self.set(register::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        for sel in [0, 1] {
            self.set(register::DRIVER_FEATURES_SEL, sel);
            self.set(register::DRIVER_FEATURES, (features >> (32 * sel)) as u32);
        }
        self.set(register::STATUS, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
    }

    /// Tells the device where `queue` is.
    pub fn set_queue(&self, queue: u16) {
        self.set(register::QUEUE_SEL, queue.into());
        self.set(register::QUEUE_NUM, QUEUE_SIZE.into());
        let places = [
            (register::QUEUE_DESC_LOW, table(queue)),
            (register::QUEUE_DRIVER_LOW, available(queue)),
            (register::QUEUE_DEVICE_LOW, used(queue)),
        ];
        for (offset, address) in places {
            self.set(offset, address as u32);
            self.set(offset + 4, (address >> 32) as u32);
        }
        self.set(register::QUEUE_READY, 1);
    }

    /// Empty rings, and DRIVER_OK with everything that the device offers but event indices, so that each chain interrupts.
    pub fn start(&mut self) {
        self.start_with(self.offered() & !feature::RING_EVENT_IDX);
    }

    /// The same with these features.
    pub fn start_with(&mut self, features: u64) {
        self.restart();
        self.negotiate(features);
        for queue in 0..self.transport.device().queue_sizes().len() as u16 {
            self.clear(queue);
            self.set_queue(queue);
        }
        self.set(register::STATUS, self.status() | status::DRIVER_OK);
        self.run();
    }

    /// Notifies, and lets the device work.
    pub fn notify(&self, queue: u16) {
        self.set(register::QUEUE_NOTIFY, queue.into());
        self.run();
    }

    /// Lets the device work.
    pub fn run(&self) {
        self.clock.advance(1_000_000);
    }

    pub fn needs_reset(&self) -> bool {
        self.status() & status::DEVICE_NEEDS_RESET != 0
    }
}
