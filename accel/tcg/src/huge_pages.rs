//! Huge pages for code and windows: a guest's programs become many times as large as they were, and a miss of the host's TLB
//! walks two sets of page tables where the host is a guest itself.
//!
//! The memory is shared (it is mapped twice), and hosts give huge pages to shared memory only where it is asked for each time
//! (madvise(2), `MADV_COLLAPSE`, Linux 6.1). That can take milliseconds, so a thread does it, for code before there is much to
//! copy; a CPU that comes along meanwhile waits for its page.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// Bytes of a huge page.
pub const HUGE_PAGE: usize = 2 << 20;

/// madvise(2), `MADV_COLLAPSE`.
const MADV_COLLAPSE: libc::c_int = 25;

/// What is to become a huge page: addresses of the places where it is mapped, multiples of [`HUGE_PAGE`].
#[derive(Clone, Copy, Debug)]
pub enum Wanted {
    /// Memory that is going to be filled, as it can be executed and as it can be written.
    Code(usize, usize),
    /// A window ([`crate::windows`]). It may be gone when its turn comes: whatever is there then stays as it is.
    Window(usize),
}

/// Asks for huge pages in a thread of its own, which starts with the first one.
#[derive(Default)]
pub struct HugePages {
    thread: Option<(Sender<Wanted>, JoinHandle<()>)>,
    stopped: Arc<AtomicBool>,
}

impl HugePages {
    /// No thread so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for `wanted`, when what was asked for before is done.
    pub fn want(&mut self, wanted: Wanted) {
        if self.thread.is_none() {
            let (sender, receiver) = channel();
            let stopped = Arc::clone(&self.stopped);
            let thread = std::thread::Builder::new()
                .name("huge pages".to_owned())
                .spawn(move || collapse_all(&receiver, &stopped));
            self.thread = thread.ok().map(|thread| (sender, thread));
        }
        if let Some((sender, _)) = &self.thread {
            // The thread has ended where the host cannot do it: then nothing is missing but speed.
            let _ = sender.send(wanted);
        }
    }

    /// Returns when nothing is asked of the host any more: the mappings may go.
    pub fn stop(&mut self) {
        if let Some((sender, thread)) = self.thread.take() {
            self.stopped.store(true, Ordering::Relaxed);
            drop(sender);
            let _ = thread.join();
        }
    }
}

fn collapse_all(wanted: &Receiver<Wanted>, stopped: &AtomicBool) {
    while let Ok(wanted) = wanted.recv()
        && !stopped.load(Ordering::Relaxed)
    {
        match wanted {
            Wanted::Code(executable, writable) => {
                // It must have something to begin with. Then the first call makes the page, the second only maps it.
                touch(writable);
                if !(collapse(executable) && collapse(writable)) {
                    tracing::debug!(target: "memory", error = %std::io::Error::last_os_error(), "no huge pages for code");
                    return;
                }
            }
            Wanted::Window(at) => _ = collapse(at),
        }
    }
}

fn touch(at: usize) {
    #[expect(unsafe_code, reason = "door: advice about the mappings of generated code")]
    // SAFETY: as for `collapse`; a page that is there stays as it is.
    unsafe {
        libc::madvise(at as *mut libc::c_void, 4096, libc::MADV_POPULATE_WRITE);
    }
}

fn collapse(at: usize) -> bool {
    #[expect(unsafe_code, reason = "door: advice about the mappings of generated code")]
    // SAFETY: a stretch of a mapping that is there until `HugePages::stop` has returned; its contents do not change.
    let result = unsafe { libc::madvise(at as *mut libc::c_void, HUGE_PAGE, MADV_COLLAPSE) };
    result == 0
}

/// Room for `count` elements, for which the host is asked for huge pages: what is looked up here and there in megabytes misses
/// the TLB each time. Room that is never used takes no memory.
pub fn roomy<T>(count: usize) -> Vec<T> {
    let room = Vec::<T>::with_capacity(count);
    let start = (room.as_ptr() as usize).next_multiple_of(HUGE_PAGE);
    let end = (room.as_ptr() as usize + room.capacity() * size_of::<T>()) / HUGE_PAGE * HUGE_PAGE;
    if start < end {
        #[expect(unsafe_code, reason = "door: advice about memory of our own")]
        // SAFETY: within the room that was just allocated, whose contents it does not change.
        unsafe {
            libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE);
        }
    }
    room
}
