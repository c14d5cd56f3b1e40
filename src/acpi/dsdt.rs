//! Differentiated System Description Table (ACPI 6.5, *Differentiated System Description Table*): the devices that
//! cannot be found otherwise, and the S5 state.

use acpi_tables::Aml;
use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Name, Package, ResourceTemplate, Scope};
use acpi_tables::sdt::Sdt;

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
    let devices = serial.iter().chain([&rtc]).map(|device| device as &dyn Aml).collect();
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
