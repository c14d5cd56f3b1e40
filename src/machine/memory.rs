//! Guest RAM: anonymous memory in huge pages (madvise(2)).
//!
//! Not a memfd: hosts give huge pages to anonymous memory that asks for them, and none to shared memory, unless told otherwise
//! (`/sys/kernel/mm/transparent_hugepage`).

#![expect(unsafe_code, reason = "madvise is C")]

use std::io;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

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
#[derive(Debug)]
pub struct Ram {
    bytes: u64,
    map: GuestMemoryMmap,
}

impl Ram {
    /// `bytes` of RAM, where [`memory_map::ram`] says.
    pub fn new(bytes: u64) -> Result<Self, RamError> {
        let ranges: Vec<_> = memory_map::ram(bytes)
            .into_iter()
            .map(|(start, length)| (GuestAddress(start), usize::try_from(length).expect("a 64-bit host")))
            .collect();
        let map = GuestMemoryMmap::from_ranges(&ranges).map_err(|error| RamError::NoMemory {
            bytes,
            source: io::Error::new(io::ErrorKind::OutOfMemory, error),
        })?;
        for region in map.iter() {
            if let Err(error) = advise(region, libc::MADV_HUGEPAGE) {
                tracing::debug!(target: "memory", %error, "no huge pages advised");
            }
        }
        Ok(Self { bytes, map })
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
        self.map.iter().try_for_each(|region| advise(region, libc::MADV_DONTNEED))
    }
}

/// Advises the host on a whole region.
fn advise(region: &vm_memory::GuestRegionMmap, advice: libc::c_int) -> io::Result<()> {
    let start =
        region.get_host_address(vm_memory::MemoryRegionAddress(0)).expect("a region has a first byte");
    let length = usize::try_from(region.len()).expect("mapped, so it fits");
    // SAFETY: the range is the region's whole mapping, which the caller's borrow keeps. No Rust object is there: guest memory
    // may change at any time, to zero too.
    if unsafe { libc::madvise(start.cast(), length, advice) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
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
