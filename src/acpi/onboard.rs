//! Parts of the board in the DSDT, with QEMU's names, which drivers know: fw_cfg (`QEMU0002`), pvpanic (`QEMU0001`), the
//! identifier of the run (Microsoft, *Virtual Machine Generation ID*).

use acpi_tables::aml::{Device, IO, Name, Package, ResourceTemplate};
use acpi_tables::{Aml, AmlSink};

/// What there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Onboard {
    /// First port and number of ports of the firmware configuration device.
    pub fw_cfg: Option<(u16, u8)>,
    /// The panic device's port.
    pub pvpanic: Option<u16>,
    /// The address of the run's identifier.
    pub generation: Option<u64>,
}

/// Present and working, not to be shown; present, working, and to be shown.
const HIDDEN: u8 = 0x0b;
const SHOWN: u8 = 0x0f;

impl Aml for Onboard {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        if let Some((port, ports)) = self.fw_cfg {
            with_ports("FWCF", "QEMU0002", HIDDEN, port, ports, sink);
        }
        if let Some(port) = self.pvpanic {
            with_ports("PEVT", "QEMU0001", SHOWN, port, 1, sink);
        }
        if let Some(address) = self.generation {
            generation(address, sink);
        }
    }
}

fn with_ports(name: &str, id: &'static str, status: u8, port: u16, ports: u8, sink: &mut dyn AmlSink) {
    let hid = Name::new("_HID".into(), &id);
    let sta = Name::new("_STA".into(), &status);
    let io = IO::new(port, port, 1, ports);
    let resources = ResourceTemplate::new(vec![&io]);
    let crs = Name::new("_CRS".into(), &resources);
    Device::new(name.into(), vec![&hid, &sta, &crs]).to_aml_bytes(sink);
}

fn generation(address: u64, sink: &mut dyn AmlSink) {
    // The first compatible ID is the specification's; the second is what ACPI's rules for names made of it.
    let ids = Package::new(vec![&"VM_Gen_Counter", &"VMGENCTR"]);
    let [low, high] = [address as u32, (address >> 32) as u32];
    let halves = Package::new(vec![&low, &high]);
    let hid = Name::new("_HID".into(), &"QEMUVGID");
    let cid = Name::new("_CID".into(), &ids);
    let ddn = Name::new("_DDN".into(), &"VM_Gen_Counter");
    let sta = Name::new("_STA".into(), &SHOWN);
    let addr = Name::new("ADDR".into(), &halves);
    Device::new("VGEN".into(), vec![&hid, &cid, &ddn, &sta, &addr]).to_aml_bytes(sink);
}
