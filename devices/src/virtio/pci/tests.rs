use std::fs::File;
use std::sync::Mutex;

use super::spec::NO_VECTOR;
use super::*;
use crate::bus::Bus;
use crate::clock::ManualClock;
use crate::interrupt::{Gsi, IrqPin};
use crate::pci::spec::{command, register};
use crate::pci::testing::{Recorder, Seen};
use crate::pci::{Address, PciRoot, ecam_bytes};
use crate::testing::Random;
use crate::virtio::feature;
use crate::virtio::registers::status;
use crate::virtio::rng::Rng;
use crate::virtio::testing::{DATA, QUEUE_SIZE, Rings, Written, writable};
use crate::virtio::worker::Pace;

const ECAM: u64 = 0xe000_0000;
const REGISTERS: u64 = 0xc000_0000;
const TABLE: u64 = 0xc001_0000;
const PLACE: Address = Address::new(2, 0).unwrap();
const CONFIG: u64 = ECAM + 2 * 8 * 4096;
const WITH_BUS: u16 = command::MEMORY_SPACE | command::BUS_MASTER;

/// What the kernel was asked to ring.
#[derive(Default)]
struct Kernel(Mutex<Vec<u64>>);
impl KernelDoorbells for Kernel {
    fn add(&self, gpa: u64, _event: &EventFd) {
        self.0.lock().unwrap().push(gpa);
    }
    fn remove(&self, gpa: u64, _event: &EventFd) {
        let mut rung = self.0.lock().unwrap();
        let index = rung.iter().position(|&at| at == gpa).expect("it was added");
        rung.remove(index);
    }
}

/// A source of random bytes on PCI, with its driver.
struct Driver {
    rings: Rings,
    memory: Arc<Bus>,
    root: Arc<PciRoot>,
    clock: Arc<ManualClock>,
    sink: Arc<Recorder>,
    kernel: Arc<Kernel>,
    written: Arc<Written>,
}

impl Driver {
    fn of(vectors: u16, pace: impl FnOnce(Arc<ManualClock>) -> Pace) -> Self {
        let (memory, io) = (Arc::new(Bus::new()), Bus::new());
        let root = PciRoot::new(&memory, &io);
        memory.insert(ECAM, ecam_bytes(1), root.ecam()).unwrap();
        let (sink, clock, rings) = (Arc::new(Recorder::default()), ManualClock::new(), Rings::new());
        let (kernel, written) = (Arc::new(Kernel::default()), Arc::new(Written::default()));
        let device = Rng::new(File::open("/dev/urandom").unwrap(), &pace(clock.clone())).unwrap();
        let line = IrqPin::new(Gsi(16), sink.clone()).line("virtio");
        let interrupts = FunctionInterrupts::new(line, sink.clone(), vectors);
        let dma = DmaMemory::new(rings.memory.clone(), Some(written.clone()));
        root.add(PLACE, VirtioPci::new(device, interrupts, dma, kernel.clone())).unwrap();
        Self { rings, memory, root, clock, sink, kernel, written }
    }

    fn new(vectors: u16) -> Self {
        let driver = Self::of(vectors, |clock| Pace::Clock(clock));
        driver.place();
        driver
    }

    /// BARs where they are, decoded; the function may reach memory.
    fn place(&self) {
        self.set::<4>(CONFIG + register::BAR0 as u64 + 16, REGISTERS as u32);
        self.set::<4>(CONFIG + register::BAR0 as u64 + 4, TABLE as u32);
        self.set_command(WITH_BUS);
    }

    fn set_command(&self, value: u16) {
        self.set::<2>(CONFIG + register::COMMAND as u64, value.into());
    }

    fn get<const N: usize>(&self, address: u64) -> u32 {
        let mut data = [0xee; 4];
        data[N..].fill(0);
        assert!(self.memory.read(address, &mut data[..N]));
        u32::from_le_bytes(data)
    }

    fn set<const N: usize>(&self, address: u64, value: u32) {
        assert!(self.memory.write(address, &value.to_le_bytes()[..N]));
    }

    fn common<const N: usize>(&self, offset: u64) -> u32 {
        self.get::<N>(REGISTERS + offset)
    }

