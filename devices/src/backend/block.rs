//! The host's end of disks.

mod direct;
mod lock;
mod overlay;
mod qcow2;
mod raw;
mod vectored;

use std::io;

use vm_memory::VolatileSlice;

pub use lock::{LockConflict, lock_image};
pub use overlay::Overlay;
pub use qcow2::{Qcow2Error, Qcow2Image};
pub use raw::{RawError, RawImage, RawOptions};

/// Unit of every position and length.
pub const SECTOR_BYTES: u64 = 512;

/// The host's end of a disk. Several threads call it at once, never two for the same bytes unless the guest asks for that.
///
/// Offsets and lengths are in bytes, multiples of [`SECTOR_BYTES`], and lie within the capacity: the device checks. The
/// buffers are guest memory, which may change at any time. Blocks; an error leaves any part of the buffers, or of the
/// range, done.
pub trait BlockBackend: Send + Sync {
    /// Bytes, a multiple of [`SECTOR_BYTES`].
    fn capacity(&self) -> u64;
    /// Writing is refused.
    fn is_read_only(&self) -> bool;
    /// Fills `buffers` from `offset` on.
    fn read(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()>;
    /// Writes `buffers` at `offset`. It may stay in the host's cache until [`BlockBackend::flush`].
    fn write(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()>;
    /// Everything that was written before is on the host's disk when this returns.
    fn flush(&self) -> io::Result<()>;
    /// The content of the range does not matter any more. May do nothing.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
    /// The range reads as zero. `may_unmap`: the host may take its space back.
    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()>;
}

/// What the host's page cache does for a disk (QEMU, *-drive cache=*).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// It caches; a guest's flush empties it.
    #[default]
    Writeback,
    /// It is passed by (O_DIRECT); a guest's flush empties the disk's cache.
    None,
    /// It caches what is read; every write is on the disk before it is acknowledged.
    Writethrough,
    /// As [`CacheMode::Writethrough`], without the host's page cache.
    Directsync,
    /// It caches, and a guest's flush does nothing: a crash of the host may lose everything.
    Unsafe,
}

impl CacheMode {
    /// QEMU's names.
    pub const NAMES: &[(&str, Self)] = &[
        ("writeback", Self::Writeback),
        ("none", Self::None),
        ("writethrough", Self::Writethrough),
        ("directsync", Self::Directsync),
        ("unsafe", Self::Unsafe),
    ];

    /// The host's page cache is passed by.
    pub fn is_direct(self) -> bool {
        matches!(self, Self::None | Self::Directsync)
    }

    /// Writes wait in a cache until they are flushed. Otherwise each is flushed as it is written.
    pub fn is_writeback(self) -> bool {
        matches!(self, Self::Writeback | Self::None | Self::Unsafe)
    }
}

/// Bytes of all buffers.
pub(crate) fn total(buffers: &[VolatileSlice<'_>]) -> u64 {
    buffers.iter().map(|buffer| buffer.len() as u64).sum()
}

/// The `len` bytes of `buffers` that come after the first `skip`.
pub(crate) fn part<'a>(buffers: &[VolatileSlice<'a>], skip: u64, len: u64) -> Vec<VolatileSlice<'a>> {
    let (mut skip, mut left) = (skip, len);
    let mut parts = Vec::new();
    for buffer in buffers {
        let here = buffer.len() as u64;
        let from = skip.min(here);
        skip -= from;
        let take = left.min(here - from);
        left -= take;
        if take > 0 {
            let (from, take) = (usize::try_from(from), usize::try_from(take));
            let (from, take) = (from.expect("within a buffer"), take.expect("within a buffer"));
            parts.push(buffer.subslice(from, take).expect("within the buffer"));
        }
    }
    parts
}

#[cfg(test)]
pub(crate) mod tests;
