//! Locks that keep a second program off an image, with QEMU's meaning, so that each sees the other's.
//!
//! A program that does something with the image (reads it, writes it) holds a shared lock on the byte that stands for that;
//! one that does not bear others doing it holds a shared lock on that thing's second byte. Before it goes on it looks
//! whether anybody does what it does not bear, or does not bear what it does (QEMU, `block/file-posix.c`; fcntl(2),
//! *Open file description locks*). The kernel takes the locks back when the program ends, however it does.

use std::fs::File;
use std::io;

use super::vectored::file_lock;

/// The image is in use.
#[derive(Debug, thiserror::Error)]
#[error("in use by another process, which {}", if *.writes { "writes to it" } else { "does not want it written to" })]
pub struct LockConflict {
    /// Somebody writes to it; otherwise somebody does not want it written to.
    pub writes: bool,
}

/// Bytes that stand for what is done with an image, and for what others may not do with it.
const DONE: i64 = 100;
const NOT_BORNE: i64 = 200;
const READ: i64 = 0;
const WRITE: i64 = 1;

/// `Err`: the image is in use. Where there are no such locks, it is left unlocked. The locks last as long as `file` and its
/// duplicates.
pub fn lock_image(file: &File, read_only: bool) -> Result<(), LockConflict> {
    if take(file, DONE + READ).and_then(|()| take(file, NOT_BORNE + WRITE)).is_err() {
        return Ok(());
    }
    if is_taken(file, DONE + WRITE) {
        return Err(LockConflict { writes: true });
    }
    if is_taken(file, NOT_BORNE + READ) {
        return Err(LockConflict { writes: false });
    }
    if !read_only {
        // Nobody may mind; and from here on everybody who comes sees it.
        if take(file, DONE + WRITE).is_err() {
            return Ok(());
        }
        if is_taken(file, NOT_BORNE + WRITE) {
            return Err(LockConflict { writes: is_taken(file, DONE + WRITE) });
        }
    }
    Ok(())
}

fn lock(kind: libc::c_int, byte: i64) -> libc::flock {
    libc::flock {
        l_type: libc::c_short::try_from(kind).expect("F_RDLCK and its like are small"),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).expect("SEEK_SET is 0"),
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

fn take(file: &File, byte: i64) -> io::Result<()> {
    file_lock(file, libc::F_OFD_SETLK, &mut lock(libc::F_RDLCK, byte))
}

/// Whether somebody else has a lock on the byte: whether it could not be locked by us alone. Our own locks do not count.
fn is_taken(file: &File, byte: i64) -> bool {
    let mut probe = lock(libc::F_WRLCK, byte);
    file_lock(file, libc::F_OFD_GETLK, &mut probe).is_ok() && i32::from(probe.l_type) != libc::F_UNLCK
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    fn open(file: &vmm_sys_util::tempfile::TempFile) -> File {
        OpenOptions::new().read(true).write(true).open(file.as_path()).unwrap()
    }

    #[test]
    fn one_writer_or_many_readers() {
        let image = vmm_sys_util::tempfile::TempFile::new().unwrap();
        let (one, other, third) = (open(&image), open(&image), open(&image));
        lock_image(&one, true).unwrap();
        lock_image(&other, true).unwrap();
        assert!(!lock_image(&third, false).unwrap_err().writes);
        drop((one, other, third));
        let (one, other) = (open(&image), open(&image));
        lock_image(&one, false).unwrap();
        assert!(lock_image(&other, false).unwrap_err().writes);
        let third = open(&image);
        assert!(lock_image(&third, true).unwrap_err().writes);
        drop(one);
        drop(third);
        // A failed attempt leaves locks behind until its file is closed.
        drop(other);
        lock_image(&open(&image), false).unwrap();
    }
}
