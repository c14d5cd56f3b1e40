//! SYSCALL, SYSRET and IRET between flat 64-bit code at CPL 0 and CPL 3, and IRET within CPL 0 (SDM vol. 2; what the
//! helpers in `complex::syscall` and `complex::returns` do).

use dynasmrt::{DynasmApi, dynasm};

use crate::code::emitter::{Patch, cc};
use crate::code::tb::mode;
use crate::code::thunks::{gpr_offset, scratch_offset};
use crate::complex::syscall::{CODE64, DATA, USER};
use crate::env::{Segment, flag};
use crate::env_offset;
use crate::exec::helpers::STACK;
use crate::mmu::access::{MODE_SMAP, MODE_SUPERVISOR};
use crate::mmu::soft_tlb::{TLB_ENTRIES, table_offset};
use crate::mmu::walk::cr;
use crate::msr::spec::efer;
use crate::segment::null_stack;
use crate::translate::address::{Path, STACK_SLOT, Use};
use crate::translate::block::Item;
use crate::translate::generator::Translator;
use crate::translate::place::Place;

const CS: usize = 1;
const SS: usize = 2;
/// Scratch words of IRET's frame: RIP, CS, RFLAGS, RSP, SS.
const FRAME: [usize; 5] = [0, 1, 2, 3, 4];

fn segment_offset(index: usize) -> i32 {
    env_offset!(seg) + (index * size_of::<Segment>()) as i32
}

/// Where access rights and selector are: rights in the low half of the word.
fn rights_offset(index: usize) -> i32 {
    segment_offset(index) + std::mem::offset_of!(Segment, access) as i32
}

/// The descriptor of a flat segment with these rights.
fn flat_descriptor(access: u16) -> u64 {
    0x000f_0000_0000_ffff | u64::from(access) << 40
}

impl Translator {
    /// SYSCALL.
    pub(super) fn syscall(&mut self, item: &Item) {
        self.rflags_to_t0();
        let unusual = (flag::VIF | flag::VIP | flag::VM) as i32;
        let mut slow = vec![self.unless_sce()];
        dynasm!(self.e ; .arch x64 ; test DWORD [rsp + env_offset!(sysflags)], unusual);
        slow.push(self.e.jcc(cc::NE));
        dynasm!(self.e ; .arch x64
            ; mov r11d, [rsp + env_offset!(msr.fmask)]
            ; not r11d
            ; test r11d, [rsp + env_offset!(ac)]);
        slow.push(self.e.jcc(cc::NE));
        self.slow_from(slow);
        dynasm!(self.e ; .arch x64
            ; and r10d, !flag::RF as i32
            ; mov [rsp + gpr_offset(11)], r10
            ; and r10d, r11d);
        let next = item.insn.next_ip();
        dynasm!(self.e ; .arch x64 ; mov rcx, QWORD next as i64);
        self.rflags_from_t0();
        dynasm!(self.e ; .arch x64
            ; mov r10, [rsp + env_offset!(msr.star)]
            ; shr r10, 32
            ; and r10d, 0xfffc
            ; lea r11d, [r10 + 8]);
        self.flat_segment(CS, 10, CODE64);
        self.flat_segment(SS, 11, DATA);
        // AC is clear: without SMAP the handler's mode is that of kernels that reach user pages.
        let no_smap = self.unless_smap();
        dynasm!(self.e ; .arch x64 ; mov r10, [rsp + env_offset!(msr.lstar)]);
        self.e.jmp_to(self.thunks.lookup[mode::KERNEL64]);
        self.e.bind(no_smap);
        dynasm!(self.e ; .arch x64 ; mov r10, [rsp + env_offset!(msr.lstar)]);
        self.e.jmp_to(self.thunks.lookup[mode::KERNEL64_AC]);
    }

    /// SYSRET to 64-bit code.
    pub(super) fn sysret(&mut self) {
        self.flags_free(0);
        let unusual = (flag::VIF | flag::VIP) as i32;
        let mut slow = vec![self.unless_sce()];
        dynasm!(self.e ; .arch x64 ; test DWORD [rsp + env_offset!(sysflags)], unusual);
        slow.push(self.e.jcc(cc::NE));
        dynasm!(self.e ; .arch x64 ; mov r10, rcx);
        slow.push(self.unless_t0_canonical());
        dynasm!(self.e ; .arch x64
            ; mov r10d, [rsp + gpr_offset(11)]
            ; test r10d, unusual | (flag::TF | flag::AC) as i32);
        slow.push(self.e.jcc(cc::NE));
        slow.push(self.if_t0_opens());
        self.slow_from(slow);
        self.rflags_from_t0();
        dynasm!(self.e ; .arch x64
            ; mov r11, [rsp + env_offset!(msr.star)]
            ; shr r11, 48
            ; lea r10d, [r11 + 16]
            ; add r11d, 8
            ; or r10d, 3
            ; or r11d, 3);
        self.flat_segment(CS, 10, CODE64 | USER);
        self.flat_segment(SS, 11, DATA | USER);
        dynasm!(self.e ; .arch x64 ; mov r10, rcx);
        self.e.jmp_to(self.thunks.lookup[mode::USER64]);
    }

