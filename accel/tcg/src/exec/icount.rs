//! The loop's part of [`crate::icount`].

use std::sync::atomic::Ordering;

use crate::code::tb::{TbId, mode};
use crate::env::{KICKED, POLL_AGAIN};
use crate::exec::Vcpu;
use crate::exec::blocks::mode_bits;
use crate::translate::block::MAX_INSNS;

/// A block that was not entered because of a kick.
#[derive(Clone, Copy, Debug)]
pub struct KickedAt {
    block: TbId,
    rip: u64,
    /// [`crate::code::cache::TbCache::voided`] then.
    voided: u64,
}

impl Vcpu {
    /// Between blocks. Whether another CPU of the thread is to execute. If not, there is budget for one instruction at least.
    /// `whole`: the CPU is to execute as long as there is no reason to stop.
    pub(super) fn turn_is_over(&mut self, whole: bool) -> bool {
        match self.cpu.renew_budget(whole) {
            Some(budget) => {
                self.at_the_end &= budget < MAX_INSNS as u64;
                false
            }
            None => {
                self.forget_place();
                true
            }
        }
    }

    /// Generated code has left before `block`: there is not enough budget for it, or there was a kick.
    pub(super) fn polled(&mut self, block: TbId) {
        if self.cpu.icount.is_none() {
            return;
        }
        let code = self.engine.code();
        let count = i64::from(code.count(block));
        if self.cpu.env.budget < count {
            self.at_the_end = true;
        } else {
            let voided = code.voided();
            self.kicked_at = Some(KickedAt { block, rip: self.cpu.env.rip, voided });
        }
    }

    /// The entry of the block that a kick kept from being entered, if it is still the one that comes next.
    pub(super) fn block_kicked_at(&mut self, variant: u32) -> Option<u64> {
        let KickedAt { block: id, rip, voided } = self.kicked_at.take()?;
        let code = self.engine.code();
        if variant != 0 || self.cpu.env.rip != rip || code.voided() != voided {
            return None;
        }
        let block = code.block(id);
        (block.valid && block.key.mode & !mode::UNGROUPED == mode_bits(&self.cpu.env))
            .then_some(code.entry_saved(id))
    }

    /// The CPU's state was replaced: it is nowhere near where it was.
    pub(crate) fn forget_place(&mut self) {
        self.kicked_at = None;
        self.at_the_end = false;
    }

    /// Whether the budget is enough for the block at `entry`, which does not look itself.
    pub(super) fn fits(&self, entry: u64) -> bool {
        let code = self.engine.code();
        self.cpu.icount.is_none()
            || code.at(entry).is_some_and(|id| i64::from(code.count(id)) <= self.cpu.env.budget)
    }

    /// Whether the loop is to look before it finds the next block: something was found to do in a block that was not left
    /// for it, or the budget is used up.
    pub(super) fn is_to_look(&self) -> bool {
        let word = self.cpu.env.mapping().icount_decr().load(Ordering::Relaxed);
        if self.cpu.icount.is_some() {
            word & !KICKED > POLL_AGAIN || self.cpu.env.budget == 0
        } else {
            word > POLL_AGAIN
        }
    }
}

#[cfg(test)]
mod tests;
