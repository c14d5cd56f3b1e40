//! ELF kernels: where their segments go, and which entry they have (System V ABI, *Object Files*; Xen, *x86/HVM
//! direct boot ABI* for the PVH note).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vm_memory::{GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::error::BootError;
use super::layout::HIGH_RAM;
use super::load;

const CLASS_AT: usize = 4;
const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
pub(super) const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the PVH entry's physical address.
const PHYS32_ENTRY: u32 = 18;
const MAX_NOTES: u64 = 1 << 16;
/// Linux's COMMAND_LINE_SIZE on x86 without its terminator; an ELF file does not say.
pub const COMMAND_LINE_LIMIT: usize = 2047;

/// How an ELF kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// In 32-bit protected mode, with a start info.
    Pvh(u64),
    /// In 64-bit mode, with a zero page.
    Long(u64),
}

#[derive(Debug)]
struct Segment {
    file_offset: u64,
    file_bytes: u64,
    address: u64,
    memory_bytes: u64,
}

/// An ELF kernel that has been looked at.
#[derive(Debug)]
pub struct Image {
    segments: Vec<Segment>,
    /// How it is entered.
    pub entry: Entry,
}

/// The beginning of a file whose magic is that of an ELF file.
pub fn is_elf(start: &[u8]) -> bool {
    start.starts_with(b"\x7fELF")
}

/// As [`is_elf`], for this architecture and 64-bit. `start` is a header.
pub(super) fn is_elf_64(start: &[u8]) -> bool {
    let fields = Fields { bytes: start, is_64: true };
    is_elf(start)
        && start[CLASS_AT..CLASS_AT + 2] == [CLASS_64, LITTLE_ENDIAN]
        && fields.u16(18, 18) == EM_X86_64
}

/// Reads little-endian fields of ELF structures, whose places depend on the class.
pub(super) struct Fields<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) is_64: bool,
}

impl Fields<'_> {
    pub(super) fn u16(&self, at_32: usize, at_64: usize) -> u16 {
        let at = if self.is_64 { at_64 } else { at_32 };
        u16::from_le_bytes(self.bytes[at..at + 2].try_into().expect("two bytes"))
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().expect("four bytes"))
    }

    /// An address, offset or size: 4 bytes in ELF32, 8 in ELF64.
    pub(super) fn word(&self, at_32: usize, at_64: usize) -> u64 {
        if self.is_64 {
            u64::from_le_bytes(self.bytes[at_64..at_64 + 8].try_into().expect("eight bytes"))
        } else {
            u64::from(self.u32(at_32))
        }
    }
}

