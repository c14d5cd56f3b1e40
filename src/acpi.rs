//! ACPI tables: what the machine has and how it is switched off and reset (ACPI 6.5, *ACPI Software Programming Model*).

mod dsdt;
mod fadt;
mod madt;
mod onboard;
mod pci;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;

pub use onboard::Onboard;
pub use pci::Pci;

const OEM_ID: [u8; 6] = *b"BIVISR";
const OEM_TABLE_ID: [u8; 8] = *b"BIVISOR ";
const OEM_REVISION: u32 = 1;
/// The FACS wants this; the other tables do not mind.
const ALIGNMENT: u64 = 64;

/// What the tables describe.
#[derive(Clone, Debug)]
pub struct Platform {
    /// Local APIC IDs, the bootstrap CPU's first.
    pub apic_ids: Vec<u32>,
    /// ID of the I/O APIC.
    pub ioapic_id: u8,
    /// The I/O APIC's window.
    pub ioapic_address: u32,
    /// The local APICs' window.
    pub local_apic_address: u32,
    /// The I/O APIC pin of the PIT, ISA interrupt 0.
    pub timer_gsi: u32,
    /// Power management.
    pub power: Power,
    /// Serial ports: first port and ISA interrupt.
    pub serial: Vec<(u16, u8)>,
    /// Virtio-mmio devices: window and interrupt.
    pub virtio: Vec<(u32, u32)>,
    /// First port and ISA interrupt of the real-time clock.
    pub rtc: (u16, u8),
    /// Where its RAM holds the century.
    pub rtc_century: u8,
    /// Parts of the board that tell something.
    pub onboard: Onboard,
    /// The PCI bus.
    pub pci: Option<Pci>,
}

/// Power management registers (ACPI, *ACPI Hardware Specification*).
#[derive(Clone, Debug)]
pub struct Power {
    /// PM1a event block: status and enable, 2 bytes each.
    pub pm1a_event: u16,
    /// PM1a control block, 2 bytes.
    pub pm1a_control: u16,
    /// PM timer, 4 bytes, of which all 32 bits count.
    pub timer: u16,
    /// ISA interrupt of the SCI.
    pub sci: u8,
    /// The SLP_TYP that means S5.
    pub s5_sleep_type: u8,
    /// The reset register's port and what is written there.
    pub reset: (u16, u8),
}

/// The tables' bytes for `base`, where the root pointer (RSDP) comes first.
pub fn tables(platform: &Platform, base: u64) -> Vec<u8> {
    let mut image = Image { base, bytes: vec![0; Rsdp::len()] };
    let facs = image.append(&bytes(&FACS::new()));
    let dsdt = image.append(&dsdt::table(platform));
    let fadt = image.append(&fadt::table(platform, facs, dsdt));
    let madt = image.append(&madt::table(platform));
    let mcfg = platform.pci.as_ref().map(|pci| image.append(&pci::mcfg(pci)));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    if let Some(mcfg) = mcfg {
        xsdt.add_entry(mcfg);
    }
    let xsdt = image.append(&bytes(&xsdt));
    let rsdp = bytes(&Rsdp::new(OEM_ID, xsdt));
    image.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    image.bytes
}

struct Image {
    base: u64,
    bytes: Vec<u8>,
}

impl Image {
    /// Adds a table; its address.
    fn append(&mut self, table: &[u8]) -> u64 {
        let end = self.base + self.bytes.len() as u64;
        let padding = end.next_multiple_of(ALIGNMENT) - end;
        self.bytes.resize(self.bytes.len() + usize::try_from(padding).expect("less than the alignment"), 0);
        let address = self.base + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        address
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
pub mod tests;
