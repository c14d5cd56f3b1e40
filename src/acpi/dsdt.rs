//! Differentiated System Description Table (ACPI 6.5, *Differentiated System Description Table*): the devices that
//! cannot be found otherwise, and the S5 state.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;
use devices::virtio::mmio::spec;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, Platform, bytes};

const HEADER_BYTES: u32 = 36;
/// Integers have 64 bits.
const REVISION: u8 = 2;
const SERIAL_PORTS: u8 = 8;
const RTC_PORTS: u8 = 2;

/// The table.
pub fn table(platform: &Platform) -> Vec<u8> {
    let mut dsdt = Sdt::new(*b"DSDT", HEADER_BYTES, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let sleep_type = platform.power.s5_sleep_type;
    let s5 = Package::new(vec![&sleep_type, &sleep_type, &0u8, &0u8]);
    dsdt.append_slice(&bytes(&Name::new("_S5_".into(), &s5)));

    let serial: Vec<_> = (0u8..)
        .zip(&platform.serial)
        .map(|(index, &(port, irq))| Isa {
            name: format!("COM{}", index + 1),
            id: "PNP0501",
            uid: index,
            port,
            ports: SERIAL_PORTS,
            irq,
        })
        .collect();
    let (port, irq) = platform.rtc;
    let rtc = Isa { name: "RTC_".into(), id: "PNP0B00", uid: 0, port, ports: RTC_PORTS, irq };
    let virtio: Vec<_> =
        (0u8..).zip(&platform.virtio).map(|(index, &(base, gsi))| Virtio { index, base, gsi }).collect();
    let isa = serial.iter().chain([&rtc]).map(|device| device as &dyn Aml);
    let virtio = virtio.iter().map(|device| device as &dyn Aml);
    let pci = platform.pci.iter().map(|pci| pci as &dyn Aml);
    let devices = isa.chain(virtio).chain([&platform.onboard as &dyn Aml]).chain(pci).collect();
    dsdt.append_slice(&bytes(&Scope::new("_SB_".into(), devices)));
    dsdt.as_slice().to_vec()
}

/// A device with ports and an edge-triggered ISA interrupt.
struct Isa {
    name: String,
    id: &'static str,
    uid: u8,
    port: u16,
    ports: u8,
    irq: u8,
}

impl Aml for Isa {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let io = IO::new(self.port, self.port, 1, self.ports);
        let interrupt = Interrupt::new(true, true, false, false, u32::from(self.irq));
        let id = EISAName::new(self.id);
        let hid = Name::new("_HID".into(), &id);
        let uid = Name::new("_UID".into(), &self.uid);
        let resources = ResourceTemplate::new(vec![&io, &interrupt]);
        let crs = Name::new("_CRS".into(), &resources);
        Device::new(self.name.as_str().into(), vec![&hid, &uid, &crs]).to_aml_bytes(sink);
    }
}

/// A virtio-mmio device, as Linux knows it by the name that Linaro gave it.
struct Virtio {
    index: u8,
    base: u32,
    gsi: u32,
}

impl Aml for Virtio {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let window = u32::try_from(spec::WINDOW).expect("512 bytes");
        let memory = Memory32Fixed::new(true, self.base, window);
        // Level-triggered, active high, shared: there are more devices than pins.
        let interrupt = Interrupt::new(true, false, false, true, self.gsi);
        let hid = Name::new("_HID".into(), &"LNRO0005");
        let uid = Name::new("_UID".into(), &self.index);
        // Caches need no care.
        let cca = Name::new("_CCA".into(), &1u8);
        let resources = ResourceTemplate::new(vec![&memory, &interrupt]);
        let crs = Name::new("_CRS".into(), &resources);
        let name = format!("VR{:02X}", self.index);
        Device::new(name.as_str().into(), vec![&hid, &uid, &cca, &crs]).to_aml_bytes(sink);
    }
}
