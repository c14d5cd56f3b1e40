//! Guest RAM: one shared memfd, with huge pages advised (memfd_create(2), madvise(2)).

#![expect(unsafe_code, reason = "memfd_create and madvise are C")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::boot::memory_map;

/// Why there is no guest RAM.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The host refused the memory.
    #[error("-m: the host has no {} MiB for the guest", bytes >> 20)]
    NoMemory {
        /// How much.
        bytes: u64,
        /// The host's answer.
        source: io::Error,
    },
}

/// Guest RAM, zero and untouched: the host gives pages as the guest touches them.
pub struct Ram {
    file: File,
    bytes: u64,
    map: GuestMemoryMmap,
}

impl Ram {
    /// `bytes` of RAM, where [`memory_map::ram`] says.
    pub fn new(bytes: u64) -> Result<Self, RamError> {
        let refused = |source| RamError::NoMemory { bytes, source };
        let file = memfd().map_err(refused)?;
        file.set_len(bytes).map_err(refused)?;
        let (mut ranges, mut offset) = (Vec::new(), 0);
        for (start, length) in memory_map::ram(bytes) {
            let part = FileOffset::from_arc(Arc::new(file.try_clone().map_err(refused)?), offset);
            let size = usize::try_from(length).expect("a 64-bit host");
            ranges.push((GuestAddress(start), size, Some(part)));
            offset += length;
        }
        let map = GuestMemoryMmap::from_ranges_with_files(ranges)
            .map_err(|error| refused(io::Error::new(io::ErrorKind::OutOfMemory, error)))?;
        for region in map.iter() {
            advise_huge_pages(region);
        }
        Ok(Self { file, bytes, map })
    }

    /// The memory, where the guest has it.
    pub fn map(&self) -> &GuestMemoryMmap {
        &self.map
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives all pages back to the host: RAM is zero again. No CPU runs.
    pub fn clear(&self) -> io::Result<()> {
        // Shrinking drops the pages of every mapping; a touch in between would be a SIGBUS, and nobody touches.
        self.file.set_len(0)?;
        self.file.set_len(self.bytes)
    }
}

fn memfd() -> io::Result<File> {
    // SAFETY: the name is a terminated string; the call returns a descriptor or -1.
    let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open and nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Huge pages make nested paging cheaper. A host that gives none for shared memory is only slower.
fn advise_huge_pages(region: &vm_memory::GuestRegionMmap) {
    let Ok(start) = region.get_host_address(vm_memory::MemoryRegionAddress(0)) else { return };
    let length = usize::try_from(region.len()).expect("mapped, so it fits");
    // SAFETY: the range is the region's whole mapping, which the caller's borrow keeps; the advice changes no content.
    if unsafe { libc::madvise(start.cast(), length, libc::MADV_HUGEPAGE) } != 0 {
        tracing::debug!(target: "memory", error = %io::Error::last_os_error(), "no huge pages advised");
    }
}

impl std::fmt::Debug for Ram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ram({} bytes, fd {})", self.bytes, self.file.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn cleared_ram_is_zero_and_stays_mapped() {
        let ram = Ram::new(4 << 20).unwrap();
        let at = GuestAddress(0x12_3456);
        assert_eq!(ram.map().read_obj::<u64>(at).unwrap(), 0);
        ram.map().write_obj(0x1122_3344_5566_7788u64, at).unwrap();
        ram.clear().unwrap();
        assert_eq!(ram.map().read_obj::<u64>(at).unwrap(), 0);
        ram.map().write_obj(1u64, at).unwrap();
        assert_eq!(ram.map().read_obj::<u64>(at).unwrap(), 1);
    }

    #[test]
    fn ram_goes_on_above_4_gib() {
        let ram = Ram::new(5 << 30).unwrap();
        assert!(ram.map().check_address(GuestAddress(0xbfff_ffff)).is_some());
        assert!(ram.map().check_address(GuestAddress(0xc000_0000)).is_none());
        ram.map().write_obj(7u8, GuestAddress(0x1_0000_0000)).unwrap();
        assert_eq!(ram.map().read_obj::<u8>(GuestAddress(0)).unwrap(), 0);
        assert!(ram.map().check_address(GuestAddress(0x1_8000_0000)).is_none());
    }
}
