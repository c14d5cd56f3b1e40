//! The host's mappings: reserved for windows, and windows.

#![expect(
    unsafe_code,
    reason = "door: maps guest RAM at fixed addresses, all of which this module has reserved"
)]

use std::ops::Range;

use crate::ram::PAGE;
use crate::windows::Backing;

const NOTHING: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

fn len(range: &Range<u64>) -> usize {
    (range.end - range.start) as usize
}

/// Reserves `range`, if nothing is there.
pub fn reserve(range: &Range<u64>) -> bool {
    let (start, len) = (range.start, len(range));
    let flags = NOTHING | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: MAP_FIXED_NOREPLACE leaves what exists as it is.
    let got = unsafe { libc::mmap(start as *mut _, len, libc::PROT_NONE, flags, -1, 0) };
    if got == libc::MAP_FAILED {
        return false;
    }
    if got as u64 != start {
        // A kernel that does not know the flag takes the address for a wish.
        // SAFETY: just mapped, and nobody knows of it.
        unsafe { libc::munmap(got, len) };
        return false;
    }
    true
}

/// Gives `range` back, which is reserved and without windows.
pub fn release(range: &Range<u64>) {
    // SAFETY: the range was reserved by this module, which alone maps anything there. Nothing is lost if the host refuses.
    unsafe { libc::munmap(range.start as *mut _, len(range)) };
}

/// Has `range`, which is reserved, be without windows.
pub fn clear(range: &Range<u64>) {
    let flags = NOTHING | libc::MAP_FIXED;
    // SAFETY: the range was reserved by this module, which alone maps anything there.
    let got = unsafe { libc::mmap(range.start as *mut _, len(range), libc::PROT_NONE, flags, -1, 0) };
    // Of what is reserved no page may stay where the guest has another.
    assert!(got as u64 == range.start, "windows cannot be closed: {}", std::io::Error::last_os_error());
}

/// Shows `backing` in `range`, which is reserved. False: the host refused, and `range` is without windows.
pub fn show(range: &Range<u64>, backing: Backing, writable: bool) -> bool {
    let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
    let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_POPULATE;
    let (at, offset) = (range.start as *mut _, backing.offset as libc::off_t);
    // SAFETY: the range is reserved, where nothing but windows lie; the file is guest RAM.
    let got = unsafe { libc::mmap(at, len(range), protection, flags, backing.file, offset) };
    let shown = got as u64 == range.start;
    if !shown {
        // MAP_FIXED may have unmapped what was reserved.
        clear(range);
    }
    shown
}

/// The window at page address `at` cannot be written any more.
pub fn protect(at: u64) {
    // SAFETY: a window of this module's; fewer rights harm nobody.
    let done = unsafe { libc::mprotect(at as *mut _, PAGE as usize, libc::PROT_READ) };
    assert!(done == 0, "a window cannot be protected: {}", std::io::Error::last_os_error());
}
