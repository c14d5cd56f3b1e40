//! Descriptors that whoever started the process handed down, named by their numbers.

#![expect(unsafe_code, reason = "door: a number becomes a descriptor")]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};

/// A descriptor for what `number` is, which programs that we start do not inherit. Whose it is cannot be known, so it stays open.
pub fn claim(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(Errno::BADF.into());
    }
    // SAFETY: it is not -1, and used for these calls only, which find out themselves whether it is open; nothing is closed by it.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl_getfd(fd)?;
    fcntl_setfd(fd, flags | FdFlags::CLOEXEC)?;
    Ok(fcntl_dupfd_cloexec(fd, 3)?)
}
