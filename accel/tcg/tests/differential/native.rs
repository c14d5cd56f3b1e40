//! The native side: a process of its own that runs cases on the host CPU and records how they end
//! (`sigaction(2)`, `signal(7)`, and `arch/x86/include/uapi/asm/sigcontext.h` for the frame).
//!
//! It is this same program, started again with [`CHILD_VARIABLE`] set, so that its signal handlers and its low mappings
//! do not meet the accelerator's. A stream ends at `EXIT64`/`EXIT32`, which jump into `native_exit` below, or in a
//! signal, whose frame holds the complete state.

#![expect(unsafe_code, reason = "door: enters arbitrary user-mode code with a chosen register state")]

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use crate::layout::{
    CODE, CODE_BYTES, CONTEXT_PAGE, DATA, EXIT_PAGE, EXIT32, EXIT64, PAGE, READ_ONLY, STACK,
    VECTOR_COMPONENTS, WRITABLE_BYTES, XSAVE_BYTES, selector,
};
use crate::shared::{Outcome, Shared, Slot, ending};

/// Set in the native process: the two shared descriptors.
pub const CHILD_VARIABLE: &str = "BIVISOR_DIFFERENTIAL_NATIVE";

/// At [`CONTEXT_PAGE`], for the assembly below, which knows these offsets.
#[repr(C)]
struct Context {
    gpr: [u64; 16],    // 0x00
    rip: u64,          // 0x80
    rflags: u64,       // 0x88
    host_rsp: u64,     // 0x90
    exit_target: u64,  // 0x98
    far_offset: u32,   // 0xa0
    far_selector: u32, // 0xa4
    components: u64,   // 0xa8
    gs_base: u64,      // 0xb0
    host_mxcsr: u32,   // 0xb8
    _pad: u32,
    flags_out: u64, // 0xc0
    fs_base: u64,   // 0xc8
}

// The vector state's image is the page after the context.
std::arch::global_asm!(
    r#"
    .set CTX, 0x4f010000
    .globl differential_native_enter
    differential_native_enter:
        push rbx
        push rbp
        push r12
        push r13
        push r14
        push r15
        mov [CTX + 0x90], rsp
        stmxcsr [CTX + 0xb8]
        rdfsbase rax
        mov [CTX + 0xc8], rax
        mov rax, [CTX + 0xb0]
        wrgsbase rax
        mov eax, [CTX + 0xa8]
        xor edx, edx
        mov edi, CTX + 0x1000
        xrstor64 [rdi]
        mov rcx, [CTX + 0x08]
        mov rdx, [CTX + 0x10]
        mov rbx, [CTX + 0x18]
        mov rbp, [CTX + 0x28]
        mov rsi, [CTX + 0x30]
        mov rdi, [CTX + 0x38]
        mov r8, [CTX + 0x40]
        mov r9, [CTX + 0x48]
        mov r10, [CTX + 0x50]
        mov r11, [CTX + 0x58]
        mov r12, [CTX + 0x60]
        mov r13, [CTX + 0x68]
        mov r14, [CTX + 0x70]
        mov r15, [CTX + 0x78]
        cmp dword ptr [CTX + 0xa4], 0
        jne 2f
        push qword ptr [CTX + 0x88]
        popfq
        mov rax, [CTX]
        mov rsp, [CTX + 0x20]
        jmp qword ptr [CTX + 0x80]
    2:
        push qword ptr [CTX + 0x88]
        popfq
        mov rax, [CTX]
        mov rsp, [CTX + 0x20]
        .byte 0xff, 0x2c, 0x25
        .long CTX + 0xa0

    .globl differential_native_exit
    differential_native_exit:
        mov [CTX], rax
        mov [CTX + 0x08], rcx
        mov [CTX + 0x10], rdx
        mov [CTX + 0x18], rbx
        mov [CTX + 0x20], rsp
        mov [CTX + 0x28], rbp
        mov [CTX + 0x30], rsi
        mov [CTX + 0x38], rdi
        mov [CTX + 0x40], r8
        mov [CTX + 0x48], r9
        mov [CTX + 0x50], r10
        mov [CTX + 0x58], r11
        mov [CTX + 0x60], r12
        mov [CTX + 0x68], r13
        mov [CTX + 0x70], r14
        mov [CTX + 0x78], r15
        mov rsp, [CTX + 0x90]
        pushfq
        pop qword ptr [CTX + 0xc0]
        push 0x202
        popfq
        mov eax, [CTX + 0xa8]
        xor edx, edx
        mov edi, CTX + 0x1000
        xsave64 [rdi]
    .globl differential_native_resume
    differential_native_resume:
        fninit
        vzeroupper
        ldmxcsr [CTX + 0xb8]
        # Streams that lose their way may have loaded segment registers.
        mov eax, 0x2b
        mov ds, eax
        mov es, eax
        xor eax, eax
        mov fs, eax
        mov gs, eax
        mov rax, [CTX + 0xc8]
        wrfsbase rax
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbp
        pop rbx
        ret

    # The kernel leaves AC as the stream had it; the handler's own accesses need not be aligned.
    .globl differential_native_signal
    differential_native_signal:
        pushfq
        and qword ptr [rsp], -0x40001
        popfq
        jmp {handler}
    "#,
    handler = sym on_signal,
);