    /// IRETQ at CPL 0.
    pub(super) fn iret(&mut self) {
        self.flags_free(0);
        dynasm!(self.e ; .arch x64 ; mov r10, r9);
        self.check(40 | STACK, false, Path::Slot(STACK_SLOT, Place::Sum(0)), Use::Load);
        self.place_address(10);
        for (word, scratch) in FRAME.into_iter().enumerate() {
            let at = 8 * word as i32;
            dynasm!(self.e ; .arch x64 ; mov r11, [r10 + at] ; mov [rsp + scratch_offset(scratch)], r11);
        }
        let [at_rip, at_cs, at_flags, _, at_ss] = FRAME.map(scratch_offset);
        let mut slow = Vec::new();
        if self.key.mode & mode::SMAP_OFF != 0 {
            // There is no SMAP, or AC is set, which is rare here.
            dynasm!(self.e ; .arch x64 ; test DWORD [rsp + env_offset!(cr4)], cr::CR4_SMAP as i32);
            slow.push(self.e.jcc(cc::NE));
        }
        dynasm!(self.e ; .arch x64 ; test DWORD [rsp + env_offset!(sysflags)], flag::NT as i32);
        slow.push(self.e.jcc(cc::NE));
        dynasm!(self.e ; .arch x64 ; mov r10, [rsp + at_rip]);
        slow.push(self.unless_t0_canonical());
        dynasm!(self.e ; .arch x64
            ; mov r10d, [rsp + at_flags]
            ; test r10d, (flag::TF | flag::AC) as i32);
        slow.push(self.e.jcc(cc::NE));
        slow.push(self.if_t0_opens());
        dynasm!(self.e ; .arch x64 ; test BYTE [rsp + at_cs], 3);
        let inner = self.e.jcc(cc::E);

        // To CPL 3. (Code segments of privilege 1 and 2 are not what is compared with.)
        for (at, access) in [(at_cs, CODE64 | USER), (at_ss, DATA | USER)] {
            dynasm!(self.e ; .arch x64
                ; movzx r10d, WORD [rsp + at]
                ; mov r11d, r10d
                ; not r11d
                ; test r11d, 3);
            slow.push(self.e.jcc(cc::NE));
            self.unless_descriptor(access, &mut slow);
        }
        // DS, ES, FS and GS would be dropped if they were of more privilege than the program; null ones stay.
        for index in [0, 3, 4, 5] {
            dynasm!(self.e ; .arch x64 ; mov r11d, [rsp + rights_offset(index)] ; test r11d, r11d);
            let null = self.e.jcc_short(cc::E);
            dynasm!(self.e ; .arch x64 ; not r11d ; test r11d, USER as i32);
            slow.push(self.e.jcc(cc::NE));
            self.e.bind_short(null);
        }
        self.iret_to(mode::USER64, USER);

        // To CPL 0.
        self.e.bind(inner);
        dynasm!(self.e ; .arch x64 ; movzx r10d, WORD [rsp + at_cs]);
        self.unless_descriptor(CODE64, &mut slow);
        dynasm!(self.e ; .arch x64 ; movzx r10d, WORD [rsp + at_ss] ; test r10d, 3);
        slow.push(self.e.jcc(cc::NE));
        dynasm!(self.e ; .arch x64 ; test r10d, r10d);
        let null = self.e.jcc(cc::E);
        self.unless_descriptor(DATA, &mut slow);
        self.slow_from(slow);
        self.iret_to(self.kernel_class(), 0);
        self.e.bind(null);
        self.iret_to_null_stack();
    }

    /// The frame in scratch is good: takes it, to code of `class`, with flat segments of privilege `user`.
    fn iret_to(&mut self, class: usize, user: u16) {
        let [_, at_cs, _, _, at_ss] = FRAME.map(scratch_offset);
        dynasm!(self.e ; .arch x64 ; movzx r10d, WORD [rsp + at_cs] ; movzx r11d, WORD [rsp + at_ss]);
        self.flat_segment(CS, 10, CODE64 | user);
        self.flat_segment(SS, 11, DATA | user);
        self.iret_on(class);
    }

