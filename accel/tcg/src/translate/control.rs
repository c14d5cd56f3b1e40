//! Ways on from a block: direct, conditional, indirect.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{ConditionCode, Mnemonic, OpKind};

use crate::code::emitter::{Patch, cc};
use crate::code::tb::{Slot, mode};
use crate::code::thunks::{exit, gpr_offset};
use crate::env_offset;
use crate::translate::block::Item;
use crate::translate::flags::Flags;
use crate::translate::generator::Translator;
use crate::translate::registers::{gpr_number, host_number};

/// A way out of the block that is emitted behind it.
pub struct ExitStub {
    /// The jump that leads here.
    pub patch: Patch,
    /// Where the guest's flags are then.
    pub flags: Flags,
    /// Where the guest goes on.
    pub rip: u64,
    /// One of [`exit`].
    pub reason: u64,
    /// Belongs to the reason.
    pub payload: u64,
    /// The jump may be linked as this slot of the block.
    pub slot: Option<usize>,
}

impl Translator {
    /// Whether `target` is on the page that the block starts on, by distance.
    fn same_page(&self, target: u64) -> bool {
        let offset = self.key.physical & 0xfff;
        let place = offset.wrapping_add(target.wrapping_sub(self.key.rip));
        place < 0x1000
    }

    fn single(&self) -> bool {
        self.key.mode & mode::SINGLE != 0
    }

    /// Goes on at the constant `target`.
    pub(super) fn go_to(&mut self, slot: usize, target: u64) {
        if self.same_page(target) && !self.single() {
            self.e.align_displacement(1);
            let patch = self.e.jmp();
            self.linkable(patch, slot, target);
        } else {
            self.flags_saved();
            self.leave_to(target);
        }
    }

    /// Goes on at a constant on another page, flags saved.
    fn leave_to(&mut self, target: u64) {
        if self.single() || self.key.mode & mode::FLAT_CODE == 0 {
            self.store_rip(target);
            dynasm!(self.e ; .arch x64 ; mov r11d, exit::BLOCK_END as i32);
            self.e.jmp_to(self.thunks.exit);
        } else {
            match i32::try_from(target as i64) {
                Ok(short) => dynasm!(self.e ; .arch x64 ; mov r10, short),
                Err(_) => dynasm!(self.e ; .arch x64 ; mov r10, QWORD target as i64),
            }
            self.e.jmp_to(self.thunks.lookup);
        }
    }

    /// Goes on at the address in T0. Where that is no address, the fault is the branch's own: the loop must know it.
    pub(super) fn go_to_t0(&mut self) {
        self.flags_saved();
        dynasm!(self.e ; .arch x64 ; mov DWORD [rsp + env_offset!(branch_from)], self.id as i32 + 1);
        if self.single() || self.key.mode & mode::FLAT_CODE == 0 {
            dynasm!(self.e ; .arch x64
                ; mov [rsp + env_offset!(rip)], r10
                ; mov r11d, exit::BLOCK_END as i32);
            self.e.jmp_to(self.thunks.exit);
        } else {
            self.e.jmp_to(self.thunks.lookup);
        }
    }

    /// Jcc.
    pub(super) fn jump_if(&mut self, item: &Item) {
        self.flags_for(item);
        let condition = condition_number(item.insn.condition_code());
        let target = item.insn.near_branch_target();
        self.two_ways(target, item.insn.next_ip(), |this| {
            this.e.align_displacement(2);
            this.e.jcc(condition)
        });
    }

    /// Emits a conditional jump by `jump`, to `target` or on to `next`.
    fn two_ways(&mut self, target: u64, next: u64, jump: impl FnOnce(&mut Self) -> Patch) {
        let patch = jump(self);
        if self.same_page(target) && !self.single() {
            self.linkable(patch, 1, target);
        } else {
            let flags = self.flags;
            self.exit_stubs.push(ExitStub { patch, flags, rip: target, reason: 0, payload: 0, slot: None });
        }
        self.go_to(0, next);
    }

