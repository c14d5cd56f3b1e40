//! Exclusive sections: stretches during which no CPU executes guest code (DESIGN.md, *The lifecycle*).
//!
//! A CPU brackets its time in the guest with `exec_start` and `exec_end`; whoever wants to be
//! alone calls [`Exclusive::start`]. The bracket costs a CPU that meets no section a store, a fence and a load.
//!
//! The words: `running` per CPU, written by its own thread; `pending`, 0 when there is no section, otherwise one more
//! than the number of CPUs that are still to leave the guest; `has_waiter` per CPU, under the lock: this CPU is among
//! those counted.
//!
//! ```text
//!   exec_start / exec_end              start
//!   running = true (false)             pending = 1
//!   fence(SeqCst)                      fence(SeqCst)
//!   pending == 0? done, no lock        for each CPU: running? count it, has_waiter, make it leave
//! ```
//!
//! Dekker's argument: the fences are totally ordered, so either the CPU sees `pending` or the starter sees what the
//! CPU wrote to `running` (or both). *exec_start*: if the starter misses `running`, the CPU sees `pending`, finds under
//! the lock that it was not counted, and waits for the section's end. If the starter saw it, the CPU is counted; it
//! may go on, for it was asked to leave *after* its `running = true`, and requests to leave are sticky: it comes
//! straight out. *exec_end*: if the starter saw the stale `running`, it counted the CPU, and the CPU sees `pending`,
//! finds `has_waiter` and takes itself off the count. The lock makes "counted or not" a question with one answer.
//!
//! A section must not be started between `exec_start` and `exec_end`, nor with a lock held that a CPU in the guest may
//! want (its devices'): the CPU would never leave. A section may be nested on its own thread.

use std::marker::PhantomData;
use std::sync::Arc;

use crate::cpu_handle::CpuHandle;
use crate::sync::{AtomicBool, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, ThreadId, current, fence};

const LOCK: &str = "no foreign code runs under the lock of exclusive sections";

/// A CPU's part.
pub(crate) struct ExecSlot {
    running: AtomicBool,
    /// Written and read under [`Exclusive::state`].
    has_waiter: AtomicBool,
}

impl ExecSlot {
    pub(crate) fn new() -> Self {
        Self { running: AtomicBool::new(false), has_waiter: AtomicBool::new(false) }
    }

    /// For whoever finds that the CPU hangs.
    pub(crate) fn diagnosis(&self) -> &'static str {
        match (self.running.load(Ordering::Relaxed), self.has_waiter.load(Ordering::Relaxed)) {
            (false, _) => "outside the guest",
            (true, false) => "in the guest",
            (true, true) => "in the guest, an exclusive section waits for it",
        }
    }
}

struct State {
    cpus: Vec<CpuHandle>,
    owner: Option<ThreadId>,
    depth: usize,
}

/// The exclusive sections of one machine.
pub struct Exclusive {
    pending: AtomicUsize,
    state: Mutex<State>,
    /// The starter waits here for the CPUs to leave the guest.
    exclusive_cond: Condvar,
    /// Everybody else waits here for the section to end.
    exclusive_resume: Condvar,
}

/// An exclusive section; ends on drop, on the thread that started it.
pub struct ExclusiveSection<'a> {
    exclusive: &'a Exclusive,
    not_send: PhantomData<*const ()>,
}

/// A CPU's time in the guest.
pub(crate) struct ExecSection<'a> {
    exclusive: &'a Exclusive,
    cpu: &'a CpuHandle,
}

