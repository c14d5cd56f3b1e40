//! The stack: PUSH, POP, LEAVE, and the stack side of CALL and RET. Flat stacks of 32 and 64 bits; others are helpers'.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Code, Instruction, OpKind, Register};

use crate::code::emitter::{Emitter, cc};
use crate::code::tb::WORDS_AHEAD;
use crate::code::thunks::{T0, gpr_offset, scratch_offset};
use crate::exception::Exception;
use crate::exec::helpers::STACK;
use crate::translate::address::window::CLOSE;
use crate::translate::address::{Path, STACK_SLOT, Use, stack_bit};
use crate::translate::block::Item;
use crate::translate::classify::Class;
use crate::translate::encode::{Memory, Op};
use crate::translate::generator::Translator;
use crate::translate::groups::{RBP, RSP};
use crate::translate::place::Place;
use crate::translate::registers::{gpr_number, host_number};

impl Translator {
    /// Bytes that a PUSH or POP moves.
    fn slot_size(&self, insn: &Instruction) -> u32 {
        insn.stack_pointer_increment().unsigned_abs()
    }

    /// Reaches a new slot of `size` bytes on the stack, for a store. See [`Translator::reach`].
    pub(super) fn reach_push(&mut self, live: u8, size: u32, used_for: Use) -> Option<usize> {
        let below = -(size as i32);
        if self.reach_window_at(RSP, below) {
            return None;
        }
        self.reach((size | STACK, true), live, used_for, |this, used_for| {
            if used_for != Use::Member {
                let size = if this.bits == 64 { 8 } else { 4 };
                let memory = Memory { base: Some(9), index: None, displacement: below };
                this.e.memory_op(Op::Lea, 10, memory, size);
            }
            this.stack_path(below)
        })
    }

    /// Reaches `size` bytes at the top of the stack, for a load.
    fn reach_top(&mut self, live: u8, size: u32) {
        if self.reach_window_at(RSP, 0) {
            return;
        }
        self.reach((size | STACK, false), live, Use::Load, |this, used_for| {
            match (used_for, this.bits) {
                (Use::Member, _) => {}
                (_, 64) => dynasm!(this.e ; .arch x64 ; mov r10, r9),
                _ => dynasm!(this.e ; .arch x64 ; mov r10d, r9d),
            }
            this.stack_path(0)
        });
    }

    /// The way to the stack's top, plus `displacement`.
    pub(super) fn stack_path(&self, displacement: i32) -> Path {
        if self.bits == 64 { Path::stack(displacement) } else { Path::Slot(STACK_SLOT, Place::Sum(0)) }
    }

    /// The stack pointer moves by `delta`, flags untouched: where the present instruction reaches the stack by a window, later.
    fn move_stack(&mut self, delta: i32) {
        if self.bits == 64 && delta % 8 == 0 && self.windowed() {
            let words = self.words_ahead + delta / 8;
            if WORDS_AHEAD.contains(&words) {
                self.words_ahead = words;
                return;
            }
        }
        self.settle_stack();
        self.move_stack_now(delta);
    }

    /// The host's register has the guest's RSP.
    pub(super) fn settle_stack(&mut self) {
        let words = std::mem::take(&mut self.words_ahead);
        if words != 0 {
            self.move_stack_now(8 * words);
        }
    }

    /// Whether the present instruction of `items` can be emitted while the host's register has not got the guest's RSP: it reaches
    /// no more than the stack by it, through a window, and its fault is told how far it is ([`crate::code::tb::Mark`]). Behind a
    /// comparison nothing is to come before the jump.
    pub(super) fn stack_may_wait(&self, items: &[Item]) -> bool {
        let item = &items[self.now];
        let insn = &item.insn;
        let names = |operand| {
            insn.op_kind(operand) == OpKind::Register
                && gpr_number(insn.op_register(operand)) == Some(RSP.into())
        };
        let named = (0..insn.op_count()).any(names);
        match item.class {
            _ if named || items.get(self.now + 1).is_some_and(|next| next.class == Class::JumpIf) => false,
            Class::Push | Class::Pop | Class::Return | Class::Call => self.windowed(),
            Class::Nothing => true,
            Class::Lea => insn.memory_base().full_register() != Register::RSP,
            Class::Native | Class::NativeFp if !item.memory => true,
            Class::Native | Class::NativeFp => {
                let base = insn.memory_base();
                let alone = base == Register::RSP && insn.memory_index() == Register::None;
                self.windowed() && (base.full_register() != Register::RSP || alone && is_close(insn))
            }
            _ => false,
        }
    }

