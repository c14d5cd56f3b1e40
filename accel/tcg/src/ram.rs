//! Guest RAM as the translator reaches it: host addresses by guest physical page, and what is known of each page.

#![expect(unsafe_code, reason = "door: raw access to guest memory, which the guest may change at any time")]

use std::os::fd::AsRawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::env::Walk;
use crate::windows::Backing;
use vm_memory::{Address, FileOffset, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// A page of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamPage {
    /// Host address of its first byte.
    pub host: u64,
    /// Its number among all RAM pages.
    pub index: u32,
}

struct Region {
    start: u64,
    len: u64,
    host: u64,
    first_page: u32,
    /// The file that it is a shared mapping of, and where in it.
    file: Option<FileOffset>,
}

/// Guest RAM.
pub struct Ram {
    regions: Vec<Region>,
    /// Non-zero: the page holds translated code, so no write TLB entry may map it.
    code: Box<[AtomicU8]>,
    /// By CPU.
    write_notes: [OnceLock<WriteNotes>; MAX_CPUS],
    pages: u32,
    /// Keeps the mappings alive.
    _memory: GuestMemoryMmap,
}

/// CPUs that a machine can have.
pub const MAX_CPUS: usize = 64;

/// What a page's code mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CodeMark {
    /// No block was made of it.
    None,
    /// No CPU makes a write entry for it any more, but some may still have one.
    Revoking,
    /// No CPU has a write entry for it.
    Set,
}

/// Where the write TLB entries of one CPU may map each page of RAM; 0: nowhere. Written by that CPU, looked at by all.
pub struct WriteNotes(Vec<u32>);

/// [`WriteNotes`]: several TLB entries may map the page.
pub const SEVERAL: u32 = u32::MAX;

impl WriteNotes {
    fn slot(&self, index: u32) -> &AtomicU32 {
        let slot = &raw const self.0[index as usize];
        // SAFETY: an aligned u32 that lives as long as `self` and that nobody reaches but through this and, as atomically,
        // generated code.
        unsafe { AtomicU32::from_ptr(slot.cast_mut()) }
    }

    /// Whether an entry may map the page.
    pub fn may_have(&self, index: u32) -> bool {
        self.slot(index).load(Ordering::SeqCst) != 0
    }

    /// Notes that write TLB entry number `entry` (non-zero) is going to map the page. Then the owner looks at the page's code
    /// mark; whoever sets the mark looks here after. So one of them sees the other.
    pub fn note(&self, index: u32, entry: u32) {
        let slot = self.slot(index);
        let before = slot.load(Ordering::Relaxed);
        if before != entry {
            slot.swap(if before == 0 { entry } else { SEVERAL }, Ordering::SeqCst);
        }
    }

    /// Takes the note: 0, an entry number, or [`SEVERAL`].
    pub fn take(&self, index: u32) -> u32 {
        self.slot(index).swap(0, Ordering::SeqCst)
    }
}

impl Ram {
    /// The RAM of `memory`. Regions that do not start or end on a page boundary lose their ragged ends.
    pub fn new(memory: &GuestMemoryMmap) -> Self {
        let mut regions = Vec::new();
        let mut pages = 0u32;
        for region in memory.iter() {
            let start = region.start_addr().raw_value();
            let len = region.len() & !(PAGE - 1);
            if start % PAGE != 0 || len == 0 {
                continue;
            }
            let host = region.as_ptr() as u64;
            // A private mapping shows other pages than the file once it was written to.
            let shared = region.flags() & libc::MAP_SHARED != 0;
            let file = region.file_offset().filter(|_| shared).cloned();
            regions.push(Region { start, len, host, first_page: pages, file });
            pages += (len / PAGE) as u32;
        }
        Self {
            regions,
            code: (0..pages).map(|_| AtomicU8::new(0)).collect(),
            write_notes: [const { OnceLock::new() }; MAX_CPUS],
            pages,
            _memory: memory.clone(),
        }
    }

    /// The notes of CPU `cpu` (below [`MAX_CPUS`]).
    pub fn write_notes(&self, cpu: usize) -> &WriteNotes {
        // Zeroed memory takes no room until it is written.
        self.write_notes[cpu].get_or_init(|| WriteNotes(vec![0; self.pages as usize]))
    }

    /// Tells refills in generated code of CPU `cpu` where RAM is: its first two regions.
    pub fn describe(&self, cpu: usize, walk: &mut Walk) {
        let mut rest = self.regions.as_slice();
        if let [first, others @ ..] = rest
            && first.start == 0
        {
            (walk.low_end, walk.low_host) = (first.len, first.host);
            rest = others;
        }
        if let [next, ..] = rest {
            (walk.high_start, walk.high_len) = (next.start, next.len);
            (walk.high_host, walk.high_page) = (next.host, next.first_page.into());
        }
        walk.code = self.code.as_ptr() as u64;
        walk.write_entry = self.write_notes(cpu).0.as_ptr() as u64;
    }

