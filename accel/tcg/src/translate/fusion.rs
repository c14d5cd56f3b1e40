//! A comparison and the conditional jump behind it stay side by side: the host's decoders make one operation of the two (Intel
//! Optimization Reference Manual, *Macro-Fusion*; AMD Software Optimization Guide, *Branch Fusion*).
//!
//! The displacement of a jump that may be patched must not run over a boundary of 8 bytes, and what pads it there would
//! separate them. So the padding goes in front of the comparison.

use crate::translate::block::Item;
use crate::translate::generator::Translator;

/// Bytes of an instruction at most: what is longer is several.
const MAX_LEN: usize = 15;

impl Translator {
    /// The instruction of `item` is what was emitted from `start` on, and stores nothing: it may be moved up a little.
    pub(super) fn note_movable(&mut self, item: &Item, start: usize) {
        let end = self.e.len();
        let alone = self.lists.marks.last().is_some_and(|mark| usize::from(mark.host) <= start);
        let movable = item.flags.writes && !item.access.writes && alone && end - start <= MAX_LEN;
        self.movable = movable.then_some((start, end));
    }

    /// Pads so that the displacement of the conditional jump that is emitted next can be patched.
    pub(super) fn align_jump_if(&mut self) {
        let padding = self.e.padding(2);
        match self.movable {
            Some((start, end)) if end == self.e.len() && padding != 0 => {
                self.e.insert_nops(start, padding);
                // What belongs to the jump already.
                let after =
                    self.lists.marks.iter_mut().rev().take_while(|mark| usize::from(mark.host) >= end);
                after.for_each(|mark| mark.host += padding as u16);
            }
            _ => self.e.nops(padding),
        }
    }
}
