//! Virtio devices on virtio-mmio: where they are, and how the accelerator hears their doorbells.
//!
//! Windows and interrupts are QEMU's microvm's with ACPI: from 0xfeb00000 on, I/O APIC pins from 16 on. Pins are shared
//! where there are more devices than pins; they are level-triggered.

use std::io;
use std::sync::Arc;

use accel::{Accelerator, DoorbellStore};
use devices::bus::{Bus, BusDevice, BusError};
use devices::clock::Clock;
use devices::dma::DmaMemory;
use devices::interrupt::{Gsi, InterruptSink, IrqPin};
use devices::virtio::blk::Blk;
use devices::virtio::mmio::{VirtioMmio, spec};
use devices::virtio::net::Net;
use devices::virtio::rng::Rng;
use devices::virtio::worker::Pace;
use devices::virtio::{Doorbell, VirtioDevice};
use vm_memory::GuestMemoryMmap;

use crate::disks::VirtioPart;

const BASE: u64 = 0xfeb0_0000;
const FIRST_GSI: u32 = 16;
const GSIS: u32 = 8;
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
    pub accelerator: &'a dyn Accelerator,
    /// Guest time.
    pub clock: &'a Arc<dyn Clock>,
    /// Guest memory.
    pub memory: &'a GuestMemoryMmap,
    /// Interrupts.
    pub sink: &'a Arc<dyn InterruptSink>,
    /// Their windows.
    pub mmio: &'a Bus,
}

impl Wires<'_> {
    /// Threads, unless guest time is made by what guests execute: then nothing else may decide when a device answers.
    fn pace(&self) -> Pace {
        match self.clock.wakeup_fd() {
            Some(_) => Pace::Threads,
            None => Pace::Clock(Arc::clone(self.clock)),
        }
    }

    fn device(&self, part: &VirtioPart) -> io::Result<Arc<dyn VirtioDevice>> {
        let pace = self.pace();
        Ok(match part {
            VirtioPart::Blk { backend, options } => Blk::new(Arc::clone(backend), options, &pace)?,
            VirtioPart::Rng(source) => Rng::new(source.try_clone()?, &pace)?,
            VirtioPart::Net { network, mac } => Net::new(Arc::clone(network), *mac, &pace)?,
        })
    }

    /// Makes the devices and puts them on the bus.
    pub fn place(&self, parts: &[VirtioPart]) -> Result<Vec<(Place, Arc<VirtioMmio>)>, VirtioError> {
        if parts.len() > MAX_DEVICES {
            return Err(VirtioError::TooMany { count: parts.len() });
        }
        let pins: Vec<_> =
            (FIRST_GSI..FIRST_GSI + GSIS).map(|gsi| IrqPin::new(Gsi(gsi), Arc::clone(self.sink))).collect();
        let dma = DmaMemory::new(self.memory.clone(), self.accelerator.dma_observer());
        let mut placed = Vec::new();
        for ((index, part), base) in (0u32..).zip(parts).zip((BASE..).step_by(spec::WINDOW as usize)) {
            let device = self.device(part).map_err(VirtioError::Doorbell)?;
            let gsi = index % GSIS;
            let line = pins[gsi as usize].line(device.name());
            let transport = VirtioMmio::new(device, line, dma.clone());
            self.mmio.insert(base, spec::WINDOW, Arc::clone(&transport) as Arc<dyn BusDevice>)?;
            for (offset, value, doorbell) in transport.doorbells() {
                if let Doorbell::Event(event) = &**doorbell {
                    let added =
                        self.accelerator.add_doorbell(base + offset, DoorbellStore::Word(value), event);
                    added.map_err(VirtioError::Doorbell)?;
                }
            }
            let place = Place { base: u32::try_from(base).expect("below 4 GiB"), gsi: FIRST_GSI + gsi };
            placed.push((place, transport));
        }
        Ok(placed)
    }
}
