//! Where a memory operand is on the host, after its address was checked: loads and stores of the emitted code's own.

use dynasmrt::{DynasmApi, dynasm};

use crate::translate::generator::Translator;

/// How an instruction's memory operand is addressed on the host, once T1 (and T0) are what a check leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At T1 + T0.
    Sum,
    /// At T1 + this displacement.
    Host(i32),
    /// At the host register `base` + T1 + `displacement`.
    Base {
        /// Host register.
        base: u8,
        /// In bytes.
        displacement: i32,
    },
}

impl Translator {
    /// Loads `size` bytes at the place, zero-extended for sizes above 1, into host register `to`; 2 bytes only change its low part.
    pub(super) fn load(&mut self, to: u8, size: u32) {
        match (self.place, size) {
            (Place::Host(at), 8) => dynasm!(self.e ; .arch x64 ; mov Rq(to), [r11 + at]),
            (Place::Host(at), 4) => dynasm!(self.e ; .arch x64 ; mov Rd(to), [r11 + at]),
            (Place::Host(at), _) => dynasm!(self.e ; .arch x64 ; mov Rw(to), [r11 + at]),
            (Place::Sum, 8) => dynasm!(self.e ; .arch x64 ; mov Rq(to), [r11 + r10]),
            (Place::Sum, 4) => dynasm!(self.e ; .arch x64 ; mov Rd(to), [r11 + r10]),
            (Place::Sum, _) => dynasm!(self.e ; .arch x64 ; mov Rw(to), [r11 + r10]),
            (Place::Base { base, displacement }, 8) => {
                dynasm!(self.e ; .arch x64 ; mov Rq(to), [Rq(base) + r11 + displacement]);
            }
            (Place::Base { base, displacement }, 4) => {
                dynasm!(self.e ; .arch x64 ; mov Rd(to), [Rq(base) + r11 + displacement]);
            }
            (Place::Base { base, displacement }, _) => {
                dynasm!(self.e ; .arch x64 ; mov Rw(to), [Rq(base) + r11 + displacement]);
            }
        }
    }

    /// Stores the low `size` bytes of host register `from` at the place.
    pub(super) fn store(&mut self, from: u8, size: u32) {
        match (self.place, size) {
            (Place::Host(at), 8) => dynasm!(self.e ; .arch x64 ; mov [r11 + at], Rq(from)),
            (Place::Host(at), 4) => dynasm!(self.e ; .arch x64 ; mov [r11 + at], Rd(from)),
            (Place::Host(at), _) => dynasm!(self.e ; .arch x64 ; mov [r11 + at], Rw(from)),
            (Place::Sum, 8) => dynasm!(self.e ; .arch x64 ; mov [r11 + r10], Rq(from)),
            (Place::Sum, 4) => dynasm!(self.e ; .arch x64 ; mov [r11 + r10], Rd(from)),
            (Place::Sum, _) => dynasm!(self.e ; .arch x64 ; mov [r11 + r10], Rw(from)),
            (Place::Base { base, displacement }, 8) => {
                dynasm!(self.e ; .arch x64 ; mov [Rq(base) + r11 + displacement], Rq(from));
            }
            (Place::Base { base, displacement }, 4) => {
                dynasm!(self.e ; .arch x64 ; mov [Rq(base) + r11 + displacement], Rd(from));
            }
            (Place::Base { base, displacement }, _) => {
                dynasm!(self.e ; .arch x64 ; mov [Rq(base) + r11 + displacement], Rw(from));
            }
        }
    }

    /// Stores a constant of `size` bytes, sign-extended from 32 bits, at the place.
    pub(super) fn store_constant(&mut self, value: i32, size: u32) {
        match (self.place, size) {
            (Place::Host(at), 8) => dynasm!(self.e ; .arch x64 ; mov QWORD [r11 + at], value),
            (Place::Host(at), 4) => dynasm!(self.e ; .arch x64 ; mov DWORD [r11 + at], value),
            (Place::Host(at), _) => dynasm!(self.e ; .arch x64 ; mov WORD [r11 + at], value as i16),
            (Place::Sum, 8) => dynasm!(self.e ; .arch x64 ; mov QWORD [r11 + r10], value),
            (Place::Sum, 4) => dynasm!(self.e ; .arch x64 ; mov DWORD [r11 + r10], value),
            (Place::Sum, _) => dynasm!(self.e ; .arch x64 ; mov WORD [r11 + r10], value as i16),
            (Place::Base { base, displacement }, 8) => {
                dynasm!(self.e ; .arch x64 ; mov QWORD [Rq(base) + r11 + displacement], value);
            }
            (Place::Base { base, displacement }, 4) => {
                dynasm!(self.e ; .arch x64 ; mov DWORD [Rq(base) + r11 + displacement], value);
            }
            (Place::Base { base, displacement }, _) => {
                dynasm!(self.e ; .arch x64 ; mov WORD [Rq(base) + r11 + displacement], value as i16);
            }
        }
    }

    /// Host register `to` = the host address of the place.
    pub(super) fn place_address(&mut self, to: u8) {
        match self.place {
            Place::Host(at) => dynasm!(self.e ; .arch x64 ; lea Rq(to), [r11 + at]),
            Place::Sum => dynasm!(self.e ; .arch x64 ; lea Rq(to), [r11 + r10]),
            Place::Base { base, displacement } => {
                dynasm!(self.e ; .arch x64 ; lea Rq(to), [Rq(base) + r11 + displacement]);
            }
        }
    }
}
