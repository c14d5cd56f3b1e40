//! Parts of the board that tell the guest something, or that the guest tells something: fw_cfg, SMBIOS, vmgenid, pvpanic.
//! They are the same on every machine.

use std::sync::Arc;

use devices::bus::{BusDevice, BusError};
use devices::chipset::fw_cfg::spec::{self, key};
use devices::chipset::fw_cfg::{Content, Items};
use devices::chipset::{FwCfg, Pvpanic, pvpanic};
use devices::device::Device;
use devices::dma::DmaMemory;
use devices::system::SystemControl;

use super::{Board, MachineError};
use crate::acpi;
use crate::boot::{layout, memory_map};
use crate::firmware::Firmware;
use crate::options::devices::{BoardDevice, DeviceChoice};
use crate::options::uuid::Uuid;

/// Where in its page the identifier of the run is: QEMU's place.
const GENERATION_OFFSET: u64 = 40;

/// The parts of one machine.
#[derive(Default)]
pub struct Onboard {
    /// Those that are devices.
    pub devices: Vec<Arc<dyn Device>>,
    /// What ACPI says of them.
    pub acpi: acpi::Onboard,
    /// What is in memory at the start, each with its address.
    pub tables: Vec<(u64, Vec<u8>)>,
}

/// Makes the parts and puts them on the board's buses.
pub fn place(board: &Board, firmware: Firmware) -> Result<Onboard, MachineError> {
    let mut onboard = Onboard::default();
    let dma = DmaMemory::new(board.ram.map().clone(), board.accelerator.dma_observer());
    let chosen = board.blueprint.devices.iter().filter_map(|choice| match choice {
        DeviceChoice::Board(device) => Some(device),
        _ => None,
    });
    let mut vmcoreinfo = false;
    for device in chosen {
        match *device {
            BoardDevice::Vmcoreinfo => vmcoreinfo = true,
            BoardDevice::Vmgenid { .. } | BoardDevice::Watchdog { .. } => {}
            BoardDevice::Pvpanic { ioport, events } => {
                let system = Arc::clone(&board.run_state) as Arc<dyn SystemControl>;
                let chip = Pvpanic::new(events, system);
                insert(board, "pvpanic", ioport, pvpanic::spec::PORTS, chip.clone())?;
                onboard.acpi.pvpanic = Some(ioport);
                onboard.devices.push(chip);
            }
        }
    }
    if let Some(generation) = firmware.generation {
        onboard.acpi.generation = Some(layout::GENERATION + GENERATION_OFFSET);
        onboard.tables.push(generation_page(generation));
    }
    if !firmware.smbios.structures.is_empty() {
        onboard.tables.push((layout::SMBIOS, firmware.smbios.image()));
    }
    let chip = FwCfg::new(items(board, firmware, vmcoreinfo)?, dma);
    insert(board, "fw_cfg", spec::PORT, spec::PORTS, chip.ports())?;
    insert(board, "fw_cfg", spec::DMA_PORT, spec::DMA_PORTS, chip.dma_ports())?;
    onboard.acpi.fw_cfg = Some((spec::PORT, spec::ALL_PORTS));
    onboard.devices.push(chip);
    Ok(onboard)
}

fn insert(
    board: &Board,
    device: &'static str,
    port: u16,
    ports: u64,
    window: Arc<dyn BusDevice>,
) -> Result<(), MachineError> {
    let error = |source: BusError| MachineError::Ports { device, source };
    board.pio.insert(u64::from(port), ports, window).map_err(error)
}

/// What is in the page of the identifier, and where it is.
fn generation_page(generation: Uuid) -> (u64, Vec<u8>) {
    (layout::GENERATION + GENERATION_OFFSET, generation.little_endian().to_vec())
}

fn items(board: &Board, firmware: Firmware, vmcoreinfo: bool) -> Result<Items, MachineError> {
    let blueprint = &board.blueprint;
    let cpus = u16::try_from(blueprint.topology.cpus()).expect("a board has 64 CPUs at most");
    let mut items = Items::new();
    items.set(key::UUID, &firmware.uuid.0);
    items.set(key::RAM_SIZE, &board.ram.bytes().to_le_bytes());
    // There is never a display, nor a menu to wait at.
    items.set(key::NOGRAPHIC, &1u16.to_le_bytes());
    items.set(key::BOOT_MENU, &0u16.to_le_bytes());
    items.set(key::NB_CPUS, &cpus.to_le_bytes());
    items.set(key::MAX_CPUS, &cpus.to_le_bytes());
    items.set(key::IRQ0_OVERRIDE, &1u32.to_le_bytes());
    blueprint.boot.describe(&mut items).map_err(MachineError::FwCfgFile)?;
    let smbios = firmware.smbios;
    let own = [
        ("etc/e820", Content::Bytes(e820(board.ram.bytes()))),
        ("etc/smbios/smbios-anchor", Content::Bytes(smbios.entry_points)),
        ("etc/smbios/smbios-tables", Content::Bytes(smbios.structures)),
    ];
    let vmcoreinfo = vmcoreinfo.then(|| (spec::vmcoreinfo::FILE, FwCfg::vmcoreinfo()));
    let users = firmware.files.into_iter().map(|(name, bytes)| (name, Content::Bytes(bytes)));
    let own = own.into_iter().chain(vmcoreinfo).map(|(name, content)| (name.to_owned(), content));
    for (name, content) in own.chain(users) {
        let added = items.add_file(&name, content);
        added.map_err(|source| MachineError::FwCfg { name, source })?;
    }
    Ok(items)
}

/// The memory map as firmware reads it: address and length of 64 bits, kind of 32.
fn e820(memory_bytes: u64) -> Vec<u8> {
    let entry = |range: memory_map::Range| {
        let mut bytes = [range.start.to_le_bytes(), range.length.to_le_bytes()].concat();
        bytes.extend((range.kind as u32).to_le_bytes());
        bytes
    };
    memory_map::e820(memory_bytes).into_iter().flat_map(entry).collect()
}
