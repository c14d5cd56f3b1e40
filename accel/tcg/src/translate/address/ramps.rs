//! Ramps: what leads a site's miss to its thunk. There are as many sites as accesses, but few kinds of them: all of a kind call
//! the same ramp, which makes the linear address of what the check has left and says what the helpers must know.
//!
//! A ramp is emitted before the first stub that needs it, and stays as long as the region of code memory that it is in. Where two kinds fall on
//! one place of the table the older one is forgotten, and emitted anew if it is needed again.

use dynasmrt::{DynasmApi, dynasm};

use super::Restore;
use crate::translate::generator::Translator;

const PLACES: usize = 256;

/// The ramps there are.
pub struct Ramps {
    /// Kind and address, by the hash of the kind.
    places: Box<[(u64, u64); PLACES]>,
    /// The filling of a region of code memory that they are in.
    filling: u64,
}

impl Default for Ramps {
    fn default() -> Self {
        Self { places: Box::new([(0, 0); PLACES]), filling: 0 }
    }
}

impl Ramps {
    /// Forgets all ramps if they are not in this `filling` of a region of code memory: blocks need them only as long as they are there themselves.
    pub fn follow(&mut self, filling: u64) {
        if self.filling != filling {
            *self = Self { filling, ..Self::default() };
        }
    }
}

impl Translator {
    /// The ramp to `thunk` with the size argument `packed`; emitted here if there is none yet.
    pub(super) fn ramp(&mut self, restore: Restore, thunk: u64, packed: u32) -> u64 {
        // The slot is known by the size argument and the thunk, and thunks by the low bits of their addresses.
        let kept = matches!(restore, Restore::Nothing);
        let kind = thunk << 33 | u64::from(kept) << 32 | u64::from(packed);
        let place = (kind.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize % PLACES;
        let (found, at) = self.ramps.places[place];
        if found == kind {
            return at;
        }
        let at = self.e.here();
        // XOR again: T0 is the linear address once more.
        match restore {
            Restore::Nothing => {}
            Restore::Slot(slot) => dynasm!(self.e ; .arch x64 ; xor r10, [rsp + slot + 8]),
            Restore::Entry(table) => dynasm!(self.e ; .arch x64 ; gs xor r10, [r11 + table]),
        }
        dynasm!(self.e ; .arch x64 ; mov r11d, packed as i32);
        self.e.jmp_to(thunk);
        self.ramps.places[place] = (kind, at);
        at
    }
}
