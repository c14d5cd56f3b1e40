//! The code buffer: one stretch of memory, mapped twice, never writable and executable at one address. It is filled region by
//! region, several at a time, and a region can be filled again as a whole.

#![expect(unsafe_code, reason = "door: the two mappings of generated code")]

use std::io::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::huge_pages::{HUGE_PAGE, HugePages, Wanted};

/// Two views of the same pages: one to write, one to execute. Pages that were never written take no memory.
pub struct CodeBuffer {
    writable: *mut u8,
    executable: *const u8,
    len: usize,
    region_len: usize,
    /// Regions that have been filled, or are being.
    opened: usize,
    reserved: usize,
    /// Bytes that huge pages were asked for.
    huge: usize,
    huge_pages: HugePages,
}

/// Where in a region that is being filled the next piece goes.
pub struct Cursor {
    used: usize,
    end: usize,
    /// Up to where the host has been asked for pages.
    populated: usize,
}

impl Cursor {
    /// Bytes left in the region.
    pub fn free(&self) -> usize {
        self.end - self.used
    }
}

/// Bytes that the host is asked for at a time: one request costs it a third of what a fault for each page of both views does.
const CHUNK: usize = 512 << 10;
/// Bytes of a region: one that is filled again has its huge page already.
const REGION: usize = HUGE_PAGE;
/// Regions at least: small buffers have smaller ones.
const MIN_REGIONS: usize = 4;
/// Bytes before its first one that a huge page is asked for: filled is later, and then it would have to be copied.
const AHEAD: usize = 1 << 20;

// SAFETY: plain memory; all writing goes through `&mut self`, and running code is never overwritten while a CPU may be
// in it (see `code::cache`).
unsafe impl Send for CodeBuffer {}

