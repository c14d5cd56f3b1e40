//! A virtio device's registers, on either transport, as a driver uses them.

use std::sync::Arc;

use devices::bus::BusDevice;
use devices::device::Device;
use devices::pci::spec::{command, register as pci_register};
use devices::virtio::VirtioDevice;
use devices::virtio::mmio::VirtioMmio;
use devices::virtio::mmio::spec::{WINDOW, register};
use devices::virtio::pci::VirtioPci;
use devices::virtio::pci::spec::{MSIX_BAR, NOTIFY_OFF_MULTIPLIER, PART_BYTES, REGISTERS_BAR, common};

use crate::input::Input;
use crate::machine::{ECAM, ECAM_BYTES, Machine};

/// The slot of the device on PCI.
const SLOT: u64 = 1;
/// Where a good driver has the BARs.
const REGISTERS: u64 = 0xc000_0000;
const MSIX: u64 = 0xc001_0000;
const MSIX_BYTES: u64 = 0x1000;
const DEVICE: u64 = 2 * PART_BYTES;
const NOTIFY: u64 = 3 * PART_BYTES;

/// The registers.
pub enum Transport {
    Mmio(Arc<VirtioMmio>),
    Pci(Arc<VirtioPci>),
}

impl Transport {
    /// `device` behind virtio-pci in a slot of the machine's, with MSI-X or not, or behind virtio-mmio.
    pub fn new(machine: &Machine, device: Arc<dyn VirtioDevice>, kind: u8) -> Self {
        if kind & 1 == 0 {
            return Self::Mmio(VirtioMmio::new(device, machine.line(16, "mmio"), machine.memory.clone()));
        }
        let vectors = if kind & 2 == 0 { VirtioPci::wanted_vectors(&*device) } else { 0 };
        let (interrupts, doorbells) = (machine.interrupts(vectors), machine.doorbells());
        let transport = VirtioPci::new(device, interrupts, machine.memory.clone(), doorbells);
        machine.plug(SLOT as u8, transport.clone());
        Self::Pci(transport)
    }

    /// Reset, pause and resume.
    pub fn device(&self) -> &dyn Device {
        match self {
            Self::Mmio(transport) => &**transport,
            Self::Pci(transport) => &**transport,
        }
    }

    /// How many queues there are.
    pub fn queues(&self) -> u16 {
        let device = match self {
            Self::Mmio(transport) => transport.device(),
            Self::Pci(transport) => transport.device(),
        };
        device.queue_sizes().len() as u16
    }

    /// Writes registers at `offset` of their window.
    pub fn write(&self, machine: &Machine, offset: u64, data: &[u8]) {
        match self {
            Self::Mmio(transport) => transport.write(offset, data),
            Self::Pci(_) => _ = machine.mmio.write(REGISTERS + offset, data),
        }
    }

    /// Reads them.
    pub fn read(&self, machine: &Machine, offset: u64, data: &mut [u8]) {
        match self {
            Self::Mmio(transport) => transport.read(offset, data),
            Self::Pci(_) => _ = machine.mmio.read(REGISTERS + offset, data),
        }
    }

    fn set(&self, machine: &Machine, mmio: u64, pci: u64, value: u32) {
        let bytes = value.to_le_bytes();
        match self {
            Self::Mmio(_) => self.write(machine, mmio, &bytes),
            Self::Pci(_) => self.write(machine, pci, &bytes[..common::width(pci).expect("a register")]),
        }
    }

    fn get(&self, machine: &Machine, mmio: u64, pci: u64) -> u32 {
        let mut bytes = [0; 4];
        match self {
            Self::Mmio(_) => self.read(machine, mmio, &mut bytes),
            Self::Pci(_) => {
                self.read(machine, pci, &mut bytes[..common::width(pci).expect("a register")]);
            }
        }
        u32::from_le_bytes(bytes)
    }

    /// What firmware and the kernel do before the driver: the BARs are where they are, and the function reaches memory.
    pub fn place(&self, machine: &Machine) {
        if let Self::Pci(_) = self {
            let enabled = command::MEMORY_SPACE | command::BUS_MASTER;
            let bar = |index: usize| (pci_register::BAR0 + 4 * index) as u64;
            self.configure(machine, pci_register::COMMAND as u64, &[0; 2]);
            self.configure(machine, bar(REGISTERS_BAR), &REGISTERS.to_le_bytes());
            self.configure(machine, bar(MSIX_BAR), &(MSIX as u32).to_le_bytes());
            self.configure(machine, pci_register::COMMAND as u64, &enabled.to_le_bytes());
        }
    }

    fn configure(&self, machine: &Machine, register: u64, data: &[u8]) {
        // A store of 8 bytes is two.
        for (at, data) in (register..).step_by(4).zip(data.chunks(4)) {
            machine.mmio.write(ECAM + SLOT * 0x8000 + at, data);
        }
    }

    /// The device status.
    pub fn status(&self, machine: &Machine) -> u32 {
        self.get(machine, register::STATUS, common::DEVICE_STATUS)
    }

