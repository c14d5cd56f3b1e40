//! What is where on `-M microvm`, and on `-M q35`, which has all of it but virtio-mmio (QEMU, *'microvm' virtual platform*;
//! IBM PC/AT for the legacy devices).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use accel::cpu_model::CpuTopology;
use devices::backend::CharBackend;
use devices::bus::{Bus, BusDevice, BusError};
use devices::chipset::rtc_mc146818::MemorySize;
use devices::chipset::{
    AcpiPm, DebugExit, I8042, Pit8254, PostPort, ResetControl, RtcMc146818, SystemControlPortA, acpi_pm,
    i8042, pit8254, post_port, reset_control, rtc_mc146818,
};
use devices::clock::Clock;
use devices::device::Device;
use devices::interrupt::{Gsi, InterruptSink, IrqLine, IrqPin};
use devices::irqchip::{TIMER_PIN, UserspaceIrqchip, ioapic};
use devices::pci::PciRoot;
use devices::serial::Uart16550;
use devices::system::SystemControl;

use super::virtio::{self, Place, VirtioError, Wires};
use super::{Board, MachineError, pci};
use crate::acpi::{Onboard, Platform, Power};
use crate::boot::memory_map;
use crate::local_time;
use crate::options::devices::DeviceChoice;
use crate::options::icount::RtcBase;

/// The 8259A pair and its edge/level registers.
const PIC_MASTER: u64 = 0x20;
const PIC_SLAVE: u64 = 0xa0;
const PIC_ELCR: u64 = 0x4d0;
const PIC_PORTS: u64 = 2;
/// The local APICs' window.
const LOCAL_APIC: u32 = 0xfee0_0000;

/// COM1 to COM4: first port and ISA interrupt.
const SERIAL: [(u16, u8); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];
const SERIAL_PORTS: u64 = 8;

/// The ACPI power management block.
pub const PM_BASE: u16 = 0x600;

/// Host's ends of COM1 to COM4; none where there is no port.
pub type SerialEnds = Vec<Option<Arc<dyn CharBackend>>>;

/// What a device is made from.
struct Wiring<'a> {
    clock: &'a Arc<dyn Clock>,
    system: Arc<dyn SystemControl>,
    sink: &'a Arc<dyn InterruptSink>,
    pins: BTreeMap<u8, IrqPin>,
    memory: MemorySize,
    rtc: RtcBase,
    pci: Option<&'a Arc<PciRoot>>,
}

impl Wiring<'_> {
    /// A wire to ISA interrupt `irq`, which may be shared.
    fn line(&mut self, irq: u8, label: &'static str) -> IrqLine {
        let sink = self.sink;
        let pin = self.pins.entry(irq);
        pin.or_insert_with(|| IrqPin::new(Gsi(u32::from(irq)), Arc::clone(sink))).line(label)
    }
}

/// A device and its ports.
struct Placed {
    device: Arc<dyn Device>,
    windows: Vec<(u16, u64, Arc<dyn BusDevice>)>,
}

/// One kind of device of this machine.
struct Row {
    /// Not there where the engine has its own.
    of_irqchip: bool,
    make: fn(&mut Wiring) -> Placed,
}

/// The devices that are always there.
const ROWS: &[Row] = &[
    Row { of_irqchip: true, make: pit },
    Row { of_irqchip: false, make: rtc },
    Row { of_irqchip: false, make: keyboard_controller },
    Row { of_irqchip: false, make: power_management },
    Row { of_irqchip: false, make: reset_control },
    Row { of_irqchip: false, make: system_control_port_a },
    Row { of_irqchip: false, make: post_port },
];

fn pit(wiring: &mut Wiring) -> Placed {
    use pit8254::spec;
    let pit = Pit8254::new(wiring.line(spec::IRQ, "8254"), Arc::clone(wiring.clock));
    let windows =
        vec![(spec::PORT, spec::PORTS, pit.clone() as _), (spec::NMI_SC_PORT, 1, pit.nmi_status_port())];
    Placed { device: pit, windows }
}

fn rtc(wiring: &mut Wiring) -> Placed {
    use rtc_mc146818::spec;
    // A host whose clock is before 1970 has other troubles.
    let host = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = match wiring.rtc {
        RtcBase::Host => host,
        RtcBase::Local => local_time::of(host),
        RtcBase::At(date) => date,
    };
    let line = wiring.line(spec::IRQ, "MC146818");
    let rtc = RtcMc146818::new(line, Arc::clone(wiring.clock), now, wiring.memory);
    Placed { device: rtc.clone(), windows: vec![(spec::PORT, spec::PORTS, rtc)] }
}

