//! The memory that the tester and its native process share, and what a case and its outcome are.

#![expect(unsafe_code, reason = "door: views of a shared mapping, handed over by messages through a pipe")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::layout::{CODE, CODE_BYTES, PAGE, WRITABLE_BYTES, XSAVE_BYTES};

/// Cases in a batch.
pub const BATCH: usize = 128;
/// Two in flight, and one for looking at a single case.
pub const BATCHES: usize = 3;
/// The batch for single cases.
pub const PROBE: usize = 2;
/// Initial vector states to choose from.
pub const VECTOR_TEMPLATES: usize = 64;
/// Initial contents of the writable pages to choose from.
pub const MEMORY_TEMPLATES: usize = 32;

/// What a case starts from.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Input {
    /// In the encoding's order.
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    pub gs_base: u64,
    /// 64, or 32 for compatibility mode.
    pub bits: u32,
    pub vector_template: u32,
    pub memory_template: u32,
    /// The guest's privilege level, 0 or 3; the native side is always 3.
    pub cpl: u32,
}

/// Pseudo vectors of an outcome.
pub mod ending {
    /// The stream ran to its end.
    pub const DONE: u32 = 0x80;
    /// It did not end within the time allowed.
    pub const TIMEOUT: u32 = 0x100;
    /// The engine did not end it; the host did.
    pub const HANG: u32 = 0x102;
    /// A vector no stream can cause; it says the engine failed.
    pub const ENGINE: u32 = 0x101;
}

/// What a case ends with.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct Outcome {
    /// Image of the vector state, standard format.
    pub xsave: [u8; XSAVE_BYTES],
    /// The data pages and the stack page.
    pub memory: [u8; WRITABLE_BYTES],
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    pub cr2: u64,
    pub error: u32,
    /// Exception vector, or one of [`ending`].
    pub vector: u32,
}

impl Outcome {
    pub fn new() -> Box<Self> {
        Box::new(Self {
            xsave: [0; XSAVE_BYTES],
            memory: [0; WRITABLE_BYTES],
            gpr: [0; 16],
            rip: 0,
            rflags: 0,
            cr2: 0,
            error: 0,
            vector: 0,
        })
    }
}

/// One case in a batch.
#[repr(C)]
pub struct Slot {
    pub outcome: Outcome,
    pub input: Input,
}

#[repr(C, align(4096))]
struct Control {
    vectors: [[u8; XSAVE_BYTES]; VECTOR_TEMPLATES],
    memories: [[u8; WRITABLE_BYTES]; MEMORY_TEMPLATES],
    read_only: [u8; PAGE],
    progress: AtomicU32,
    slots: [[Slot; BATCH]; BATCHES],
}

/// The shared memory: templates, two batches of slots, and the code arena. Each side maps it once and keeps it.
///
/// Templates are written before the native process starts. A batch belongs to the side that last got the message
/// about it; the code arena is written by the tester only, at places no running batch uses.
pub struct Shared {
    control: *mut Control,
    code: *mut u8,
    control_file: File,
    code_file: File,
}

/// A file of `bytes` zeros in memory.
pub fn memfd(name: &std::ffi::CStr, bytes: usize) -> io::Result<File> {
    // SAFETY: a valid name; the new descriptor is owned by nobody else. Not close-on-exec: the native process inherits it.
    let file = unsafe {
        let fd = libc::memfd_create(name.as_ptr(), 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        File::from_raw_fd(fd)
    };
    file.set_len(bytes as u64)?;
    Ok(file)
}

fn map(file: &File, bytes: usize) -> io::Result<*mut u8> {
    // SAFETY: a fresh shared mapping at an address of the kernel's choice; it is never unmapped.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(at.cast()) }
}

impl Shared {
    pub fn new() -> io::Result<Self> {
        let control_file = memfd(c"differential-control", size_of::<Control>())?;
        let code_file = memfd(c"differential-code", CODE_BYTES)?;
        let shared = Self::over(control_file, code_file)?;
        // INT3 wherever no stream was put: one that loses its way ends soon.
        shared.write_code(0, &vec![0xcc; CODE_BYTES]);
        Ok(shared)
    }

    /// In the native process: the descriptors that it inherited.
    pub fn inherited(control: i32, code: i32) -> io::Result<Self> {
        // SAFETY: the tester passed these numbers for descriptors that it left open across exec; nobody else here owns them.
        let (control, code) = unsafe { (File::from_raw_fd(control), File::from_raw_fd(code)) };
        Self::over(control, code)
    }

    fn over(control_file: File, code_file: File) -> io::Result<Self> {
        let control = map(&control_file, size_of::<Control>())?.cast();
        let code = map(&code_file, CODE_BYTES)?;
        Ok(Self { control, code, control_file, code_file })
    }

    pub fn descriptors(&self) -> (i32, i32) {
        (self.control_file.as_raw_fd(), self.code_file.as_raw_fd())
    }

    /// The templates, to be filled before the native process starts.
    pub fn templates_mut(
        &mut self,
    ) -> (&mut [[u8; XSAVE_BYTES]], &mut [[u8; WRITABLE_BYTES]], &mut [u8; PAGE]) {
        // SAFETY: the mapping is `Control`-sized and all-zero bytes are valid for it; no other process has it yet.
        let control = unsafe { &mut *self.control };
        (&mut control.vectors, &mut control.memories, &mut control.read_only)
    }

    pub fn vector(&self, index: u32) -> &[u8; XSAVE_BYTES] {
        // SAFETY: templates do not change once the native process runs.
        unsafe { &(*self.control).vectors[index as usize] }
    }

    pub fn memory(&self, index: u32) -> &[u8; WRITABLE_BYTES] {
        // SAFETY: as for `vector`.
        unsafe { &(*self.control).memories[index as usize] }
    }

    pub fn read_only(&self) -> &[u8; PAGE] {
        // SAFETY: as for `vector`.
        unsafe { &(*self.control).read_only }
    }

    /// Which case the native process is running.
    pub fn progress(&self) -> u32 {
        // SAFETY: an atomic inside the mapping.
        unsafe { (*self.control).progress.load(Ordering::Relaxed) }
    }

    pub fn set_progress(&self, value: u32) {
        // SAFETY: as for `progress`.
        unsafe { (*self.control).progress.store(value, Ordering::Relaxed) }
    }

    /// Batch `index`.
    ///
    /// # Safety
    /// The caller's side owns the batch now, and has no other view of it.
    #[expect(clippy::mut_from_ref, reason = "the batches are handed over by messages, not by borrows")]
    pub unsafe fn batch(&self, index: usize) -> &mut [Slot; BATCH] {
        // SAFETY: the caller's promise.
        unsafe { &mut (*self.control).slots[index] }
    }

    /// Writes `bytes` at `offset` of the code arena.
    pub fn write_code(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= CODE_BYTES, "a stream fits its place in the arena");
        // SAFETY: inside the mapping, which nobody holds a Rust reference to.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.code.add(offset), bytes.len()) }
    }

    /// Bytes of the code arena from `address` on, as many of `count` as there are.
    pub fn code_at(&self, address: u64, count: usize) -> Vec<u8> {
        let Some(offset) = address.checked_sub(CODE).map(|offset| offset as usize) else { return Vec::new() };
        let count = count.min(CODE_BYTES.saturating_sub(offset));
        // SAFETY: inside the mapping; the tester, which is the only one to write there, is here.
        (0..count).map(|at| unsafe { self.code.add(offset + at).read() }).collect()
    }
}