    /// JCXZ and LOOP: counts without touching the flags.
    pub(super) fn jump_count(&mut self, item: &Item) {
        let insn = &item.insn;
        let mnemonic = insn.mnemonic();
        let width = match mnemonic {
            Mnemonic::Jcxz => 16,
            Mnemonic::Jecxz => 32,
            Mnemonic::Jrcxz => 64,
            // LOOP's counter has the address size, which its code names.
            _ => loop_width(insn),
        };
        self.flags_for(item);
        if mnemonic != Mnemonic::Jcxz && mnemonic != Mnemonic::Jecxz && mnemonic != Mnemonic::Jrcxz {
            match width {
                64 => dynasm!(self.e ; .arch x64 ; lea rcx, [rcx - 1]),
                32 => dynasm!(self.e ; .arch x64 ; lea ecx, [rcx - 1]),
                _ => dynasm!(self.e ; .arch x64 ; lea r10d, [rcx - 1] ; mov cx, r10w),
            }
        }
        // JRCXZ on a copy of the right width; RCX comes back on both ways.
        dynasm!(self.e ; .arch x64 ; mov r10, rcx);
        match width {
            64 => {}
            32 => dynasm!(self.e ; .arch x64 ; mov ecx, ecx),
            _ => dynasm!(self.e ; .arch x64 ; movzx ecx, cx),
        }
        let zero = self.e.jrcxz();
        dynasm!(self.e ; .arch x64 ; mov rcx, r10);
        let (target, next) = (insn.near_branch_target(), insn.next_ip());
        let counts = matches!(mnemonic, Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne);
        let flags = self.flags;
        if counts {
            // Not zero: jump, for LOOPE and LOOPNE only if ZF agrees.
            match mnemonic {
                Mnemonic::Loope => {
                    let out = self.e.jcc(cc::NE);
                    self.way_out(out, flags, next);
                }
                Mnemonic::Loopne => {
                    let out = self.e.jcc(cc::E);
                    self.way_out(out, flags, next);
                }
                _ => {}
            }
            self.go_to(1, target);
        } else {
            self.go_to(0, next);
        }
        self.e.bind_short(zero);
        self.flags = flags;
        dynasm!(self.e ; .arch x64 ; mov rcx, r10);
        if counts {
            self.go_to(0, next);
        } else {
            self.go_to(1, target);
        }
    }

    fn way_out(&mut self, patch: Patch, flags: Flags, rip: u64) {
        self.exit_stubs.push(ExitStub { patch, flags, rip, reason: 0, payload: 0, slot: None });
    }

    /// JMP r/m.
    pub(super) fn jump_indirect(&mut self, item: &Item) {
        self.load_target(item);
        self.go_to_t0();
    }

    /// T0 = the r/m operand of an indirect branch.
    pub(super) fn load_target(&mut self, item: &Item) {
        let insn = &item.insn;
        let wide = self.bits == 64;
        if insn.op0_kind() == OpKind::Register {
            let number = gpr_number(insn.op0_register()).expect("indirect branches name general registers");
            match (host_number(number), wide) {
                (Some(host), true) => dynasm!(self.e ; .arch x64 ; mov r10, Rq(host as u8)),
                (Some(host), false) => dynasm!(self.e ; .arch x64 ; mov r10d, Rd(host as u8)),
                (None, _) => dynasm!(self.e ; .arch x64 ; mov r10, [rsp + gpr_offset(number)]),
            }
            // Flags are saved with T1 alone, so T0 stays.
            return;
        }
        self.memory_to_t0(item, if wide { 8 } else { 4 });
    }

    /// Emits a way out that was left for later.
    pub(super) fn exit_stub(&mut self, stub: ExitStub) {
        let at = self.e.here();
        self.e.bind(stub.patch);
        if let Some(slot) = stub.slot {
            self.slots[slot] = Some(Slot {
                displacement: self.e.address_of(stub.patch),
                stub: at,
                flags_saved: stub.flags == Flags::Saved,
                linked: None,
            });
        }
        self.flags = stub.flags;
        self.flags_saved();
        if stub.reason == 0 {
            self.leave_to(stub.rip);
            return;
        }
        self.store_rip(stub.rip);
        dynasm!(self.e ; .arch x64 ; mov r10d, stub.payload as i32 ; mov r11d, stub.reason as i32);
        self.e.jmp_to(self.thunks.exit);
    }
}

fn loop_width(insn: &iced_x86::Instruction) -> u32 {
    use iced_x86::Code as C;
    match insn.code() {
        C::Loop_rel8_16_CX
        | C::Loop_rel8_32_CX
        | C::Loope_rel8_16_CX
        | C::Loope_rel8_32_CX
        | C::Loopne_rel8_16_CX
        | C::Loopne_rel8_32_CX => 16,
        C::Loop_rel8_64_RCX
        | C::Loop_rel8_16_RCX
        | C::Loope_rel8_64_RCX
        | C::Loope_rel8_16_RCX
        | C::Loopne_rel8_64_RCX
        | C::Loopne_rel8_16_RCX => 64,
        _ => 32,
    }
}

/// The condition's number in the encoding of Jcc.
fn condition_number(condition: ConditionCode) -> u8 {
    match condition {
        ConditionCode::o => 0,
        ConditionCode::no => 1,
        ConditionCode::b => 2,
        ConditionCode::ae => 3,
        ConditionCode::e => 4,
        ConditionCode::ne => 5,
        ConditionCode::be => 6,
        ConditionCode::a => 7,
        ConditionCode::s => 8,
        ConditionCode::ns => 9,
        ConditionCode::p => 10,
        ConditionCode::np => 11,
        ConditionCode::l => 12,
        ConditionCode::ge => 13,
        ConditionCode::le => 14,
        _ => 15,
    }
}
