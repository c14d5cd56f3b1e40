//! `-M microvm`: what is where (QEMU, *'microvm' virtual platform*; IBM PC/AT for the legacy devices).

use std::collections::BTreeMap;
use std::sync::Arc;

use devices::backend::CharBackend;
use devices::bus::{Bus, BusDevice, BusError};
use devices::clock::Clock;
use devices::device::Device;
use devices::interrupt::{Gsi, InterruptSink, IrqLine, IrqPin};
use devices::irqchip::{TIMER_PIN, UserspaceIrqchip, ioapic};
use devices::serial::Uart16550;
use devices::system::SystemControl;

use super::Board;
use crate::acpi::{Platform, Power};

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

/// Host's ends of COM1 to COM4; none where there is no port.
pub type SerialEnds = Vec<Option<Arc<dyn CharBackend>>>;

/// What a device is made from.
struct Wiring<'a> {
    clock: &'a Arc<dyn Clock>,
    system: Arc<dyn SystemControl>,
    sink: &'a Arc<dyn InterruptSink>,
    pins: BTreeMap<u8, IrqPin>,
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
const ROWS: &[Row] = &[];

/// The devices of one machine.
pub struct Equipment {
    /// All devices but the interrupt controllers.
    pub devices: Vec<Arc<dyn Device>>,
    /// COM1 to COM4, those that are there.
    pub serial: Vec<Option<Arc<Uart16550>>>,
}

/// Puts our own interrupt controllers on the buses.
pub fn place_irqchip(irqchip: &UserspaceIrqchip, pio: &Bus, mmio: &Bus) -> Result<(), BusError> {
    let pic = irqchip.pic();
    pio.insert(PIC_MASTER, PIC_PORTS, pic.master_ports())?;
    pio.insert(PIC_SLAVE, PIC_PORTS, pic.slave_ports())?;
    pio.insert(PIC_ELCR, PIC_PORTS, pic.elcr_ports())?;
    mmio.insert(ioapic::spec::BASE, ioapic::spec::WINDOW, Arc::clone(irqchip.ioapic()) as Arc<dyn BusDevice>)
}

/// Makes the devices and puts them on the board's buses.
pub fn equip(board: &Board, serial_ends: SerialEnds) -> Result<Equipment, BusError> {
    let mut wiring = Wiring {
        clock: &board.clock,
        system: Arc::clone(&board.run_state) as Arc<dyn SystemControl>,
        sink: &board.sink,
        pins: BTreeMap::new(),
    };
    let mut devices = Vec::new();
    for row in ROWS.iter().filter(|row| board.has_own_chips || !row.of_irqchip) {
        let placed = (row.make)(&mut wiring);
        for (port, length, window) in placed.windows {
            board.pio.insert(u64::from(port), length, window)?;
        }
        devices.push(placed.device);
    }
    let mut serial = Vec::new();
    for ((port, irq), end) in SERIAL.into_iter().zip(serial_ends) {
        let uart = end.map(|end| Uart16550::new(wiring.line(irq, "serial"), end, wiring.clock));
        if let Some(uart) = &uart {
            board.pio.insert(u64::from(port), SERIAL_PORTS, Arc::clone(uart) as Arc<dyn BusDevice>)?;
            devices.push(Arc::clone(uart) as Arc<dyn Device>);
        }
        serial.push(uart);
    }
    Ok(Equipment { devices, serial })
}

/// The machine as ACPI describes it.
pub fn platform(cpus: usize, equipment: &Equipment) -> Platform {
    let present = SERIAL.into_iter().zip(&equipment.serial).filter(|(_, uart)| uart.is_some());
    Platform {
        apic_ids: (0u32..).take(cpus).collect(),
        ioapic_id: 0,
        ioapic_address: u32::try_from(ioapic::spec::BASE).expect("below 4 GiB"),
        local_apic_address: LOCAL_APIC,
        timer_gsi: u32::try_from(TIMER_PIN).expect("one of 24 pins"),
        power: Power {
            pm1a_event: 0x600,
            pm1a_control: 0x604,
            timer: 0x608,
            sci: 9,
            s5_sleep_type: 5,
            reset: (0xcf9, 6),
        },
        serial: present.map(|(place, _)| place).collect(),
        rtc: (0x70, 8),
    }
}
