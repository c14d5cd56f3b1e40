//! SMBIOS tables: what the machine is called and made of (DMTF DSP0134, *System Management BIOS Reference Specification* 3.6).
//!
//! There is no firmware to place them: they lie where an operating system looks for entry points, in the last 64 KiB below
//! 1 MiB. Both entry points are there, the 64-bit one first.

mod structure;

use accel::cpu_model::CpuTopology;

use self::structure::{NO_HANDLE, Structure, Structures};
use crate::boot::memory_map;
use crate::options::smbios::Smbios;

/// What the tables tell beside the command line.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Its name.
    pub product: &'static str,
    /// Its CPUs.
    pub topology: CpuTopology,
    /// RAM in bytes.
    pub memory_bytes: u64,
}

/// Why there are no tables.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SmbiosError {
    /// They are too long.
    #[error("-smbios: the tables have {bytes} bytes, and there is room for {room}")]
    TooLong {
        /// How long.
        bytes: usize,
        /// How much room there is.
        room: usize,
    },
    /// Type 11 counts to 255.
    #[error("-smbios type=11: {0} strings, and a structure has 255 at most")]
    TooManyStrings(usize),
}

/// The tables of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Both entry points, one after the other.
    pub entry_points: Vec<u8>,
    /// The structures.
    pub structures: Vec<u8>,
}

const MANUFACTURER: &str = "bivisor";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Some drivers distrust machines of before 2008, and there is no firmware whose date it could be.
const DATE: &str = "01/01/2026";

/// Handles: of types that are there once, the type's; of others, the first one's.
mod handle {
    pub const BIOS: u16 = 0x000;
    pub const SYSTEM: u16 = 0x100;
    pub const BASEBOARD: u16 = 0x200;
    pub const CHASSIS: u16 = 0x300;
    pub const PROCESSOR: u16 = 0x400;
    pub const OEM_STRINGS: u16 = 0xe00;
    pub const MEMORY_ARRAY: u16 = 0x1000;
    pub const MEMORY_DEVICE: u16 = 0x1100;
    pub const MAPPED_ADDRESS: u16 = 0x1300;
    pub const BOOT: u16 = 0x2000;
    pub const END: u16 = 0x7f00;
}

/// What the tables have before the structures.
const ENTRY_POINT_BYTES: usize = 0x40;
const ENTRY_64_BYTES: usize = 0x18;
const ENTRY_32_AT: usize = 0x20;
const ENTRY_32_BYTES: usize = 0x1f;
/// QEMU's size of a memory module.
const MODULE_BYTES: u64 = 16 << 30;
const MIB: u64 = 1 << 20;

impl Tables {
    /// The tables for `base`, where there is room for `room` bytes. `oem_strings` are those of type 11.
    pub fn new(
        smbios: &Smbios,
        oem_strings: &[String],
        machine: &Machine,
        base: u64,
        room: usize,
    ) -> Result<Self, SmbiosError> {
        if oem_strings.len() > usize::from(u8::MAX) {
            return Err(SmbiosError::TooManyStrings(oem_strings.len()));
        }
        let structures = structures(smbios, oem_strings, machine);
        let bytes = ENTRY_POINT_BYTES + structures.bytes().len();
        if bytes > room {
            return Err(SmbiosError::TooLong { bytes, room });
        }
        let address = u32::try_from(base).expect("below 1 MiB") + ENTRY_POINT_BYTES as u32;
        Ok(Self { entry_points: entry_points(&structures, address), structures: structures.bytes().to_vec() })
    }

    /// All bytes, for the address that was given.
    pub fn image(&self) -> Vec<u8> {
        [&self.entry_points[..], &self.structures].concat()
    }
}

fn entry_points(structures: &Structures, address: u32) -> Vec<u8> {
    let mut bytes = vec![0; ENTRY_POINT_BYTES];
    let length = u32::try_from(structures.bytes().len()).expect("checked against the room");
    let entry = &mut bytes[..ENTRY_64_BYTES];
    entry[..5].copy_from_slice(b"_SM3_");
    // Length, version 3.0.0, revision of the entry point.
    entry[6..11].copy_from_slice(&[ENTRY_64_BYTES as u8, 3, 0, 0, 1]);
    entry[12..16].copy_from_slice(&length.to_le_bytes());
    entry[16..24].copy_from_slice(&u64::from(address).to_le_bytes());
    entry[5] = checksum(entry);
    let entry = &mut bytes[ENTRY_32_AT..][..ENTRY_32_BYTES];
    entry[..4].copy_from_slice(b"_SM_");
    entry[5..8].copy_from_slice(&[ENTRY_32_BYTES as u8, 2, 8]);
    let most = u16::try_from(structures.most()).unwrap_or(u16::MAX);
    entry[8..10].copy_from_slice(&most.to_le_bytes());
    entry[16..21].copy_from_slice(b"_DMI_");
    let length = u16::try_from(length).expect("the room is less than 64 KiB");
    entry[22..24].copy_from_slice(&length.to_le_bytes());
    entry[24..28].copy_from_slice(&address.to_le_bytes());
    entry[28..30].copy_from_slice(&structures.count().to_le_bytes());
    entry[30] = 0x28;
    entry[21] = checksum(&entry[16..]);
    entry[4] = checksum(entry);
    bytes
}

