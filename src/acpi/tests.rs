//! The tables as an operating system walks them.

use super::*;

const BASE: u64 = 0xe_0000;

/// A machine of three CPUs, one with a long APIC ID.
pub fn platform() -> Platform {
    Platform {
        apic_ids: vec![0, 1, 300],
        ioapic_id: 0,
        ioapic_address: 0xfec0_0000,
        local_apic_address: 0xfee0_0000,
        timer_gsi: 2,
        power: Power {
            pm1a_event: 0x600,
            pm1a_control: 0x604,
            timer: 0x608,
            sci: 9,
            s5_sleep_type: 5,
            reset: (0xcf9, 6),
        },
        serial: vec![(0x3f8, 4), (0x2f8, 3)],
        virtio: vec![(0xfeb0_0000, 16), (0xfeb0_0200, 17)],
        rtc: (0x70, 8),
        rtc_century: 0x32,
        onboard: Onboard { fw_cfg: Some((0x510, 12)), pvpanic: Some(0x505), generation: Some(0x1_000e_f028) },
        pci: None,
    }
}

struct Walk(Vec<u8>);

impl Walk {
    fn u32(&self, address: u64) -> u32 {
        let at = usize::try_from(address - BASE).unwrap();
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    fn u64(&self, address: u64) -> u64 {
        u64::from(self.u32(address)) | u64::from(self.u32(address + 4)) << 32
    }

    fn bytes(&self, address: u64, length: usize) -> &[u8] {
        &self.0[usize::try_from(address - BASE).unwrap()..][..length]
    }

    /// A whole table, its checksum verified.
    fn table(&self, address: u64, signature: &[u8; 4]) -> &[u8] {
        let table = self.bytes(address, self.u32(address + 4) as usize);
        assert_eq!(&table[..4], signature);
        assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "{signature:?}");
        table
    }
}

