//! REP MOVS and REP STOS, forward, in 64-bit mode: a page's run of elements at a time, by the host's own string
//! instructions, as `complex::string` does it.
//!
//! RCX, RSI and RDI are right between the chunks, and nothing of a chunk is done before its pages are known, so the
//! helper can go on at any of them: where DF is set, an element crosses pages, or a page is not plain RAM.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Code, Instruction, OpKind};

use crate::code::emitter::{Patch, cc};
use crate::code::tb::mode;
use crate::code::thunks::scratch_offset;
use crate::env_offset;
use crate::mmu::soft_tlb::{TLB_ENTRIES, table_offset};
use crate::operand::segment_index;
use crate::translate::block::Item;
use crate::translate::generator::Translator;

/// Bytes that are moved without a look at the poll word: more is the helper's.
const BUDGET: i32 = 64 * 1024;

/// Scratch words over a chunk: elements, the source on the host, and RCX, RDI, RSI. Refills use none of the first two.
const COUNT: i32 = scratch_offset(3);
const SOURCE: i32 = scratch_offset(7);
const RCX: i32 = scratch_offset(4);
const RDI: i32 = scratch_offset(5);
const RSI: i32 = scratch_offset(6);

/// What is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeated {
    /// MOVS, not STOS.
    moves: bool,
    /// Of the element's size, the logarithm.
    shift: u8,
}

/// The forms of `insn` that have generated code.
pub fn plan(insn: &Instruction) -> Option<Repeated> {
    let (moves, shift) = match insn.code() {
        Code::Movsb_m8_m8 => (true, 0),
        Code::Movsw_m16_m16 => (true, 1),
        Code::Movsd_m32_m32 => (true, 2),
        Code::Movsq_m64_m64 => (true, 3),
        Code::Stosb_m8_AL => (false, 0),
        Code::Stosw_m16_AX => (false, 1),
        Code::Stosd_m32_EAX => (false, 2),
        Code::Stosq_m64_RAX => (false, 3),
        _ => return None,
    };
    let repeats = insn.has_rep_prefix() || insn.has_repne_prefix();
    let flat = !moves || segment_index(insn.memory_segment()) < 4;
    (repeats && flat && insn.op0_kind() == OpKind::MemoryESRDI).then_some(Repeated { moves, shift })
}

const ABOVE: u8 = cc::A;

impl Translator {
    /// REP MOVS and REP STOS.
    pub(super) fn repeated(&mut self, item: &Item, Repeated { moves, shift }: Repeated) {
        self.flags_free(item.live_in);
        let mut slow = Vec::new();
        dynasm!(self.e ; .arch x64 ; cmp DWORD [rsp + env_offset!(df)], 0);
        slow.push(self.e.jcc(cc::NE));
        dynasm!(self.e ; .arch x64 ; cmp rcx, BUDGET >> shift);
        slow.push(self.e.jcc(ABOVE));
        dynasm!(self.e ; .arch x64 ; test rcx, rcx);
        let nothing = self.e.jcc(cc::E);
        let again = self.e.here();
        // T0 = elements until one of the pages ends.
        dynasm!(self.e ; .arch x64 ; mov r10d, edi ; not r10d ; and r10d, 0xfff);
        if moves {
            dynasm!(self.e ; .arch x64
                ; mov r11d, esi
                ; not r11d
                ; and r11d, 0xfff
                ; cmp r10d, r11d
                ; cmova r10d, r11d);
        }
        dynasm!(self.e ; .arch x64 ; inc r10d);
        if shift > 0 {
            dynasm!(self.e ; .arch x64 ; shr r10d, shift as i8);
            slow.push(self.e.jcc(cc::E));
        }
        dynasm!(self.e ; .arch x64 ; cmp r10, rcx ; cmova r10, rcx ; mov [rsp + COUNT], r10);
        if moves {
            dynasm!(self.e ; .arch x64 ; mov r10, rsi);
            self.t0_to_host(false, &mut slow);
            dynasm!(self.e ; .arch x64 ; mov [rsp + SOURCE], r11);
        }
        dynasm!(self.e ; .arch x64 ; mov r10, rdi);
        self.t0_to_host(true, &mut slow);
        self.slow_from(slow);
        dynasm!(self.e ; .arch x64 ; mov r10, [rsp + COUNT] ; mov [rsp + RDI], rdi);
        if moves {
            dynasm!(self.e ; .arch x64 ; mov [rsp + RSI], rsi ; mov rsi, [rsp + SOURCE]);
        }
        dynasm!(self.e ; .arch x64
            ; sub rcx, r10
            ; mov [rsp + RCX], rcx
            ; mov rcx, r10
            ; mov rdi, r11);
        match (moves, shift) {
            (true, 0) => dynasm!(self.e ; .arch x64 ; rep movsb),
            (true, 1) => dynasm!(self.e ; .arch x64 ; rep movsw),
            (true, 2) => dynasm!(self.e ; .arch x64 ; rep movsd),
            (true, _) => dynasm!(self.e ; .arch x64 ; rep movsq),
            (false, 0) => dynasm!(self.e ; .arch x64 ; rep stosb),
            (false, 1) => dynasm!(self.e ; .arch x64 ; rep stosw),
            (false, 2) => dynasm!(self.e ; .arch x64 ; rep stosd),
            (false, _) => dynasm!(self.e ; .arch x64 ; rep stosq),
        }
        dynasm!(self.e ; .arch x64 ; shl r10, shift as i8 ; mov rdi, [rsp + RDI] ; add rdi, r10);
        if moves {
            dynasm!(self.e ; .arch x64 ; mov rsi, [rsp + RSI] ; add rsi, r10);
        }
        dynasm!(self.e ; .arch x64 ; mov rcx, [rsp + RCX] ; test rcx, rcx);
        self.e.jcc_to(cc::NE, again);
        self.e.bind(nothing);
    }

    /// T1 = the host address of the byte at linear address T0. Where that is not plain RAM, `slow`. Clobbers EFLAGS.
    fn t0_to_host(&mut self, write: bool, slow: &mut Vec<Patch>) {
        let tlb_mode = mode::tlb_mode(self.key.mode);
        let table = table_offset(tlb_mode, write);
        dynasm!(self.e ; .arch x64
            ; mov r11d, r10d
            ; shr r11d, 8
            ; and r11d, (TLB_ENTRIES as i32 - 1) << 4
            ; gs xor r10, [r11 + table]
            ; cmp r10, 0xfff);
        let there = self.e.jcc_short(BELOW_EQUAL);
        // XOR again: the address once more. The refill keeps it if it succeeds.
        dynasm!(self.e ; .arch x64 ; gs xor r10, [r11 + table] ; mov r11d, 1);
        self.e.call(self.thunks.try_refill[tlb_mode][usize::from(write)]);
        slow.push(self.e.jcc(cc::NE));
        dynasm!(self.e ; .arch x64 ; add r11, r10);
        let done = self.e.jmp_short();
        self.e.bind_short(there);
        dynasm!(self.e ; .arch x64 ; gs mov r11, [r11 + table + 8] ; test r11, r11);
        // An empty entry, which a non-canonical address matches.
        slow.push(self.e.jcc(cc::E));
        dynasm!(self.e ; .arch x64 ; add r11, r10);
        self.e.bind_short(done);
    }
}

/// Condition code.
const BELOW_EQUAL: u8 = 6;
