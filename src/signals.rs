//! Signals that end the program: each is passed to the main loop; the terminal is restored whatever happens
//! (signal-safety(7)).

#![expect(unsafe_code, reason = "signal handlers are C")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::terminal;

/// Asked to end: the main loop winds up. A second one ends the program at once.
const ENDING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
/// The program is broken or is told to leave a core: restore the terminal, then let the earlier handler have it.
const FATAL: [libc::c_int; 7] =
    [libc::SIGQUIT, libc::SIGABRT, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];

static RECEIVED: AtomicI32 = AtomicI32::new(0);
static WAKEUP: OnceLock<EventFd> = OnceLock::new();
/// Handlers that were there before ours, indexed by signal number.
static EARLIER: [OnceLock<libc::sigaction>; 32] = [const { OnceLock::new() }; 32];

/// Installs the handlers. Once per process, before an engine installs its own: an engine's handler passes on what
/// is not its own.
pub fn install() -> io::Result<()> {
    let wakeup = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    assert!(WAKEUP.set(wakeup).is_ok(), "signal handlers are installed once");
    for signal in ENDING {
        // nohup(1) and shells in the background ignore some; that stays so.
        if disposition(signal)?.sa_sigaction != libc::SIG_IGN {
            handle(signal, Handler::Simple(on_ending))?;
        }
    }
    for signal in FATAL {
        let earlier = handle(signal, Handler::WithInfo(on_fatal))?;
        let index = usize::try_from(signal).expect("signal numbers are positive");
        assert!(EARLIER[index].set(earlier).is_ok(), "signal handlers are installed once");
    }
    handle(libc::SIGCONT, Handler::Simple(on_continue))?;
    Ok(())
}

/// Readable when [`received`] has something to say.
pub fn wakeup_fd() -> RawFd {
    WAKEUP.get().expect("install comes first").as_raw_fd()
}

/// The first signal that asked the program to end.
pub fn received() -> Option<libc::c_int> {
    Some(RECEIVED.load(Ordering::SeqCst)).filter(|&signal| signal != 0)
}

/// Ends the process by `signal`, so that its parent sees why.
pub fn die_of(signal: libc::c_int) -> ! {
    terminal::restore();
    set_default_and_raise(signal);
    // The signal is blocked or has no default action that ends a process.
    std::process::exit(128 + signal)
}

fn set_default_and_raise(signal: libc::c_int) {
    // SAFETY: the default action is a valid disposition; raise takes a number. Both are async-signal-safe.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

extern "C" fn on_ending(signal: libc::c_int) {
    if RECEIVED.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        // The main loop had its chance.
        terminal::restore();
        set_default_and_raise(signal);
        return;
    }
    if let Some(wakeup) = WAKEUP.get() {
        // write(2) is async-signal-safe; a full counter is as good as a written one.
        let _ = wakeup.write(1);
    }
}

extern "C" fn on_fatal(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    terminal::restore();
    // SAFETY: the kernel passes a valid siginfo to a handler installed with SA_SIGINFO. SI_USER, SI_TKILL and their like
    // are zero or negative: somebody sent the signal, no instruction caused it.
    let is_sent = unsafe { info.as_ref() }.is_none_or(|info| info.si_code <= 0);
    let earlier = usize::try_from(signal).ok().and_then(|index| EARLIER.get(index)).and_then(OnceLock::get);
    match earlier {
        // SAFETY: the action is what sigaction reported for this signal. A fault happens again on return, then in
        // the earlier handler; one that was sent is sent again here, and stays pending until this handler returns.
        Some(earlier) => unsafe {
            libc::sigaction(signal, earlier, std::ptr::null_mut());
            if is_sent {
                libc::raise(signal);
            }
        },
        None => set_default_and_raise(signal),
    }
}

extern "C" fn on_continue(_signal: libc::c_int) {
    terminal::reapply();
}

fn disposition(signal: libc::c_int) -> io::Result<libc::sigaction> {
    let mut action = MaybeUninit::uninit();
    // SAFETY: with no new action sigaction only writes the present one to the pointer.
    if unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: sigaction succeeded and so has filled the buffer.
    Ok(unsafe { action.assume_init() })
}

/// A handler in one of the two shapes that sigaction knows.
enum Handler {
    Simple(extern "C" fn(libc::c_int)),
    WithInfo(extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void)),
}

fn handle(signal: libc::c_int, handler: Handler) -> io::Result<libc::sigaction> {
    let (address, flags) = match handler {
        Handler::Simple(handler) => (handler as libc::sighandler_t, 0),
        Handler::WithInfo(handler) => (handler as libc::sighandler_t, libc::SA_SIGINFO),
    };
    let mut earlier = MaybeUninit::uninit();
    // SAFETY: all-zero is a valid sigaction (no flags, empty mask); its handler has the
    // shape that the flags say and calls async-signal-safe functions only. SA_ONSTACK: the handler may run on the alternate stack that Rust's
    // run-time gives each thread.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = address;
        action.sa_flags = flags | libc::SA_RESTART | libc::SA_ONSTACK;
        libc::sigaction(signal, &action, earlier.as_mut_ptr())
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: sigaction succeeded and so has filled the buffer.
    Ok(unsafe { earlier.assume_init() })
}
