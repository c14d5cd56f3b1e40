//! Operands in windows ([`crate::windows`]): at the guest's own addresses, once it is sure that only windows lie there; or as far
//! from them as the look says that makes sure of it.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Instruction, Register};

use crate::code::tb::mode;
use crate::code::thunks::{T0, T1};
use crate::env::{REGION_SHIFT, REGION_TABLE};
use crate::operand::segment_index;
use crate::translate::address::address_width;
use crate::translate::encode::{Memory, Op};
use crate::translate::generator::Translator;
use crate::translate::groups::{RSP, STEP};
use crate::translate::place::Place;
use crate::translate::registers::{gpr_number, host_number};
use crate::windows::{REACH, REGION_BITS, SHIFT_BITS};

/// Instructions of a block at most, each of which may move a register by [`STEP`].
const STEPS: u64 = crate::translate::block::MAX_INSNS as u64 + 1;
/// What a displacement may be for its base register to be looked at instead of the sum.
pub const CLOSE: u64 = 1 << 16;
/// No operand is longer (FXSAVE and its like are helpers').
const LONGEST: u64 = 4096;
const _: () = assert!(CLOSE + STEPS * STEP as u64 + LONGEST <= REACH);

/// What looks at a region: `movzx r11d, byte [rsp + r11 + REGION_TABLE]`. No instruction of the guest's becomes this: its
/// operands are not reached by the host's RSP.
pub const LOOK: [u8; 9] = {
    let [first, second, third, fourth] = REGION_TABLE.to_le_bytes();
    [0x46, 0x0f, 0xb6, 0x9c, 0x1c, first, second, third, fourth]
};

impl Translator {
    /// Whether the present instruction reaches operands through windows.
    pub(in crate::translate) fn windowed(&self) -> bool {
        self.key.mode & mode::WINDOWED != 0 && self.hashed >> self.now & 1 == 0
    }

    /// Leads to the memory operand of `insn` through a window: it is at [`Translator::place`] then. Clobbers T0 and T1; keeps
    /// EFLAGS. False: another way is to be taken, and nothing was emitted.
    pub(in crate::translate) fn reach_window(&mut self, insn: &Instruction) -> bool {
        if !self.windowed() {
            return false;
        }
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let displacement = insn.memory_displacement64();
        let constant =
            matches!(base, Register::None | Register::RIP | Register::EIP) && index == Register::None;
        if segment_index(insn.memory_segment()) >= 4 || address_width(insn, self.bits) != 64 {
            self.settle();
            self.linear_to_t0(insn, 1, false);
            return self.reach_window_at_t0();
        }
        if constant {
            return self.reach_constant_window(displacement);
        }
        // Displacements are sign-extended from 32 bits.
        let displacement = displacement as i64 as i32;
        let number = gpr_number(base);
        let index = gpr_number(index).map(|index| (index, insn.memory_index_scale()));
        match (number, index) {
            (Some(number), None) if u64::from(displacement.unsigned_abs()) <= CLOSE => {
                let reached = self.reach_window_at(number as u8, displacement);
                self.own(number, None);
                reached
            }
            _ => {
                let host = |number: Option<usize>| number.map(host_number);
                let (base, scaled) = (host(number), host(index.map(|(index, _)| index)));
                self.settle();
                self.linear_to_t0(insn, 1, false);
                self.look_at_region(T0);
                if self.shifted() {
                    self.shift_t0();
                    return true;
                }
                self.place = match (base, scaled) {
                    // Its own registers make a shorter way to the data than the sum.
                    (None | Some(Some(_)), None | Some(Some(_))) => {
                        let scale = index.map_or(1, |(_, scale)| scale);
                        let index = scaled.flatten().map(|index| (index as u8, scale));
                        Place::Window(Memory {
                            base: base.flatten().map(|base| base as u8),
                            index,
                            displacement,
                        })
                    }
                    _ => at_t0(),
                };
                if let Some(number) = number {
                    self.own(number, index.map(|(index, _)| index));
                }
                true
            }
        }
    }

    /// The place is a window's, at an operand of guest registers `base` and `index`: notes whether these are the host's of the same
    /// numbers.
    fn own(&mut self, base: usize, index: Option<usize>) {
        let same = |number: usize| host_number(number) == Some(number);
        if let Place::Window(memory) = self.place
            && !self.shifted()
            && same(base)
            && index.is_none_or(same)
        {
            self.place = Place::Own(memory);
        }
    }