/// What makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

fn structures(smbios: &Smbios, oem_strings: &[String], machine: &Machine) -> Structures {
    let mut all = Structures::default();
    all.add(bios(smbios));
    all.add(system(smbios, machine));
    if smbios.has(2) {
        all.add(baseboard(smbios, machine));
    }
    all.add(chassis(smbios));
    for socket in 0..machine.topology.sockets {
        all.add(processor(smbios, machine.topology, socket));
    }
    if !oem_strings.is_empty() {
        let count = u8::try_from(oem_strings.len()).expect("checked by the caller");
        let empty = Structure::new(11, handle::OEM_STRINGS).u8s(&[count]);
        // An empty string would end the set.
        let text = |text: &String| if text.is_empty() { " ".to_owned() } else { text.clone() };
        all.add(oem_strings.iter().fold(empty, |structure, next| structure.counted(&text(next))));
    }
    memory(&mut all, smbios, machine.memory_bytes);
    all.add(Structure::new(32, handle::BOOT).u8s(&[0; 7]));
    all.add(Structure::new(127, handle::END));
    all
}

fn bios(smbios: &Smbios) -> Structure {
    let text = |property, default| smbios.text(0, property).unwrap_or(default);
    let (major, minor) = smbios.release(0, "release").unwrap_or_default();
    // Characteristics extension 2: targeted content distribution, UEFI, virtual machine.
    let uefi = if smbios.switch(0, "uefi") == Some(true) { 0x08 } else { 0 };
    Structure::new(0, handle::BIOS)
        .text(text("vendor", MANUFACTURER))
        .text(text("version", VERSION))
        .u16s(&[0xe800])
        .text(text("date", DATE))
        .u8s(&[0])
        // No characteristics are told.
        .u64(1 << 3)
        .u8s(&[0, 0x14 | uefi, major, minor, 0xff, 0xff])
}

fn system(smbios: &Smbios, machine: &Machine) -> Structure {
    let text = |property, default| smbios.text(1, property).unwrap_or(default);
    Structure::new(1, handle::SYSTEM)
        .text(text("manufacturer", MANUFACTURER))
        .text(text("product", machine.product))
        .text(text("version", VERSION))
        .text(text("serial", ""))
        .u8s(&smbios.uuid.unwrap_or_default().little_endian())
        // Woken by the power switch.
        .u8s(&[6])
        .text(text("sku", ""))
        .text(text("family", ""))
}

fn baseboard(smbios: &Smbios, machine: &Machine) -> Structure {
    let text = |property, default| smbios.text(2, property).unwrap_or(default);
    Structure::new(2, handle::BASEBOARD)
        .text(text("manufacturer", MANUFACTURER))
        .text(text("product", machine.product))
        .text(text("version", VERSION))
        .text(text("serial", ""))
        .text(text("asset", ""))
        // A hosting board.
        .u8s(&[1])
        .text(text("location", ""))
        .u16s(&[handle::CHASSIS])
        // A motherboard, that holds nothing with a handle.
        .u8s(&[0x0a, 0])
}

fn chassis(smbios: &Smbios) -> Structure {
    let text = |property, default| smbios.text(3, property).unwrap_or(default);
    Structure::new(3, handle::CHASSIS)
        .text(text("manufacturer", MANUFACTURER))
        // Other.
        .u8s(&[1])
        .text(text("version", VERSION))
        .text(text("serial", ""))
        .text(text("asset", ""))
        // Boot-up, power supply and thermal states: safe; security: unknown.
        .u8s(&[3, 3, 3, 2])
        .u32(0)
        .u8s(&[0; 4])
        .text(text("sku", ""))
}