    /// The RAM page that holds guest physical address `gpa`; `None` outside RAM.
    pub fn page(&self, gpa: u64) -> Option<RamPage> {
        for region in &self.regions {
            let offset = gpa.wrapping_sub(region.start);
            if offset < region.len {
                let page = offset / PAGE;
                return Some(RamPage {
                    host: region.host + page * PAGE,
                    index: region.first_page + page as u32,
                });
            }
        }
        None
    }

    /// Whether all of it is a file's, so that it can be mapped once more.
    pub fn is_file(&self) -> bool {
        self.regions.iter().all(|region| region.file.is_some())
    }

    /// What shows the page at guest physical address `gpa` once more, and how many pages follow it there, itself included.
    pub fn backing(&self, gpa: u64) -> Option<(Backing, u64)> {
        let region = self.regions.iter().find(|region| gpa.wrapping_sub(region.start) < region.len)?;
        let offset = (gpa - region.start) & !(PAGE - 1);
        let file = region.file.as_ref()?;
        let backing = Backing {
            file: file.file().as_raw_fd(),
            offset: file.start() + offset,
            host: region.host + offset,
        };
        Some((backing, (region.len - offset) / PAGE))
    }

    /// The RAM page numbered `index`, as guest physical address.
    pub fn gpa_of(&self, index: u32) -> Option<u64> {
        let region = self.regions.iter().rev().find(|region| region.first_page <= index)?;
        Some(region.start + u64::from(index - region.first_page) * PAGE)
    }

    /// Whether the page holds translated code, or is going to.
    pub fn is_code(&self, index: u32) -> bool {
        self.code[index as usize].load(Ordering::SeqCst) != CodeMark::None as u8
    }

    /// Whether the page's mark is [`CodeMark::Set`].
    pub fn is_protected(&self, index: u32) -> bool {
        self.code[index as usize].load(Ordering::SeqCst) == CodeMark::Set as u8
    }

    /// Marks or unmarks a page as holding translated code.
    pub fn set_code(&self, index: u32, mark: CodeMark) {
        self.code[index as usize].store(mark as u8, Ordering::SeqCst);
    }

    /// The aligned 8 bytes of RAM at `gpa` as an atomic, for page-table entries.
    pub fn entry64(&self, gpa: u64) -> Option<&AtomicU64> {
        let page = self.page(gpa)?;
        let address = page.host + (gpa & (PAGE - 1) & !7);
        // SAFETY: `page` lies in a mapping that `self` keeps alive; the address is 8-aligned within the page. Guest
        // memory is shared with the guest's CPUs, which is what atomics are for.
        Some(unsafe { AtomicU64::from_ptr(address as *mut u64) })
    }

    /// The aligned 4 bytes of RAM at `gpa` as an atomic, for page-table entries of 32-bit paging.
    pub fn entry32(&self, gpa: u64) -> Option<&AtomicU32> {
        let page = self.page(gpa)?;
        let address = page.host + (gpa & (PAGE - 1) & !3);
        // SAFETY: as in `entry64`, 4-aligned.
        Some(unsafe { AtomicU32::from_ptr(address as *mut u32) })
    }
}

/// Copies from guest RAM at host address `from`.
///
/// `from..from + into.len()` lies in one [`RamPage`] of a live [`Ram`] (the soft TLB only holds such addresses).
pub fn load(from: u64, into: &mut [u8]) {
    // SAFETY: the caller's address is of guest RAM as said above, which never overlaps a Rust object; a concurrent
    // store of another CPU can tear the value, as it can on hardware.
    unsafe { std::ptr::copy_nonoverlapping(from as *const u8, into.as_mut_ptr(), into.len()) }
}

/// Copies to guest RAM at host address `to`; see [`load`].
pub fn store(to: u64, from: &[u8]) {
    // SAFETY: as in `load`.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) }
}

/// Reads an integer of `size` bytes (1, 2, 4, 8), zero-extended, in one access; see [`load`].
pub fn load_int(from: u64, size: usize) -> u64 {
    // SAFETY: as in `load`. One unaligned volatile access each, so that aligned ones do not tear.
    unsafe {
        match size {
            1 => u64::from((from as *const u8).read_volatile()),
            2 => u64::from((from as *const u16).read_unaligned()),
            4 => u64::from((from as *const u32).read_unaligned()),
            _ => (from as *const u64).read_unaligned(),
        }
    }
}

/// Writes an integer of `size` bytes (1, 2, 4, 8) in one access; see [`load`].
pub fn store_int(to: u64, size: usize, value: u64) {
    // SAFETY: as in `load_int`.
    unsafe {
        match size {
            1 => (to as *mut u8).write_volatile(value as u8),
            2 => (to as *mut u16).write_unaligned(value as u16),
            4 => (to as *mut u32).write_unaligned(value as u32),
            _ => (to as *mut u64).write_unaligned(value),
        }
    }
}