    /// The stack pointer moves by `delta`, flags untouched.
    fn move_stack_now(&mut self, delta: i32) {
        let size = if self.bits == 64 { 8 } else { 4 };
        self.e.memory_op(Op::Lea, 9, Memory { base: Some(9), index: None, displacement: delta }, size);
    }

    /// PUSH of a register or immediate.
    pub(super) fn push(&mut self, item: &Item) {
        let size = self.slot_size(&item.insn);
        let stub = self.reach_push(item.live_in, size, Use::Push);
        self.store_pushed(item);
        self.checked_access_ends(stub);
    }

    /// Stores what `item` pushes at T1 + T0 and moves the stack pointer.
    pub(super) fn store_pushed(&mut self, item: &Item) {
        let insn = &item.insn;
        let size = self.slot_size(insn);
        if insn.op0_kind() == OpKind::Register {
            let number = gpr_number(insn.op0_register()).expect("other registers are pushed by a helper");
            match host_number(number) {
                Some(host) => self.store(host as u8, size),
                None => self.store_of(size, |e| e.load_env(T0, gpr_offset(number))),
            }
        } else {
            self.store_constant(insn.immediate(0) as i32, size);
        }
        self.move_stack(-(size as i32));
    }

    /// Stores at the place what `load` brings into T0.
    fn store_of(&mut self, size: u32, load: impl FnOnce(&mut Emitter)) {
        if let Place::Sum(displacement) = self.place {
            // T0 is a part of it: T1 becomes the whole.
            self.place_address(11);
            self.t1 = None;
            self.place = Place::Host(0);
            load(&mut self.e);
            self.store(10, size);
            self.place = Place::Sum(displacement);
        } else {
            load(&mut self.e);
            self.store(10, size);
        }
    }

    /// PUSH of a memory operand: read it first, then check the slot.
    pub(super) fn push_memory(&mut self, item: &Item) {
        let size = self.slot_size(&item.insn);
        if !self.reach_window(&item.insn) {
            self.flags_free(item.live_in);
            let path = self.path_to(&item.insn, size, false);
            self.check(size | stack_bit(&item.insn, self.bits), false, path, Use::Load);
        }
        self.load(10, size);
        dynasm!(self.e ; .arch x64 ; mov [rsp + scratch_offset(1)], r10);
        let stub = self.reach_push(item.live_in, size, Use::PushScratch);
        self.store_scratch(item);
        self.checked_access_ends(stub);
    }

    /// Stores scratch 1 at T1 + T0 and moves the stack pointer.
    pub(super) fn store_scratch(&mut self, item: &Item) {
        // A CALL through memory pushes its return address; only PUSH comes here.
        let size = self.slot_size(&item.insn);
        self.store_of(size, |e| dynasm!(e ; .arch x64 ; mov r10, [rsp + scratch_offset(1)]));
        self.move_stack(-(size as i32));
    }

    /// POP of a general register.
    pub(super) fn pop(&mut self, item: &Item) {
        let insn = &item.insn;
        let size = self.slot_size(insn);
        let number = gpr_number(insn.op0_register()).expect("other registers are popped by a helper");
        self.reach_top(item.live_in, size);
        match (host_number(number), size) {
            // POP RSP: the value, not the incremented pointer. POP SP increments first.
            (Some(9), 4 | 8) => return self.load(9, size),
            (Some(9), _) => {
                self.load(10, 2);
                self.move_stack(2);
                return dynasm!(self.e ; .arch x64 ; mov r9w, r10w);
            }
            (Some(host), _) => self.load(host as u8, size),
            (None, _) => {
                self.given(number);
                self.load(10, size);
                match size {
                    2 => dynasm!(self.e ; .arch x64 ; mov [rsp + gpr_offset(number)], r10w),
                    _ => self.e.store_env(gpr_offset(number), T0),
                }
            }
        }
        self.move_stack(size as i32);
    }

