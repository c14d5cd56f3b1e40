//! What blocks do for [`crate::icount`]: they take their instructions off the budget, and give back what they do not begin.

use dynasmrt::{DynasmApi, dynasm};

use crate::code::emitter::cc;
use crate::code::tb::mode;
use crate::code::thunks::exit;
use crate::env_offset;
use crate::translate::generator::{POLL, Translator};

impl Translator {
    /// Instructions of the block.
    pub(super) fn count_of_block(&self) -> i32 {
        self.last as i32 + 1
    }

    /// Instructions of the block behind the present one.
    pub(super) fn left(&self) -> u32 {
        (self.last - self.now) as u32
    }

    /// Takes a block that does not poll off the budget: the loop, which alone enters it, has seen to it that there is
    /// enough. EFLAGS is free.
    pub(super) fn take_count_without_poll(&mut self) {
        if self.icount && self.key.mode & (mode::SINGLE | mode::UNGROUPED) != 0 {
            let count = self.count_of_block();
            dynasm!(self.e ; .arch x64 ; sub QWORD [rsp + env_offset!(budget)], count);
        }
    }

    /// Takes the block off the budget, and leaves before its first instruction if there is not enough or the poll word
    /// says so. Jumps that need no poll come here, too. `live`: EFLAGS must come through.
    pub(super) fn take_count(&mut self, live: bool) {
        let count = self.count_of_block();
        self.t1 = None;
        if live {
            // JRCXZ looks without touching the flags: ECX = 0 if the budget's upper half is zero, so that it is not below
            // zero, and the poll word is. The budget's upper half is 0 or -1: twice the poll word does not make it 0.
            dynasm!(self.e ; .arch x64
                ; mov r11, [rsp + env_offset!(budget)]
                ; lea r11, [r11 - count]
                ; mov [rsp + env_offset!(budget)], r11
                ; mov r10, rcx
                ; bswap r11
                ; movsx ecx, r11b
                ; mov r11d, [rsp + POLL]
                ; lea ecx, [rcx + r11 * 2]);
            self.poll_rcx();
        } else {
            dynasm!(self.e ; .arch x64 ; sub QWORD [rsp + env_offset!(budget)], count);
            let spent = self.e.jcc(cc::S);
            self.leave_at_start(spent, exit::POLL);
            self.poll();
        }
        self.poll_again();
    }

    /// Gives back `left` instructions on a way out. Clobbers T0, keeps EFLAGS.
    pub(super) fn give_back(&mut self, left: u32) {
        if self.icount && left != 0 {
            dynasm!(self.e ; .arch x64
                ; mov r10, [rsp + env_offset!(budget)]
                ; lea r10, [r10 + left as i32]
                ; mov [rsp + env_offset!(budget)], r10);
        }
    }

    /// Tells a helper that looks at the time how far the block is.
    pub(super) fn note_left(&mut self) {
        if self.icount {
            dynasm!(self.e ; .arch x64 ; mov DWORD [rsp + env_offset!(left)], self.left() as i32 + 1);
        }
    }
}