fn keyboard_controller(wiring: &mut Wiring) -> Placed {
    use i8042::spec;
    let (keyboard, aux) = (wiring.line(spec::KEYBOARD_IRQ, "8042"), wiring.line(spec::AUX_IRQ, "8042 aux"));
    let chip = I8042::new(keyboard, aux, Arc::clone(&wiring.system));
    let windows = vec![(spec::DATA_PORT, 1, chip.data_port()), (spec::COMMAND_PORT, 1, chip.command_port())];
    Placed { device: chip, windows }
}

fn power_management(wiring: &mut Wiring) -> Placed {
    use acpi_pm::spec;
    let sci = wiring.line(spec::SCI_IRQ, "SCI");
    let pm = AcpiPm::new(sci, Arc::clone(wiring.clock), Arc::clone(&wiring.system));
    Placed { device: pm.clone(), windows: vec![(PM_BASE, spec::PORTS, pm)] }
}

fn reset_control(wiring: &mut Wiring) -> Placed {
    let chip = ResetControl::new(Arc::clone(&wiring.system));
    let windows = match wiring.pci {
        // The register is amid the ports of PCI's configuration mechanism.
        Some(root) => pci::config_ports(root, chip.clone()),
        None => vec![(reset_control::spec::RC_PORT, 1, chip.clone() as _)],
    };
    Placed { device: chip, windows }
}

fn system_control_port_a(wiring: &mut Wiring) -> Placed {
    let chip = SystemControlPortA::new(Arc::clone(&wiring.system));
    Placed { device: chip.clone(), windows: vec![(reset_control::spec::PORT_A, 1, chip)] }
}

fn post_port(_wiring: &mut Wiring) -> Placed {
    let port = PostPort::new();
    Placed { device: port.clone(), windows: vec![(post_port::spec::PORT, 1, port)] }
}

/// An added device that has ports. Virtio devices have none.
fn added(choice: &DeviceChoice, wiring: &Wiring) -> Option<Placed> {
    match *choice {
        DeviceChoice::IsaDebugExit { iobase, iosize } => {
            let device = DebugExit::new(Arc::clone(&wiring.system));
            Some(Placed { device: device.clone(), windows: vec![(iobase, u64::from(iosize), device)] })
        }
        DeviceChoice::VirtioBlk(_)
        | DeviceChoice::VirtioRng { .. }
        | DeviceChoice::VirtioNet { .. }
        | DeviceChoice::Virtio9p { .. }
        | DeviceChoice::VirtioVsock { .. }
        | DeviceChoice::VhostVsock(_)
        | DeviceChoice::VhostUserFs(_)
        | DeviceChoice::VirtioSerial { .. }
        | DeviceChoice::SerialPort(_)
        | DeviceChoice::VirtioBalloon(_)
        | DeviceChoice::Board(_) => None,
    }
}

/// The devices of one machine.
pub struct Equipment {
    /// All devices but the interrupt controllers.
    pub devices: Vec<Arc<dyn Device>>,
    /// COM1 to COM4, those that are there.
    pub serial: Vec<Option<Arc<Uart16550>>>,
    /// Virtio devices.
    pub virtio: Vec<Arc<dyn Device>>,
    /// Where those on virtio-mmio are.
    pub virtio_mmio: Vec<Place>,
    /// The PCI bus.
    pub pci: Option<crate::acpi::Pci>,
}

/// Puts our own interrupt controllers on the buses.
fn place_irqchip(irqchip: &UserspaceIrqchip, pio: &Bus, mmio: &Bus) -> Result<(), BusError> {
    let pic = irqchip.pic();
    pio.insert(PIC_MASTER, PIC_PORTS, pic.master_ports())?;
    pio.insert(PIC_SLAVE, PIC_PORTS, pic.slave_ports())?;
    pio.insert(PIC_ELCR, PIC_PORTS, pic.elcr_ports())?;
    mmio.insert(ioapic::spec::BASE, ioapic::spec::WINDOW, Arc::clone(irqchip.ioapic()) as Arc<dyn BusDevice>)
}