impl Image {
    /// Checks the headers and the file's length.
    pub fn read(file: &File, path: &Path) -> Result<Self, BootError> {
        let open_error = |error| BootError::Open { option: "-kernel", path: path.into(), error };
        let not_a_kernel = |what| BootError::NotAKernel { path: path.into(), what };
        let actual = file.metadata().map_err(open_error)?.len();
        let truncated = |needed| BootError::Truncated { path: path.into(), needed, actual };

        let mut bytes = [0; 64];
        let known = usize::try_from(actual.min(64)).expect("at most 64");
        file.read_exact_at(&mut bytes[..known], 0).map_err(open_error)?;
        let is_64 = match bytes[CLASS_AT] {
            CLASS_32 => false,
            CLASS_64 => true,
            _ => return Err(not_a_kernel("a damaged ELF file")),
        };
        let header_bytes = if is_64 { 64 } else { 52 };
        if actual < header_bytes {
            return Err(truncated(header_bytes));
        }
        let header = Fields { bytes: &bytes, is_64 };
        let machine = header.u16(18, 18);
        if bytes[5] != LITTLE_ENDIAN || !matches!(machine, EM_386 | EM_X86_64) {
            return Err(not_a_kernel("an ELF file for another architecture; an x86-64 kernel is needed"));
        }
        let (table, entry_bytes, count) = (header.word(28, 32), header.u16(42, 54), header.u16(44, 56));
        let expected = if is_64 { 56 } else { 32 };
        if count == 0 || entry_bytes != expected {
            return Err(not_a_kernel(
                "an ELF file without program headers; a linked kernel (vmlinux) is needed",
            ));
        }
        let table_bytes = u64::from(count) * u64::from(entry_bytes);
        let table_end = table.checked_add(table_bytes).ok_or_else(|| not_a_kernel("a damaged ELF file"))?;
        if actual < table_end {
            return Err(truncated(table_end));
        }
        let mut programs = vec![0; usize::from(count) * usize::from(entry_bytes)];
        file.read_exact_at(&mut programs, table).map_err(open_error)?;

        let (mut segments, mut pvh) = (Vec::new(), None);
        for program in programs.chunks_exact(usize::from(entry_bytes)) {
            let program = Fields { bytes: program, is_64 };
            let segment = Segment {
                file_offset: program.word(4, 8),
                file_bytes: program.word(16, 32),
                address: program.word(12, 24),
                memory_bytes: program.word(20, 40),
            };
            let file_end = segment.file_offset.checked_add(segment.file_bytes);
            let file_end = file_end.ok_or_else(|| not_a_kernel("a damaged ELF file"))?;
            match program.u32(0) {
                PT_LOAD if segment.memory_bytes != 0 => {
                    if actual < file_end {
                        return Err(truncated(file_end));
                    }
                    let damaged = segment.file_bytes > segment.memory_bytes
                        || segment.address.checked_add(segment.memory_bytes).is_none();
                    if damaged {
                        return Err(not_a_kernel("a damaged ELF file"));
                    }
                    if segment.address < HIGH_RAM {
                        return Err(not_a_kernel(
                            "an ELF file with segments below 1 MiB, where boot structures are",
                        ));
                    }
                    segments.push(segment);
                }
                PT_NOTE if actual >= file_end && segment.file_bytes <= MAX_NOTES => {
                    let mut notes = vec![0; usize::try_from(segment.file_bytes).expect("at most MAX_NOTES")];
                    file.read_exact_at(&mut notes, segment.file_offset).map_err(open_error)?;
                    pvh = pvh.or(pvh_entry(&notes));
                }
                _ => {}
            }
        }
        if segments.is_empty() {
            return Err(not_a_kernel(
                "an ELF file with nothing to load; a linked kernel (vmlinux) is needed",
            ));
        }
        let entry = match pvh {
            Some(entry) => Entry::Pvh(entry),
            None if is_64 && machine == EM_X86_64 => Entry::Long(header.word(24, 24)),
            None => {
                return Err(not_a_kernel(
                    "a 32-bit ELF file without a PVH entry note; it has no entry to boot by",
                ));
            }
        };
        Ok(Self { segments, entry })
    }

    /// The last segment ends here.
    pub fn end(&self) -> u64 {
        self.segments.iter().map(|segment| segment.address + segment.memory_bytes).max().unwrap_or(0)
    }

    /// Reads the segments to their places. What the file does not have of them stays zero.
    pub fn load(&self, file: &File, memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
        self.segments.iter().try_for_each(|segment| {
            let address = GuestAddress(segment.address);
            load::read(memory, address, file, segment.file_offset, segment.file_bytes)
        })
    }
}

/// The descriptor of the PVH note: a 32-bit address, which some tools write with 8 bytes.
fn pvh_entry(mut notes: &[u8]) -> Option<u64> {
    while notes.len() >= 12 {
        let word = |at: usize| u32::from_le_bytes(notes[at..at + 4].try_into().expect("four bytes"));
        let (name_bytes, descriptor_bytes, kind) = (word(0) as usize, word(4) as usize, word(8));
        let name = notes.get(12..)?.get(..name_bytes)?;
        let descriptor = notes.get(12 + name_bytes.next_multiple_of(4)..)?;
        if kind == PHYS32_ENTRY && name == b"Xen\0" {
            return Some(u64::from(u32::from_le_bytes(descriptor.get(..4)?.try_into().expect("four bytes"))));
        }
        notes = descriptor.get(descriptor_bytes.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((name.len() as u32).to_le_bytes());
        bytes.extend((descriptor.len() as u32).to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        for part in [name, descriptor] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn the_pvh_note_among_others() {
        let address = 0x100_0050u32.to_le_bytes();
        let notes =
            [note(b"GNU\0", 3, &[7; 20]), note(b"Linux\0", 18, &[1]), note(b"Xen\0", 18, &address)].concat();
        assert_eq!(pvh_entry(&notes), Some(0x100_0050));
        assert_eq!(pvh_entry(&notes[..notes.len() - 1]), None);
        assert_eq!(pvh_entry(&note(b"Xen\0", 18, &0x20_0000u64.to_le_bytes())), Some(0x20_0000));
        assert_eq!(pvh_entry(&note(b"Xen\0", 17, &address)), None);
        assert_eq!(pvh_entry(&[0xff; 64]), None);
    }
}
