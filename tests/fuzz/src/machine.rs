//! A machine around a device: memory, time, interrupts that end nowhere, and buses with a PCI root.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use devices::bus::Bus;
use devices::clock::{Clock, ManualClock};
use devices::dma::{DmaMemory, DmaObserver};
use devices::interrupt::{Gsi, InterruptSink, IrqLine, IrqPin, MsiMessage, MsiRoute, RouteError};
use devices::pci::spec::ports;
use devices::pci::{Address, FunctionInterrupts, HostBridge, HostBridgeModel, PciDevice, PciRoot};
use devices::system::{SystemControl, SystemRequest};
use devices::virtio::pci::KernelDoorbells;
use devices::virtio::worker::Pace;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::tempfile::TempFile;

/// Guest memory, from address 0.
pub const RAM_BYTES: u64 = 256 << 10;
/// Bytes of the first part, where there are two: after the good rings, and before the good buffers.
const PART_BYTES: usize = 0x8000;
/// Where the functions' registers are.
pub const ECAM: u64 = 0xe000_0000;
/// Bytes of the window: one bus's.
pub const ECAM_BYTES: u64 = devices::pci::spec::ECAM_BUS_BYTES;

/// A folder for files that are made anew for each input: in memory, if the host has such.
pub fn in_memory() -> PathBuf {
    let shared = PathBuf::from("/dev/shm");
    if shared.is_dir() { shared } else { std::env::temp_dir() }
}

/// Where interrupts end.
pub struct Sink;

impl InterruptSink for Sink {
    fn set_gsi(&self, _gsi: Gsi, _level: bool) {}

    fn send_msi(&self, _message: MsiMessage) {}

    fn new_route(&self) -> Result<Box<dyn MsiRoute>, RouteError> {
        Ok(Box::new(Route(Mutex::new(None))))
    }
}

/// A route that remembers its message.
struct Route(Mutex<Option<MsiMessage>>);

impl MsiRoute for Route {
    fn set(&self, message: Option<MsiMessage>) -> Result<(), RouteError> {
        *self.0.lock().expect("one thread") = message;
        Ok(())
    }

    fn trigger(&self) {}

    fn eventfd(&self) -> Option<&EventFd> {
        None
    }
}

/// Takes requests to the machine.
pub struct Requests;

impl SystemControl for Requests {
    fn request(&self, _request: SystemRequest) {}
}

/// No doorbell is the kernel's.
struct NoDoorbells;

impl KernelDoorbells for NoDoorbells {
    fn add(&self, _gpa: u64, _event: &EventFd) {}

    fn remove(&self, _gpa: u64, _event: &EventFd) {}
}

/// Hears of what devices write.
struct Observer;

impl DmaObserver for Observer {
    fn written(&self, gpa: u64, len: u64) {
        // Buffers that a driver made up may be anywhere; a translator looks at the pages that are.
        std::hint::black_box((gpa, len));
    }
}

fn observer() -> Option<Arc<dyn DmaObserver>> {
    Some(Arc::new(Observer))
}

/// Memory, time and buses.
pub struct Machine {
    pub clock: Arc<ManualClock>,
    pub memory: DmaMemory,
    pub mmio: Arc<Bus>,
    pub pio: Arc<Bus>,
    pub root: Arc<PciRoot>,
}

impl Default for Machine {
    fn default() -> Self {
        Self::new(
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_BYTES as usize)]).expect("256 KiB"),
            observer(),
        )
    }
}

impl Machine {
    /// One whose memory others can map.
    pub fn shared() -> Self {
        let file = TempFile::new_in(&in_memory()).expect("a temporary folder").into_file();
        file.set_len(RAM_BYTES).expect("there is room");
        let range = (GuestAddress(0), RAM_BYTES as usize, Some(FileOffset::new(file, 0)));
        Self::new(GuestMemoryMmap::from_ranges_with_files([range]).expect("256 KiB"), observer())
    }

    /// One whose memory is two mappings side by side, and of which `observer` hears.
    pub fn in_two_parts(observer: Option<Arc<dyn DmaObserver>>) -> Self {
        let ranges = [
            (GuestAddress(0), PART_BYTES),
            (GuestAddress(PART_BYTES as u64), RAM_BYTES as usize - PART_BYTES),
        ];
        Self::new(GuestMemoryMmap::from_ranges(&ranges).expect("256 KiB"), observer)
    }

    fn new(map: GuestMemoryMmap, observer: Option<Arc<dyn DmaObserver>>) -> Self {
        let (mmio, pio) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let root = PciRoot::new(&mmio, &pio);
        mmio.insert(ECAM, ECAM_BYTES, root.ecam()).expect("an empty bus");
        pio.insert(ports::CONFIG_ADDRESS.into(), ports::WIDTH, root.address_port(None))
            .expect("no ports yet");
        pio.insert(ports::CONFIG_DATA.into(), ports::WIDTH, root.data_port()).expect("the next ones");
        let bridge = HostBridge::new(HostBridgeModel::Mch { ecam: ECAM });
        root.add(Address::new(0, 0).expect("slot 0"), bridge).expect("an empty bus");
        let memory = DmaMemory::new(map, observer);
        Self { clock: ManualClock::new(), memory, mmio, pio, root }
    }

    /// What drives the devices: guest time, so that each run of an input is the same.
    pub fn pace(&self) -> Pace {
        Pace::Clock(Arc::clone(&self.clock) as Arc<dyn Clock>)
    }

    /// The same as a device has it.
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock) as Arc<dyn Clock>
    }

    /// A wire to pin `gsi`.
    pub fn line(&self, gsi: u32, label: &'static str) -> IrqLine {
        IrqPin::new(Gsi(gsi), Arc::new(Sink)).line(label)
    }

    /// Interrupts of a function with `vectors` of MSI-X.
    pub fn interrupts(&self, vectors: u16) -> Arc<FunctionInterrupts> {
        FunctionInterrupts::new(self.line(16, "pci"), Arc::new(Sink), vectors)
    }

    /// Puts `device` into slot `slot`, function 0.
    pub fn plug(&self, slot: u8, device: Arc<dyn PciDevice>) {
        self.root.add(Address::new(slot, 0).expect("a slot"), device).expect("nobody is there");
    }

    /// The doorbells of a function.
    pub fn doorbells(&self) -> Arc<dyn KernelDoorbells> {
        Arc::new(NoDoorbells)
    }

    /// Writes to guest memory what is in it.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        let room = RAM_BYTES.saturating_sub(at) as usize;
        self.memory.write_slice(&bytes[..bytes.len().min(room)], GuestAddress(at)).expect("in memory");
    }

    /// A half of 16 bits of guest memory.
    pub fn half(&self, at: u64) -> u16 {
        self.memory.read_obj(GuestAddress(at)).expect("in memory")
    }
}
