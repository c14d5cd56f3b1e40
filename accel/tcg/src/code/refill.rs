//! Soft-TLB misses in generated code: a walk of 4-level page tables that touches general registers only.
//!
//! It does what [`crate::cpu::Cpu::fill`] does where that has nothing to change or to refuse but the soft TLB: all
//! entries present, with their accessed (and for stores dirty) bits set, rights given, RAM at the end, for stores RAM
//! without translated code. Everything else is left to the helper, which starts over.

#[cfg(test)]
mod tests;

use dynasmrt::{DynasmApi, dynasm};

use crate::code::emitter::{Emitter, Patch, cc};
use crate::code::thunks::scratch_offset;
use crate::env_offset;
use crate::exec::helpers::{CHECK_ALIGNMENT, JUDGE};
use crate::mmu::access::{MODE_SMAP, MODE_USER};
use crate::mmu::sets::PIECES;
use crate::mmu::soft_tlb::{TLB_ENTRIES, table_offset};
use crate::mmu::walk::PHYS_BITS;
use crate::ram::SEVERAL;

/// Host registers that are used beside T0 and T1, and where they are parked: nothing else is at a check, and scratch word
/// 1 may have what a push stores.
const PARKED: [(u8, i32); 4] = [
    (0, scratch_offset(4) + DEPTH),
    (1, scratch_offset(5) + DEPTH),
    (2, scratch_offset(6) + DEPTH),
    (3, scratch_offset(0) + DEPTH),
];
/// The thunk was called: the environment is so much further up.
const DEPTH: i32 = 8;

/// From an address to the piece of the table that it is in.
const PIECE_SHIFT: i8 = 12 + (TLB_ENTRIES / PIECES).ilog2() as i8;

const PRESENT_ACCESSED: i32 = 0x21;
const WRITABLE: i32 = 1 << 1;
const USER: i32 = 1 << 2;
const DIRTY: i8 = 1 << 6;
/// Bits of a 2 MiB and of a 1 GiB page's entry that must be zero: the address below the page's size, without PAT.
const RESERVED_2M: i32 = 0x1f_e000;
const RESERVED_1G: i32 = 0x3fff_e000;

macro_rules! walk_offset {
    ($field:ident) => {
        env_offset!(walk.$field) + DEPTH
    };
}

fn park(e: &mut Emitter) {
    for (register, place) in PARKED {
        dynasm!(e ; .arch x64 ; mov [rsp + place], Rq(register));
    }
}

fn unpark(e: &mut Emitter) {
    for (register, place) in PARKED {
        dynasm!(e ; .arch x64 ; mov Rq(register), [rsp + place]);
    }
}

