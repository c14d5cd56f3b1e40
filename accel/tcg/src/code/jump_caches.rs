//! Jump caches in generated code: the first, which each indirect branch asks at its own place, and the larger one, which the
//! thunks ask where that has missed. Where there is a larger one, the first has only blocks that read no flags before they give
//! them new values: a branch comes there without. Return caches are of either kind.

use std::mem::offset_of;

use dynasmrt::{DynasmApi, dynasm};

use crate::code::emitter::{Emitter, Patch, cc};
use crate::code::tb::mode;
use crate::code::thunks::{exit, scratch_offset};
use crate::env::{Env, EnvBlock, ReturnCache};
use crate::env_offset;
use crate::mmu::jumps::{FAR_ENTRIES, JUMP_ENTRIES, JUMP_FACTOR, JumpEntry, TAKES_FLAGS};
use crate::mmu::sets::PIECES;
use crate::mmu::soft_tlb::{far_jumps_offset, jumps_offset, jumps_used_offset};

/// Offset of the return addresses in a return cache of `class` from the host's RSP: `which` is 0 or
/// [`crate::env::WITH_FLAGS`].
pub const fn return_tags(class: usize, which: usize) -> i32 {
    (offset_of!(EnvBlock, env) + offset_of!(Env, returns) + (2 * class + which) * size_of::<ReturnCache>())
        as i32
}

/// Offset of the code addresses there.
pub const fn return_code(class: usize, which: usize) -> i32 {
    return_tags(class, which) + offset_of!(ReturnCache, code) as i32
}

/// T1 = 16 times the index of the address in T0 in a jump cache.
pub fn jump_index_to_t1(e: &mut Emitter) {
    const SHIFT: u32 = u32::BITS - JUMP_ENTRIES.ilog2() - 4;
    dynasm!(e ; .arch x64
        ; imul r11d, r10d, JUMP_FACTOR as i32
        ; shr r11d, SHIFT as i8
        ; and r11d, (JUMP_ENTRIES as i32 - 1) << 4);
}

/// Looks for the address in T0 in the jump cache of `class`. The jump that is returned is taken if it is not there; where the
/// code is, is at [`jump_code`]. Clobbers T1.
pub fn probe_jump_cache(e: &mut Emitter, class: usize) -> Patch {
    jump_index_to_t1(e);
    dynasm!(e ; .arch x64 ; gs cmp r10, [r11 + jumps_offset(class)]);
    e.jcc(cc::NE)
}

/// Where, from T1 in the GS segment, the jump cache of `class` has the code after [`probe_jump_cache`].
pub const fn jump_code(class: usize) -> i32 {
    jumps_offset(class) + offset_of!(JumpEntry, code) as i32
}

/// The larger jump cache of `class`, if it has one, is asked for the address in T0. Does `found` with the code's address in T0
/// if it is there; from then on the first one has it, too, if it may. Clobbers T1.
pub fn look_far(e: &mut Emitter, class: usize, found: impl FnOnce(&mut Emitter)) {
    const { assert!(FAR_ENTRIES == 1 << 14 && JUMP_ENTRIES == 1 << 11) };
    if class >= mode::FAR_CLASSES {
        return;
    }
    let (entry, first) = (far_jumps_offset(class), jumps_offset(class));
    let code = offset_of!(JumpEntry, code) as i32;
    let kept = scratch_offset(0);
    dynasm!(e ; .arch x64
        ; mov r11, r10
        ; shr r11, 14
        ; xor r11d, r10d
        ; and r11d, FAR_ENTRIES as i32 - 1
        ; shl r11d, 4
        ; gs cmp r10, [r11 + entry]);
    let not_there = e.jcc_short(cc::NE);
    dynasm!(e ; .arch x64
        ; mov [rsp + kept], rax
        ; gs mov rax, [r11 + entry + code]
        ; test rax, rax);
    const { assert!(TAKES_FLAGS == 1 << 63) };
    let takes_flags = e.jcc_short(cc::S);
    jump_index_to_t1(e);
    dynasm!(e ; .arch x64
        ; gs mov [r11 + first], r10
        ; gs mov [r11 + first + code], rax
        ; shr r11d, (4 + (JUMP_ENTRIES / PIECES).ilog2()) as i8
        ; gs mov BYTE [r11 + jumps_used_offset(class)], 1);
    e.bind_short(takes_flags);
    dynasm!(e ; .arch x64 ; lea r10, [rax + rax] ; shr r10, 1 ; mov rax, [rsp + kept]);
    found(e);
    e.bind_short(not_there);
}

/// Where an address is in no jump cache: out.
pub fn lookup_missed(e: &mut Emitter, exit: u64) {
    dynasm!(e ; .arch x64 ; mov [rsp + env_offset!(rip)], r10 ; mov r11d, exit::LOOKUP as i32);
    e.jmp_to(exit);
}
