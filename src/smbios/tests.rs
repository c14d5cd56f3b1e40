//! The tables as an operating system reads them.

use super::*;
use crate::options::error::Context;

const BASE: u64 = 0xf_4000;
const ROOM: usize = 0xc000;

fn machine(memory_bytes: u64) -> Machine {
    Machine { product: "microvm", topology: CpuTopology { sockets: 2, cores: 2, threads: 2 }, memory_bytes }
}

fn options(values: &[&str]) -> Smbios {
    let mut smbios = Smbios::default();
    values.iter().for_each(|value| smbios.add(Context { option: "-smbios", value }).unwrap());
    smbios
}

/// A structure's formatted part, and its strings.
struct Read {
    formatted: Vec<u8>,
    strings: Vec<String>,
}

impl Read {
    fn text(&self, at: usize) -> &str {
        match self.formatted[at] {
            0 => "",
            number => &self.strings[usize::from(number) - 1],
        }
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.formatted[at], self.formatted[at + 1]])
    }
}

fn read(tables: &Tables) -> Vec<Read> {
    let mut rest = &tables.structures[..];
    let mut all = Vec::new();
    while !rest.is_empty() {
        let (formatted, set) = rest.split_at(usize::from(rest[1]));
        let end = set.windows(2).position(|pair| pair == [0, 0]).unwrap();
        let strings = set[..end].split(|byte| *byte == 0).filter(|text| !text.is_empty());
        let strings = strings.map(|text| String::from_utf8(text.to_vec()).unwrap()).collect();
        all.push(Read { formatted: formatted.to_vec(), strings });
        rest = &set[end + 2..];
    }
    all
}

fn of(smbios: &Smbios, oem_strings: &[&str], memory_bytes: u64) -> (Tables, Vec<Read>) {
    let oem: Vec<String> = oem_strings.iter().map(|text| (*text).to_owned()).collect();
    let tables = Tables::new(smbios, &oem, &machine(memory_bytes), BASE, ROOM).unwrap();
    let structures = read(&tables);
    (tables, structures)
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[test]
fn both_entry_points_lead_to_the_structures() {
    let (tables, structures) = of(&Smbios::default(), &[], 512 << 20);
    let image = tables.image();
    assert_eq!((&image[..5], sum(&image[..24])), (&b"_SM3_"[..], 0));
    let old = &image[0x20..0x3f];
    assert_eq!((&old[..4], sum(old), &old[16..21], sum(&old[16..])), (&b"_SM_"[..], 0, &b"_DMI_"[..], 0));
    let length = tables.structures.len() as u32;
    assert_eq!(image[12..16], length.to_le_bytes());
    assert_eq!(image[16..24], (BASE + 0x40).to_le_bytes());
    assert_eq!(old[22..24], (length as u16).to_le_bytes());
    assert_eq!(old[24..28], (BASE as u32 + 0x40).to_le_bytes());
    assert_eq!(old[28..30], (structures.len() as u16).to_le_bytes());
    assert_eq!(&image[0x40..], tables.structures);
}

#[test]
fn lengths_are_those_of_the_specification() {
    let (_, structures) = of(&options(&["type=2"]), &["x"], 512 << 20);
    let lengths: Vec<(u8, u8)> = structures.iter().map(|s| (s.formatted[0], s.formatted[1])).collect();
    let expected = [
        (0, 0x18),
        (1, 0x1b),
        (2, 0x0f),
        (3, 0x16),
        (4, 0x30),
        (4, 0x30),
        (11, 5),
        (16, 0x17),
        (17, 0x28),
        (19, 0x1f),
        (32, 0x0b),
        (127, 4),
    ];
    assert_eq!(lengths, expected);
    let mut handles: Vec<u16> = structures.iter().map(|structure| structure.u16(2)).collect();
    handles.dedup();
    assert_eq!(handles.len(), structures.len());
}

#[test]
fn what_the_command_line_says_is_there() {
    let smbios = options(&[
        "type=0,vendor=V,version=2,date=02/03/2024,release=4.7,uefi=on",
        "type=1,manufacturer=M,product=P,version=3,serial=S,sku=K,family=F,uuid=12345678-9abc-def0-1122-334455667788",
        "type=3,asset=A",
        "type=4,sock_pfx=Socket,max-speed=4000,processor-family=0x101",
        "type=17,loc_pfx=Slot,speed=3200,part=T",
    ]);
    let (_, all) = of(&smbios, &["one", "", "three"], 20 << 30);
    let find = |kind| all.iter().find(|structure| structure.formatted[0] == kind).unwrap();
    let bios = find(0);
    assert_eq!((bios.text(4), bios.text(5), bios.text(8)), ("V", "2", "02/03/2024"));
    assert_eq!(bios.formatted[0x12..0x16], [0, 0x1c, 4, 7]);
    let system = find(1);
    assert_eq!([4, 5, 6, 7, 0x19, 0x1a].map(|at| system.text(at)), ["M", "P", "3", "S", "K", "F"]);
    assert_eq!(system.formatted[8..16], [0x78, 0x56, 0x34, 0x12, 0xbc, 0x9a, 0xf0, 0xde]);
    assert_eq!((find(3).text(4), find(3).text(8)), ("bivisor", "A"));
    let cpu = find(4);
    assert_eq!((cpu.text(4), cpu.u16(0x14), cpu.formatted[6], cpu.u16(0x28)), ("Socket0", 4000, 0xfe, 0x101));
    assert_eq!(cpu.formatted[0x23..0x26], [2, 2, 4]);
    assert_eq!(find(11).strings, ["one", " ", "three"]);
    // 16 GiB and 4 GiB.
    let modules: Vec<&Read> = all.iter().filter(|structure| structure.formatted[0] == 17).collect();
    assert_eq!((modules.len(), modules[0].text(0x10), modules[1].text(0x10)), (2, "Slot 0", "Slot 1"));
    assert_eq!((modules[0].u16(0x0c), modules[1].u16(0x0c), modules[0].u16(0x15)), (0x4000, 0x1000, 3200));
    let mapped: Vec<&Read> = all.iter().filter(|structure| structure.formatted[0] == 19).collect();
    assert_eq!(mapped.len(), 2);
    assert_eq!(mapped[0].formatted[4..12], [0, 0, 0, 0, 0xff, 0xff, 0x2f, 0]);
}

#[test]
fn the_largest_machine_has_room() {
    let topology = CpuTopology { sockets: 64, cores: 1, threads: 1 };
    let machine = Machine { topology, ..machine(4 << 40) };
    let tables = Tables::new(&Smbios::default(), &[], &machine, BASE, ROOM).unwrap();
    let all = read(&tables);
    assert_eq!(all.iter().filter(|structure| structure.formatted[0] == 17).count(), 256);
    let array = all.iter().find(|structure| structure.formatted[0] == 16).unwrap();
    assert_eq!(array.formatted[7..11], (1u32 << 31).to_le_bytes());
    assert_eq!(array.formatted[15..23], (4u64 << 40).to_le_bytes());
}

#[test]
fn what_does_not_fit_is_refused() {
    let new = |strings: &[String]| Tables::new(&Smbios::default(), strings, &machine(1 << 30), BASE, ROOM);
    let long = vec!["x".repeat(ROOM)];
    assert!(matches!(new(&long), Err(SmbiosError::TooLong { room: ROOM, .. })));
    assert_eq!(new(&vec!["x".to_owned(); 256]), Err(SmbiosError::TooManyStrings(256)));
    assert!(new(&vec!["x".to_owned(); 255]).is_ok());
}
