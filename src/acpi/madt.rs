//! Multiple APIC Description Table (ACPI 6.5, *Multiple APIC Description Table*).

use acpi_tables::Aml;
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::sdt::Sdt;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, Platform};

/// Header, local APIC address, flags.
const FIXED_BYTES: u32 = 44;
const REVISION: u8 = 5;
/// There is an 8259 pair too.
const PCAT_COMPAT: u32 = 1 << 0;

const SOURCE_OVERRIDE: u8 = 2;
const LOCAL_APIC_NMI: u8 = 4;
const LOCAL_X2APIC: u8 = 9;
const LOCAL_X2APIC_NMI: u8 = 10;
const ISA_BUS: u8 = 0;
/// MPS INTI flags.
const CONFORMS: u16 = 0;
const ACTIVE_HIGH_LEVEL: u16 = 0b1101;
const ALL_PROCESSORS: u8 = 0xff;
const LINT1: u8 = 1;
/// APIC IDs from here on do not fit the short structure.
const FIRST_LONG_ID: u32 = 255;

/// The table.
pub fn table(platform: &Platform) -> Vec<u8> {
    let mut madt = Sdt::new(*b"APIC", FIXED_BYTES, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.write_u32(36, platform.local_apic_address);
    madt.write_u32(40, PCAT_COMPAT);
    let mut structures = Vec::new();
    for (uid, &apic_id) in (0u32..).zip(&platform.apic_ids) {
        match (u8::try_from(uid), u8::try_from(apic_id)) {
            (Ok(uid), Ok(id)) if apic_id < FIRST_LONG_ID => {
                ProcessorLocalApic::new(uid, id, EnabledStatus::Enabled).to_aml_bytes(&mut structures);
            }
            _ => {
                structures.extend([LOCAL_X2APIC, 16, 0, 0]);
                structures.extend(apic_id.to_le_bytes());
                structures.extend((EnabledStatus::Enabled as u32).to_le_bytes());
                structures.extend(uid.to_le_bytes());
            }
        }
    }
    IoApic::new(platform.ioapic_id, platform.ioapic_address, 0).to_aml_bytes(&mut structures);
    structures.extend(source_override(0, platform.timer_gsi, CONFORMS));
    let sci = platform.power.sci;
    structures.extend(source_override(sci, u32::from(sci), ACTIVE_HIGH_LEVEL));
    structures.extend([LOCAL_APIC_NMI, 6, ALL_PROCESSORS, 0, 0, LINT1]);
    if platform.apic_ids.iter().any(|&id| id >= FIRST_LONG_ID) {
        structures.extend([LOCAL_X2APIC_NMI, 12, 0, 0]);
        structures.extend(u32::MAX.to_le_bytes());
        structures.extend([LINT1, 0, 0, 0]);
    }
    madt.append_slice(&structures);
    madt.as_slice().to_vec()
}

fn source_override(irq: u8, gsi: u32, flags: u16) -> Vec<u8> {
    let mut structure = vec![SOURCE_OVERRIDE, 10, ISA_BUS, irq];
    structure.extend(gsi.to_le_bytes());
    structure.extend(flags.to_le_bytes());
    structure
}
