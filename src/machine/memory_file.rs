//! The files behind guest RAM that is not anonymous: memfds, files, hugetlbfs (memfd_create(2), tmpfile in open(2)).

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, MemfdFlags};

use crate::options::memory_backend::{MemoryBackend, MemorySource};

/// A file for guest RAM.
#[derive(Debug)]
pub struct MemoryFile {
    /// The file.
    pub file: File,
    /// Nobody has written to it yet.
    pub is_new: bool,
}

/// The bits of `memfd_create`'s flags that hold the logarithm of a huge page's size.
const HUGE_SHIFT: u32 = 26;

/// The file of `backend`, of `bytes` bytes at least; `None`: anonymous memory is meant.
pub fn open(backend: &MemoryBackend, bytes: u64) -> io::Result<Option<MemoryFile>> {
    let file = match &backend.source {
        MemorySource::Ram if !backend.share => return Ok(None),
        MemorySource::Ram => memfd(None, bytes)?,
        MemorySource::Memfd { huge_page } => memfd(*huge_page, bytes)?,
        MemorySource::File(path) if path.is_dir() => MemoryFile { file: nameless(path)?, is_new: true },
        MemorySource::File(path) => {
            let options = File::options().read(true).write(true).create(true).truncate(false).open(path);
            let file = options?;
            let is_new = file.metadata()?.len() == 0;
            MemoryFile { file, is_new }
        }
    };
    let metadata = file.file.metadata()?;
    if metadata.is_file() && file.is_new {
        file.file.set_len(bytes)?;
    } else if metadata.is_file() && metadata.len() < bytes {
        let mib = metadata.len() >> 20;
        return Err(io::Error::other(format!(
            "the file has {mib} MiB, and guest memory has {}",
            bytes >> 20
        )));
    }
    Ok(Some(file))
}

fn memfd(huge_page: Option<u64>, bytes: u64) -> io::Result<MemoryFile> {
    let mut flags = MemfdFlags::CLOEXEC;
    if let Some(page) = huge_page {
        flags |= MemfdFlags::HUGETLB;
        if page > 0 {
            if !bytes.is_multiple_of(page) {
                let kib = page >> 10;
                return Err(io::Error::other(format!(
                    "guest memory is no multiple of its pages of {kib} KiB"
                )));
            }
            flags |= MemfdFlags::from_bits_retain(page.trailing_zeros() << HUGE_SHIFT);
        }
    }
    let file = rustix::fs::memfd_create("guest-ram", flags)?.into();
    Ok(MemoryFile { file, is_new: true })
}

/// A file in `folder` that goes with the process.
fn nameless(folder: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true);
    match options.clone().custom_flags(libc::O_TMPFILE).mode(0o600).open(folder) {
        // Older hugetlbfs has none.
        Err(error) if error.kind() == ErrorKind::Unsupported || error.kind() == ErrorKind::IsADirectory => {
            let path = folder.join(format!(".guest-ram.{}", std::process::id()));
            let file = options.create_new(true).mode(0o600).open(&path)?;
            std::fs::remove_file(path)?;
            Ok(file)
        }
        opened => opened,
    }
}

/// The first `bytes` of the file are zero.
pub fn clear(file: &File, bytes: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, flags, 0, bytes) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NODEV) => {
            static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
            for at in (0..bytes).step_by(ZEROS.len()) {
                let here = usize::try_from(bytes - at).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
                file.write_all_at(&ZEROS[..here], at)?;
            }
            Ok(())
        }
        result => result.map_err(io::Error::from),
    }
}