    /// As [`Translator::iret_to`], at CPL 0 with a null SS.
    fn iret_to_null_stack(&mut self) {
        let at_cs = scratch_offset(FRAME[1]);
        dynasm!(self.e ; .arch x64 ; movzx r10d, WORD [rsp + at_cs]);
        self.flat_segment(CS, 10, CODE64);
        let Segment { base, limit, access, selector } = null_stack(0, 0);
        let rights = u32::from(access) | u32::from(selector) << 16;
        dynasm!(self.e ; .arch x64
            ; mov QWORD [rsp + segment_offset(SS)], base as i32
            ; mov DWORD [rsp + segment_offset(SS) + 8], limit as i32
            ; mov DWORD [rsp + rights_offset(SS)], rights as i32);
        self.iret_on(self.kernel_class());
    }

    /// The class of code at CPL 0 with AC clear, as seen from such code.
    fn kernel_class(&self) -> usize {
        if self.key.mode & mode::SMAP_OFF != 0 { mode::KERNEL64_AC } else { mode::KERNEL64 }
    }

    /// RSP, RFLAGS and RIP of the frame in scratch.
    fn iret_on(&mut self, class: usize) {
        let [at_rip, _, at_flags, at_sp, _] = FRAME.map(scratch_offset);
        dynasm!(self.e ; .arch x64
            ; mov BYTE [rsp + env_offset!(nmi_blocked)], 0
            ; mov r9, [rsp + at_sp]
            ; mov r10d, [rsp + at_flags]);
        self.rflags_from_t0();
        dynasm!(self.e ; .arch x64 ; mov r10, [rsp + at_rip]);
        self.e.jmp_to(self.thunks.lookup[class]);
    }

    /// Segment register `index` becomes flat, with its selector in host register `selector`, which is clobbered.
    fn flat_segment(&mut self, index: usize, selector: u8, access: u16) {
        dynasm!(self.e ; .arch x64
            ; mov QWORD [rsp + segment_offset(index)], 0
            ; mov DWORD [rsp + segment_offset(index) + 8], -1
            ; shl Rd(selector), 16
            ; or Rd(selector), i32::from(access)
            ; mov [rsp + rights_offset(index)], Rd(selector));
    }

    /// Jumps away unless EFER.SCE is set.
    fn unless_sce(&mut self) -> Patch {
        dynasm!(self.e ; .arch x64 ; test DWORD [rsp + env_offset!(efer)], efer::SCE as i32);
        self.e.jcc(cc::E)
    }

    /// Jumps away if RFLAGS in T0 lets in an interrupt that may be waiting.
    fn if_t0_opens(&mut self) -> Patch {
        dynasm!(self.e ; .arch x64 ; test r10d, flag::IF as i32);
        let masked = self.e.jcc_short(cc::E);
        let waiting = self.if_interrupts_wait();
        self.e.bind_short(masked);
        waiting
    }

    /// Jumps away unless the selector in T0 names a flat segment with these rights in the GDT, of a page that the soft TLB
    /// has. Clobbers T0, T1.
    fn unless_descriptor(&mut self, access: u16, slow: &mut Vec<Patch>) {
        let tlb_mode = if self.key.mode & mode::SMAP_OFF != 0 { MODE_SUPERVISOR } else { MODE_SMAP };
        let table = table_offset(tlb_mode, false);
        let mask = (TLB_ENTRIES as i32 - 1) << 4;
        dynasm!(self.e ; .arch x64 ; test r10d, 4);
        slow.push(self.e.jcc(cc::NE));
        dynasm!(self.e ; .arch x64
            ; or r10d, 7
            ; cmp r10w, [rsp + env_offset!(gdt.limit)]);
        slow.push(self.e.jcc(cc::A));
        dynasm!(self.e ; .arch x64
            ; xor r10d, 7
            ; add r10, [rsp + env_offset!(gdt.base)]
            ; mov r11d, r10d
            ; shr r11d, 8
            ; and r11d, mask
            ; gs xor r10, [r11 + table]
            ; cmp r10, 0x1000 - 8);
        slow.push(self.e.jcc(cc::A));
        dynasm!(self.e ; .arch x64
            ; gs mov r11, [r11 + table + 8]
            ; mov r10, [r11 + r10]
            ; mov r11, QWORD flat_descriptor(access) as i64
            ; cmp r10, r11);
        slow.push(self.e.jcc(cc::NE));
    }
}