unsafe extern "C" {
    fn differential_native_enter();
    fn differential_native_exit();
    fn differential_native_resume();
    fn differential_native_signal();
    /// `setitimer(2)`, which the libc crate does not declare for this target.
    fn setitimer(which: i32, new: *const libc::itimerval, old: *mut libc::itimerval) -> i32;
}

static ACTIVE: AtomicBool = AtomicBool::new(false);
static OUTCOME: AtomicPtr<Outcome> = AtomicPtr::new(std::ptr::null_mut());
static CASE: AtomicU32 = AtomicU32::new(0);
static CASE_AT_LAST_TICK: AtomicU32 = AtomicU32::new(0);

/// GPRs in `gregs`, in the encoding's order.
const GREGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Where the kernel puts `struct _fpx_sw_bytes` in the legacy area.
const SW_RESERVED: usize = 464;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;

unsafe extern "C" fn on_signal(signal: i32, _info: *mut libc::siginfo_t, frame: *mut libc::ucontext_t) {
    if !ACTIVE.load(Ordering::Relaxed) {
        if signal == libc::SIGVTALRM {
            return;
        }
        // Not the stream's fault: die of it.
        // SAFETY: resetting a disposition; the instruction faults again on return.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
        }
        return;
    }
    let case = CASE.load(Ordering::Relaxed);
    if signal == libc::SIGVTALRM && CASE_AT_LAST_TICK.swap(case, Ordering::Relaxed) != case {
        return;
    }
    // SAFETY: the kernel's frame; the outcome belongs to the case that is running, and `native_enter` is not using it.
    unsafe {
        let context = &mut (*frame).uc_mcontext;
        let outcome = &mut *OUTCOME.load(Ordering::Relaxed);
        for (value, &at) in outcome.gpr.iter_mut().zip(&GREGS) {
            *value = context.gregs[at as usize] as u64;
        }
        outcome.rip = context.gregs[libc::REG_RIP as usize] as u64;
        outcome.rflags = context.gregs[libc::REG_EFL as usize] as u64;
        outcome.cr2 = context.gregs[libc::REG_CR2 as usize] as u64;
        outcome.error = context.gregs[libc::REG_ERR as usize] as u32;
        outcome.vector = if signal == libc::SIGVTALRM {
            ending::TIMEOUT
        } else {
            context.gregs[libc::REG_TRAPNO as usize] as u32
        };
        let fp: *const u8 = context.fpregs.cast();
        let magic = fp.add(SW_RESERVED).cast::<u32>().read_unaligned();
        let size = fp.add(SW_RESERVED + 16).cast::<u32>().read_unaligned() as usize;
        let size = if magic == FP_XSTATE_MAGIC1 { size.min(XSAVE_BYTES) } else { 512 };
        std::ptr::copy_nonoverlapping(fp, outcome.xsave.as_mut_ptr(), size);
        // What the kernel keeps for itself in the legacy area is no guest state.
        outcome.xsave[SW_RESERVED..512].fill(0);

        context.gregs[libc::REG_RIP as usize] = differential_native_resume as *const () as i64;
        context.gregs[libc::REG_RSP as usize] = (*(CONTEXT_PAGE as *const Context)).host_rsp as i64;
        context.gregs[libc::REG_EFL as usize] = 0x202;
        // CS GS FS SS, 16 bits each.
        context.gregs[libc::REG_CSGSFS as usize] =
            i64::from(selector::USER_CODE_64) | i64::from(selector::USER_DATA) << 48;
    }
    ACTIVE.store(false, Ordering::Relaxed);
}

