//! Raw images: files and block devices whose bytes are the disk's.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::VolatileSlice;

use super::direct::AlignedFile;
use super::lock::{LockConflict, lock_image};
use super::vectored::{AlignedBuffer, fallocate};
use super::{BlockBackend, CacheMode, SECTOR_BYTES};

/// How an image is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawOptions {
    /// Writing is refused.
    pub read_only: bool,
    /// What the host's page cache does.
    pub cache: CacheMode,
    /// Discarded ranges are given back to the host's file system.
    pub unmap: bool,
    /// No other program may have it.
    pub lock: bool,
}

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RawError {
    /// The host does not open it.
    #[error("cannot be opened")]
    Open(#[source] io::Error),
    /// The host does not open it for writing, but for reading.
    #[error("cannot be opened for writing (with readonly=on the guest can read it)")]
    NotWritable(#[source] io::Error),
    /// A folder, a pipe ...
    #[error("is {0}, not a file or a block device")]
    NotAnImage(&'static str),
    /// The host does not say how large it is.
    #[error("its size is not known")]
    Size(#[source] io::Error),
    /// Another program has it.
    #[error(transparent)]
    Locked(#[from] LockConflict),
}

/// An open raw image.
pub struct RawImage {
    file: AlignedFile,
    options: RawOptions,
    capacity: u64,
    /// The host could not write what was to be flushed. What its cache says is on the disk need not be.
    lost: AtomicBool,
}

/// Opens the file of an image, whatever its format.
pub(super) fn open_file(path: &Path, options: &RawOptions) -> Result<File, RawError> {
    let open = |read_only: bool| {
        // A pipe that nobody writes to would never open.
        let mut flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        if options.cache.is_direct() {
            flags |= libc::O_DIRECT;
        }
        OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(path)
    };
    let kind = std::fs::metadata(path).map_err(RawError::Open)?.file_type();
    let what = match kind {
        _ if kind.is_file() || kind.is_block_device() => None,
        _ if kind.is_dir() => Some("a folder"),
        _ if kind.is_char_device() => Some("a character device"),
        _ if kind.is_fifo() => Some("a pipe"),
        _ => Some("a socket"),
    };
    if let Some(what) = what {
        return Err(RawError::NotAnImage(what));
    }
    let file = open(options.read_only).map_err(|error| {
        let refused = matches!(error.raw_os_error(), Some(libc::EACCES | libc::EROFS | libc::EPERM));
        if refused && !options.read_only && open(true).is_ok() {
            RawError::NotWritable(error)
        } else {
            RawError::Open(error)
        }
    })?;
    if options.lock {
        lock_image(&file, options.read_only)?;
    }
    Ok(file)
}

impl RawImage {
    /// Opens `path`. Creates nothing, changes nothing.
    pub fn open(path: &Path, options: RawOptions) -> Result<Self, RawError> {
        let mut file = open_file(path, &options)?;
        let bytes = file.seek(SeekFrom::End(0)).map_err(RawError::Size)?;
        let capacity = bytes.next_multiple_of(SECTOR_BYTES);
        let file = AlignedFile::new(file, options.cache.is_direct());
        Ok(Self { file, options, capacity, lost: AtomicBool::new(false) })
    }

    fn zero_by_writing(&self, offset: u64, len: u64) -> io::Result<()> {
        const AT_ONCE: u64 = 1 << 20;
        let mut zeros = AlignedBuffer::new(usize::try_from(len.min(AT_ONCE)).expect("a megabyte at most"));
        let zeros = zeros.slice();
        let mut done = 0;
        while done < len {
            let here = (len - done).min(AT_ONCE);
            let piece = zeros.subslice(0, usize::try_from(here).expect("a megabyte at most"));
            self.file.write(offset + done, &[piece.expect("within the buffer")])?;
            done += here;
        }
        Ok(())
    }
}

/// The file system has no such operation.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::EINVAL))
}

impl BlockBackend for RawImage {
    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn is_read_only(&self) -> bool {
        self.options.read_only
    }

    fn read(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.file.read(offset, buffers)
    }

    fn write(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.file.write(offset, buffers)
    }

    fn flush(&self) -> io::Result<()> {
        if self.options.cache == CacheMode::Unsafe || self.options.read_only {
            return Ok(());
        }
        // The kernel reports a write that failed once, and forgets what it could not write.
        if self.lost.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.file.file().sync_data().inspect_err(|_| self.lost.store(true, Ordering::SeqCst))
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if !self.options.unmap {
            return Ok(());
        }
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        match fallocate(self.file.file(), mode, offset, len) {
            Err(error) if is_unsupported(&error) => Ok(()),
            result => result,
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let zero = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        let modes = if may_unmap && self.options.unmap { &[punch, zero][..] } else { &[zero][..] };
        for &mode in modes {
            match fallocate(self.file.file(), mode, offset, len) {
                Err(error) if is_unsupported(&error) => {}
                result => return result,
            }
        }
        self.zero_by_writing(offset, len)
    }
}
