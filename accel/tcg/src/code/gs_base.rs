//! The host's GS segment: generated code reaches the tables of the present address space by it.
//!
//! A [`Context`](crate::mmu::soft_tlb::Context) has them at constant places, so that a look-up needs no pointer, and a switch
//! of address spaces is a new base and nothing else. User space has no other use for GS on x86-64 Linux; its base is saved with
//! the thread. On what generated code does with it depends nothing but its own look-ups: no operand of the guest's has a segment
//! prefix on the host.

#![expect(unsafe_code, reason = "door: asks the host's C library what the kernel lets user space do")]

use dynasmrt::{DynasmApi, dynasm};

use crate::code::emitter::{Emitter, cc};
use crate::env_offset;

/// Of AT_HWCAP2: WRGSBASE is there and may be used (Linux, *x86/64 FSGSBASE*).
const HWCAP2_FSGSBASE: u64 = 1 << 1;
const SYS_ARCH_PRCTL: i32 = libc::SYS_arch_prctl as i32;
const ARCH_SET_GS: i32 = 0x1001;

/// Whether user space may write the base by an instruction.
fn has_wrgsbase() -> bool {
    // SAFETY: reads a word of the auxiliary vector.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & HWCAP2_FSGSBASE != 0 }
}

/// Emits: GS is the present context's. Clobbers RAX, RCX, RSI, RDI, R11 and EFLAGS. `base`: a register that has the
/// environment's address less `depth`.
pub fn set(e: &mut Emitter, base: u8, depth: i32) {
    let (context, loaded) = (env_offset!(context) + depth, env_offset!(context_loaded) + depth);
    dynasm!(e ; .arch x64 ; mov rax, [Rq(base) + context] ; mov [Rq(base) + loaded], rax);
    if has_wrgsbase() {
        dynasm!(e ; .arch x64 ; wrgsbase rax);
    } else {
        dynasm!(e ; .arch x64
            ; mov edi, ARCH_SET_GS
            ; mov rsi, rax
            ; mov eax, SYS_ARCH_PRCTL
            ; syscall);
    }
}

/// Emits: GS is the present context's again, where a helper may have made another one that. Clobbers as [`set`].
pub fn follow(e: &mut Emitter, base: u8, depth: i32) {
    let (context, loaded) = (env_offset!(context) + depth, env_offset!(context_loaded) + depth);
    dynasm!(e ; .arch x64 ; mov rax, [Rq(base) + context] ; cmp rax, [Rq(base) + loaded]);
    let same = e.jcc_short(cc::E);
    set(e, base, depth);
    e.bind_short(same);
}
