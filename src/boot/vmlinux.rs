//! A kernel out of its decompressor's hands: the payload's ELF file goes straight to the addresses that the decompressor
//! would move it to (Linux, *The Linux/x86 Boot Protocol*, `payload_offset`; arch/x86/boot/compressed/misc.c, `parse_elf`).

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::elf::{self, Fields, PT_LOAD};
use super::kaslr::{Place, Room};
use super::relocations::Relocations;
use super::unpack::UnpackError;

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Program headers are within this many bytes of the file's start.
const LOOK_AT: usize = 64 << 10;
/// Bytes of a relocation table at most: ten times what distributions' kernels have.
const MOST_TABLE_BYTES: usize = 16 << 20;

#[derive(Clone, Copy, Debug)]
struct Segment {
    file: u64,
    file_bytes: u64,
    /// From the kernel's start.
    offset: u64,
}

/// What the ELF header says.
#[derive(Debug)]
struct Layout {
    segments: Vec<Segment>,
    /// From the kernel's start.
    entry: u64,
    /// The ELF file ends here; a relocation table may follow.
    end: u64,
}

/// Takes the file piece by piece.
pub struct Placer<'a> {
    memory: &'a GuestMemoryMmap,
    room: Room,
    place: Place,
    /// The file's beginning, until it tells the layout.
    head: Vec<u8>,
    layout: Option<Layout>,
    /// How much has come by.
    at: u64,
    tail: Vec<u8>,
}

impl<'a> Placer<'a> {
    pub fn new(memory: &'a GuestMemoryMmap, room: Room, place: Place) -> Self {
        Self { memory, room, place, head: Vec::new(), layout: None, at: 0, tail: Vec::new() }
    }

    /// The next piece of the file.
    pub fn take(&mut self, piece: &[u8]) -> Result<(), UnpackError> {
        if self.layout.is_some() {
            return self.put(piece);
        }
        let known = piece.len().min(LOOK_AT - self.head.len());
        self.head.extend_from_slice(&piece[..known]);
        self.layout = parse(&self.head, &self.room).map_err(UnpackError::Content)?;
        if self.layout.is_some() {
            let head = std::mem::take(&mut self.head);
            self.put(&head)?;
            self.put(&piece[known..])?;
        } else if self.head.len() == LOOK_AT {
            return Err(UnpackError::Content("an ELF file without program headers"));
        }
        Ok(())
    }

    fn put(&mut self, piece: &[u8]) -> Result<(), UnpackError> {
        let layout = self.layout.as_ref().expect("checked by the caller");
        let (start, end) = (self.at, self.at + piece.len() as u64);
        // Within the piece, so it fits.
        let within = |at: u64| (at.clamp(start, end) - start) as usize;
        for segment in &layout.segments {
            let part = &piece[within(segment.file)..within(segment.file + segment.file_bytes)];
            if !part.is_empty() {
                let skipped = start.max(segment.file) - segment.file;
                let address = GuestAddress(self.place.physical + segment.offset + skipped);
                self.memory.write_slice(part, address)?;
            }
        }
        let tail = &piece[within(layout.end)..];
        if tail.len() > MOST_TABLE_BYTES - self.tail.len() {
            return Err(UnpackError::Content("a relocation table that is too large"));
        }
        self.tail.extend_from_slice(tail);
        self.at = end;
        Ok(())
    }

    /// All has come: relocates the kernel. Its entry, and whether it is where it was linked for.
    pub fn finish(self) -> Result<(u64, Place), UnpackError> {
        let layout = self.layout.ok_or(UnpackError::Content("no ELF file"))?;
        if self.at < layout.end {
            return Err(UnpackError::Content("an ELF file that is cut off"));
        }
        let Room { link, bytes, .. } = self.room;
        let mut place = self.place;
        // A kernel without a table was built without KASLR.
        if self.tail.is_empty() {
            place.virtual_offset = link;
        }
        if place.virtual_offset != link {
            let relocations = Relocations::parse(&self.tail, link, bytes)
                .ok_or(UnpackError::Content("a relocation table of an unknown form"))?;
            let length = usize::try_from(bytes).expect("a 32-bit field");
            let image = self.memory.get_slice(GuestAddress(place.physical), length)?;
            relocations
                .apply(&image, place.virtual_offset - link)
                .map_err(vm_memory::GuestMemoryError::from)?;
        }
        Ok((place.physical + layout.entry, place))
    }
}

/// The layout that `head` tells; `None` if more of the file must be known.
fn parse(head: &[u8], room: &Room) -> Result<Option<Layout>, &'static str> {
    if head.len() < HEADER {
        return Ok(None);
    }
    if !elf::is_elf_64(head) {
        return Err("no x86-64 ELF file");
    }
    let fields = Fields { bytes: head, is_64: true };
    let (table, entry_bytes, count) = (fields.word(28, 32), fields.u16(42, 54), fields.u16(44, 56));
    if usize::from(entry_bytes) != PROGRAM_HEADER || table > LOOK_AT as u64 {
        return Err("an ELF file without program headers");
    }
    let table = table as usize;
    let Some(programs) = head.get(table..table + usize::from(count) * PROGRAM_HEADER) else {
        return Ok(None);
    };
    let sections = u64::from(fields.u16(46, 58)) * u64::from(fields.u16(48, 60));
    let mut end = fields.word(32, 40).checked_add(sections).ok_or("a damaged ELF file")?;
    let mut segments = Vec::new();
    for program in programs.chunks_exact(PROGRAM_HEADER) {
        let program = Fields { bytes: program, is_64: true };
        if program.u32(0) != PT_LOAD {
            continue;
        }
        let (file, file_bytes, memory_bytes) =
            (program.word(4, 8), program.word(16, 32), program.word(20, 40));
        let offset = program.word(12, 24).checked_sub(room.link);
        let fits = offset.and_then(|offset| offset.checked_add(memory_bytes.max(file_bytes)));
        let (Some(offset), Some(true)) = (offset, fits.map(|end| end <= room.bytes)) else {
            return Err("an ELF file with segments outside the kernel's place");
        };
        end = end.max(file.checked_add(file_bytes).ok_or("a damaged ELF file")?);
        segments.push(Segment { file, file_bytes, offset });
    }
    let entry = fields.word(24, 24).checked_sub(room.link).filter(|&entry| entry < room.bytes);
    let entry = entry.ok_or("an ELF file with its entry outside the kernel's place")?;
    if segments.is_empty() {
        return Err("an ELF file with nothing to load");
    }
    Ok(Some(Layout { segments, entry, end }))
}

#[cfg(test)]
mod tests;