impl Exclusive {
    /// Sections of a machine without CPUs so far.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            pending: AtomicUsize::new(0),
            state: Mutex::new(State { cpus: Vec::new(), owner: None, depth: 0 }),
            exclusive_cond: Condvar::new(),
            exclusive_resume: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(LOCK)
    }

    /// From here on sections wait for `cpu`. Before its first `exec_start`.
    pub(crate) fn add(&self, cpu: CpuHandle) {
        let mut state = self.lock();
        while self.pending.load(Ordering::Relaxed) != 0 {
            state = self.exclusive_resume.wait(state).expect(LOCK);
        }
        state.cpus.push(cpu);
    }

    /// `cpu` executes no more.
    pub(crate) fn remove(&self, cpu: &CpuHandle) {
        self.lock().cpus.retain(|other| !other.same_cpu(cpu));
    }

    /// Whether the calling thread is in a section.
    pub fn is_mine(&self) -> bool {
        self.pending.load(Ordering::Relaxed) != 0 && self.lock().owner == Some(current().id())
    }

    /// Starts a section (QEMU's `start_exclusive`): waits until no CPU executes guest code, and keeps it so.
    pub fn start(&self) -> ExclusiveSection<'_> {
        let me = current().id();
        let mut state = self.lock();
        if state.owner == Some(me) {
            state.depth += 1;
            return ExclusiveSection { exclusive: self, not_send: PhantomData };
        }
        while self.pending.load(Ordering::Relaxed) != 0 {
            state = self.exclusive_resume.wait(state).expect(LOCK);
        }
        self.pending.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let mut running = 0;
        for cpu in &state.cpus {
            let slot = cpu.exec_slot();
            // Acquire: what a CPU that is out of the guest wrote there is visible in the section.
            if slot.running.load(Ordering::Acquire) {
                slot.has_waiter.store(true, Ordering::Relaxed);
                running += 1;
                cpu.request_exit();
            }
        }
        self.pending.store(running + 1, Ordering::Relaxed);
        while self.pending.load(Ordering::Relaxed) > 1 {
            state = self.exclusive_cond.wait(state).expect(LOCK);
        }
        state.owner = Some(me);
        state.depth = 1;
        ExclusiveSection { exclusive: self, not_send: PhantomData }
    }

    fn end(&self) {
        let mut state = self.lock();
        state.depth -= 1;
        if state.depth == 0 {
            state.owner = None;
            self.pending.store(0, Ordering::Release);
            self.exclusive_resume.notify_all();
        }
    }

    /// `cpu`, on its own thread, is about to execute guest code. Waits while there is a section.
    pub(crate) fn exec_start<'a>(&'a self, cpu: &'a CpuHandle) -> ExecSection<'a> {
        let slot = cpu.exec_slot();
        slot.running.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        // Acquire: what the last section wrote is visible in the guest, also without the lock.
        if self.pending.load(Ordering::Acquire) != 0 {
            let mut state = self.lock();
            if !slot.has_waiter.load(Ordering::Relaxed) && self.pending.load(Ordering::Relaxed) != 0 {
                // Not counted: the section does not know of this CPU and may be under way. `running` is false while
                // this CPU sleeps, so that sections that follow do not count it either.
                slot.running.store(false, Ordering::Relaxed);
                while self.pending.load(Ordering::Relaxed) != 0 {
                    state = self.exclusive_resume.wait(state).expect(LOCK);
                }
                // Under the lock, under which sections start: the next one sees it.
                slot.running.store(true, Ordering::Relaxed);
            }
        }
        ExecSection { exclusive: self, cpu }
    }

    fn exec_end(&self, cpu: &CpuHandle) {
        let slot = cpu.exec_slot();
        slot.running.store(false, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.pending.load(Ordering::Relaxed) != 0 {
            let _state = self.lock();
            if slot.has_waiter.swap(false, Ordering::Relaxed) {
                // The count is at least 2: this CPU is in it.
                if self.pending.fetch_sub(1, Ordering::Relaxed) == 2 {
                    self.exclusive_cond.notify_one();
                }
            }
        }
    }
}

impl Drop for ExclusiveSection<'_> {
    fn drop(&mut self) {
        self.exclusive.end();
    }
}

impl Drop for ExecSection<'_> {
    fn drop(&mut self) {
        self.exclusive.exec_end(self.cpu);
    }
}
