//! The PCI root bridge in the DSDT, and the table of its configuration windows (ACPI 6.5, *PCI Root Bridge*, *_PRT*, *_OSC*; PCI
//! Firmware Specification 3.3, *MCFG Table Description*).

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal, IO, If,
    Interrupt, Local, Memory32Fixed, Method, Name, NotEqual, Or, Package, Path, ResourceTemplate, Return,
    Store, Uuid,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::{Aml, AmlSink};
use devices::pci::{INTERRUPTS, interrupt_of, spec};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes};

/// The root bridge of bus 0, as an operating system has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pci {
    /// First address of the ECAM window and its length in bytes.
    pub ecam: (u32, u32),
    /// First and last address of where BARs in memory may be.
    pub memory: (u32, u32),
    /// The first of the [`INTERRUPTS`] I/O APIC pins that INTx is wired to.
    pub first_gsi: u32,
}

/// Ports that are no bridge's: those of the configuration mechanism. Ports below are the board's, and what is above is free.
const CONFIG_PORTS: u16 = spec::ports::CONFIG_ADDRESS;
const CONFIG_PORTS_LENGTH: u8 = 8;
const FIRST_FREE_PORT: u16 = 0xd00;
/// What the operating system may drive: power management events, error reporting, the PCI Express capability. There is no
/// hot plug.
const GRANTED: u32 = 1 << 2 | 1 << 3 | 1 << 4;
/// The interface of _OSC for PCI.
const OSC_PCI: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
/// Status bits of _OSC.
const UNKNOWN_UUID: u32 = 1 << 2;
const UNKNOWN_REVISION: u32 = 1 << 3;
const MASKED: u32 = 1 << 4;

/// The MCFG table.
pub fn mcfg(pci: &Pci) -> Vec<u8> {
    let mut table = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let (address, length) = pci.ecam;
    let buses = u64::from(length) / spec::ECAM_BUS_BYTES;
    table.add_ecam(address.into(), 0, 0, u8::try_from(buses - 1).expect("256 buses at most"));
    bytes(&table)
}

impl Pci {
    fn last_bus(&self) -> u16 {
        u16::try_from(u64::from(self.ecam.1) / spec::ECAM_BUS_BYTES - 1).expect("256 buses at most")
    }
}

/// The name of the link device of one of the [`INTERRUPTS`].
fn link(interrupt: u8) -> String {
    format!("GSI{}", char::from(b'A' + interrupt))
}

impl Aml for Pci {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        (0..INTERRUPTS).for_each(|interrupt| self.link_device(interrupt, sink));
        self.windows(sink);
        self.root_bridge(sink);
    }
}

impl Pci {
    /// A pin, level-triggered and active high as virtio-mmio's are, which it may be shared with.
    fn link_device(&self, interrupt: u8, sink: &mut dyn AmlSink) {
        let pin = Interrupt::new(true, false, false, true, self.first_gsi + u32::from(interrupt));
        let resources = ResourceTemplate::new(vec![&pin]);
        let id = EISAName::new("PNP0C0F");
        let hid = Name::new("_HID".into(), &id);
        let uid = Name::new("_UID".into(), &interrupt);
        let prs = Name::new("_PRS".into(), &resources);
        let crs = Name::new("_CRS".into(), &resources);
        // There is no other pin to set.
        let srs = Method::new("_SRS".into(), 1, false, vec![]);
        let name = link(interrupt);
        Device::new(name.as_str().into(), vec![&hid, &uid, &prs, &crs, &srs]).to_aml_bytes(sink);
    }

    /// The ECAM window as a resource of the board: an operating system that does not find it reserved does not use it.
    fn windows(&self, sink: &mut dyn AmlSink) {
        let ecam = Memory32Fixed::new(true, self.ecam.0, self.ecam.1);
        let resources = ResourceTemplate::new(vec![&ecam]);
        let id = EISAName::new("PNP0C02");
        let hid = Name::new("_HID".into(), &id);
        let crs = Name::new("_CRS".into(), &resources);
        Device::new("MBRD".into(), vec![&hid, &crs]).to_aml_bytes(sink);
    }

