//! Ways on from a block: direct, conditional, indirect.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{ConditionCode, Mnemonic, OpKind};

use crate::code::emitter::{Patch, cc};
use crate::code::jump_caches::{jump_code, probe_jump_cache, return_code, return_tags};
use crate::code::tb::{Guard, NO_PAGE, Slot, mode};
use crate::code::thunks::{T0, exit, gpr_offset};
use crate::env::WITH_FLAGS;
use crate::env_offset;
use crate::mmu::soft_tlb::code_page_offset;
use crate::translate::again::Again;
use crate::translate::block::Item;
use crate::translate::flags::{self, Flags};
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
    /// The jump goes to a version without groups.
    pub ungrouped: bool,
    /// The jump goes to a higher address.
    pub forward: bool,
    /// Flags that may be read there.
    pub live: u8,
    /// Instructions of the block that are not executed on this way.
    pub left: u32,
    /// For a jump to another page that may be linked: its guard's number and the jump to here if that is another one.
    pub guard: Option<(Patch, Patch)>,
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
    pub(super) fn go_to(&mut self, target: u64) {
        if self.single() {
            self.leave_to(target);
        } else if self.same_page(target) {
            self.e.align_word(1);
            let patch = self.e.jmp();
            self.linkable(patch, target, None);
        } else if self.class.is_some() {
            self.go_to_page(target);
        } else {
            self.leave_to(target);
        }
    }

    /// Goes on at a constant on another page. What is there depends on how that page is mapped now, so the jump, once
    /// linked, is taken only if the page is entered as it was then:
    ///
    /// ```text
    ///     cmp  dword gs:[code_pages + 4 * index], number      ; no page's while unlinked
    ///     jne  lookup                             ; to the stub while unlinked
    ///     jmp  block
    /// ```
    fn go_to_page(&mut self, target: u64) {
        self.flags_free(self.live_end);
        let user = self.key.mode & mode::CPL == 3;
        let entry = code_page_offset(user, target);
        // The number is patched, too: it is behind 8 bytes.
        self.e.align_word(8);
        dynasm!(self.e ; .arch x64 ; gs cmp DWORD [entry], NO_PAGE as i32);
        let number = self.e.last_word();
        self.e.align_word(2);
        let otherwise = self.e.jcc(cc::NE);
        self.e.align_word(1);
        let patch = self.e.jmp();
        self.linkable(patch, target, Some((number, otherwise)));
    }

    /// T0 = the constant `value`.
    fn target_to_t0(&mut self, value: u64) {
        match i32::try_from(value as i64) {
            Ok(short) => dynasm!(self.e ; .arch x64 ; mov r10, short),
            Err(_) => dynasm!(self.e ; .arch x64 ; mov r10, QWORD value as i64),
        }
    }

    /// Leaves for the loop, to go on at a constant.
    pub(super) fn leave_to(&mut self, target: u64) {
        self.leave_for(target, exit::BLOCK_END, 0);
    }

    /// Leaves for the loop, to go on at the constant `rip`, with the flags where they are.
    fn leave_for(&mut self, rip: u64, reason: u64, payload: u32) {
        self.target_to_t0(rip);
        if reason == exit::LINK || self.icount && reason == exit::POLL {
            dynasm!(self.e ; .arch x64 ; mov r11d, payload as i32);
        }
        let in_host = self.flags == Flags::Host;
        self.e.jmp_to(self.thunks.leave[reason as usize][usize::from(in_host)]);
    }

    /// Goes on at the address in T0. Where that is no address, the fault is the branch's own: the loop must know it.
    pub(super) fn go_to_t0(&mut self) {
        match self.class {
            Some(class) => {
                let again = self.flags_for_a_miss(class < mode::FAR_CLASSES);
                self.count(env_offset!(counted.branches));
                let patch = probe_jump_cache(&mut self.e, class);
                dynasm!(self.e ; .arch x64 ; gs jmp QWORD [r11 + jump_code(class)]);
                self.branch_misses.push((patch, again));
            }
            None => {
                self.flags_saved();
                self.note_branch();
                dynasm!(self.e ; .arch x64
                    ; mov [rsp + env_offset!(rip)], r10
                    ; mov r11d, exit::BLOCK_END as i32);
                self.e.jmp_to(self.thunks.exit);
            }
        }
    }

    /// Tells the loop that this block's branch leads to where it is asked for.
    fn note_branch(&mut self) {
        dynasm!(self.e ; .arch x64 ; mov DWORD [rsp + env_offset!(branch_from)], self.id as i32 + 1);
    }

    /// Emits the ways of indirect branches that the jump cache did not have.
    pub(super) fn branch_miss(&mut self, patch: Patch, again: Option<Again>) {
        self.e.bind(patch);
        self.flags_again(again);
        dynasm!(self.e ; .arch x64 ; mov r11d, self.id as i32 + 1);
        let class = self.class.expect("only classes have jump caches");
        self.e.jmp_to(self.thunks.branch_miss[class]);
    }

    /// Emits the ways of returns that the return cache did not have.
    pub(super) fn return_miss(&mut self, patch: Patch, class: usize, again: Option<Again>) {
        self.e.bind(patch);
        self.flags_again(again);
        dynasm!(self.e ; .arch x64 ; mov r11d, self.id as i32 + 1);
        self.e.jmp_to(self.thunks.return_lookup[class]);
    }

    /// The class whose returns are predicted, if this block's are.
    fn return_class(&self) -> Option<usize> {
        self.class.filter(|&class| class < mode::RETURN_CLASSES && !self.stress.unchained)
    }

    /// Goes on at the return address in T0.
    ///
    /// A call enters into the return cache where its block goes on, and pushes the same onto the host's return predictor;
    /// the return that finds its address there returns on the host, too:
    ///
    /// ```text
    ///     movzx t1d, t0b
    ///     cmp   t0, [returns.tags + 8 * t1]
    ///     jne   miss
    ///     push  qword [returns.code + 8 * t1]
    ///     ret
    /// ```
    pub(super) fn return_to_t0(&mut self) {
        let Some(class) = self.return_class() else { return self.go_to_t0() };
        let again = self.flags_for_a_miss(true);
        self.count(env_offset!(counted.returns));
        dynasm!(self.e ; .arch x64
            ; movzx r11d, r10b
            ; cmp r10, [rsp + r11 * 8 + return_tags(class, 0)]);
        let miss = self.e.jcc(cc::NE);
        dynasm!(self.e ; .arch x64 ; push QWORD [rsp + r11 * 8 + return_code(class, 0)] ; ret);
        self.return_misses.push((miss, class, again));
    }

    /// Has the host note that the block goes on at `next` (where a call returns to), and emits what goes to the
    /// callee by `target`. `in_t0`: T0 is `next`.
    pub(super) fn call_to(&mut self, next: u64, in_t0: bool, target: impl FnOnce(&mut Self)) {
        let Some(class) = self.return_class() else { return target(self) };
        // The flags of the caller are of no interest at the return: the callee's come back, if anybody reads them.
        let (which, flags) = if self.live_back == 0 { (0, Flags::Dead) } else { (WITH_FLAGS, Flags::Saved) };
        let index = (next & 0xff) as i32 * 8;
        let (tag, code) = (return_tags(class, which) + index, return_code(class, which) + index);
        match i32::try_from(next as i64) {
            Ok(short) => dynasm!(self.e ; .arch x64 ; mov QWORD [rsp + tag], short),
            Err(_) if in_t0 => dynasm!(self.e ; .arch x64 ; mov [rsp + tag], r10),
            Err(_) => dynasm!(self.e ; .arch x64
                ; mov r11, QWORD next as i64
                ; mov [rsp + tag], r11),
        }
        let call = self.e.call_forward();
        let flags = std::mem::replace(&mut self.flags, flags);
        let live_end = std::mem::replace(&mut self.live_end, self.live_back);
        self.go_to(next);
        (self.flags, self.live_end) = (flags, live_end);
        self.e.bind(call);
        dynasm!(self.e ; .arch x64 ; pop r11 ; mov [rsp + code], r11);
        target(self);
    }

    /// Jcc.
    pub(super) fn jump_if(&mut self, item: &Item) {
        self.flags_for(item);
        let condition = condition_number(item.insn.condition_code());
        let target = item.insn.near_branch_target();
        self.two_ways(target, item.insn.next_ip(), |this| {
            this.align_jump_if();
            this.e.jcc(condition)
        });
    }

    /// Emits a conditional jump by `jump`, to `target` or on to `next`.
    fn two_ways(&mut self, target: u64, next: u64, jump: impl FnOnce(&mut Self) -> Patch) {
        let patch = jump(self);
        if self.same_page(target) && !self.single() {
            self.linkable(patch, target, None);
        } else {
            self.way_out(patch, self.flags, target, true);
        }
        self.go_to(next);
    }

    /// A conditional jump in the midst of an extended block.
    pub(super) fn jump_out_if(&mut self, item: &Item) {
        self.flags_for(item);
        let target = item.insn.near_branch_target();
        self.align_jump_if();
        let patch = self.e.jcc(condition_number(item.insn.condition_code()));
        let live_end = std::mem::replace(&mut self.live_end, flags::ALL);
        // Under icount there is something to do on the way.
        if self.same_page(target) && !self.icount {
            self.linkable(patch, target, None);
        } else {
            self.way_out(patch, self.flags, target, true);
        }
        self.live_end = live_end;
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
                    self.way_out(out, flags, next, false);
                }
                Mnemonic::Loopne => {
                    let out = self.e.jcc(cc::E);
                    self.way_out(out, flags, next, false);
                }
                _ => {}
            }
            self.go_to(target);
        } else {
            self.go_to(next);
        }
        self.e.bind_short(zero);
        self.flags = flags;
        dynasm!(self.e ; .arch x64 ; mov rcx, r10);
        if counts {
            self.go_to(next);
        } else {
            self.go_to(target);
        }
    }

    /// A jump whose way on is emitted behind the block, to be linked or by way of the loop.
    fn way_out(&mut self, patch: Patch, flags: Flags, rip: u64, linked: bool) {
        self.exit_stubs.push(ExitStub {
            patch,
            flags,
            rip,
            reason: 0,
            payload: linked.into(),
            slot: None,
            ungrouped: false,
            forward: false,
            guard: None,
            live: self.live_end,
            left: self.left(),
        });
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
                (None, _) => self.e.load_env(T0, gpr_offset(number)),
            }
            // Flags are saved with T1 alone, so T0 stays.
            return;
        }
        self.memory_to_t0(item, if wide { 8 } else { 4 });
    }

    /// Emits a way out that was left for later.
    pub(super) fn exit_stub(&mut self, stub: ExitStub) {
        self.flags = stub.flags;
        if stub.reason == 0 {
            self.e.bind(stub.patch);
            self.give_back(stub.left);
            if stub.payload == 0 {
                self.leave_to(stub.rip);
            } else {
                self.live_end = stub.live;
                self.go_to(stub.rip);
            }
            return;
        }
        let guard = stub.guard.map(|(number, otherwise)| {
            let lookup = self.e.len() as u16;
            let class = self.class.expect("jumps to other pages are linked for such modes only");
            self.target_to_t0(stub.rip);
            self.e.jmp_to(self.thunks.lookup[class]);
            self.e.bind(otherwise);
            Guard { number: number.offset(), otherwise: otherwise.offset(), lookup }
        });
        let at = self.e.len() as u16;
        self.e.bind(stub.patch);
        if let Some(slot) = stub.slot {
            self.lists.slots[slot] = Slot {
                displacement: stub.patch.offset(),
                stub: at,
                flags_saved: stub.flags == Flags::Saved,
                ungrouped: stub.ungrouped,
                forward: stub.forward,
                guard,
                ..Slot::UNKNOWN
            };
        }
        if stub.reason == exit::POLL {
            self.give_back(self.count_of_block() as u32);
        }
        self.leave_for(stub.rip, stub.reason, stub.payload as u32);
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