    /// Writes the device status.
    pub fn set_status(&self, machine: &Machine, value: u32) {
        self.set(machine, register::STATUS, common::DEVICE_STATUS, value);
    }

    /// Takes those of the offered features that `mask` leaves. VERSION_1 is no matter of taste.
    pub fn negotiate(&self, machine: &Machine, mask: u32) {
        for half in 0..2 {
            self.set(machine, register::DEVICE_FEATURES_SEL, common::DEVICE_FEATURE_SELECT, half);
            let offered = self.get(machine, register::DEVICE_FEATURES, common::DEVICE_FEATURE);
            self.set(machine, register::DRIVER_FEATURES_SEL, common::DRIVER_FEATURE_SELECT, half);
            let taken = if half == 1 { offered } else { offered & mask };
            self.set(machine, register::DRIVER_FEATURES, common::DRIVER_FEATURE, taken);
        }
    }

    /// Says where a queue is: its descriptors, its available ring, its used ring, each with an MSI-X vector of its own.
    pub fn set_queue(&self, machine: &Machine, queue: u16, size: u16, [table, avail, used]: [u32; 3]) {
        self.set(machine, register::QUEUE_SEL, common::QUEUE_SELECT, queue.into());
        self.set(machine, register::QUEUE_NUM, common::QUEUE_SIZE, size.into());
        self.set(machine, register::QUEUE_DESC_LOW, common::QUEUE_DESC, table);
        self.set(machine, register::QUEUE_DRIVER_LOW, common::QUEUE_DRIVER, avail);
        self.set(machine, register::QUEUE_DEVICE_LOW, common::QUEUE_DEVICE, used);
        if let Self::Pci(_) = self {
            let vector = queue + 1;
            self.write(machine, common::QUEUE_MSIX_VECTOR, &vector.to_le_bytes());
        }
        self.set(machine, register::QUEUE_READY, common::QUEUE_ENABLE, 1);
    }

    /// Notifies.
    pub fn notify(&self, machine: &Machine, queue: u16) {
        let step = u64::from(NOTIFY_OFF_MULTIPLIER);
        match self {
            Self::Mmio(_) => self.write(machine, register::QUEUE_NOTIFY, &u32::from(queue).to_le_bytes()),
            Self::Pci(_) => self.write(machine, NOTIFY + step * u64::from(queue), &queue.to_le_bytes()),
        }
    }

    /// An access to any register, or to the configuration space of the device.
    pub fn poke(&self, machine: &Machine, input: &mut Input) {
        let (what, width) = (input.u8(), input.width());
        let (window, config, config_bytes) = match self {
            Self::Mmio(_) => (WINDOW, register::CONFIG, WINDOW - register::CONFIG),
            Self::Pci(_) => (4 * PART_BYTES, DEVICE, PART_BYTES),
        };
        let range = if what & 1 == 0 { 0..window } else { config..config + config_bytes };
        let most = range.end - range.start - width as u64;
        let at = range.start + u64::from(input.u16()) % (most + 1);
        let at = if what & 2 == 0 { at - at % width as u64 } else { at };
        self.access(
            what,
            |is_write, data| match is_write {
                true => self.write(machine, at, data),
                false => self.read(machine, at, data),
            },
            width,
            input,
        );
    }

    /// An access to the registers of functions on the PCI bus, or to the MSI-X table: through ECAM, ports, or a BAR.
    pub fn poke_bus(&self, machine: &Machine, input: &mut Input) {
        let (what, width) = (input.u8(), input.width());
        let aligned = |at: u64| at & !(width as u64 - 1);
        match what >> 2 & 3 {
            0 | 1 => {
                // The device's own function more often than not.
                let place = if what & 0x10 == 0 { SLOT * 0x8000 } else { u64::from(input.u16()) << 8 };
                let at = aligned(ECAM + (place + u64::from(input.u8())) % (ECAM_BYTES - 8));
                self.on_bus(&machine.mmio, at, what, width, input);
            }
            2 => {
                let address = 0x8000_0000 | (SLOT as u32) << 11 | u32::from(input.u8());
                machine.pio.write(0xcf8, &address.to_le_bytes());
                let at = 0xcf8 + u64::from(input.u8() & 7);
                self.on_bus(&machine.pio, at, what, width.min(4), input);
            }
            _ => {
                let at = aligned(MSIX + u64::from(input.u16()) % (MSIX_BYTES - 8));
                self.on_bus(&machine.mmio, at, what, width, input);
            }
        }
    }

    fn on_bus(&self, bus: &devices::bus::Bus, at: u64, what: u8, width: usize, input: &mut Input) {
        self.access(
            what,
            |is_write, data| match is_write {
                true => _ = bus.write(at, data),
                false => _ = bus.read(at, data),
            },
            width,
            input,
        );
    }

    fn access(&self, what: u8, mut act: impl FnMut(bool, &mut [u8]), width: usize, input: &mut Input) {
        let mut data = if what & 0x80 == 0 { input.u64() } else { 0 }.to_le_bytes();
        act(what & 0x80 == 0, &mut data[..width]);
    }
}
