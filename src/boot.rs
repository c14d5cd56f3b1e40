//! Boot protocols: a kernel and an initial RAM disk become memory content and an entry state.
//!
//! Everything that can be refused is refused in [`BootSource::open`], before anything is created; [`BootSource::load`]
//! reads the files straight into guest memory, again after each reset.
//!
//! Where the engine translates, what is compressed is unpacked here: the host does in tens of milliseconds what takes
//! translated code hundreds. Whatever is unusual is left to the guest, which knows all forms.

pub mod bzimage;
pub mod elf;
pub mod entry_state;
pub mod error;
mod fw_cfg;
mod initramfs;
mod kaslr;
pub mod layout;
mod load;
pub mod memory_map;
pub mod pvh;
mod relocations;
mod unpack;
mod vmlinux;
pub mod zero_page;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use accel::CpuArchState;
use linux_loader::loader::bootparam::setup_header;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use self::elf::Entry;
use self::error::BootError;
use self::layout::{COMMAND_LINE, COMMAND_LINE_ROOM};

#[derive(Debug)]
enum Image {
    BzImage(bzimage::Image),
    Elf(elf::Image),
}

#[derive(Debug)]
struct Initrd {
    file: File,
    path: PathBuf,
    bytes: u64,
    address: u64,
    /// The kernel's end and what must not be passed: it goes between.
    between: (u64, u64),
}

/// Who unpacks compressed kernels and initial RAM disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpacking {
    /// The guest, with its own decompressors.
    ByGuest,
    /// This program, where it can.
    ByHost,
}

/// A kernel with its initial RAM disk and command line, found to fit the guest.
#[derive(Debug)]
pub struct BootSource {
    kernel: File,
    path: PathBuf,
    image: Image,
    initrd: Option<Initrd>,
    command_line: Vec<u8>,
    memory_bytes: u64,
    randomness: Randomness,
}

/// What random choices are made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Randomness {
    /// The host's randomness.
    OfHost,
    /// Nothing: they are the same every time.
    None,
}

const PAGE: u64 = 4096;
/// A guest with this many times the memory of an unpacked RAM disk has room for it.
const INITRD_SHARE: u64 = 8;
/// How much of a file tells what it is.
const LOOK_AT: usize = 0x300;

impl BootSource {
    /// Opens and checks the files for a guest with `memory_bytes` of RAM.
    pub fn open(
        kernel: &Path,
        initrd: Option<&Path>,
        append: &str,
        memory_bytes: u64,
    ) -> Result<Self, BootError> {
        let path = kernel.to_path_buf();
        let (file, image) = open_kernel(kernel)?;
        let available = memory_map::low_bytes(memory_bytes);
        let (needed, limit, addr_max) = match &image {
            Image::BzImage(image) => (image.end(), image.command_line_limit(), image.initrd_addr_max()),
            Image::Elf(image) => (image.end(), elf::COMMAND_LINE_LIMIT, u64::from(u32::MAX)),
        };
        if needed > available {
            return Err(BootError::KernelTooBig { path, needed, available });
        }
        let limit = limit.min(usize::try_from(COMMAND_LINE_ROOM - 1).expect("64 KiB"));
        if append.len() > limit {
            return Err(BootError::CommandLineTooLong { length: append.len(), limit });
        }
        if append.contains('\0') {
            return Err(BootError::CommandLineNul);
        }
        let top = available.min(addr_max.saturating_add(1));
        let initrd = initrd.map(|path| open_initrd(path, needed, top)).transpose()?;
        let mut command_line = append.as_bytes().to_vec();
        command_line.push(0);
        Ok(Self {
            kernel: file,
            path,
            image,
            initrd,
            command_line,
            memory_bytes,
            randomness: Randomness::OfHost,
        })
    }

    /// As it is, but for its random choices, which are made by `randomness`.
    pub fn with_randomness(self, randomness: Randomness) -> Self {
        Self { randomness, ..self }
    }

