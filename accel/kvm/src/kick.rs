//! The kick: a signal that makes KVM_RUN return (Linux, Documentation/virt/kvm/api.rst, *KVM_RUN*, `immediate_exit`).
//!
//! A vCPU thread may be in one of three places when a kick comes, and none loses it:
//!
//! - outside [`Entry`]: the sticky flag stays set until the CPU's loop takes it, before it looks at its requests;
//! - in [`Entry`], on its way into KVM_RUN: the signal's handler sets `immediate_exit`, and KVM_RUN returns at once;
//! - in KVM_RUN: the signal itself ends it.
//!
//! The loop clears `immediate_exit`, then takes the flag, then looks at its requests, then enters the guest. A kick
//! that publishes after the look also signals after the clear, so its `immediate_exit` stands.

#![expect(unsafe_code, reason = "installs the kick signal's handler, which writes to the vCPU's shared page")]

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering, compiler_fence};

use accel::Kick;
use vmm_sys_util::signal::SIGRTMIN;

thread_local! {
    /// `immediate_exit` of the vCPU whose loop runs on this thread; null outside it. Constant-initialised and
    /// without a destructor, so that a signal handler may read it at any time.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The signal: the first real-time one that the C library leaves to us.
fn signal() -> libc::c_int {
    SIGRTMIN()
}

extern "C" fn on_signal(_signal: libc::c_int) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: non-null only while an `Entry` of this thread lives, whose maker vouches for the pointer.
        unsafe { flag.write_volatile(1) }
    }
}

/// Installs the handler, once for the process, and lets the signal through on this thread.
pub(crate) fn prepare_thread() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| install().map_err(|e| e.raw_os_error().unwrap_or(libc::EINVAL)))
        .map_err(io::Error::from_raw_os_error)?;
    vmm_sys_util::signal::unblock_signal(signal()).map_err(|error| io::Error::other(error.to_string()))
}

fn install() -> io::Result<()> {
    // Not vmm-sys-util's helper: without SA_RESTART a kick would break system calls of the devices.
    // SAFETY: an all-zero sigaction is a valid value of a C structure.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: `action` is initialised, its handler is async-signal-safe, and the old action is not asked for.
    match unsafe { libc::sigaction(signal(), &action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The calling thread's kernel id.
fn thread_id() -> i32 {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::gettid() }
}

/// The kick of one vCPU.
#[derive(Default)]
pub(crate) struct Kicker {
    pending: AtomicBool,
    /// The thread that the vCPU is bound to; 0 before and after.
    thread: AtomicI32,
    /// Where this vCPU's `immediate_exit` is, as an identity only.
    flag: std::sync::atomic::AtomicUsize,
}

impl Kicker {
    /// The vCPU lives on the calling thread from now on; `flag` is its `immediate_exit`.
    pub(crate) fn bind(&self, flag: *mut u8) {
        self.flag.store(flag.addr(), Ordering::Relaxed);
        self.thread.store(thread_id(), Ordering::Release);
    }

    /// The vCPU is gone: later kicks do nothing.
    pub(crate) fn unbind(&self) {
        self.thread.store(0, Ordering::Release);
        self.flag.store(0, Ordering::Relaxed);
    }

    /// Forgets a kick; what it announced is to be looked at after this.
    pub(crate) fn take(&self) -> bool {
        self.pending.swap(false, Ordering::SeqCst)
    }
}

impl Kick for Kicker {
    fn kick(&self) {
        // Set already: the one who set it has sent the signal or is about to, and the CPU has not looked yet.
        if self.pending.swap(true, Ordering::SeqCst) {
            return;
        }
        let thread = self.thread.load(Ordering::Acquire);
        // From a device on the CPU's own thread: its loop takes the flag before it enters the guest again.
        let own = IMMEDIATE_EXIT.get();
        if thread == 0 || (!own.is_null() && own.addr() == self.flag.load(Ordering::Relaxed)) {
            return;
        }
        // SAFETY: a plain system call. ESRCH (the thread has just ended) is no failure. Should the id have gone to
        // another thread of this process meanwhile, that one sees a spurious signal, which its loop tolerates.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
    }
}

/// While it lives, the signal reaches a vCPU's `immediate_exit` on this thread.
pub(crate) struct Entry {
    outer: *mut u8,
    /// Thread-local state is behind it.
    _not_send: PhantomData<*mut u8>,
}

impl Entry {
    /// # Safety
    ///
    /// `flag` is the `immediate_exit` byte of a mapped `kvm_run` that outlives the entry.
    pub(crate) unsafe fn new(flag: *mut u8) -> Self {
        let entry = Self { outer: IMMEDIATE_EXIT.replace(flag), _not_send: PhantomData };
        // The handler runs on this thread: it is enough that the compiler keeps the order.
        compiler_fence(Ordering::SeqCst);
        entry
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        IMMEDIATE_EXIT.set(self.outer);
    }
}

/// A timer that kicks the calling thread out of KVM_RUN every `period_ns`, until dropped.
pub(crate) struct Alarm(libc::timer_t);

impl Alarm {
    pub(crate) fn every(period_ns: i64) -> io::Result<Self> {
        // SAFETY: an all-zero sigevent is a valid value of a C structure.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal();
        event.sigev_notify_thread_id = thread_id();
        let mut timer = ptr::null_mut();
        // SAFETY: both pointers are to live values of the right types.
        if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let alarm = Self(timer);
        let period = libc::timespec { tv_sec: 0, tv_nsec: period_ns };
        let spec = libc::itimerspec { it_interval: period, it_value: period };
        // SAFETY: the timer was just made; `spec` is live; the old setting is not asked for.
        if unsafe { libc::timer_settime(timer, 0, &spec, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(alarm)
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: made by `every`, deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn a_kick_before_the_thread_exists_is_kept() {
        let kicker = Kicker::default();
        kicker.kick();
        kicker.kick();
        assert!(kicker.take());
        assert!(!kicker.take());
    }

    #[test]
    fn a_kick_reaches_the_flag_of_another_thread() {
        let kicker = Arc::new(Kicker::default());
        let theirs = Arc::clone(&kicker);
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            prepare_thread().unwrap();
            let mut flag = 0u8;
            let flag = &raw mut flag;
            theirs.bind(flag);
            // SAFETY: `flag` outlives the entry.
            let entry = unsafe { Entry::new(flag) };
            ready.send(()).unwrap();
            // SAFETY: written by this thread's handler only.
            while unsafe { flag.read_volatile() } == 0 {
                thread::sleep(Duration::from_millis(1));
            }
            drop(entry);
            assert!(theirs.take());
            theirs.unbind();
        });
        is_ready.recv().unwrap();
        kicker.kick();
        thread.join().unwrap();
        // The thread is gone: nothing happens, and the kick stays for whoever asks.
        kicker.kick();
        assert!(kicker.take());
    }

    #[test]
    fn a_kick_from_the_own_loop_sends_no_signal() {
        prepare_thread().unwrap();
        let kicker = Kicker::default();
        let mut flag = 0u8;
        let flag = &raw mut flag;
        kicker.bind(flag);
        // SAFETY: `flag` outlives the entry.
        let _entry = unsafe { Entry::new(flag) };
        kicker.kick();
        // SAFETY: written by this thread's handler only.
        assert_eq!(unsafe { flag.read_volatile() }, 0);
        assert!(kicker.take());
    }
}
