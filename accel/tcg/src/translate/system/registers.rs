//! System registers that are a word of memory here: segment bases and control registers.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::Register;

use crate::code::emitter::cc;
use crate::code::tb::mode;
use crate::code::thunks::gpr_offset;
use crate::env::Segment;
use crate::env_offset;
use crate::translate::block::Item;
use crate::translate::generator::Translator;
use crate::translate::registers::{gpr_number, host_number};

const CR4_TSD: u32 = 1 << 2;
const CR4_FSGSBASE: u32 = 1 << 16;

/// Offset of a segment's base.
fn base_offset(segment: usize) -> i32 {
    env_offset!(seg) + (segment * size_of::<Segment>()) as i32
}

impl Translator {
    /// RDTSC and RDTSCP.
    pub(super) fn read_tsc(&mut self, item: &Item, and_aux: bool) {
        self.flags_free(item.live_in);
        if self.key.mode & mode::CPL != 0 {
            dynasm!(self.e ; .arch x64 ; test DWORD [rsp + env_offset!(cr4)], CR4_TSD as i32);
            let slow = self.e.jcc(cc::NE);
            self.slow_from(vec![slow]);
        }
        self.note_left();
        self.e.call(self.thunks.time_stamp);
        self.fp_loaded = false;
        if and_aux {
            dynasm!(self.e ; .arch x64 ; mov ecx, [rsp + env_offset!(msr.tsc_aux)]);
        }
    }

    /// SWAPGS.
    pub(super) fn swap_gs(&mut self) {
        dynasm!(self.e ; .arch x64
            ; mov r10, [rsp + base_offset(5)]
            ; mov r11, [rsp + env_offset!(msr.kernel_gs_base)]
            ; mov [rsp + base_offset(5)], r11
            ; mov [rsp + env_offset!(msr.kernel_gs_base)], r10);
    }

    /// RDFSBASE and RDGSBASE.
    pub(super) fn read_base(&mut self, item: &Item, segment: usize) {
        self.flags_free(item.live_in);
        self.unless_fsgsbase();
        dynasm!(self.e ; .arch x64 ; mov r10, [rsp + base_offset(segment)]);
        self.set_from_t0(item.insn.op0_register());
    }

    /// WRFSBASE and WRGSBASE.
    pub(super) fn write_base(&mut self, item: &Item, segment: usize) {
        self.flags_free(item.live_in);
        self.unless_fsgsbase();
        let register = item.insn.op0_register();
        let number = gpr_number(register).expect("these name general registers");
        match (host_number(number), register.size()) {
            (Some(host), 8) => dynasm!(self.e ; .arch x64 ; mov r10, Rq(host as u8)),
            (Some(host), _) => dynasm!(self.e ; .arch x64 ; mov r10d, Rd(host as u8)),
            (None, 8) => dynasm!(self.e ; .arch x64 ; mov r10, [rsp + gpr_offset(number)]),
            (None, _) => dynasm!(self.e ; .arch x64 ; mov r10d, [rsp + gpr_offset(number)]),
        }
        let slow = self.unless_t0_canonical();
        self.slow_from(vec![slow]);
        dynasm!(self.e ; .arch x64 ; mov [rsp + base_offset(segment)], r10);
    }

    /// MOV from a segment register to a general one: zero-extended to 4 and 8 bytes.
    pub(super) fn read_selector(&mut self, item: &Item, segment: usize) {
        let at = base_offset(segment) + std::mem::offset_of!(Segment, selector) as i32;
        dynasm!(self.e ; .arch x64 ; movzx r10d, WORD [rsp + at]);
        self.set_from_t0(item.insn.op0_register());
    }

    fn unless_fsgsbase(&mut self) {
        dynasm!(self.e ; .arch x64 ; test DWORD [rsp + env_offset!(cr4)], CR4_FSGSBASE as i32);
        let slow = self.e.jcc(cc::E);
        self.slow_from(vec![slow]);
    }

    /// Jumps away unless T0 is a canonical address. Clobbers T1 and EFLAGS.
    pub(super) fn unless_t0_canonical(&mut self) -> crate::code::emitter::Patch {
        dynasm!(self.e ; .arch x64 ; mov r11, r10 ; shl r11, 16 ; sar r11, 16 ; cmp r11, r10);
        self.e.jcc(cc::NE)
    }

    /// MOV from a control register that is stored as it reads.
    pub(super) fn read_control(&mut self, item: &Item) {
        let at = match item.insn.op1_register() {
            Register::CR0 => env_offset!(cr0),
            Register::CR2 => env_offset!(cr2),
            Register::CR3 => env_offset!(cr3),
            _ => env_offset!(cr4),
        };
        dynasm!(self.e ; .arch x64 ; mov r10, [rsp + at]);
        self.set_from_t0(item.insn.op0_register());
    }

    /// The general register `register`, of 2, 4 or 8 bytes, = T0.
    fn set_from_t0(&mut self, register: Register) {
        let number = gpr_number(register).expect("these name general registers");
        match (host_number(number), register.size()) {
            (Some(host), 8) => dynasm!(self.e ; .arch x64 ; mov Rq(host as u8), r10),
            (Some(host), 4) => dynasm!(self.e ; .arch x64 ; mov Rd(host as u8), r10d),
            (Some(host), _) => dynasm!(self.e ; .arch x64 ; mov Rw(host as u8), r10w),
            (None, 8) => dynasm!(self.e ; .arch x64 ; mov [rsp + gpr_offset(number)], r10),
            (None, 2) => dynasm!(self.e ; .arch x64 ; mov [rsp + gpr_offset(number)], r10w),
            (None, _) => dynasm!(self.e ; .arch x64 ; mov r10d, r10d ; mov [rsp + gpr_offset(number)], r10),
        }
    }
}