/// Emits the refill for soft-TLB mode `mode` and one direction: called with the linear address in T0 and the packed
/// argument of the helpers in T1. It goes on to `filled`, the arguments as they were; without one it returns, with what
/// makes the host address of T0 in T1 and ZF set. What it cannot do is `slow`'s.
pub fn emit(e: &mut Emitter, mode: usize, write: bool, filled: Option<u64>, slow: u64) -> u64 {
    let at = e.here();
    let table = table_offset(mode, write);
    park(e);
    let mut give_up = Vec::new();
    let mut unless = |e: &mut Emitter, condition: u8| give_up.push(e.jcc(condition));
    dynasm!(e ; .arch x64
        // One page, and a canonical address.
        ; movzx eax, r11b
        ; lea rax, [rax + r10 - 1]
        ; xor rax, r10
        ; cmp rax, 0xfff);
    unless(e, cc::A);
    dynasm!(e ; .arch x64 ; mov rax, r10 ; shl rax, 16 ; sar rax, 16 ; cmp rax, r10);
    unless(e, cc::NE);
    dynasm!(e ; .arch x64 ; test r11d, (CHECK_ALIGNMENT | JUDGE) as i32);
    unless(e, cc::NE);
    dynasm!(e ; .arch x64 ; test BYTE [rsp + env_offset!(dr7) + DEPTH], -1);
    unless(e, cc::NE);
    // Level 4. RBX: what all entries have; RDX: what any has.
    dynasm!(e ; .arch x64 ; mov rax, [rsp + walk_offset!(root)] ; test rax, rax);
    unless(e, cc::E);
    dynasm!(e ; .arch x64
        ; mov rcx, r10
        ; shr rcx, 39 - 3
        ; and ecx, 0xff8
        ; mov rax, [rax + rcx]
        ; mov rbx, rax
        ; mov rdx, rax
        ; test al, al);
    unless(e, SIGN);
    let mut large = Vec::new();
    for shift in [30, 21, 12] {
        dynasm!(e ; .arch x64 ; and rax, [rsp + walk_offset!(address_mask)]);
        to_host(e, &mut give_up);
        dynasm!(e ; .arch x64
            ; mov rcx, r10
            ; shr rcx, shift - 3
            ; and ecx, 0xff8
            ; mov rax, [rax + rcx]
            ; and rbx, rax
            ; or rdx, rax);
        if shift > 12 {
            dynasm!(e ; .arch x64 ; test al, al);
            large.push(e.jcc(SIGN));
        }
    }
    if write {
        dynasm!(e ; .arch x64 ; test al, DIRTY);
        give_up.push(e.jcc(cc::E));
    }
    dynasm!(e ; .arch x64 ; and rax, [rsp + walk_offset!(address_mask)]);
    let leaf = e.here();
    let need = PRESENT_ACCESSED | if write { WRITABLE } else { 0 } | if mode == MODE_USER { USER } else { 0 };
    dynasm!(e ; .arch x64 ; mov ecx, ebx ; and ecx, need ; cmp ecx, need);
    give_up.push(e.jcc(cc::NE));
    if mode == MODE_SMAP {
        dynasm!(e ; .arch x64 ; test bl, USER as i8);
        give_up.push(e.jcc(cc::NE));
    }
    dynasm!(e ; .arch x64 ; shl rdx, 12 ; shr rdx, 12 + PHYS_BITS as i8);
    give_up.push(e.jcc(cc::NE));
    if write {
        writable_to_host(e, mode, &mut give_up);
    } else {
        to_host(e, &mut give_up);
    }
    dynasm!(e ; .arch x64
        ; mov ecx, r10d
        ; shr ecx, 8
        ; and ecx, (TLB_ENTRIES as i32 - 1) << 4
        ; mov rdx, r10
        ; and rdx, -0x1000
        ; gs mov [rcx + table], rdx
        ; gs mov [rcx + table + 8], rax
        ; mov ecx, r10d
        ; shr ecx, PIECE_SHIFT
        ; and ecx, PIECES as i32 - 1
        ; add rcx, [rsp + walk_offset!(used)]
        ; mov BYTE [rcx + ((mode * 2 + usize::from(write)) * PIECES) as i32], 1
        ; inc QWORD [rsp + env_offset!(counted.walks) + DEPTH]);
    if filled.is_none() {
        dynasm!(e ; .arch x64 ; sub rax, rdx ; mov r11, rax);
    }
    unpark(e);
    match filled {
        Some(on) => e.jmp_to(on),
        // ZF: it has succeeded.
        None => dynasm!(e ; .arch x64 ; cmp r11, r11 ; ret),
    }
    for (patch, (shift, reserved)) in large.into_iter().zip([(30, RESERVED_1G), (21, RESERVED_2M)]) {
        e.bind(patch);
        large_leaf(e, write, shift, reserved, leaf, &mut give_up);
    }
    for patch in give_up {
        e.bind(patch);
    }
    unpark(e);
    e.jmp_to(slow);
    at
}

/// Condition code: the byte that was tested has its highest bit set.
const SIGN: u8 = 8;

