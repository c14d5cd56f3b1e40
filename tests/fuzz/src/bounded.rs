//! An allocator that ends the process when a guest makes it take much memory, at the allocation that does.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// One allocation at most. Guests of these targets have a MiB of memory, and files of a few KiB.
const MOST_AT_ONCE: usize = 64 << 20;
/// All that is allocated at one time.
const MOST: usize = 512 << 20;

/// Counts what is allocated.
struct Bounded {
    bytes: AtomicUsize,
}

#[global_allocator]
static ALLOCATOR: Bounded = Bounded { bytes: AtomicUsize::new(0) };

impl Bounded {
    fn take(&self, bytes: usize) {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if bytes > MOST_AT_ONCE || before + bytes > MOST {
            // The panic has to allocate.
            self.bytes.store(0, Ordering::Relaxed);
            panic!("an allocation of {bytes} bytes beside {before}: too much memory");
        }
    }

    fn give(&self, bytes: usize) {
        // Never below zero, whatever is counted after the panic.
        let less = |count: usize| Some(count.saturating_sub(bytes));
        let _ = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

// SAFETY: all is the system's allocator's, with its own arguments.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.take(layout.size());
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.take(layout.size());
        // SAFETY: as the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        self.give(layout.size());
        self.take(bytes);
        // SAFETY: as the caller's.
        unsafe { System.realloc(at, layout, bytes) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        self.give(layout.size());
        // SAFETY: as the caller's.
        unsafe { System.dealloc(at, layout) }
    }
}