fn processor(smbios: &Smbios, topology: CpuTopology, socket: u32) -> Structure {
    let text = |property, default| smbios.text(4, property).unwrap_or(default);
    let number = |property, default| smbios.number(4, property).unwrap_or(default);
    let word = |property, default| u16::try_from(number(property, default)).expect("the option has a limit");
    let byte = |count: u16| u8::try_from(count).unwrap_or(u8::MAX);
    let cores = u16::try_from(topology.cores).unwrap_or(u16::MAX);
    let threads = u16::try_from(topology.cores * topology.threads).unwrap_or(u16::MAX);
    let family = word("processor-family", 1);
    let count = u16::try_from(socket).expect("one of 64 at most");
    Structure::new(4, handle::PROCESSOR + count)
        .text(&format!("{}{socket:x}", text("sock_pfx", "CPU")))
        // A central processor; 0xfe: see the longer field.
        .u8s(&[3, u8::try_from(family).ok().filter(|&short| short < 0xfe).unwrap_or(0xfe)])
        .text(text("manufacturer", MANUFACTURER))
        .u64(number("processor-id", 0))
        .text(text("version", VERSION))
        .u8s(&[0])
        .u16s(&[0, word("max-speed", 2000), word("current-speed", 2000)])
        // Enabled, in a socket; the upgrade is another one.
        .u8s(&[0x41, 1])
        .u16s(&[NO_HANDLE; 3])
        .text(text("serial", ""))
        .text(text("asset", ""))
        .text(text("part", ""))
        .u8s(&[byte(cores), byte(cores), byte(threads)])
        // Characteristics unknown.
        .u16s(&[2, family, cores, cores, threads])
}

fn memory(all: &mut Structures, smbios: &Smbios, memory_bytes: u64) {
    let modules = memory_bytes.div_ceil(MODULE_BYTES);
    let kib = u32::try_from(memory_bytes >> 10).ok().filter(|&kib| kib < 1 << 31);
    all.add(
        Structure::new(16, handle::MEMORY_ARRAY)
            // Another place, system memory, multi-bit ECC.
            .u8s(&[1, 3, 6])
            .u32(kib.unwrap_or(1 << 31))
            .u16s(&[0xfffe, u16::try_from(modules).expect("4 TiB at most")])
            .u64(if kib.is_some() { 0 } else { memory_bytes }),
    );
    for index in 0..modules {
        let bytes = MODULE_BYTES.min(memory_bytes - index * MODULE_BYTES);
        all.add(module(smbios, u16::try_from(index).expect("4 TiB at most"), bytes));
    }
    for (index, (start, length)) in (0..).zip(memory_map::ram(memory_bytes)) {
        all.add(mapped_address(index, start, start + length - 1));
    }
}

fn module(smbios: &Smbios, index: u16, bytes: u64) -> Structure {
    let text = |property, default| smbios.text(17, property).unwrap_or(default);
    let speed = smbios.number(17, "speed").and_then(|speed| u16::try_from(speed).ok()).unwrap_or(0);
    let mib = bytes.div_ceil(MIB);
    let (short, long) = match u16::try_from(mib).ok().filter(|&mib| mib < 0x7fff) {
        Some(mib) => (mib, 0),
        None => (0x7fff, u32::try_from(mib).expect("16 GiB at most")),
    };
    Structure::new(17, handle::MEMORY_DEVICE + index)
        .u16s(&[handle::MEMORY_ARRAY, 0xfffe, 0xffff, 0xffff, short])
        // A DIMM, of no set.
        .u8s(&[9, 0])
        .text(&format!("{} {index}", text("loc_pfx", "DIMM")))
        .text(text("bank", ""))
        // RAM; of another technology.
        .u8s(&[7])
        .u16s(&[2, speed])
        .text(text("manufacturer", MANUFACTURER))
        .text(text("serial", ""))
        .text(text("asset", ""))
        .text(text("part", ""))
        .u8s(&[0])
        .u32(long)
        .u16s(&[speed, 0, 0, 0])
}

fn mapped_address(index: u16, start: u64, end: u64) -> Structure {
    let kib = |address: u64| u32::try_from(address >> 10).ok().filter(|&kib| kib != u32::MAX);
    let structure = Structure::new(19, handle::MAPPED_ADDRESS + index);
    match (kib(start), kib(end)) {
        (Some(start), Some(end)) => {
            structure.u32(start).u32(end).u16s(&[handle::MEMORY_ARRAY]).u8s(&[1]).u64(0).u64(0)
        }
        _ => {
            structure.u32(u32::MAX).u32(u32::MAX).u16s(&[handle::MEMORY_ARRAY]).u8s(&[1]).u64(start).u64(end)
        }
    }
}

#[cfg(test)]
mod tests;
