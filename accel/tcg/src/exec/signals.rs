//! Host faults in generated code.
//!
//! A division by zero, a misaligned MOVAPS, an unmasked SIMD exception of the guest's is one of the host's: the kernel
//! sends a signal. The handler notes what happened in the environment and sends the thread to the fault thunk, which
//! leaves generated code the normal way; the loop finds the guest instruction and raises its exception. Faults
//! elsewhere go to whoever handled them before.

#![expect(unsafe_code, reason = "door: the handlers of host faults in generated code")]

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};

use crate::env::EnvBlock;
use crate::exception::{pf, vector};
use crate::exec::vcpu::Vcpu;
use crate::translate::address::window::LOOK;

/// Machines at once in one process. Tests make many, one after another; a user one.
const SLOTS: usize = 64;

/// A code buffer: its range and its fault thunk. An empty range: free.
struct Slot {
    start: AtomicU64,
    end: AtomicU64,
    fault: AtomicU64,
}

static BUFFERS: [Slot; SLOTS] =
    [const { Slot { start: AtomicU64::new(0), end: AtomicU64::new(0), fault: AtomicU64::new(0) } }; SLOTS];
static REGISTRY: Mutex<()> = Mutex::new(());
static INSTALL: Once = Once::new();

const SIGNALS: [libc::c_int; 4] = [libc::SIGFPE, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL];
static mut PREVIOUS: [MaybeUninit<libc::sigaction>; SIGNALS.len()] =
    [const { MaybeUninit::uninit() }; SIGNALS.len()];

/// Has faults in `range` go to the thunk at `fault`.
pub fn register(range: Range<u64>, fault: u64) -> std::io::Result<()> {
    INSTALL.call_once(install);
    let _registry = REGISTRY.lock().expect("no holder of the registry panics");
    let slot = BUFFERS
        .iter()
        .find(|slot| slot.end.load(Ordering::Relaxed) == 0)
        .ok_or_else(|| std::io::Error::other("too many translators in one process"))?;
    slot.fault.store(fault, Ordering::Relaxed);
    slot.start.store(range.start, Ordering::Relaxed);
    slot.end.store(range.end, Ordering::Release);
    Ok(())
}

/// Forgets the buffer at `range`.
pub fn unregister(range: &Range<u64>) {
    let _registry = REGISTRY.lock().expect("no holder of the registry panics");
    for slot in &BUFFERS {
        if slot.start.load(Ordering::Relaxed) == range.start {
            slot.end.store(0, Ordering::Release);
        }
    }
}

fn install() {
    for (index, &signal) in SIGNALS.iter().enumerate() {
        // SAFETY: a zeroed sigaction is valid, and `handle` has the signature of SA_SIGINFO; PREVIOUS is written once,
        // here, before the handler can read it for this signal.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            libc::sigemptyset(&mut action.sa_mask);
            let previous = (&raw mut PREVIOUS[index]).cast::<libc::sigaction>();
            libc::sigaction(signal, &action, previous);
        }
    }
}

/// Bytes of stack for [`handle`], which opens windows.
const STACK_BYTES: usize = 256 << 10;

/// The present thread's stack for signals.
struct SignalStack(*mut libc::c_void);

impl SignalStack {
    fn install() -> Self {
        let (rights, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh mapping, which stays until the thread ends. Without one the thread keeps the stack that it has.
        unsafe {
            let stack = libc::mmap(std::ptr::null_mut(), STACK_BYTES, rights, flags, -1, 0);
            if stack != libc::MAP_FAILED {
                let stack = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: STACK_BYTES };
                libc::sigaltstack(&stack, std::ptr::null_mut());
            }
            Self(stack)
        }
    }
}

impl Drop for SignalStack {
    fn drop(&mut self) {
        if self.0 != libc::MAP_FAILED {
            let none = libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
            // SAFETY: the thread ends, and was given this stack in `install`.
            unsafe {
                libc::sigaltstack(&none, std::ptr::null_mut());
                libc::munmap(self.0, STACK_BYTES);
            }
        }
    }
}

thread_local! {
    static SIGNAL_STACK: SignalStack = SignalStack::install();
}

/// Gives the present thread a stack for signals on which windows can be opened.
pub fn prepare_thread() {
    SIGNAL_STACK.with(|_| ());
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid context to an SA_SIGINFO handler.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let pc = registers[libc::REG_RIP as usize] as u64;
    for slot in &BUFFERS {
        if pc < slot.end.load(Ordering::Acquire) && pc >= slot.start.load(Ordering::Relaxed) {
            let block = registers[libc::REG_RSP as usize] as *mut EnvBlock;
            let page_fault = registers[libc::REG_TRAPNO as usize] == i64::from(vector::PF);
            if signal == libc::SIGSEGV && page_fault {
                // SAFETY: `info` is valid as said, and a page fault carries an address; `owner` is the CPU whose generated
                // code this thread is in, which nobody else touches: it is as if that code had called a helper.
                let (address, vcpu) =
                    unsafe { ((*info).si_addr() as u64, &mut *((*block).env.owner as *mut Vcpu)) };
                let write = registers[libc::REG_ERR as usize] as u32 & pf::WRITE != 0;
                let code = pc as *const [u8; LOOK.len()];
                // SAFETY: code memory can be read up to its end.
                let look = pc + LOOK.len() as u64 <= slot.end.load(Ordering::Relaxed)
                    && unsafe { code.read_unaligned() } == LOOK;
                if vcpu.window_fault(pc, (address, write), look) {
                    return;
                }
            }
            // SAFETY: in generated code of a block RSP is the environment's address; the code between blocks and
            // helpers (the thunks) does nothing that can fault.
            let env = unsafe { &mut (*block).env };
            env.fault_pc = pc;
            env.fault_signal = signal as u32;
            env.fault_trap = registers[libc::REG_TRAPNO as usize] as u32;
            env.fault_scratch =
                [libc::REG_R10, libc::REG_R11].map(|register| registers[register as usize] as u64);
            env.fault_eflags = registers[libc::REG_EFL as usize] as u32;
            // SAFETY: `info` is valid as said; for these signals it carries an address.
            env.fault_address = unsafe { (*info).si_addr() } as u64;
            registers[libc::REG_RIP as usize] = slot.fault.load(Ordering::Relaxed) as i64;
            return;
        }
    }
    forward(signal, info, context);
}

/// Not ours: as if we had not been there.
fn forward(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let index = SIGNALS.iter().position(|&other| other == signal).unwrap_or(0);
    // SAFETY: written in `install` before this handler could run, never again.
    let previous = unsafe { (&raw const PREVIOUS[index]).cast::<libc::sigaction>().read() };
    match previous.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: back to the default action; the fault happens again on return and ends the process.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: the address was installed as a handler of this signature.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: the address was installed as a handler of this signature.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}
