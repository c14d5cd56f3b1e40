//! The checks of groups ([`crate::translate::groups`]).

use dynasmrt::{DynasmApi, dynasm};

use super::{MissStub, NO_SLOT, Path, STACK_SLOT, Use, kept_offset};
use crate::code::emitter::cc;
use crate::code::tb::{GROUP_WAYS, mode};
use crate::code::thunks::{T1, scratch_offset};
use crate::env_offset;
use crate::exec::helpers;
use crate::ram::PAGE;
use crate::translate::block::Item;
use crate::translate::classify::Class;
use crate::translate::cold::Held;
use crate::translate::generator::Translator;
use crate::translate::groups::{self, Access, Base, Head, RBP, RSP, Way};
use crate::translate::native::has_memory;
use crate::translate::place::Place;

impl Translator {
    /// Makes the check of a group. `live`: flags that are needed here.
    pub(in crate::translate) fn check_group(&mut self, head: &Head, live: u8) {
        self.flags_free(live);
        self.count(match head.way {
            Way::Slot(_) => env_offset!(counted.group_checks),
            Way::Table(_) => env_offset!(counted.table_checks),
        });
        let base = usize::from(head.base.base);
        let index = head.base.index.map(|(index, scale)| (usize::from(index), u32::from(scale)));
        self.address_to_t0(Some(base), index, head.displacement);
        let stub = match head.way {
            Way::Slot(slot) => self.check_slot(head.size, head.write, slot, Place::Sum(0)),
            Way::Table(_) => self.check_hashed(head.size, head.write, None),
        };
        let back = self.e.here();
        if let Way::Table(number) = head.way {
            let kept = kept_offset(number);
            dynasm!(self.e ; .arch x64 ; lea r11, [r11 + r10]);
            self.e.store_env(kept, T1);
            self.t1 = Some(Held::Addend(kept));
        }
        let slot = if let Way::Slot(slot) = head.way { slot } else { NO_SLOT };
        let packed = head.size | helpers::GROUP | (slot as u32) << helpers::SLOT_SHIFT;
        self.miss_stubs.push(MissStub {
            back,
            packed,
            insn: self.now,
            flags: self.flags,
            fp_loaded: self.fp_loaded,
            write: head.write,
            used_for: Use::Member,
            ..stub
        });
    }

    /// A check of a group of `size` bytes that begins at T0 has failed before the instruction at `rip`. What lies on two pages has
    /// the block gone on with in the version without groups at once, if that is nothing unusual: numbers and arrays lie where they
    /// do, and the way by the helper and the loop takes longer than all that groups save meanwhile.
    pub(in crate::translate) fn leave_if_on_two_pages(&mut self, size: u32, rip: u64) {
        if !self.straddling || self.lists.slots.len() >= GROUP_WAYS {
            return;
        }
        // The tag of a slot or an entry may have been taken off T0: its low bits are zero.
        dynasm!(self.e ; .arch x64
            ; mov [rsp + scratch_offset(0)], r11
            ; mov r11d, r10d
            ; and r11d, PAGE as i32 - 1
            ; cmp r11d, PAGE as i32 - size as i32
            ; mov r11, [rsp + scratch_offset(0)]);
        self.e.align_word(2);
        let patch = self.e.jcc(cc::A);
        self.linkable(patch, rip, None);
        if let Some(stub) = self.exit_stubs.last_mut() {
            stub.ungrouped = true;
        }
    }

    /// Finds what can be checked together in `items`.
    pub(in crate::translate) fn find_groups(&mut self, items: &[Item], grouped: bool) {
        let mut groups = std::mem::take(&mut self.groups);
        let apart = mode::SINGLE | mode::UNGROUPED | mode::ALIGN | mode::WINDOWED;
        if !grouped
            || self.bits != 64
            || self.class.is_none()
            || self.key.mode & apart != 0
            || items.len() < 2
        {
            groups.clear(items.len());
        } else {
            groups.find(items, |index, item| self.access_of(index, item));
        }
        self.groups = groups;
    }

    /// See [`Groups::find`].
    fn access_of(&mut self, index: usize, item: &Item) -> (Option<Access>, u64) {
        if self.hashed >> index & 1 != 0 {
            return (None, 0);
        }
        let insn = &item.insn;
        let slots = |path: Path| path.slot().map_or(0, |slot| 1 << slot);
        let stack = |displacement: i64, size, write| {
            let base = Base { base: RSP, index: None };
            (Some(Access { base, displacement, size, write, slot: Some(STACK_SLOT) }), 0)
        };
        let step = || i64::from(insn.stack_pointer_increment());
        match item.class {
            Class::Push | Class::Call => stack(step(), step().unsigned_abs() as u32, true),
            Class::Pop => stack(0, step().unsigned_abs() as u32, false),
            Class::Return => stack(0, 8, false),
            Class::Leave => {
                let base = Base { base: RBP, index: None };
                (Some(Access { base, displacement: 0, size: 8, write: false, slot: None }), 0)
            }
            Class::Native | Class::NativeFp if item.memory => {
                let path = self.path_of(insn);
                match groups::operand(insn, item.access.writes, path.slot()) {
                    None => (None, slots(path)),
                    access => (access, 0),
                }
            }
            Class::CallIndirect if !has_memory(insn) => stack(-8, 8, true),
            Class::PushMemory | Class::CallIndirect => (None, 1 << STACK_SLOT | slots(self.path_of(insn))),
            Class::JumpIndirect if has_memory(insn) => (None, slots(self.path_of(insn))),
            _ => (None, 0),
        }
    }
}