    fn set_common<const N: usize>(&self, offset: u64, value: u32) {
        self.set::<N>(REGISTERS + offset, value);
    }

    fn status(&self) -> u32 {
        self.common::<1>(common::DEVICE_STATUS)
    }

    /// Enables MSI-X; vector n sends 0x40 + n.
    fn enable_msix(&self) {
        let at =
            (0x40..0x100).step_by(4).find(|at| self.get::<1>(CONFIG + at) == u32::from(capability::MSIX));
        self.set::<2>(CONFIG + at.expect("there is MSI-X") + 2, 0x8000);
        for vector in 0..2 {
            for (offset, value) in [(0, 0xfee0_0000), (8, 0x40 + vector), (12, 0)] {
                self.set::<4>(TABLE + u64::from(vector) * 16 + offset, value);
            }
        }
    }

    fn start(&self) {
        self.set_common::<1>(common::DEVICE_STATUS, 0);
        self.set_common::<1>(common::DEVICE_STATUS, status::ACKNOWLEDGE | status::DRIVER);
        for sel in [0, 1] {
            self.set_common::<4>(common::DEVICE_FEATURE_SELECT, sel);
            let offered = self.common::<4>(common::DEVICE_FEATURE);
            self.set_common::<4>(common::DRIVER_FEATURE_SELECT, sel);
            let wanted = offered & !(feature::RING_EVENT_IDX >> (32 * sel)) as u32;
            self.set_common::<4>(common::DRIVER_FEATURE, wanted);
            assert_eq!(self.common::<4>(common::DRIVER_FEATURE), wanted);
        }
        let agreed = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.set_common::<1>(common::DEVICE_STATUS, agreed);
        assert_eq!(self.status(), agreed);
        self.rings.clear(0);
        self.set_common::<2>(common::QUEUE_SELECT, 0);
        self.set_common::<2>(common::QUEUE_SIZE, QUEUE_SIZE.into());
        self.set_common::<2>(common::CONFIG_MSIX_VECTOR, 0);
        self.set_common::<2>(common::QUEUE_MSIX_VECTOR, 1);
        for (offset, place) in (common::QUEUE_DESC..).step_by(8).zip(Rings::places(0)) {
            assert!(self.memory.write(REGISTERS + offset, &place.to_le_bytes()));
            assert_eq!(u64::from(self.common::<4>(offset)), place);
        }
        self.set_common::<2>(common::QUEUE_ENABLE, 1);
        self.set_common::<1>(common::DEVICE_STATUS, agreed | status::DRIVER_OK);
    }

    fn notify(&self) {
        self.set::<2>(REGISTERS + NOTIFY, 0);
        self.clock.advance(1_000_000);
    }
}

#[test]
fn capabilities_say_where_the_registers_are() {
    let driver = Driver::new(2);
    assert_eq!((driver.get::<4>(CONFIG), driver.get::<4>(CONFIG + 8)), (0x1044_1af4, 0x00ff_0001));
    let mut at = driver.get::<1>(CONFIG + 0x34);
    let mut found = Vec::new();
    while at != 0 {
        let head = driver.get::<4>(CONFIG + u64::from(at));
        let words = [1, 2].map(|word| driver.get::<4>(CONFIG + u64::from(at) + 4 + 4 * word));
        found.push((head as u8, if head as u8 == 9 { (head >> 24) as u8 } else { 0 }, words[0]));
        at = head >> 8 & 0xff;
    }
    assert_eq!(found[..5], [(9, 5, 0), (9, 1, 0), (9, 3, 0x1000), (9, 2, 0x3000), (9, 4, 0x2000)]);
    assert_eq!((found.len(), found[5].0), (6, 0x11));
    assert_eq!((driver.common::<2>(common::NUM_QUEUES), driver.common::<2>(common::QUEUE_SIZE)), (1, 64));
    driver.set_common::<2>(common::QUEUE_SELECT, 1);
    assert_eq!(driver.common::<2>(common::QUEUE_SIZE), 0);
    assert_eq!(driver.common::<2>(common::QUEUE_MSIX_VECTOR), u32::from(NO_VECTOR));
    // Only whole registers are read.
    assert_eq!((driver.common::<4>(common::NUM_QUEUES), driver.common::<1>(common::NUM_QUEUES)), (0, 0));
}

