//! The functions that are the board's own: the host bridge, and the ISA bridge of a PC (Intel 3 Series Express Chipset Family
//! Datasheet, *DRAM Controller*; Intel I/O Controller Hub 9 Family Datasheet, *LPC Interface Bridge Registers*).
//!
//! They are there to be seen. The memory controller and the devices behind the ISA bridge are where they are, whatever is
//! written here.

use std::sync::Arc;

use super::config::Identity;
use super::function::{Layout, PciDevice};
use crate::device::Device;

/// Class of a host bridge, and of an ISA bridge.
const HOST_BRIDGE: u32 = 0x06_0000;
const ISA_BRIDGE: u32 = 0x06_0100;
const INTEL: u16 = 0x8086;
const RED_HAT: u16 = 0x1b36;
/// The subsystem of QEMU's boards.
const SUBSYSTEM: (u16, u16) = (0x1af4, 0x1100);

/// Which host bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostBridgeModel {
    /// Q35's memory controller hub. It tells the address of the ECAM window, of 256 buses.
    Mch {
        /// The address, a multiple of the window's length.
        ecam: u64,
    },
    /// QEMU's generic PCI Express host.
    Gpex,
}

/// The host bridge, function 0 of slot 0.
pub struct HostBridge(HostBridgeModel);

impl HostBridge {
    /// A host bridge that says that it is `model`.
    pub fn new(model: HostBridgeModel) -> Arc<Self> {
        Arc::new(Self(model))
    }
}

/// PCIEXBAR of the memory controller hub, and its enable bit; the length bits say 256 MiB.
const PCIEXBAR: usize = 0x60;
const PCIEXBAREN: u64 = 1;

impl PciDevice for HostBridge {
    fn layout(&self) -> Layout {
        let (vendor, device) = match self.0 {
            HostBridgeModel::Mch { .. } => (INTEL, 0x29c0),
            HostBridgeModel::Gpex => (RED_HAT, 0x0008),
        };
        let identity = Identity { vendor, device, revision: 0, class: HOST_BRIDGE, subsystem: SUBSYSTEM };
        let registers = match self.0 {
            HostBridgeModel::Mch { ecam } => {
                vec![(PCIEXBAR, (ecam | PCIEXBAREN).to_le_bytes().to_vec(), Vec::new())]
            }
            HostBridgeModel::Gpex => Vec::new(),
        };
        Layout { registers, ..Layout::new(identity) }
    }
}

impl Device for HostBridge {
    fn name(&self) -> &'static str {
        "PCI host bridge"
    }

    fn reset(&self) {}
}

/// The ISA bridge of an ICH9.
pub struct IsaBridge {
    pm_base: u16,
}

impl IsaBridge {
    /// A bridge that says that the ACPI power management block is at `pm_base`, a multiple of 128.
    pub fn new(pm_base: u16) -> Arc<Self> {
        Arc::new(Self { pm_base })
    }
}

/// ICH9 registers: ACPI base address, ACPI control, and where PIRQA to PIRQD and PIRQE to PIRQH go.
mod ich9 {
    pub const DEVICE: u16 = 0x2918;
    pub const REVISION: u8 = 2;
    pub const PMBASE: usize = 0x40;
    /// PMBASE is in I/O space.
    pub const PMBASE_IO: u32 = 1;
    pub const ACPI_CNTL: usize = 0x44;
    pub const ACPI_EN: u8 = 1 << 7;
    pub const PIRQ_A_ROUT: usize = 0x60;
    pub const PIRQ_E_ROUT: usize = 0x68;
    /// Routed to no interrupt of the 8259s. Software may write where to, for itself to read: the pins are the I/O APIC's.
    pub const PIRQ_OFF: [u8; 4] = [0x80; 4];
    pub const PIRQ_WRITABLE: [u8; 4] = [0x8f; 4];
}

impl PciDevice for IsaBridge {
    fn layout(&self) -> Layout {
        let identity = Identity {
            vendor: INTEL,
            device: ich9::DEVICE,
            revision: ich9::REVISION,
            class: ISA_BRIDGE,
            subsystem: SUBSYSTEM,
        };
        let pm_base = u32::from(self.pm_base) | ich9::PMBASE_IO;
        let route = |at| (at, ich9::PIRQ_OFF.to_vec(), ich9::PIRQ_WRITABLE.to_vec());
        let registers = vec![
            (ich9::PMBASE, pm_base.to_le_bytes().to_vec(), Vec::new()),
            (ich9::ACPI_CNTL, vec![ich9::ACPI_EN], Vec::new()),
            route(ich9::PIRQ_A_ROUT),
            route(ich9::PIRQ_E_ROUT),
        ];
        Layout { registers, ..Layout::new(identity) }
    }
}

impl Device for IsaBridge {
    fn name(&self) -> &'static str {
        "ISA bridge"
    }

    fn reset(&self) {}
}