fn map_at(at: u64, bytes: usize, protection: i32, file: Option<i32>) {
    let flags = if file.is_some() { libc::MAP_SHARED } else { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
    // SAFETY: MAP_FIXED_NOREPLACE: only free address space is taken.
    let got = unsafe {
        libc::mmap(
            at as *mut libc::c_void,
            bytes,
            protection,
            flags | libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE,
            file.unwrap_or(-1),
            0,
        )
    };
    assert!(got as u64 == at, "the native process has {at:#x} free: {}", std::io::Error::last_os_error());
}

fn prepare(shared: &Shared) {
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    map_at(EXIT_PAGE, PAGE, rw, None);
    map_at(CONTEXT_PAGE, 2 * PAGE, rw, None);
    map_at(CODE, CODE_BYTES, libc::PROT_READ | libc::PROT_EXEC, Some(shared.descriptors().1));
    map_at(DATA, 3 * PAGE, rw, None);
    map_at(STACK, PAGE, rw, None);
    // SAFETY: the pages mapped just above; nothing else is there.
    unsafe {
        let context = CONTEXT_PAGE as *mut Context;
        (*context).exit_target = differential_native_exit as *const () as u64;
        let exit64 = EXIT64 as *mut u8;
        // jmp [exit_target]
        let mut jump = [0xff, 0x24, 0x25, 0, 0, 0, 0];
        jump[3..].copy_from_slice(&((CONTEXT_PAGE + 0x98) as u32).to_le_bytes());
        std::ptr::copy_nonoverlapping(jump.as_ptr(), exit64, jump.len());
        // jmp far USER_CODE_64:EXIT64
        let mut far = [0xea, 0, 0, 0, 0, 0, 0];
        far[1..5].copy_from_slice(&(EXIT64 as u32).to_le_bytes());
        far[5..].copy_from_slice(&selector::USER_CODE_64.to_le_bytes());
        std::ptr::copy_nonoverlapping(far.as_ptr(), EXIT32 as *mut u8, far.len());
        let executable = libc::mprotect(EXIT_PAGE as *mut _, PAGE, libc::PROT_READ | libc::PROT_EXEC);
        assert_eq!(executable, 0, "the exit page becomes executable");

        std::ptr::copy_nonoverlapping(shared.read_only().as_ptr(), READ_ONLY as *mut u8, PAGE);
        assert_eq!(
            libc::mprotect(READ_ONLY as *mut _, PAGE, libc::PROT_READ),
            0,
            "the page becomes read-only"
        );

        // Data segments in compatibility mode must not be null; 64-bit code does not look at them.
        std::arch::asm!("mov ds, {0:e}", "mov es, {0:e}", in(reg) u32::from(selector::USER_DATA));

        const STACK_BYTES: usize = 256 << 10;
        let stack =
            libc::mmap(std::ptr::null_mut(), STACK_BYTES, rw, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
        assert!(stack != libc::MAP_FAILED, "room for a signal stack");
        let alternate = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: STACK_BYTES };
        assert_eq!(libc::sigaltstack(&alternate, std::ptr::null_mut()), 0, "a signal stack");
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = differential_native_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        for signal in
            [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGVTALRM]
        {
            assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0, "a signal handler");
        }
        // Two ticks of the process's own time in one case: it does not end.
        let tick = libc::timeval { tv_sec: 0, tv_usec: 4_000 };
        let timer = libc::itimerval { it_interval: tick, it_value: tick };
        assert_eq!(setitimer(libc::ITIMER_VIRTUAL, &timer, std::ptr::null_mut()), 0, "a tick");
    }
}