#[test]
fn a_buffer_comes_back_with_a_message() {
    let mut driver = Driver::new(2);
    driver.enable_msix();
    driver.start();
    driver.rings.add(0, 3, &[writable(DATA, 32)]);
    driver.notify();
    assert_eq!((driver.rings.used_index(0), driver.rings.used(0, 0)), (1, (3, 32)));
    assert!(driver.written.0.lock().unwrap().contains(&(DATA, 32)));
    assert_eq!(driver.sink.take(), [Seen::Route(0xfee0_0000, 0x41)]);
    assert_eq!(driver.get::<1>(REGISTERS + ISR), 0, "the ISR status is INTx's");
    // A vector that is not there is none.
    driver.set_common::<2>(common::QUEUE_MSIX_VECTOR, 2);
    assert_eq!(driver.common::<2>(common::QUEUE_MSIX_VECTOR), u32::from(NO_VECTOR));
    driver.rings.add(0, 4, &[writable(DATA, 32)]);
    driver.notify();
    assert_eq!((driver.rings.used_index(0), driver.sink.take()), (2, vec![]));
}

#[test]
fn a_buffer_comes_back_with_the_pin() {
    let mut driver = Driver::new(0);
    driver.start();
    driver.rings.add(0, 0, &[writable(DATA, 8)]);
    driver.notify();
    assert_eq!(driver.sink.take(), [Seen::Pin(true)]);
    assert_eq!((driver.get::<1>(REGISTERS + ISR), driver.get::<1>(REGISTERS + ISR)), (1, 0));
    assert_eq!(driver.sink.take(), [Seen::Pin(false)]);
    // Rings that make no sense: a change of the configuration.
    driver.rings.set_available_index(0, 17);
    driver.rings.offer(0, 99);
    driver.notify();
    assert_ne!(driver.status() & status::DEVICE_NEEDS_RESET, 0);
    assert_eq!(driver.get::<1>(REGISTERS + ISR), 2);
}

#[test]
fn the_device_reaches_memory_when_it_may() {
    let mut driver = Driver::new(2);
    driver.enable_msix();
    driver.set_command(command::MEMORY_SPACE);
    driver.start();
    driver.rings.add(0, 0, &[writable(DATA, 8)]);
    driver.notify();
    assert_eq!(driver.rings.used_index(0), 0);
    driver.set_command(WITH_BUS);
    driver.clock.advance(1_000_000);
    assert_eq!((driver.rings.used_index(0), driver.sink.take().len()), (1, 1));
    // It stops in its work, and the driver begins anew.
    driver.set_command(command::MEMORY_SPACE);
    driver.rings.add(0, 1, &[writable(DATA, 8)]);
    driver.notify();
    assert_eq!((driver.rings.used_index(0), driver.status() & status::DRIVER_OK), (1, 0));
    driver.set_command(WITH_BUS);
    driver.notify();
    assert_eq!(driver.rings.used_index(0), 1);
    driver.rings.restart();
    driver.start();
    driver.rings.add(0, 0, &[writable(DATA, 8)]);
    driver.notify();
    assert_eq!(driver.rings.used_index(0), 1);
}

#[test]
fn the_kernel_rings_where_the_bar_is() {
    let driver = Driver::of(2, |_| Pace::Threads);
    let rung = || driver.kernel.0.lock().unwrap().clone();
    assert!(rung().is_empty());
    driver.place();
    assert_eq!(rung(), [REGISTERS + NOTIFY]);
    driver.set::<4>(CONFIG + register::BAR0 as u64 + 16, 0xd000_0000);
    assert_eq!(rung(), [0xd000_0000 + NOTIFY]);
    // Over the ECAM window it would take stores that are not its own.
    driver.set::<4>(CONFIG + register::BAR0 as u64 + 16, ECAM as u32);
    assert!(rung().is_empty());
    driver.set::<4>(CONFIG + register::BAR0 as u64 + 16, REGISTERS as u32);
    driver.root.reset();
    assert!(rung().is_empty());
}

