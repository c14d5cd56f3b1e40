//! Virtio devices: what they are wired to, and where they are on virtio-mmio.
//!
//! Windows and interrupts on virtio-mmio are QEMU's microvm's with ACPI: from 0xfeb00000 on, I/O APIC pins from 16 on. Pins
//! are shared where there are more devices than pins, and with PCI's; they are level-triggered.

use std::io;
use std::sync::Arc;

use accel::{Accelerator, DoorbellStore};
use devices::bus::{Bus, BusDevice, BusError};
use devices::clock::Clock;
use devices::dma::DmaMemory;
use devices::interrupt::{Gsi, InterruptSink, IrqPin};
use devices::virtio::balloon::Balloon;
use devices::virtio::blk::Blk;
use devices::virtio::console::Console;
use devices::virtio::mmio::{VirtioMmio, spec};
use devices::virtio::net::Net;
use devices::virtio::p9::P9;
use devices::virtio::rng::Rng;
use devices::virtio::vhost::net::VhostNet;
use devices::virtio::vhost::vsock::VhostVsock;
use devices::virtio::vhost_user::fs::VhostUserFs;
use devices::virtio::vsock::Vsock;
use devices::virtio::worker::Pace;
use devices::virtio::{Doorbell, VirtioDevice};
use vm_memory::GuestMemoryMmap;

use super::pci::PciError;
use crate::back_ends;
use crate::consoles::PortPart;
use crate::disks::VirtioPart;
use crate::networks::CardNetwork;

const BASE: u64 = 0xfeb0_0000;
/// The first of the I/O APIC pins that no ISA interrupt has.
pub const FIRST_GSI: u32 = 16;
/// How many they are.
pub const GSIS: u32 = 8;
/// Devices at most.
pub const MAX_DEVICES: usize = 32;

/// Why the virtio devices cannot be there.
#[derive(Debug, thiserror::Error)]
pub enum VirtioError {
    /// No window is left.
    #[error("{count} virtio devices: this machine has room for {MAX_DEVICES}")]
    TooMany {
        /// How many there are.
        count: usize,
    },
    /// The host refused an eventfd.
    #[error("virtio: no doorbell to be had")]
    Doorbell(#[source] io::Error),
    /// Something else is there.
    #[error("virtio")]
    Bus(#[from] BusError),
    /// There is no place on the PCI bus.
    #[error(transparent)]
    Pci(#[from] PciError),
}

/// A device as ACPI describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// First address of its window of [`spec::WINDOW`] bytes.
    pub base: u32,
    /// Its interrupt.
    pub gsi: u32,
}

/// What the devices are wired to.
pub struct Wires<'a> {
    /// Doorbells are for it, and it hears of what is written to memory.
    pub accelerator: &'a Arc<dyn Accelerator>,
    /// Guest time.
    pub clock: &'a Arc<dyn Clock>,
    /// Guest memory.
    pub memory: &'a GuestMemoryMmap,
    /// Messages.
    pub sink: &'a Arc<dyn InterruptSink>,
    /// The pins from [`FIRST_GSI`] on.
    pub pins: &'a [IrqPin],
    /// Their windows.
    pub mmio: &'a Bus,
}

/// The pins from [`FIRST_GSI`] on.
pub fn pins(sink: &Arc<dyn InterruptSink>) -> Vec<IrqPin> {
    (FIRST_GSI..FIRST_GSI + GSIS).map(|gsi| IrqPin::new(Gsi(gsi), Arc::clone(sink))).collect()
}

impl Wires<'_> {
    /// Threads, unless guest time is made by what guests execute: then nothing else may decide when a device answers.
    fn pace(&self) -> Pace {
        match self.clock.wakeup_fd() {
            Some(_) => Pace::Threads,
            None => Pace::Clock(Arc::clone(self.clock)),
        }
    }

    /// Guest memory as devices reach it.
    pub fn dma(&self) -> DmaMemory {
        DmaMemory::new(self.memory.clone(), self.accelerator.dma_observer())
    }

    /// Makes a device.
    pub fn device(&self, part: &VirtioPart) -> Result<Arc<dyn VirtioDevice>, VirtioError> {
        self.make(part).map_err(VirtioError::Doorbell)
    }

    fn make(&self, part: &VirtioPart) -> io::Result<Arc<dyn VirtioDevice>> {
        let pace = self.pace();
        let observed = self.dma().is_observed();
        Ok(match part {
            VirtioPart::Blk { backend, options } => Blk::new(Arc::clone(backend), options, &pace)?,
            VirtioPart::Rng(source) => Rng::new(source.try_clone()?, &pace)?,
            VirtioPart::P9 { share, tag } => P9::new(Arc::clone(share), tag, &pace)?,
            VirtioPart::Vsock { guest_cid, socket } => Vsock::new(*guest_cid, Arc::clone(socket), &pace)?,
            VirtioPart::VhostUserFs { choice, back_end } => {
                VhostUserFs::new(back_ends::connected(back_end), &choice.options, &pace)?
            }
            VirtioPart::Net { network: CardNetwork::Here(network), mac } => {
                Net::new(Arc::clone(network), *mac, &pace)?
            }
            VirtioPart::Net { network: CardNetwork::Kernel(network), mac } => {
                VhostNet::new(network.clone(), *mac, observed, &pace)?
            }
            VirtioPart::VhostVsock(streams) => VhostVsock::new(streams.clone(), observed, &pace)?,
            VirtioPart::Serial { max_ports, ports } => {
                Console::new(ports.iter().map(PortPart::options).collect(), *max_ports, &pace)?
            }
            VirtioPart::Balloon(options) => Balloon::new(*options, &pace)?,
        })
    }

    /// Makes the devices and puts them on virtio-mmio.
    pub fn place<'p>(
        &self,
        parts: impl IntoIterator<Item = &'p VirtioPart>,
    ) -> Result<Vec<(Place, Arc<VirtioMmio>)>, VirtioError> {
        let dma = self.dma();
        let mut placed = Vec::new();
        for ((index, part), base) in (0u32..).zip(parts).zip((BASE..).step_by(spec::WINDOW as usize)) {
            let device = self.device(part)?;
            let gsi = index % GSIS;
            let line = self.pins[gsi as usize].line(device.name());
            let transport = VirtioMmio::new(device, line, dma.clone());
            self.mmio.insert(base, spec::WINDOW, Arc::clone(&transport) as Arc<dyn BusDevice>)?;
            for (offset, value, doorbell) in transport.doorbells() {
                if let Doorbell::Event(event) = &**doorbell {
                    let store = DoorbellStore::Word(value);
                    let added = self.accelerator.add_doorbell(base + offset, store, event);
                    added.map_err(VirtioError::Doorbell)?;
                }
            }
            let place = Place { base: u32::try_from(base).expect("below 4 GiB"), gsi: FIRST_GSI + gsi };
            placed.push((place, transport));
        }
        Ok(placed)
    }
}