#[test]
fn from_the_root_pointer_to_every_table() {
    let walk = Walk(tables(&platform(), BASE));
    assert!(walk.0.len() < 0x1_0000);
    let rsdp = walk.bytes(BASE, 36);
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!(rsdp[..20].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    assert_eq!(rsdp.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);

    let xsdt = walk.u64(BASE + 24);
    assert_eq!(walk.table(xsdt, b"XSDT").len(), 36 + 2 * 8);
    let (fadt, madt) = (walk.u64(xsdt + 36), walk.u64(xsdt + 44));
    walk.table(fadt, b"FACP");
    assert_eq!(walk.u32(fadt + 56), 0x600);
    assert_eq!(walk.u32(fadt + 64), 0x604);
    assert_eq!(walk.u32(fadt + 76), 0x608);
    let flags = walk.u32(fadt + 112);
    assert_eq!(flags & (1 << 20), 0, "not hardware-reduced");
    assert_ne!(flags & (1 << 10), 0, "has a reset register");
    assert_eq!((walk.u64(fadt + 120), walk.bytes(fadt + 128, 1)), (0xcf9, &[6][..]));
    let facs = u64::from(walk.u32(fadt + 36));
    assert_eq!((walk.bytes(facs, 4), facs % 64), (&b"FACS"[..], 0));
    assert_eq!(u64::from(walk.u32(fadt + 40)), walk.u64(fadt + 140));
    walk.table(walk.u64(fadt + 140), b"DSDT");
    walk.table(madt, b"APIC");
}

/// The same with a PCI bus.
fn with_pci() -> Platform {
    let pci = Pci { ecam: (0xe000_0000, 0x1000_0000), memory: (0xc000_0000, 0xdfff_ffff), first_gsi: 16 };
    Platform { pci: Some(pci), ..platform() }
}

#[test]
fn the_windows_of_pci() {
    let walk = Walk(tables(&with_pci(), BASE));
    assert!(walk.0.len() < 0x1_0000);
    let xsdt = walk.u64(BASE + 24);
    let mcfg = walk.table(walk.u64(xsdt + 52), b"MCFG");
    // Address, segment, first and last bus.
    assert_eq!(mcfg[44..56], [0, 0, 0, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0xff]);
    let dsdt = dsdt::table(&with_pci());
    let has = |needle: &[u8]| dsdt.windows(needle.len()).any(|window| window == needle);
    // DWordMemory, fixed, read and write, 0xc0000000 to 0xdfffffff.
    let memory = [[0u8, 0, 0, 0], [0, 0, 0, 0xc0], [0xff, 0xff, 0xff, 0xdf], [0; 4], [0, 0, 0, 0x20]];
    assert!(has(&[&[0x87, 23, 0, 0, 0x0c, 1][..], &memory.concat()].concat()));
    // Slot 2, INTC: the fifth interrupt, by its link device.
    assert!(has(b"\x0c\xff\xff\x02\x00\x0a\x02GSIE\x0a\x00") || has(b"\x0c\xff\xff\x02\x00\x0a\x02GSIE\x00"));
    for name in [&b"PCI0"[..], b"GSIH", b"_OSC", b"_PRT", b"MBRD"] {
        assert!(has(name), "{}", String::from_utf8_lossy(name));
    }
    assert!(!dsdt::table(&platform()).windows(4).any(|window| window == b"PCI0"));
}

#[test]
fn interrupt_controllers() {
    let madt = madt::table(&platform());
    let mut found = Vec::new();
    let mut rest = &madt[44..];
    while !rest.is_empty() {
        let (structure, next) = rest.split_at(usize::from(rest[1]));
        found.push(structure);
        rest = next;
    }
    let kinds: Vec<u8> = found.iter().map(|structure| structure[0]).collect();
    assert_eq!(kinds, [0, 0, 9, 1, 2, 2, 4, 10]);
    assert_eq!(found[1][2..4], [1, 1]);
    assert_eq!(found[2][4..8], 300u32.to_le_bytes());
    assert_eq!(found[3][4..8], 0xfec0_0000u32.to_le_bytes());
    assert_eq!(found[4], [2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    assert_eq!(found[5], [2, 10, 0, 9, 9, 0, 0, 0, 13, 0]);
    assert_eq!(found[6], [4, 6, 0xff, 0, 0, 1]);
    assert_eq!(found[7], [10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
}

#[test]
fn devices_and_s5() {
    let dsdt = dsdt::table(&platform());
    let has = |needle: &[u8]| dsdt.windows(needle.len()).any(|window| window == needle);
    // Name (_S5_, Package () {5, 5, 0, 0})
    assert!(
        has(b"\x08_S5_\x12\x08\x04\x0a\x05\x0a\x05\x00\x00")
            || has(b"\x08_S5_\x12\x0a\x04\x0a\x05\x0a\x05\x0a\x00\x0a\x00")
    );
    for name in [b"COM1", b"COM2", b"RTC_"] {
        assert!(has(name));
    }
    assert!(!has(b"COM3"));
    for name in [&b"VR00"[..], b"VR01", b"\x0dLNRO0005\0"] {
        assert!(has(name));
    }
    // Memory32Fixed, read and write, 512 bytes; then a level-triggered, active-high interrupt.
    assert!(has(&[0x86, 9, 0, 1, 0, 2, 0xb0, 0xfe, 0, 2, 0, 0, 0x89, 6, 0, 0x09, 1, 17, 0, 0, 0]));
    assert!(has(b"\x0dQEMU0002\0") && has(&[0x47, 1, 0x10, 0x05, 0x10, 0x05, 1, 12]));
    assert!(has(b"\x0dQEMU0001\0") && has(&[0x47, 1, 0x05, 0x05, 0x05, 0x05, 1, 1]));
    assert!(has(b"\x0dVM_Gen_Counter\0\x0dVMGENCTR\0"));
    // Package () {0x000ef028, 1}
    assert!(has(b"ADDR\x12\x08\x02\x0c\x28\xf0\x0e\x00\x01"));
    assert!(has(&[0x47, 1, 0xf8, 0x03, 0xf8, 0x03, 1, 8]), "COM1's ports");
}
