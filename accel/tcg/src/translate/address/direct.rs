//! Checks of addresses that are compared as they are, without an addition first: constants, and what is near a base register.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Instruction, Register};

use super::{CONSTANT_PAGES, CONSTANT_SLOTS, MissStub, Path, Restore, slot_offset};
use crate::code::emitter::cc;
use crate::code::tb::mode;
use crate::exec::helpers;
use crate::mmu::soft_tlb::table_offset;
use crate::operand::segment_index;
use crate::ram::PAGE;
use crate::translate::address::address_width;
use crate::translate::cold::Held;
use crate::translate::encode::{Memory, Op};
use crate::translate::generator::Translator;
use crate::translate::place::Place;
use crate::translate::registers::{gpr_number, host_number};

/// Bytes from a base register on that are near it: its page is looked up, not the operand's. The two differ the more often the
/// farther they are apart, and then the miss is for nothing.
const NEAR: u64 = 32;

/// What makes T0 the linear address in the stub of a check that has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Linear {
    /// The ramp does, or it is.
    Ready,
    /// It is this constant. T0 is not used behind the check.
    Constant(u64),
    /// T0 and this displacement; T0 alone is expected again behind the check.
    Above(i32),
    /// A register and this displacement; the register's value is expected in T0 behind the check.
    Near(u8, i32),
}

impl Translator {
    /// The way to the memory operand of `insn`, of `size` bytes, and its linear address in T0 if the way needs it there.
    /// Clobbers T1; keeps EFLAGS, except for segments that a helper must check.
    pub(in crate::translate) fn path_to(&mut self, insn: &Instruction, size: u32, write: bool) -> Path {
        match self.direct_path(insn, size) {
            Some(path) => path,
            None => self.linear_to_t0(insn, size, write),
        }
    }

    fn direct_path(&self, insn: &Instruction, size: u32) -> Option<Path> {
        if self.bits != 64
            || self.key.mode & mode::ALIGN != 0
            || segment_index(insn.memory_segment()) >= 4
            || insn.memory_index() != Register::None
            || address_width(insn, self.bits) != 64
        {
            return None;
        }
        let displacement = insn.memory_displacement64();
        match insn.memory_base() {
            Register::None | Register::RIP => {
                let slot = CONSTANT_SLOTS + (displacement / PAGE) as usize % CONSTANT_PAGES;
                let fits = displacement % PAGE + u64::from(size) <= PAGE;
                let by_table = self.hashed >> self.now & 1 != 0;
                (fits && !by_table).then_some(Path::Constant { slot, linear: displacement })
            }
            base => {
                let base = gpr_number(base).and_then(host_number).filter(|_| base != Register::RSP)?;
                (displacement <= NEAR && size <= helpers::NEAR_SIZE)
                    .then_some(Path::Near { base: base as u8, displacement: displacement as i32 })
            }
        }
    }

    /// A constant, by `slot`; its page is all that is compared:
    ///
    /// ```text
    ///     cmp qword [slot.tag], page              ; or by way of t0
    ///     jne miss
    ///     mov t1, [slot.addend]
    ///     ... [t1 + linear]                       ; or [t1 + t0 + offset]
    /// ```
    pub(super) fn check_constant(&mut self, packed: u32, write: bool, slot: usize, linear: u64) -> MissStub {
        let tlb_mode = mode::tlb_mode(self.key.mode);
        let at = slot_offset(tlb_mode, write, slot);
        let page = linear & !(PAGE - 1);
        let (place, linear) = match (i32::try_from(page as i64), i32::try_from(linear as i64)) {
            (Ok(page), Ok(short)) => {
                dynasm!(self.e ; .arch x64 ; cmp QWORD [rsp + at], page);
                (Place::Host(short), Linear::Constant(linear))
            }
            _ => {
                let offset = (linear - page) as i32;
                self.constant_to(10, page);
                dynasm!(self.e ; .arch x64 ; cmp [rsp + at], r10);
                (Place::Sum(offset), Linear::Above(offset))
            }
        };
        let patch = self.e.jcc(cc::NE);
        dynasm!(self.e ; .arch x64 ; mov r11, [rsp + at + 8]);
        self.t1 = Some(Held::Addend(at + 8));
        self.place = place;
        let packed = packed | (slot as u32) << helpers::SLOT_SHIFT;
        let thunk = self.thunks.slot_miss[tlb_mode][usize::from(write)];
        MissStub { linear, ..MissStub::new(patch, Restore::Nothing, thunk, packed) }
    }

    /// As [`Translator::check_hashed`], for an operand `displacement` bytes above host register `base`, whose page is looked
    /// up. An operand on the next page is a miss, whether the table has that or not.
    pub(super) fn check_near(&mut self, packed: u32, write: bool, base: u8, displacement: i32) -> MissStub {
        let size = (packed & helpers::SIZE) as i32;
        let tlb_mode = mode::tlb_mode(self.key.mode);
        let table = table_offset(tlb_mode, write);
        self.table_index_to_t1(base);
        dynasm!(self.e ; .arch x64
            ; gs mov r10, [r11 + table]
            ; xor r10, Rq(base)
            ; cmp r10, 0x1000 - size - displacement);
        let patch = self.e.jcc(cc::A);
        dynasm!(self.e ; .arch x64 ; gs mov r11, [r11 + table + 8]);
        self.t1 = None;
        self.place = Place::Sum(displacement);
        let thunk = self.thunks.near_miss[tlb_mode][usize::from(write)];
        let linear = Linear::Near(base, displacement);
        MissStub { linear, ..MissStub::new(patch, Restore::Nothing, thunk, packed) }
    }

    /// Before a stub calls: T0 is to be the linear address, or what the ramp makes it of.
    pub(super) fn linear_for_stub(&mut self, linear: Linear) {
        match linear {
            Linear::Ready | Linear::Near(10, 0) => {}
            Linear::Constant(value) => self.constant_to(10, value),
            Linear::Above(displacement) => self.lea_t0(10, displacement),
            Linear::Near(base, displacement) => self.lea_t0(base, displacement),
        }
    }

    /// After the call, EFLAGS untouched: T0 is what is expected behind the check.
    pub(super) fn unlinear_for_stub(&mut self, linear: Linear) {
        match linear {
            Linear::Ready | Linear::Constant(_) | Linear::Above(0) | Linear::Near(_, 0) => {}
            Linear::Above(displacement) | Linear::Near(_, displacement) => self.lea_t0(10, -displacement),
        }
    }

    /// T0 = `base` and `displacement`.
    fn lea_t0(&mut self, base: u8, displacement: i32) {
        self.e.memory_op(Op::Lea, 10, Memory { base: Some(base), index: None, displacement }, 8);
    }
}
