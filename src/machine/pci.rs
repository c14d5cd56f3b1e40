//! The PCI Express bus of a machine: what is on it, and where its windows are.
//!
//! Nobody has given addresses to the BARs when the kernel starts: it does that itself, where ACPI says that there is room.

use std::sync::Arc;

use accel::{Accelerator, DoorbellStore};
use devices::bus::{BusDevice, BusError};
use devices::chipset::I6300Esb;
use devices::device::Device;
use devices::pci::spec::ports;
use devices::pci::{
    Address, FunctionInterrupts, HostBridge, HostBridgeModel, IsaBridge, PciDevice, PciRoot, Taken,
    interrupt_of,
};
use devices::system::SystemControl;
use devices::virtio::pci::{KernelDoorbells, VirtioPci};
use vmm_sys_util::eventfd::EventFd;

use super::Board;
use super::microvm::PM_BASE;
use super::virtio::{FIRST_GSI, VirtioError, Wires};
use crate::acpi;
use crate::boot::layout::{ECAM, ECAM_END, PCI_MEMORY_END, RAM_GAP};
use crate::disks::AttachedPart;
use crate::options::attachment::{Attachment, BusKind, HOST_BRIDGE, ISA_BRIDGE};
use crate::options::devices::{BoardDevice, DeviceChoice};
use crate::options::machine::MachineKind;

/// Why a device cannot be on the bus.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// There is a device already.
    #[error(transparent)]
    Taken(#[from] Taken),
    /// No slot is free.
    #[error("{0}: all slots of the PCI bus are taken")]
    Full(&'static str),
    /// Something else is where the windows go.
    #[error("PCI")]
    Bus(#[from] BusError),
}

/// The bus as ACPI describes it.
pub const PLATFORM: acpi::Pci = acpi::Pci {
    ecam: (ECAM as u32, (ECAM_END - ECAM) as u32),
    memory: (RAM_GAP as u32, (PCI_MEMORY_END - 1) as u32),
    first_gsi: FIRST_GSI,
};

/// The first slot for devices that do not say where they are.
const FIRST_SLOT: u8 = 1;

/// Whether a device that is attached so is on the bus.
pub fn is_attached(machine: MachineKind, attachment: &Attachment) -> bool {
    match attachment.bus {
        BusKind::Pci => true,
        BusKind::OfMachine => machine.has_pci(),
        BusKind::VirtioMmio => false,
    }
}

/// The ports of the configuration mechanism, with `reset`, the register amid them.
pub fn config_ports(root: &Arc<PciRoot>, reset: Arc<dyn BusDevice>) -> Vec<(u16, u64, Arc<dyn BusDevice>)> {
    let offset = devices::chipset::reset_control::spec::RC_PORT - ports::CONFIG_ADDRESS;
    vec![
        (ports::CONFIG_ADDRESS, ports::WIDTH, root.address_port(Some((offset.into(), reset)))),
        (ports::CONFIG_DATA, ports::WIDTH, root.data_port()),
    ]
}

/// Has the accelerator ring doorbells.
struct Doorbells(Arc<dyn Accelerator>);

impl KernelDoorbells for Doorbells {
    fn add(&self, gpa: u64, event: &EventFd) {
        if let Err(error) = self.0.add_doorbell(gpa, DoorbellStore::Any, event) {
            // The store comes to the bus then.
            tracing::warn!(target: "virtio", gpa, %error, "the kernel rings no doorbell");
        }
    }

    fn remove(&self, gpa: u64, event: &EventFd) {
        if let Err(error) = self.0.remove_doorbell(gpa, DoorbellStore::Any, event) {
            tracing::debug!(target: "virtio", gpa, %error, "no doorbell taken back");
        }
    }
}

/// Puts the board's own functions and `parts` on the bus, and the ECAM window where it is; the virtio devices among them.
pub fn place(
    root: &Arc<PciRoot>,
    machine: MachineKind,
    wires: &Wires,
    parts: &[&AttachedPart],
) -> Result<Vec<Arc<dyn Device>>, VirtioError> {
    wires.mmio.insert(ECAM, ECAM_END - ECAM, root.ecam())?;
    let model = match machine {
        MachineKind::Q35 => HostBridgeModel::Mch { ecam: ECAM },
        MachineKind::Microvm { .. } => HostBridgeModel::Gpex,
    };
    add(root, HOST_BRIDGE, HostBridge::new(model))?;
    if machine == MachineKind::Q35 {
        add(root, ISA_BRIDGE, IsaBridge::new(PM_BASE))?;
    }
    // Those that say where they are come first: the others take what is left.
    let (fixed, free): (Vec<_>, Vec<_>) =
        (0..parts.len()).partition(|&index| parts[index].attachment.address.is_some());
    let doorbells: Arc<dyn KernelDoorbells> = Arc::new(Doorbells(Arc::clone(wires.accelerator)));
    let mut placed = Vec::new();
    for index in fixed.into_iter().chain(free) {
        let AttachedPart { part, attachment } = parts[index];
        let device = wires.device(part)?;
        let name = device.name();
        let address = attachment.address.or_else(|| root.free_slot(FIRST_SLOT));
        let address = address.ok_or(PciError::Full(name))?;
        let line = wires.pins[usize::from(interrupt_of(address.slot(), 1))].line(name);
        let vectors = attachment.vectors.unwrap_or_else(|| VirtioPci::wanted_vectors(&*device));
        let interrupts = FunctionInterrupts::new(line, Arc::clone(wires.sink), vectors);
        let transport = VirtioPci::new(device, interrupts, wires.dma(), Arc::clone(&doorbells));
        add(root, address, transport.clone())?;
        placed.push((index, transport as Arc<dyn Device>));
    }
    placed.sort_by_key(|&(index, _)| index);
    Ok(placed.into_iter().map(|(_, device)| device).collect())
}

/// Puts the watchdog on the bus, if there is one that says (or, with `fixed` false, does not say) where.
pub fn place_watchdog(root: &PciRoot, board: &Board, fixed: bool) -> Result<(), VirtioError> {
    let watchdog = board.blueprint.devices.iter().find_map(|device| match device {
        DeviceChoice::Board(BoardDevice::Watchdog { address }) => Some(*address),
        _ => None,
    });
    let Some(address) = watchdog.filter(|address| address.is_some() == fixed) else { return Ok(()) };
    let address = address.or_else(|| root.free_slot(FIRST_SLOT)).ok_or(PciError::Full("i6300esb"))?;
    let system = Arc::clone(&board.run_state) as Arc<dyn SystemControl>;
    Ok(add(root, address, I6300Esb::new(Arc::clone(&board.clock), system))?)
}

fn add(root: &PciRoot, address: Address, device: Arc<dyn PciDevice>) -> Result<(), PciError> {
    Ok(root.add(address, device)?)
}
