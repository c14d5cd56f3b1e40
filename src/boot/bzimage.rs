//! bzImage kernels through their 64-bit entry (Linux, *The Linux/x86 Boot Protocol*).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use linux_loader::loader::bootparam::setup_header;
use vm_memory::{ByteValued, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::Randomness;
use super::error::BootError;
use super::kaslr::{self, Room, Wish};
use super::layout::HIGH_RAM;
use super::load;
use super::unpack::{Format, UnpackError};
use super::vmlinux::Placer;

/// Where `setup_header` starts in the file and in the zero page.
const HEADER_AT: u64 = 0x1f1;
/// `header` in `setup_header`: "HdrS".
const MAGIC_AT: usize = 0x202;
const MAGIC: [u8; 4] = *b"HdrS";
/// The length of a header that has all the fields that are read here.
const HEADER_END: u64 = 0x268;
const SECTOR: u64 = 512;
/// `setup_sects` of zero stands for this.
const DEFAULT_SETUP_SECTORS: u64 = 4;
/// 2.12, Linux 3.8: `xloadflags`.
const OLDEST_PROTOCOL: u16 = 0x020c;
/// `loadflags`: the kernel is loaded above 1 MiB.
const LOADED_HIGH: u8 = 1 << 0;
/// `loadflags`, from decompressor to kernel: addresses are random.
const KASLR: u8 = 1 << 1;
/// Less than this holds no kernel.
const PAYLOAD_AT_LEAST: u64 = 16;
/// `xloadflags`: there is a 64-bit entry.
const XLF_KERNEL_64: u16 = 1 << 0;
/// The 64-bit entry's offset from the load address.
const ENTRY_64: u64 = 0x200;
/// A boot loader that has no number of its own.
const UNDEFINED_LOADER: u8 = 0xff;

/// A bzImage that has been looked at.
#[derive(Debug)]
pub struct Image {
    header: setup_header,
}

/// The beginning of a file whose magic is that of a bzImage.
pub fn is_bzimage(start: &[u8]) -> bool {
    start.get(MAGIC_AT..MAGIC_AT + MAGIC.len()) == Some(&MAGIC)
}

impl Image {
    /// Checks the header and the file's length.
    pub fn read(file: &File, path: &Path) -> Result<Self, BootError> {
        let open_error = |error| BootError::Open { option: "-kernel", path: path.into(), error };
        let not_a_kernel = |what| BootError::NotAKernel { path: path.into(), what };
        let actual = file.metadata().map_err(open_error)?.len();
        let truncated = |needed| BootError::Truncated { path: path.into(), needed, actual };
        if actual < HEADER_END {
            return Err(truncated(HEADER_END));
        }
        let mut header = setup_header::default();
        let fields = header.as_mut_slice();
        file.read_exact_at(fields, HEADER_AT).map_err(open_error)?;
        if header.version < OLDEST_PROTOCOL || header.loadflags & LOADED_HIGH == 0 {
            return Err(not_a_kernel("a kernel too old to boot here; Linux 3.8 or newer is needed"));
        }
        if header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(not_a_kernel("a 32-bit kernel; a 64-bit one is needed"));
        }
        let image = Self { header };
        let needed = image.setup_bytes() + image.payload_bytes();
        if actual < needed {
            return Err(truncated(needed));
        }
        Ok(image)
    }

    /// The boot sector and the setup code behind it.
    pub(super) fn setup_bytes(&self) -> u64 {
        let sectors = match self.header.setup_sects {
            0 => DEFAULT_SETUP_SECTORS,
            sectors => u64::from(sectors),
        };
        (sectors + 1) * SECTOR
    }

    /// What follows the setup sectors, `syssize` paragraphs of 16 bytes. A signature may follow.
    pub(super) fn payload_bytes(&self) -> u64 {
        u64::from(self.header.syssize) * 16
    }

    /// Where it is loaded: where it would move itself to anyway, if it may be moved.
    fn load_address(&self) -> u64 {
        if self.header.relocatable_kernel != 0 && self.header.pref_address >= HIGH_RAM {
            self.header.pref_address
        } else {
            u64::from(self.header.code32_start).max(HIGH_RAM)
        }
    }

    /// What it needs before it looks at the memory map ends here.
    pub fn end(&self) -> u64 {
        // Any number may stand in the header: one beyond all addresses ends beyond all memory.
        let run = self.load_address().max(self.header.pref_address);
        let file = self.load_address().saturating_add(self.payload_bytes());
        run.saturating_add(u64::from(self.header.init_size)).max(file)
    }

    /// The longest command line, without its terminator.
    pub fn command_line_limit(&self) -> usize {
        self.header.cmdline_size as usize
    }

    /// The highest address that a byte of the initial RAM disk may have.
    pub fn initrd_addr_max(&self) -> u64 {
        u64::from(self.header.initrd_addr_max)
    }

    /// Does the decompressor's work: the kernel that it holds goes to its place, which is random if `wish` says so and ends
    /// below `top`. The entry, and the header for the zero page.
    pub fn unpack(
        &self,
        file: &File,
        memory: &GuestMemoryMmap,
        (wish, random): (Wish, Randomness),
        top: u64,
    ) -> Result<(u64, setup_header), UnpackError> {
        let header = &self.header;
        let room = Room {
            link: header.pref_address,
            bytes: u64::from(header.init_size),
            alignment: u64::from(header.kernel_alignment),
            top,
        };
        if header.relocatable_kernel == 0 || room.link < HIGH_RAM {
            return Err(UnpackError::Content("a kernel that cannot be moved"));
        }
        let (offset, mut length) = (u64::from(header.payload_offset), u64::from(header.payload_length));
        if offset + length > self.payload_bytes() || length < PAYLOAD_AT_LEAST {
            return Err(UnpackError::Content("no payload"));
        }
        let start = self.setup_bytes() + offset;
        let mut magic = [0; 8];
        file.read_exact_at(&mut magic, start)?;
        let format = Format::of(&magic).ok_or(UnpackError::Content("a payload of an unknown format"))?;
        // gzip ends with the length as well; what the build appends is not part of the format.
        let mut promised = [0; 4];
        file.read_exact_at(&mut promised, start + length - 4)?;
        let promised = u64::from(u32::from_le_bytes(promised));
        if format.length_is_appended() {
            length -= 4;
        }
        if promised > room.bytes {
            return Err(UnpackError::TooLong);
        }
        let place = match wish {
            Wish::Fixed => room.fixed(),
            _ => {
                let random = match random {
                    Randomness::OfHost => kaslr::random()?,
                    Randomness::None => kaslr::FIXED,
                };
                room.choose(wish, random)
            }
        };
        let mut placer = Placer::new(memory, room, place);
        format
            .unpack(Section { file, at: start, left: length }, promised, &mut |piece| placer.take(piece))?;
        let (entry, place) = placer.finish()?;
        let mut header = self.header;
        // Below 4 GiB: `top` is.
        header.code32_start = place.physical as u32;
        header.type_of_loader = UNDEFINED_LOADER;
        header.loadflags &= !KASLR;
        if wish != Wish::Fixed && place.virtual_offset != room.link {
            header.loadflags |= KASLR;
        }
        Ok((entry, header))
    }

    /// Reads the kernel to its place; the entry and the header for the zero page.
    pub fn load(
        &self,
        file: &File,
        memory: &GuestMemoryMmap,
    ) -> Result<(u64, setup_header), GuestMemoryError> {
        let address = self.load_address();
        load::read(memory, GuestAddress(address), file, self.setup_bytes(), self.payload_bytes())?;
        let mut header = self.header;
        // Below 4 GiB: it was found to fit there.
        header.code32_start = address as u32;
        header.type_of_loader = UNDEFINED_LOADER;
        Ok((address + ENTRY_64, header))
    }
}

/// Reads up to `bytes` from the file's beginning.
pub fn start_of(file: &mut File, bytes: usize) -> io::Result<Vec<u8>> {
    let mut start = Vec::with_capacity(bytes);
    file.seek(SeekFrom::Start(0))?;
    file.take(bytes as u64).read_to_end(&mut start)?;
    Ok(start)
}

/// A stretch of a file.
struct Section<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let got = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += got as u64;
        self.left -= got as u64;
        Ok(got)
    }
}