/// Makes the devices and puts them on the board's buses.
pub fn equip(board: &Board, serial_ends: SerialEnds) -> Result<Equipment, MachineError> {
    if let Some(own) = &board.own_chips {
        place_irqchip(own, &board.pio, &board.mmio)?;
    }
    let below_4g_bytes = memory_map::low_bytes(board.ram.bytes());
    let machine = board.blueprint.machine;
    let root = machine.has_pci().then(|| PciRoot::new(&board.mmio, &board.pio));
    let mut wiring = Wiring {
        clock: &board.clock,
        system: Arc::clone(&board.run_state) as Arc<dyn SystemControl>,
        sink: &board.sink,
        pins: BTreeMap::new(),
        memory: MemorySize { below_4g_bytes, above_4g_bytes: board.ram.bytes() - below_4g_bytes },
        rtc: board.blueprint.rtc,
        pci: root.as_ref(),
    };
    let mut devices = Vec::new();
    let mut place = |placed: Placed| {
        for (port, length, window) in placed.windows {
            board.pio.insert(u64::from(port), length, window)?;
        }
        devices.push(placed.device);
        Ok::<(), MachineError>(())
    };
    for row in ROWS.iter().filter(|row| board.own_chips.is_some() || !row.of_irqchip) {
        place((row.make)(&mut wiring))?;
    }
    let mut serial = Vec::new();
    for ((port, irq), end) in SERIAL.into_iter().zip(serial_ends) {
        let uart = end.map(|end| Uart16550::new(wiring.line(irq, "serial"), end, wiring.clock));
        if let Some(uart) = &uart {
            place(Placed { device: uart.clone(), windows: vec![(port, SERIAL_PORTS, uart.clone())] })?;
        }
        serial.push(uart);
    }
    for choice in &board.blueprint.devices {
        if let Some(placed) = added(choice, &wiring) {
            place(placed)?;
        }
    }
    let pins = virtio::pins(&board.sink);
    let wires = Wires {
        accelerator: &board.accelerator,
        clock: &board.clock,
        memory: board.ram.map(),
        sink: &board.sink,
        pins: &pins,
        mmio: &board.mmio,
    };
    let parts = &board.blueprint.virtio;
    let (on_pci, on_mmio): (Vec<_>, Vec<_>) =
        parts.iter().partition(|part| pci::is_attached(machine, &part.attachment));
    if on_mmio.len() > virtio::MAX_DEVICES {
        return Err(VirtioError::TooMany { count: on_mmio.len() }.into());
    }
    let mut equipment = Equipment { devices, serial, virtio: Vec::new(), virtio_mmio: Vec::new(), pci: None };
    for (place, transport) in wires.place(on_mmio.into_iter().map(|part| &part.part))? {
        equipment.virtio_mmio.push(place);
        equipment.devices.push(transport.clone());
        equipment.virtio.push(transport);
    }
    if let Some(root) = root {
        pci::place_watchdog(&root, board, true)?;
        equipment.virtio.extend(pci::place(&root, machine, &wires, &on_pci)?);
        pci::place_watchdog(&root, board, false)?;
        equipment.pci = Some(pci::PLATFORM);
        equipment.devices.push(root);
    }
    Ok(equipment)
}

/// The machine as ACPI describes it.
pub fn platform(topology: CpuTopology, equipment: &Equipment) -> Platform {
    let offset = |offset: u64| u16::try_from(offset).expect("within a dozen ports");
    let present = SERIAL.into_iter().zip(&equipment.serial).filter(|(_, uart)| uart.is_some());
    Platform {
        apic_ids: topology.apic_ids().collect(),
        ioapic_id: 0,
        ioapic_address: u32::try_from(ioapic::spec::BASE).expect("below 4 GiB"),
        local_apic_address: LOCAL_APIC,
        timer_gsi: u32::try_from(TIMER_PIN).expect("one of 24 pins"),
        power: Power {
            pm1a_event: PM_BASE + offset(acpi_pm::spec::PM1A_EVT_BLK),
            pm1a_control: PM_BASE + offset(acpi_pm::spec::PM1A_CNT_BLK),
            timer: PM_BASE + offset(acpi_pm::spec::PM_TMR_BLK),
            sci: acpi_pm::spec::SCI_IRQ,
            s5_sleep_type: acpi_pm::spec::SLP_TYP_S5 as u8,
            reset: (reset_control::spec::RC_PORT, reset_control::spec::rc::HARD_RESET),
        },
        serial: present.map(|(place, _)| place).collect(),
        virtio: equipment.virtio_mmio.iter().map(|place| (place.base, place.gsi)).collect(),
        rtc: (rtc_mc146818::spec::PORT, rtc_mc146818::spec::IRQ),
        rtc_century: rtc_mc146818::spec::register::CENTURY,
        onboard: Onboard::default(),
        pci: equipment.pci,
    }
}
