//! Reads and writes of files straight from and to guest memory: preadv(2), pwritev(2), and what else C has for disks.

#![expect(unsafe_code, reason = "door: the kernel reads and writes guest memory")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::VolatileSlice;

/// What the kernel takes at once (IOV_MAX).
const MAX_VECTORS: usize = 1024;

fn vectors(buffers: &[VolatileSlice<'_>]) -> Vec<libc::iovec> {
    let vector = |buffer: &VolatileSlice<'_>| libc::iovec {
        iov_base: buffer.ptr_guard_mut().as_ptr().cast(),
        iov_len: buffer.len(),
    };
    buffers.iter().take(MAX_VECTORS).map(vector).collect()
}

fn position(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn count(vectors: &[libc::iovec]) -> libc::c_int {
    libc::c_int::try_from(vectors.len()).expect("at most MAX_VECTORS")
}

/// Reads into `buffers` from `offset` on; how many bytes. 0 at the end of the file.
pub fn read_at(file: &File, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let vectors = vectors(buffers);
    let offset = position(offset)?;
    // SAFETY: each vector is a live `VolatileSlice`: mapped memory that may change under anybody's hands, so that the
    // kernel's writing breaks no promise.
    let read = unsafe { libc::preadv(file.as_raw_fd(), vectors.as_ptr(), count(&vectors), offset) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Writes `buffers` at `offset`; how many bytes.
pub fn write_at(file: &File, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let vectors = vectors(buffers);
    let offset = position(offset)?;
    // SAFETY: as in `read_at`; the kernel only reads.
    let written = unsafe { libc::pwritev(file.as_raw_fd(), vectors.as_ptr(), count(&vectors), offset) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// Changes how `len` bytes at `offset` are stored: fallocate(2).
pub fn fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
    let (offset, len) = (position(offset)?, position(len)?);
    // SAFETY: it takes no memory of ours.
    if unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// fcntl(2) about a lock on bytes of the file, owned by the open file description.
pub fn file_lock(file: &File, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: `lock` is a whole `flock` that lives over the call, which is what these commands take.
    if unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) } == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Memory whose address is a multiple of [`ALIGNMENT`], as O_DIRECT wants it.
pub struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

/// What every disk is content with.
pub const ALIGNMENT: usize = 4096;

impl AlignedBuffer {
    /// `len` bytes of zero.
    pub fn new(len: usize) -> Self {
        let bytes = vec![0; len + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        Self { bytes, start, len }
    }

    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.len]
    }

    /// The bytes as the other functions take them.
    pub fn slice(&mut self) -> VolatileSlice<'_> {
        VolatileSlice::from(self.bytes())
    }
}