    /// Fills guest memory, whose RAM must be zero, and says how the bootstrap CPU starts. `rsdp` is the address of
    /// the ACPI root pointer.
    pub fn load(
        &self,
        memory: &GuestMemoryMmap,
        rsdp: u64,
        unpacking: Unpacking,
    ) -> Result<CpuArchState, BootError> {
        memory.write_slice(&self.command_line, GuestAddress(COMMAND_LINE))?;
        // A file that cannot be unpacked is no error here; one that cannot be read is found by what comes next.
        let unpacked = match (&self.initrd, unpacking) {
            (Some(initrd), Unpacking::ByHost) => initrd.unpack(self.memory_bytes / INITRD_SHARE),
            _ => None,
        };
        let initrd = match (&self.initrd, unpacked) {
            (Some(initrd), Some(archive)) => Some(initrd.place(memory, &archive)?),
            (Some(initrd), None) => Some(initrd.load(memory)?),
            (None, _) => None,
        };
        let map = memory_map::e820(self.memory_bytes);
        let kernel_error = |source| self.load_error(source);
        let structure_error = |error: linux_loader::configurator::Error| {
            BootError::Write(GuestMemoryError::IOError(std::io::Error::other(error)))
        };
        match &self.image {
            Image::BzImage(image) => {
                let unpacked = match unpacking {
                    Unpacking::ByHost => self.unpack(image, memory, initrd),
                    Unpacking::ByGuest => None,
                };
                let (entry, header) = match unpacked {
                    Some(unpacked) => unpacked,
                    None => image.load(&self.kernel, memory).map_err(kernel_error)?,
                };
                zero_page::write(memory, header, initrd, &map, rsdp).map_err(structure_error)?;
                Ok(entry_state::long_mode(memory, entry)?)
            }
            Image::Elf(image) => {
                image.load(&self.kernel, memory).map_err(kernel_error)?;
                match image.entry {
                    Entry::Pvh(entry) => {
                        pvh::write(memory, initrd, &map, rsdp).map_err(structure_error)?;
                        Ok(entry_state::pvh(memory, entry)?)
                    }
                    Entry::Long(entry) => {
                        let header = zero_page::synthetic_header();
                        zero_page::write(memory, header, initrd, &map, rsdp).map_err(structure_error)?;
                        Ok(entry_state::long_mode(memory, entry)?)
                    }
                }
            }
        }
    }

    /// The kernel out of its bzImage; `None` where that is better left to the guest.
    fn unpack(
        &self,
        image: &bzimage::Image,
        memory: &GuestMemoryMmap,
        initrd: Option<(u64, u64)>,
    ) -> Option<(u64, setup_header)> {
        let command_line = String::from_utf8_lossy(&self.command_line);
        let wish = kaslr::wish(command_line.trim_end_matches('\0'));
        let top = initrd.map_or(memory_map::low_bytes(self.memory_bytes), |(address, _)| address);
        match image.unpack(&self.kernel, memory, (wish, self.randomness), top) {
            Ok(unpacked) => Some(unpacked),
            Err(error) => {
                let path = self.path.display();
                tracing::warn!(target: "boot", %path, %error, "the kernel's own decompressor is used");
                None
            }
        }
    }

    fn load_error(&self, source: GuestMemoryError) -> BootError {
        BootError::Load { option: "-kernel", path: self.path.clone(), source }
    }
}

fn open(option: &'static str, path: &Path) -> Result<File, BootError> {
    let error = |error| BootError::Open { option, path: path.into(), error };
    let file = File::open(path).map_err(error)?;
    let metadata = file.metadata().map_err(error)?;
    if metadata.is_dir() {
        return Err(error(std::io::ErrorKind::IsADirectory.into()));
    }
    if !metadata.is_file() {
        return Err(error(std::io::Error::other("not a regular file")));
    }
    Ok(file)
}