/// RAX = the address of the 4 KiB page of T0 in the large page of the entry in RAX; then on at `leaf`.
fn large_leaf(e: &mut Emitter, write: bool, shift: u32, reserved: i32, leaf: u64, give_up: &mut Vec<Patch>) {
    if write {
        dynasm!(e ; .arch x64 ; test al, DIRTY);
        give_up.push(e.jcc(cc::E));
    }
    dynasm!(e ; .arch x64 ; test eax, reserved);
    give_up.push(e.jcc(cc::NE));
    // That a piece of it is entered: INVLPG in it must drop all of them. (The same numbers and hash as `PageSet`'s.)
    let set = if shift == 30 { walk_offset!(huge) } else { walk_offset!(large) };
    dynasm!(e ; .arch x64
        ; mov [rsp + scratch_offset(2) + DEPTH], rdx
        ; mov rcx, r10
        ; shr rcx, shift as i8
        ; mov rdx, rcx
        ; shr rdx, 12
        ; xor ecx, edx
        ; and ecx, 0xfff
        ; mov rdx, [rsp + set]
        ; bts [rdx], rcx
        ; mov BYTE [rdx + 512], 1
        ; mov rdx, [rsp + scratch_offset(2) + DEPTH]
        ; and rax, [rsp + walk_offset!(address_mask)]
        ; and rax, -(1 << shift)
        ; mov ecx, r10d
        ; and ecx, (1 << shift) - 0x1000
        ; or rax, rcx);
    e.jmp_to(leaf);
}

/// RAX = the host address of the page at guest physical address RAX.
fn to_host(e: &mut Emitter, give_up: &mut Vec<Patch>) {
    dynasm!(e ; .arch x64 ; cmp rax, [rsp + walk_offset!(low_end)]);
    let high = e.jcc_short(ABOVE_EQUAL);
    dynasm!(e ; .arch x64 ; add rax, [rsp + walk_offset!(low_host)]);
    let done = e.jmp_short();
    e.bind_short(high);
    dynasm!(e ; .arch x64
        ; sub rax, [rsp + walk_offset!(high_start)]
        ; cmp rax, [rsp + walk_offset!(high_len)]);
    give_up.push(e.jcc(ABOVE_EQUAL));
    dynasm!(e ; .arch x64 ; add rax, [rsp + walk_offset!(high_host)]);
    e.bind_short(done);
}

const ABOVE_EQUAL: u8 = 3;

/// As [`to_host`], for a page that a write entry of `mode` is going to map: notes that
/// ([`crate::ram::WriteNotes::note`]), and only then looks whether the page holds code. Clobbers RCX, RDX, RBX.
fn writable_to_host(e: &mut Emitter, mode: usize, give_up: &mut Vec<Patch>) {
    // RCX = the page's number in RAM.
    dynasm!(e ; .arch x64 ; mov rcx, rax ; cmp rax, [rsp + walk_offset!(low_end)]);
    let high = e.jcc_short(ABOVE_EQUAL);
    dynasm!(e ; .arch x64 ; shr rcx, 12 ; add rax, [rsp + walk_offset!(low_host)]);
    let done = e.jmp_short();
    e.bind_short(high);
    dynasm!(e ; .arch x64
        ; sub rax, [rsp + walk_offset!(high_start)]
        ; cmp rax, [rsp + walk_offset!(high_len)]);
    give_up.push(e.jcc(ABOVE_EQUAL));
    dynasm!(e ; .arch x64
        ; mov rcx, rax
        ; shr rcx, 12
        ; add rcx, [rsp + walk_offset!(high_page)]
        ; add rax, [rsp + walk_offset!(high_host)]);
    e.bind_short(done);
    dynasm!(e ; .arch x64
        ; mov [rsp + scratch_offset(2) + DEPTH], rcx
        ; mov rdx, [rsp + walk_offset!(write_entry)]
        ; lea rcx, [rdx + rcx * 4]
        ; mov ebx, r10d
        ; shr ebx, 12
        ; and ebx, TLB_ENTRIES as i32 - 1
        ; add ebx, [rsp + walk_offset!(first_entry)]
        ; add ebx, (mode as i32) << 12
        ; mov edx, [rcx]
        ; cmp edx, ebx);
    let noted = e.jcc_short(cc::E);
    dynasm!(e ; .arch x64 ; test edx, edx);
    let first = e.jcc_short(cc::E);
    dynasm!(e ; .arch x64 ; mov ebx, SEVERAL as i32);
    e.bind_short(first);
    // A full fence, as all XCHGs with memory.
    dynasm!(e ; .arch x64 ; xchg [rcx], ebx);
    e.bind_short(noted);
    dynasm!(e ; .arch x64
        ; mov rcx, [rsp + scratch_offset(2) + DEPTH]
        ; mov rdx, [rsp + walk_offset!(code)]
        ; cmp BYTE [rdx + rcx], 0);
    give_up.push(e.jcc(cc::NE));
}