    fn root_bridge(&self, sink: &mut dyn AmlSink) {
        let (express, conventional) = (EISAName::new("PNP0A08"), EISAName::new("PNP0A03"));
        let hid = Name::new("_HID".into(), &express);
        let cid = Name::new("_CID".into(), &conventional);
        let uid = Name::new("_UID".into(), &0u8);
        let segment = Name::new("_SEG".into(), &0u8);
        let base_bus = Name::new("_BBN".into(), &0u8);

        let buses = AddressSpace::new_bus_number(0u16, self.last_bus());
        let config = IO::new(CONFIG_PORTS, CONFIG_PORTS, 1, CONFIG_PORTS_LENGTH);
        let low_ports = AddressSpace::new_io(0u16, CONFIG_PORTS - 1, None);
        let high_ports = AddressSpace::new_io(FIRST_FREE_PORT, u16::MAX, None);
        let uncached = AddressSpaceCacheable::NotCacheable;
        let memory = AddressSpace::new_memory(uncached, true, self.memory.0, self.memory.1, None);
        let resources = ResourceTemplate::new(vec![&buses, &config, &low_ports, &high_ports, &memory]);
        let crs = Name::new("_CRS".into(), &resources);

        let routes: Vec<_> =
            (0..spec::SLOTS).flat_map(|slot| (0..4).map(move |pin| Route { slot, pin })).collect();
        let routes = Package::new(routes.iter().map(|route| route as &dyn Aml).collect());
        let prt = Name::new("_PRT".into(), &routes);
        let osc = OperatingSystemCapabilities;
        let children: Vec<&dyn Aml> = vec![&hid, &cid, &uid, &segment, &base_bus, &crs, &prt, &osc];
        Device::new("PCI0".into(), children).to_aml_bytes(sink);
    }
}

/// An entry of _PRT: a slot's pin (0: INTA), and the link device that it is wired to.
struct Route {
    slot: u8,
    pin: u8,
}

impl Aml for Route {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let every_function = u32::from(self.slot) << 16 | 0xffff;
        let name = link(interrupt_of(self.slot, self.pin + 1));
        let source = Path::new(&name);
        Package::new(vec![&every_function, &self.pin, &source, &0u8]).to_aml_bytes(sink);
    }
}

/// _OSC: what the operating system may drive itself.
struct OperatingSystemCapabilities;

impl Aml for OperatingSystemCapabilities {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let capabilities = Arg(3);
        let [status, control]: [Path; 2] = ["CDW1".into(), "CDW3".into()];
        let status_field = CreateDWordField::new(&status, &capabilities, &0u8);
        let control_field = CreateDWordField::new(&control, &capabilities, &8u8);
        let pci = Uuid::new(OSC_PCI);
        let is_pci = Equal::new(&Arg(0), &pci);

        let granted = And::new(&Local(0), &control, &GRANTED);
        let is_other_revision = NotEqual::new(&Arg(1), &1u8);
        let other_revision = Or::new(&status, &status, &UNKNOWN_REVISION);
        let if_other_revision = If::new(&is_other_revision, vec![&other_revision]);
        let is_masked = NotEqual::new(&control, &Local(0));
        let masked = Or::new(&status, &status, &MASKED);
        let if_masked = If::new(&is_masked, vec![&masked]);
        let told = Store::new(&control, &Local(0));
        let if_pci = If::new(&is_pci, vec![&control_field, &granted, &if_other_revision, &if_masked, &told]);

        let unknown = Or::new(&status, &status, &UNKNOWN_UUID);
        let otherwise = Else::new(vec![&unknown]);
        let answer = Return::new(&capabilities);
        let body: Vec<&dyn Aml> = vec![&status_field, &if_pci, &otherwise, &answer];
        Method::new("_OSC".into(), 4, false, body).to_aml_bytes(sink);
    }
}