fn open_kernel(path: &Path) -> Result<(File, Image), BootError> {
    let mut file = open("-kernel", path)?;
    let start = bzimage::start_of(&mut file, LOOK_AT).map_err(|error| BootError::Open {
        option: "-kernel",
        path: path.into(),
        error,
    })?;
    let image = if elf::is_elf(&start) {
        Image::Elf(elf::Image::read(&file, path)?)
    } else if bzimage::is_bzimage(&start) {
        Image::BzImage(bzimage::Image::read(&file, path)?)
    } else {
        return Err(BootError::NotAKernel { path: path.into(), what: what_is(&start) });
    };
    Ok((file, image))
}

/// What a file that is no kernel seems to be, and the cure.
fn what_is(start: &[u8]) -> &'static str {
    let is_text = |byte: &u8| matches!(byte, b'\t' | b'\n' | b'\r' | 0x0c | 0x1b | 0x20..=0x7e | 0x80..);
    match start {
        [] => "an empty file; a bzImage (vmlinuz) or an ELF kernel (vmlinux) is needed",
        [0x1f, 0x8b, ..] => "a gzip file; uncompress it first if it holds a kernel",
        [0xfd, b'7', b'z', b'X', b'Z', ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] | [b'B', b'Z', b'h', ..] => {
            "a compressed file; uncompress it first if it holds a kernel"
        }
        _ if start.iter().all(is_text) => {
            "a text file, not a kernel; a bzImage (vmlinuz) or an ELF kernel (vmlinux) is needed"
        }
        _ if start.len() < LOOK_AT && start.get(..2) == Some(b"MZ") => {
            "truncated: it begins like a bzImage and ends within the header; fetch or build it again"
        }
        _ => "not a kernel; a bzImage (vmlinuz) or an ELF kernel (vmlinux) is needed",
    }
}

/// Places the initial RAM disk as high as it may be, between the kernel's end and `top`.
fn open_initrd(path: &Path, kernel_end: u64, top: u64) -> Result<Initrd, BootError> {
    let file = open("-initrd", path)?;
    let error = |error| BootError::Open { option: "-initrd", path: path.into(), error };
    let bytes = file.metadata().map_err(error)?.len();
    let address = top.checked_sub(bytes).map(|address| address & !(PAGE - 1));
    match address {
        Some(address) if address >= kernel_end => {
            Ok(Initrd { file, path: path.into(), bytes, address, between: (kernel_end, top) })
        }
        _ => Err(BootError::InitrdTooBig { path: path.into(), size: bytes }),
    }
}

impl Initrd {
    fn load(&self, memory: &GuestMemoryMmap) -> Result<(u64, u64), BootError> {
        let error = |source| BootError::Load { option: "-initrd", path: self.path.clone(), source };
        load::read(memory, GuestAddress(self.address), &self.file, 0, self.bytes).map_err(error)?;
        Ok((self.address, self.bytes))
    }

    /// The archives in the file, if it is compressed and they are `limit` bytes at most and fit.
    fn unpack(&self, limit: u64) -> Option<Vec<u8>> {
        let (kernel_end, top) = self.between;
        let limit = limit.min(top.saturating_sub(kernel_end).saturating_sub(PAGE));
        if self.bytes > limit {
            return None;
        }
        let mut packed = vec![0; usize::try_from(self.bytes).ok()?];
        self.file.read_exact_at(&mut packed, 0).ok()?;
        initramfs::unpack(&packed, usize::try_from(limit).ok()?)
    }

    /// Puts what was unpacked where the file would have gone.
    fn place(&self, memory: &GuestMemoryMmap, archive: &[u8]) -> Result<(u64, u64), BootError> {
        let bytes = archive.len() as u64;
        let address = (self.between.1 - bytes) & !(PAGE - 1);
        let error = |source| BootError::Load { option: "-initrd", path: self.path.clone(), source };
        memory.write_slice(archive, GuestAddress(address)).map_err(error)?;
        Ok((address, bytes))
    }
}

#[cfg(test)]
mod tests;