    /// As [`Translator::reach_window`], for what is `displacement` bytes (some [`CLOSE`] at most) from 64-bit guest register
    /// `number`.
    pub(in crate::translate) fn reach_window_at(&mut self, number: u8, displacement: i32) -> bool {
        if !self.windowed() {
            return false;
        }
        let guest = usize::from(number);
        let host = match host_number(guest) {
            Some(host) => host as u8,
            None => {
                if self.held_in(guest) != Some(T0) {
                    self.settle();
                    self.e.load_env(T0, crate::code::thunks::gpr_offset(guest));
                    self.holds(T0, guest);
                }
                T0
            }
        };
        let ahead = if number == RSP { 8 * self.words_ahead } else { 0 };
        let displacement = displacement + ahead;
        let shifted = self.shifted();
        if shifted || self.in_claimed >> number & 1 == 0 {
            self.look_at_region(host);
            self.in_claimed |= 1 << number;
        } else {
            self.mark();
        }
        let index = shifted.then_some((T1, 1));
        let memory = Memory { base: Some(host), index, displacement };
        self.place = if shifted && host == T0 { self.in_t1(memory) } else { Place::Window(memory) };
        true
    }

    /// As [`Translator::reach_window`], for what is at the linear address in T0.
    pub(in crate::translate) fn reach_window_at_t0(&mut self) -> bool {
        if self.windowed() {
            self.t0 = None;
            self.look_at_region(T0);
            self.place = at_t0();
            if self.shifted() {
                self.shift_t0();
            }
        }
        self.windowed()
    }

    /// As [`Translator::reach_window`], for what is at `address`. One look does for all constants in a region.
    fn reach_constant_window(&mut self, address: u64) -> bool {
        let Ok(entry) = i32::try_from((address >> REGION_SHIFT) + REGION_TABLE as u64) else { return false };
        let region = address >> REGION_BITS;
        let shifted = self.shifted();
        self.settle();
        self.mark();
        if shifted || self.constant_region != Some(region) {
            self.t1 = None;
            dynasm!(self.e ; .arch x64 ; movzx r11d, BYTE [rsp + entry]);
            self.constant_region = Some(region);
            self.make_shift();
        }
        self.place = match i32::try_from(address as i64) {
            Ok(short) => {
                let base = shifted.then_some(T1);
                Place::Window(Memory { base, index: None, displacement: short })
            }
            Err(_) => {
                self.constant_to(T0, address);
                at_t0()
            }
        };
        if shifted && self.place == at_t0() {
            self.shift_t0();
        }
        true
    }

    /// Whether windows may be elsewhere than at the program's addresses: T1 is how far, after a look.
    fn shifted(&self) -> bool {
        self.key.mode & mode::SHIFTED != 0
    }

    /// The place is as far from T0 as T1 says.
    fn shift_t0(&mut self) {
        self.place = self.in_t1(Memory { base: Some(T0), index: Some((T1, 1)), displacement: 0 });
    }

    /// `memory`, its address in T1: T0 is free, or holds what it held.
    fn in_t1(&mut self, memory: Memory) -> Place {
        self.e.memory_op(Op::Lea, T1, memory, 8);
        Place::Window(Memory { base: Some(T1), index: None, displacement: 0 })
    }

    /// Makes bytes of what a look has read.
    fn make_shift(&mut self) {
        if self.shifted() {
            dynasm!(self.e ; .arch x64 ; rorx r11, r11, 64 - SHIFT_BITS as i8);
        }
    }

    /// Faults unless the region of the address in host register `host` is claimed. Clobbers T1. The count is RSP's low bits
    /// ([`crate::env::REGION_SHIFT`]).
    pub(in crate::translate) fn look_at_region(&mut self, host: u8) {
        self.settle_in(T1);
        self.mark();
        self.t1 = None;
        dynasm!(self.e ; .arch x64 ; shrx r11, Rq(host), rsp);
        self.e.raw(&LOOK);
        self.make_shift();
    }
}

fn at_t0() -> Place {
    Place::Window(Memory { base: Some(T0), index: None, displacement: 0 })
}
