//! Where a memory operand is on the host, after its address was checked: loads and stores of the emitted code's own.

use dynasmrt::DynasmApi;

use crate::translate::encode::{Memory, Op};
use crate::translate::generator::Translator;

/// How an instruction's memory operand is addressed on the host, once T1 (and T0) are what a check leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At T1 + T0 + this displacement.
    Sum(i32),
    /// At T1 + this displacement.
    Host(i32),
    /// At the host register `base` + T1 + `displacement`.
    Base {
        /// Host register.
        base: u8,
        /// In bytes.
        displacement: i32,
    },
    /// At this operand: in a window.
    Window(Memory),
    /// As [`Place::Window`], where the operand is the instruction's own, bit for bit.
    Own(Memory),
}

impl Place {
    /// Whether T0 and T1 are parts of its address.
    pub fn uses_scratch(self) -> [bool; 2] {
        let Memory { base, index, .. } = self.memory();
        let index = index.map(|(index, _)| index);
        [10, 11].map(|scratch| base == Some(scratch) || index == Some(scratch))
    }

    /// As a memory operand.
    pub fn memory(self) -> Memory {
        match self {
            Self::Sum(displacement) => Memory { base: Some(11), index: Some((10, 1)), displacement },
            Self::Host(displacement) => Memory { base: Some(11), index: None, displacement },
            Self::Base { base, displacement } => {
                Memory { base: Some(base), index: Some((11, 1)), displacement }
            }
            Self::Window(memory) | Self::Own(memory) => memory,
        }
    }
}

impl Translator {
    /// Loads `size` bytes at the place, zero-extended for sizes above 1, into host register `to`; 2 bytes only change its low part.
    pub(super) fn load(&mut self, to: u8, size: u32) {
        self.e.memory_op(Op::Load, to, self.place.memory(), size);
    }

    /// Stores the low `size` bytes of host register `from` at the place.
    pub(super) fn store(&mut self, from: u8, size: u32) {
        self.e.memory_op(Op::Store, from, self.place.memory(), size);
    }

    /// Stores a constant of `size` bytes, sign-extended from 32 bits, at the place.
    pub(super) fn store_constant(&mut self, value: i32, size: u32) {
        self.e.memory_op(Op::StoreConstant, 0, self.place.memory(), size);
        if size == 2 {
            self.e.push_i16(value as i16);
        } else {
            self.e.push_i32(value);
        }
    }

    /// Host register `to` = the host address of the place.
    pub(super) fn place_address(&mut self, to: u8) {
        self.e.memory_op(Op::Lea, to, self.place.memory(), 8);
    }
}