    /// LEAVE.
    pub(super) fn leave(&mut self, item: &Item) {
        let wide = item.insn.code() == Code::Leaveq;
        if wide {
            if !self.reach_window_at(RBP, 0) {
                self.reach((8 | STACK, false), item.live_in, Use::Load, |this, used_for| {
                    if used_for != Use::Member {
                        dynasm!(this.e ; .arch x64 ; mov r10, rbp);
                    }
                    Path::Table
                });
            }
            self.load(10, 8);
            dynasm!(self.e ; .arch x64 ; lea r9, [rbp + 8] ; mov rbp, r10);
        } else {
            self.flags_free(item.live_in);
            dynasm!(self.e ; .arch x64 ; mov r10d, ebp);
            self.check(4 | STACK, false, Path::Table, Use::Load);
            self.load(10, 4);
            dynasm!(self.e ; .arch x64 ; lea r9d, [rbp + 4] ; mov ebp, r10d);
        }
    }

    /// CALL rel.
    pub(super) fn call(&mut self, item: &Item) {
        let in_t0 = self.push_return(item);
        self.call_to(item.insn.next_ip(), in_t0, |this| this.go_to(item.insn.near_branch_target()));
    }

    /// CALL r/m: the target is read before the return address is pushed.
    pub(super) fn call_indirect(&mut self, item: &Item) {
        self.load_target(item);
        dynasm!(self.e ; .arch x64 ; mov [rsp + scratch_offset(1)], r10);
        if self.bits == 64 {
            self.fault_unless_canonical(item);
        }
        let in_t0 = self.push_return(item);
        self.call_to(item.insn.next_ip(), in_t0, |this| {
            dynasm!(this.e ; .arch x64 ; mov r10, [rsp + scratch_offset(1)]);
            this.go_to_t0();
        });
    }

    /// Raises #GP(0) if T0 is not canonical: a call faults before it pushes.
    fn fault_unless_canonical(&mut self, item: &Item) {
        // Where windows are, all addresses are.
        if self.windowed() {
            return self.look_at_region(T0);
        }
        self.flags_free(item.live_in);
        dynasm!(self.e ; .arch x64 ; mov r11, r10 ; shl r11, 16 ; sar r11, 16 ; cmp r11, r10);
        let canonical = self.e.jcc_short(cc::E);
        let (flags, fp_loaded) = (self.flags, self.fp_loaded);
        self.complex(&item.insn, Some(Exception::gp(0)));
        (self.flags, self.fp_loaded) = (flags, fp_loaded);
        self.e.bind_short(canonical);
    }

    /// Pushes the next instruction's address. Whether T0 is that address then, unless it is a short one.
    fn push_return(&mut self, item: &Item) -> bool {
        let size = if self.bits == 64 { 8 } else { 4 };
        let stub = self.reach_push(item.live_in, size, Use::PushReturn);
        self.store_return(item);
        self.settle_stack();
        self.checked_access_ends(stub);
        // The way of a miss, which comes back here, leaves something else there.
        self.bits == 64 && stub.is_none()
    }

    /// Stores the next instruction's address at T1 + T0 and moves the stack pointer.
    pub(super) fn store_return(&mut self, item: &Item) {
        let next = item.insn.next_ip();
        if self.bits != 64 {
            self.store_constant(next as i32, 4);
            self.move_stack(-4);
            return;
        }
        match i32::try_from(next as i64) {
            Ok(short) => self.store_constant(short, 8),
            Err(_) => self.store_of(8, |e| dynasm!(e ; .arch x64 ; mov r10, QWORD next as i64)),
        }
        self.move_stack(-8);
    }

    /// RET, with or without bytes to drop.
    pub(super) fn ret(&mut self, item: &Item) {
        let drop = if item.insn.op_count() == 1 { item.insn.immediate16() } else { 0 };
        let size = if self.bits == 64 { 8 } else { 4 };
        self.reach_top(item.live_in, size);
        self.load(10, size);
        self.lists.popped = size + u32::from(drop);
        self.move_stack(self.lists.popped as i32);
        self.settle_stack();
        self.return_to_t0();
    }
}

/// Whether the memory operand of `insn`, which has a base register alone, is looked for by that.
fn is_close(insn: &Instruction) -> bool {
    let displacement = insn.memory_displacement64() as i64;
    insn.segment_prefix() == Register::None && displacement.unsigned_abs() < CLOSE
}