impl CodeBuffer {
    /// Maps `len` bytes (a multiple of the page size) of code memory.
    pub fn new(len: usize) -> Result<Self> {
        // SAFETY: the name is a NUL-terminated literal.
        let fd = unsafe { libc::memfd_create(c"bivisor-code".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: `fd` was just made and nobody else owns it.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: an ftruncate of our own file.
        if unsafe { libc::ftruncate(file.as_raw_fd(), len as libc::off_t) } != 0 {
            return Err(Error::last_os_error());
        }
        let writable = map(&file, len, libc::PROT_READ | libc::PROT_WRITE)?;
        let executable = map(&file, len, libc::PROT_READ | libc::PROT_EXEC)?;
        let region_len = REGION.min(len / MIN_REGIONS) / 4096 * 4096;
        Ok(Self {
            writable,
            executable,
            len,
            region_len,
            opened: 0,
            reserved: 0,
            huge: 0,
            huge_pages: HugePages::new(),
        })
    }

    /// Regions that there are.
    pub fn regions(&self) -> usize {
        self.len / self.region_len
    }

    /// Bytes of a region.
    pub fn region_len(&self) -> usize {
        self.region_len
    }

    /// The region that `cursor` fills.
    pub fn region(&self, cursor: &Cursor) -> usize {
        cursor.end / self.region_len - 1
    }

    /// Where executable address `at` is in the buffer.
    pub fn offset(&self, at: u64) -> Option<u32> {
        self.range().contains(&at).then(|| (at - self.executable as u64) as u32)
    }

    /// The next region that was never filled.
    pub fn fresh(&self) -> Option<usize> {
        (self.opened < self.regions()).then_some(self.opened)
    }

    /// What fills `region` from its start. What was in it is gone: no CPU may be in it, nor on its way there.
    pub fn open(&mut self, region: usize) -> Cursor {
        assert!(region <= self.opened && region < self.regions(), "regions are begun one after another");
        self.opened = self.opened.max(region + 1);
        let used = (region * self.region_len).max(self.reserved);
        self.want_huge(self.opened);
        Cursor { used, end: (region + 1) * self.region_len, populated: used }
    }

    /// Where what `cursor` appends next will be executed.
    pub fn next_address(&self, cursor: &Cursor) -> u64 {
        self.executable as u64 + cursor.used as u64
    }

    /// Executable addresses.
    pub fn range(&self) -> std::ops::Range<u64> {
        self.executable as u64..self.executable as u64 + self.len as u64
    }

    /// Appends `code` where `cursor` is, and returns its executable address. The next piece starts on a 16-byte boundary.
    ///
    /// # Panics
    /// If it does not fit: the caller asks [`Cursor::free`] first.
    pub fn append(&mut self, cursor: &mut Cursor, code: &[u8]) -> u64 {
        assert!(code.len() <= cursor.free(), "the caller makes room first");
        let address = self.next_address(cursor);
        while cursor.used + code.len() > cursor.populated {
            self.populate(cursor);
        }
        self.put(cursor.used, code);
        cursor.used = (cursor.used + code.len()).next_multiple_of(16).min(cursor.end);
        if cursor.free() < AHEAD {
            // The next region is begun soon.
            self.want_huge(self.opened + 1);
        }
        address
    }

    fn put(&mut self, at: usize, code: &[u8]) {
        // SAFETY: the target lies within the writable view, past everything that is in use.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(at), code.len()) };
    }

    /// Asks for huge pages for the first `regions`.
    fn want_huge(&mut self, regions: usize) {
        while self.huge < regions * self.region_len && self.huge + HUGE_PAGE <= self.len {
            let (executable, writable) = (self.executable as usize, self.writable as usize);
            self.huge_pages.want(Wanted::Code(executable + self.huge, writable + self.huge));
            self.huge += HUGE_PAGE;
        }
    }

    /// Has the host give the next pages. Where it cannot, they come one by one as they are touched.
    fn populate(&mut self, cursor: &mut Cursor) {
        let start = cursor.populated / 4096 * 4096;
        let len = CHUNK.min(self.len - start);
        // SAFETY: a stretch of each of our own mappings, whose contents do not change.
        unsafe {
            libc::madvise(self.writable.add(start).cast(), len, libc::MADV_POPULATE_WRITE);
            libc::madvise(self.executable.add(start).cast_mut().cast(), len, libc::MADV_POPULATE_READ);
        }
        cursor.populated = start + len;
    }

    /// Has `code` stay for good at the start of all: before any region is begun, and less than one.
    pub fn reserve(&mut self, code: &[u8]) {
        assert!(self.opened == 0 && code.len() < self.region_len, "it is there before all else");
        self.put(0, code);
        self.reserved = code.len().next_multiple_of(16);
    }

    /// Frees all but the reserved start. No CPU may be in generated code, and nothing is filled any more.
    pub fn clear(&mut self) {
        self.opened = 0;
    }

    /// Replaces the 4-byte displacement of a jump at executable address `at` (within an aligned 8 bytes) so that it goes to
    /// `target`. Atomic: a CPU that runs the jump takes the old or the new way.
    pub fn patch_jump(&mut self, at: u64, target: u64) {
        self.patch_word(at, target.wrapping_sub(at + 4) as u32);
    }

    /// Replaces the 4 bytes at executable address `at`, a constant operand. Atomic, for which they must lie within an aligned 8
    /// bytes (SDM vol. 3A, *Guaranteed Atomic Operations*; APM vol. 2, *Access Atomicity*).
    pub fn patch_word(&mut self, at: u64, value: u32) {
        assert!(at % 8 <= 4 && self.range().contains(&at), "words to patch are aligned and in the buffer");
        let (offset, shift) = ((at - self.executable as u64) as usize & !7, at % 8 * 8);
        // SAFETY: in the writable view by the check above, 8-aligned (the views are page-aligned, their length is too).
        let word = unsafe { AtomicU64::from_ptr(self.writable.add(offset).cast()) };
        // `&mut self`: nobody else writes here.
        let rest = word.load(Ordering::Relaxed) & !(u64::from(u32::MAX) << shift);
        word.store(rest | u64::from(value) << shift, Ordering::Release);
    }

    /// The generated bytes at `range` of executable addresses, for `-d out_asm`.
    pub fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let offset = (address - self.executable as u64) as usize;
        assert!(offset + len <= self.len, "within the buffer");
        // SAFETY: within the mapping; nobody writes meanwhile, that takes `&mut self`.
        unsafe { std::slice::from_raw_parts(self.writable.add(offset), len) }.to_vec()
    }
}

/// A new view of `len` bytes of `file` that begins on the boundary of a huge page.
fn map(file: &OwnedFd, len: usize, protection: libc::c_int) -> Result<*mut u8> {
    let map = |at: *mut libc::c_void, len, protection, flags, fd| {
        // SAFETY: a fresh mapping where the kernel chooses, or one in the stretch that was just reserved.
        let at = unsafe { libc::mmap(at, len, protection, flags, fd, 0) };
        if at == libc::MAP_FAILED { Err(Error::last_os_error()) } else { Ok(at) }
    };
    let reserve = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let hole = map(std::ptr::null_mut(), len + HUGE_PAGE, libc::PROT_NONE, reserve, -1)?;
    let before = hole.align_offset(HUGE_PAGE);
    let at = hole.wrapping_byte_add(before);
    let view = map(at, len, protection, libc::MAP_SHARED | libc::MAP_FIXED, file.as_raw_fd())?;
    // SAFETY: what the view did not take of the reserved stretch, which nobody else knows.
    unsafe {
        libc::munmap(hole, before);
        libc::munmap(at.wrapping_byte_add(len), HUGE_PAGE - before);
    }
    Ok(view.cast())
}

impl Drop for CodeBuffer {
    fn drop(&mut self) {
        self.huge_pages.stop();
        // SAFETY: both were mapped in `new`; generated code that is still entered would be a bug of the caller's, who
        // owns the CPUs' threads.
        unsafe {
            libc::munmap(self.writable.cast(), self.len);
            libc::munmap(self.executable.cast_mut().cast(), self.len);
        }
    }
}