/// Runs one case.
fn run(shared: &Shared, slot: &mut Slot) {
    let input = slot.input;
    let outcome = &mut slot.outcome;
    let components = VECTOR_COMPONENTS & crate::xsave::enabled_components();
    // SAFETY: `prepare` mapped these pages; the stream can reach the data and stack pages only, which no Rust value lies in,
    // and every way out of it restores the callee-saved registers, the stack and the host's vector controls.
    unsafe {
        let memory = shared.memory(input.memory_template);
        std::ptr::copy_nonoverlapping(memory.as_ptr(), DATA as *mut u8, 2 * PAGE);
        std::ptr::copy_nonoverlapping(memory.as_ptr().add(2 * PAGE), STACK as *mut u8, PAGE);
        let context = CONTEXT_PAGE as *mut Context;
        (*context).gpr = input.gpr;
        (*context).rip = input.rip;
        (*context).rflags = input.rflags;
        (*context).gs_base = input.gs_base;
        (*context).components = components;
        (*context).far_offset = input.rip as u32;
        (*context).far_selector = if input.bits == 32 { u32::from(selector::USER_CODE_32) } else { 0 };
        let image = (CONTEXT_PAGE as usize + PAGE) as *mut u8;
        std::ptr::copy_nonoverlapping(shared.vector(input.vector_template).as_ptr(), image, XSAVE_BYTES);
        OUTCOME.store(outcome, Ordering::Relaxed);
        ACTIVE.store(true, Ordering::Relaxed);
        differential_native_enter();
        if ACTIVE.swap(false, Ordering::Relaxed) {
            outcome.gpr = (*context).gpr;
            outcome.rip = if input.bits == 32 { EXIT32 } else { EXIT64 };
            outcome.rflags = (*context).flags_out;
            outcome.cr2 = 0;
            outcome.error = 0;
            outcome.vector = ending::DONE;
            std::ptr::copy_nonoverlapping(image, outcome.xsave.as_mut_ptr(), XSAVE_BYTES);
        }
        std::ptr::copy_nonoverlapping(DATA as *const u8, outcome.memory.as_mut_ptr(), 2 * PAGE);
        std::ptr::copy_nonoverlapping(
            STACK as *const u8,
            outcome.memory.as_mut_ptr().add(2 * PAGE),
            WRITABLE_BYTES - 2 * PAGE,
        );
    }
}

/// The native process: batches asked for on stdin (two bytes: which, how many), answered on stdout (one byte).
pub fn child(descriptors: &str) {
    let (control, code) = descriptors.split_once(',').expect("two descriptors");
    let number = |text: &str| text.parse().expect("a descriptor is a number");
    let shared = Shared::inherited(number(control), number(code)).expect("the shared memory maps");
    prepare(&shared);
    let mut stdin = std::io::stdin().lock();
    let mut stdout = std::io::stdout().lock();
    let mut request = [0; 2];
    while stdin.read_exact(&mut request).is_ok() {
        // SAFETY: the tester gave the batch away with this message.
        let batch = unsafe { shared.batch(usize::from(request[0])) };
        for (index, slot) in batch.iter_mut().take(usize::from(request[1])).enumerate() {
            CASE.fetch_add(1, Ordering::Relaxed);
            shared.set_progress(index as u32);
            run(&shared, slot);
        }
        stdout.write_all(&request[..1]).expect("the tester listens");
        stdout.flush().expect("the tester listens");
    }
}
