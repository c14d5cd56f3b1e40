//! The MP configuration table: CPUs and interrupts for kernels that read no ACPI (MultiProcessor Specification 1.4).

use crate::acpi::Platform;

const SPECIFICATION_1_4: u8 = 4;
/// Floating pointer structure, in paragraphs.
const POINTER_PARAGRAPHS: u8 = 1;
const POINTER_BYTES: u64 = 16;
const HEADER_BYTES: usize = 44;

/// Entry types.
mod entry {
    pub const PROCESSOR: u8 = 0;
    pub const BUS: u8 = 1;
    pub const IO_APIC: u8 = 2;
    pub const IO_INTERRUPT: u8 = 3;
    pub const LOCAL_INTERRUPT: u8 = 4;
}

/// Interrupt types.
mod kind {
    pub const INT: u8 = 0;
    pub const NMI: u8 = 1;
    pub const EXT_INT: u8 = 3;
}

/// Local APIC version of an integrated APIC with broadcast suppression off.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x20;
const ENABLED: u8 = 1 << 0;
const BOOTSTRAP: u8 = 1 << 1;
/// Family 6; an FPU and a local APIC. Who wants to know more asks CPUID.
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 1 << 0 | 1 << 9;
const ISA_BUS: u8 = 0;
const ISA_IRQS: u8 = 16;
const TIMER_IRQ: u8 = 0;
/// The 8259s' cascade is no interrupt.
const CASCADE_IRQ: u8 = 2;
const CONFORMS: u16 = 0;
const ALL: u8 = 0xff;

/// The floating pointer with the table behind it, for `base`, a multiple of 16 in the range that is searched.
pub fn table(platform: &Platform, base: u64) -> Vec<u8> {
    let table = configuration(platform);
    let mut bytes = b"_MP_".to_vec();
    let address = u32::try_from(base + POINTER_BYTES).expect("in the BIOS area");
    bytes.extend(address.to_le_bytes());
    // Checksum; then the features: a table (no default configuration), no IMCR (virtual wire mode).
    bytes.extend([POINTER_PARAGRAPHS, SPECIFICATION_1_4, 0, 0, 0, 0, 0, 0]);
    bytes[10] = checksum(&bytes);
    bytes.extend(table);
    bytes
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

fn configuration(platform: &Platform) -> Vec<u8> {
    let entries = entries(platform);
    let length: usize = HEADER_BYTES + entries.iter().map(Vec::len).sum::<usize>();
    let narrow = |count: usize| u16::try_from(count).expect("dozens of CPUs, 20 bytes each").to_le_bytes();
    let mut bytes = b"PCMP".to_vec();
    bytes.extend(narrow(length));
    bytes.extend([SPECIFICATION_1_4, 0]);
    bytes.extend(b"BIVISOR MICROVM     ");
    // No OEM table.
    bytes.extend([0; 6]);
    bytes.extend(narrow(entries.len()));
    bytes.extend(platform.local_apic_address.to_le_bytes());
    // No extended entries.
    bytes.extend([0; 4]);
    bytes.extend(entries.concat());
    bytes[7] = checksum(&bytes);
    bytes
}

/// All entries, ascending by type. IDs of eight bits: a CPU that has a longer one cannot be told here.
fn entries(platform: &Platform) -> Vec<Vec<u8>> {
    let ids: Vec<u8> = platform.apic_ids.iter().filter_map(|&id| u8::try_from(id).ok()).collect();
    // APICs of both kinds share one range of IDs here.
    let ioapic_id = (0..ALL).find(|id| !ids.contains(id)).unwrap_or(platform.ioapic_id);
    let mut entries = Vec::new();
    for (index, id) in ids.into_iter().enumerate() {
        let flags = if index == 0 { ENABLED | BOOTSTRAP } else { ENABLED };
        let mut processor = vec![entry::PROCESSOR, id, LOCAL_APIC_VERSION, flags];
        processor.extend(CPU_SIGNATURE.to_le_bytes());
        processor.extend(CPU_FEATURES.to_le_bytes());
        processor.extend([0; 8]);
        entries.push(processor);
    }
    entries.push([&[entry::BUS, ISA_BUS][..], b"ISA   "].concat());
    let mut ioapic = vec![entry::IO_APIC, ioapic_id, IO_APIC_VERSION, ENABLED];
    ioapic.extend(platform.ioapic_address.to_le_bytes());
    entries.push(ioapic);
    let interrupt = |entry: u8, kind: u8, irq: u8, to: u8, pin: u8| {
        let [low, high] = CONFORMS.to_le_bytes();
        vec![entry, kind, low, high, ISA_BUS, irq, to, pin]
    };
    let timer_pin = u8::try_from(platform.timer_gsi).expect("one of 24 pins");
    for irq in (0..ISA_IRQS).filter(|&irq| irq != CASCADE_IRQ) {
        let pin = if irq == TIMER_IRQ { timer_pin } else { irq };
        entries.push(interrupt(entry::IO_INTERRUPT, kind::INT, irq, ioapic_id, pin));
    }
    entries.push(interrupt(entry::LOCAL_INTERRUPT, kind::EXT_INT, 0, 0, 0));
    entries.push(interrupt(entry::LOCAL_INTERRUPT, kind::NMI, 0, ALL, 1));
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acpi::tests::platform;

    #[test]
    fn an_operating_system_finds_cpus_and_interrupts() {
        let bytes = table(&platform(), 0xf_0000);
        let (pointer, table) = bytes.split_at(16);
        assert_eq!((&pointer[..4], &pointer[4..8]), (&b"_MP_"[..], &0xf_0010u32.to_le_bytes()[..]));
        for part in [pointer, table] {
            assert_eq!(part.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        }
        assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
        assert_eq!(table[36..40], 0xfee0_0000u32.to_le_bytes());
        let mut found = Vec::new();
        let mut rest = &table[44..];
        while let Some(kind) = rest.first() {
            let (entry, next) = rest.split_at(if *kind == entry::PROCESSOR { 20 } else { 8 });
            found.push(entry);
            rest = next;
        }
        assert_eq!(found.len(), usize::from(u16::from_le_bytes([table[34], table[35]])));
        // The third CPU's ID has more than eight bits.
        let kinds: Vec<u8> = found.iter().map(|entry| entry[0]).collect();
        assert_eq!(kinds, [&[0, 0, 1, 2][..], &[3; 15], &[4, 4]].concat());
        assert_eq!((&found[0][1..4], &found[1][1..4]), (&[0, 0x14, 3][..], &[1, 0x14, 1][..]));
        assert_eq!(*found[3], [2, 2, 0x20, 1, 0, 0, 0xc0, 0xfe]);
        assert_eq!(*found[4], [3, 0, 0, 0, 0, 0, 2, 2], "the timer");
        assert_eq!(*found[5], [3, 0, 0, 0, 0, 1, 2, 1]);
        assert_eq!(*found[19], [4, 3, 0, 0, 0, 0, 0, 0], "INTR");
        assert_eq!(*found[20], [4, 1, 0, 0, 0, 0, 0xff, 1], "NMI");
    }
}
