//! Guest RAM: anonymous memory in huge pages (madvise(2)), a memfd, or what a memory backend says.
//!
//! A memfd only where the engine wants to map pages of it once more: hosts give huge pages to anonymous memory that asks for
//! them, and none to shared memory, unless told otherwise (`/sys/kernel/mm/transparent_hugepage`).

#![expect(unsafe_code, reason = "madvise is C")]

use std::fs::File;
use std::io;
use std::sync::Arc;

use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress, MmapRegion,
};

use super::memory_file::{self, MemoryFile};
use crate::boot::memory_map;
use crate::options::memory_backend::{MemoryBackend, MemorySource};

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
    /// The host has no such memory.
    #[error("memory backend{}: {} MiB", if id.is_empty() { String::new() } else { format!(" '{id}'") }, bytes >> 20)]
    Backend {
        /// The backend's name; empty if it is that of `-mem-path`.
        id: String,
        /// How much.
        bytes: u64,
        /// The host's answer.
        source: io::Error,
    },
}

/// How RAM becomes zero again.
#[derive(Debug)]
enum Zero {
    /// Its pages are given back, and new ones are zero.
    GiveBack,
    /// Holes in the file are.
    Punch(Arc<File>),
    /// By writing: the pages under it hold something else, or must be kept.
    Fill,
}

/// Guest RAM, zero and, unless told otherwise, untouched: the host gives pages as the guest touches them.
#[derive(Debug)]
pub struct Ram {
    bytes: u64,
    map: GuestMemoryMmap,
    zero: Zero,
}

/// `madvise`: fault all pages in for writing (Linux 5.14).
const MADV_POPULATE_WRITE: libc::c_int = 23;

impl Ram {
    /// `bytes` of RAM, where [`memory_map::ram`] says, made of what `backend` says.
    pub fn new(bytes: u64, backend: Option<&MemoryBackend>) -> Result<Self, RamError> {
        let Some(backend) = backend else { return Self::anonymous(bytes) };
        let id = backend.id.clone();
        Self::of_backend(bytes, backend).map_err(|source| RamError::Backend { id, bytes, source })
    }

    /// `bytes` of RAM whose pages can be mapped once more.
    pub fn shared(bytes: u64) -> Result<Self, RamError> {
        let source = MemorySource::Memfd { huge_page: None };
        let backend = MemoryBackend { id: String::new(), source, size: None, share: true, prealloc: false };
        Self::of_backend(bytes, &backend).map_err(|source| RamError::NoMemory { bytes, source })
    }

    fn anonymous(bytes: u64) -> Result<Self, RamError> {
        let map = map(bytes, None, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
        let map = map.map_err(|source| RamError::NoMemory { bytes, source })?;
        advise_huge_pages(&map);
        Ok(Self { bytes, map, zero: Zero::GiveBack })
    }

    fn of_backend(bytes: u64, backend: &MemoryBackend) -> io::Result<Self> {
        let file = memory_file::open(backend, bytes)?;
        let share = if backend.share { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let (file, is_new, flags) = match file {
            // Huge pages of a pool are reserved by this, and the guest is not killed for want of one.
            Some(MemoryFile { file, is_new }) => (Some(Arc::new(file)), is_new, share),
            None => (None, true, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE),
        };
        let map = map(bytes, file.as_ref(), flags)?;
        advise_huge_pages(&map);
        let zero = match file {
            _ if backend.prealloc => Zero::Fill,
            Some(file) if backend.share => Zero::Punch(file),
            Some(_) if !is_new => Zero::Fill,
            _ => Zero::GiveBack,
        };
        let ram = Self { bytes, map, zero };
        if !is_new {
            ram.clear()?;
        }
        if backend.prealloc {
            ram.populate()?;
        }
        Ok(ram)
    }

    /// The memory, where the guest has it.
    pub fn map(&self) -> &GuestMemoryMmap {
        &self.map
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// RAM is zero again. No CPU runs.
    pub fn clear(&self) -> io::Result<()> {
        match &self.zero {
            Zero::GiveBack => self.map.iter().try_for_each(|region| advise(region, libc::MADV_DONTNEED)),
            Zero::Punch(file) => memory_file::clear(file, self.bytes),
            Zero::Fill => self.fill(),
        }
    }

    fn fill(&self) -> io::Result<()> {
        static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
        for region in self.map.iter() {
            for at in (0..region.len()).step_by(ZEROS.len()) {
                let here =
                    usize::try_from(region.len() - at).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
                region.write_slice(&ZEROS[..here], MemoryRegionAddress(at)).map_err(io::Error::other)?;
            }
        }
        Ok(())
    }

    /// All pages are there.
    fn populate(&self) -> io::Result<()> {
        let populated = self.map.iter().try_for_each(|region| advise(region, MADV_POPULATE_WRITE));
        match populated {
            // An older host; the content is zero.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.fill(),
            populated => populated,
        }
    }
}

/// Maps RAM, of `file` if there is one, one stretch of it after the other.
fn map(bytes: u64, file: Option<&Arc<File>>, flags: libc::c_int) -> io::Result<GuestMemoryMmap> {
    let mut offset = 0;
    let mut regions = Vec::new();
    for (start, length) in memory_map::ram(bytes) {
        let size = usize::try_from(length).expect("a 64-bit host");
        let place = file.map(|file| FileOffset::from_arc(Arc::clone(file), offset));
        let region = MmapRegion::build(place, size, libc::PROT_READ | libc::PROT_WRITE, flags);
        let region = region.map_err(|error| io::Error::new(io::ErrorKind::OutOfMemory, error))?;
        let region = GuestRegionMmap::new(region, GuestAddress(start)).expect("the memory map does not wrap");
        regions.push(region);
        offset += length;
    }
    GuestMemoryMmap::from_regions(regions).map_err(io::Error::other)
}

fn advise_huge_pages(map: &GuestMemoryMmap) {
    for region in map.iter() {
        if let Err(error) = advise(region, libc::MADV_HUGEPAGE) {
            tracing::debug!(target: "memory", %error, "no huge pages advised");
        }
    }
}

/// Advises the host on a whole region.
fn advise(region: &GuestRegionMmap, advice: libc::c_int) -> io::Result<()> {
    let start = region.get_host_address(MemoryRegionAddress(0)).expect("a region has a first byte");
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
mod tests;