#[test]
fn configuration_space_leads_to_the_registers() {
    let driver = Driver::new(2);
    let access = |offset: u32, len: u32| {
        driver.set::<1>(CONFIG + window::BAR as u64, 4);
        driver.set::<4>(CONFIG + window::OFFSET as u64, offset);
        driver.set::<4>(CONFIG + window::LENGTH as u64, len);
    };
    // Without its BAR being decoded.
    driver.set_command(0);
    access(common::DEVICE_STATUS as u32, 1);
    driver.set::<1>(CONFIG + window::DATA as u64, status::ACKNOWLEDGE);
    assert_eq!(driver.get::<4>(CONFIG + window::DATA as u64) as u8, 1);
    driver.place();
    assert_eq!(driver.status(), status::ACKNOWLEDGE);
    access(common::QUEUE_SIZE as u32, 2);
    assert_eq!(driver.get::<2>(CONFIG + window::DATA as u64), 64);
    for (offset, len) in [(0, 3), (2, 4), (0x4000, 4), (u32::MAX, 1), (0, 0), (0, u32::MAX)] {
        access(offset, len);
        driver.get::<4>(CONFIG + window::DATA as u64);
        driver.set::<4>(CONFIG + window::DATA as u64, u32::MAX);
    }
    assert_eq!(driver.status(), status::ACKNOWLEDGE);
}

#[test]
fn a_reset_forgets_everything() {
    let mut driver = Driver::new(2);
    driver.enable_msix();
    driver.start();
    driver.rings.add(0, 0, &[writable(DATA, 8)]);
    driver.set::<2>(REGISTERS + NOTIFY, 0);
    driver.root.reset();
    driver.clock.advance(1_000_000);
    assert_eq!((driver.rings.used_index(0), driver.sink.take()), (0, vec![]));
    driver.place();
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.common::<2>(common::CONFIG_MSIX_VECTOR), u32::from(NO_VECTOR));
    assert_eq!(driver.common::<2>(common::QUEUE_SIZE), 64);
}

#[test]
fn a_paused_device_works_when_it_goes_on() {
    let mut driver = Driver::new(2);
    driver.enable_msix();
    driver.start();
    driver.root.pause();
    driver.rings.add(0, 0, &[writable(DATA, 8)]);
    driver.notify();
    assert_eq!((driver.rings.used_index(0), driver.sink.take()), (0, vec![]));
    driver.root.resume();
    driver.clock.advance(1_000_000);
    assert_eq!((driver.rings.used_index(0), driver.sink.take().len()), (1, 1));
}

/// Whatever a guest writes to the registers, in whatever order and size: nothing panics, and a reset helps.
#[test]
fn a_guest_that_writes_at_random() {
    let mut driver = Driver::new(2);
    let mut random = Random::new(11);
    for round in 0..30_000u32 {
        let size = 1usize << random.below(4);
        let offset = match random.below(4) {
            0 => random.below(0x40),
            1 => common::DEVICE_STATUS,
            2 => NOTIFY + random.below(0x20),
            _ => random.below(BAR_BYTES - 8),
        };
        let value = if random.below(2) == 0 { random.below(256) } else { random.next() };
        match random.below(8) {
            0 => _ = driver.memory.read(REGISTERS + offset, &mut [0; 8][..size]),
            1 => driver.set_command(random.next() as u16 | command::MEMORY_SPACE),
            2 => _ = driver.memory.write(CONFIG + 0x40 + random.below(0x80), &value.to_le_bytes()[..size]),
            3 => _ = driver.memory.write(TABLE + random.below(64), &value.to_le_bytes()[..size]),
            4 if round % 7 == 0 => {
                driver.place();
                driver.start();
                driver.rings.restart();
                driver.rings.add(0, random.below(16) as u16, &[writable(random.below(1 << 21), 16)]);
            }
            _ => _ = driver.memory.write(REGISTERS + offset, &value.to_le_bytes()[..size]),
        }
        driver.clock.advance(1_000_000);
        driver.sink.take();
    }
    driver.root.reset();
    driver.sink.take();
    driver.place();
    driver.enable_msix();
    driver.rings.restart();
    driver.start();
    driver.rings.add(0, 0, &[writable(DATA, 8)]);
    driver.notify();
    assert_eq!((driver.rings.used_index(0), driver.sink.take().len()), (1, 1));
}
