//! How a block begins: where it is entered with the flags saved, with them in EFLAGS, and behind the poll; and the poll.

use dynasmrt::{DynasmApi, dynasm};

use crate::code::emitter::{Patch, cc};
use crate::code::tb::{Entries, mode};
use crate::code::thunks::exit;
use crate::env::POLL_AGAIN;
use crate::mmu::soft_tlb::code_page_offset;
use crate::ram::PAGE;
use crate::translate::block::Item;
use crate::translate::classify::Class;
use crate::translate::control::ExitStub;
use crate::translate::flags::{self, Flags};
use crate::translate::generator::Translator;

impl Translator {
    /// The entries and the poll.
    pub(super) fn prologue(&mut self, items: &[Item], second_page: Option<u32>) -> Entries {
        let live = items[0].live_in != 0;
        self.now = 0;
        let second_page = second_page.filter(|_| self.class.is_some());
        if second_page.is_some() || live && self.wants_flags_saved(items) {
            return self.prologue_with_flags_saved(live, second_page);
        }
        let saved = self.entry();
        self.flags = Flags::Saved;
        self.mark();
        self.take_count_without_poll();
        if live {
            self.load_flags_with_t1();
        }
        let host = self.entry();
        self.flags = if live { Flags::Host } else { Flags::Dead };
        self.mark();
        // A block without groups goes on in the midst of another: what that one had in the shadow of STI, no poll may come
        // before, and a poll that always leaves would have the group fail again. Nothing is linked to it.
        if self.key.mode & (mode::SINGLE | mode::UNGROUPED) != 0 {
            return Entries { saved, host, forward: host };
        }
        if self.icount {
            self.take_count(live);
            return Entries { saved, host, forward: host };
        }
        if live {
            dynasm!(self.e ; .arch x64 ; mov r10, rcx ; mov ecx, [rsp]);
            self.poll_rcx();
        } else {
            self.poll();
        }
        self.poll_again();
        let forward = self.entry();
        self.mark();
        Entries { saved, host, forward }
    }

    /// Leaves for the loop unless RCX is zero, its own value in R10 back in it. Keeps EFLAGS: JRCXZ looks without touching them.
    pub(super) fn poll_rcx(&mut self) {
        let quiet = self.e.jrcxz();
        dynasm!(self.e ; .arch x64 ; mov rcx, r10);
        let patch = self.e.jmp();
        self.leave_at_start(patch, exit::POLL);
        self.e.bind_short(quiet);
        dynasm!(self.e ; .arch x64 ; mov rcx, r10);
    }

    /// Whether the flags, which are live at the start, are first wanted where EFLAGS is needed for something else: they would be
    /// loaded in vain.
    fn wants_flags_saved(&self, items: &[Item]) -> bool {
        // Blocks that do not poll are entered by the loop alone, or in the midst of another.
        if self.class.is_none() || self.key.mode & (mode::SINGLE | mode::UNGROUPED) != 0 {
            return false;
        }
        let windowed = self.key.mode & mode::WINDOWED != 0;
        for item in items {
            if item.flags.read != 0 || item.flags.writes {
                return false;
            }
            match item.class {
                Class::Lea | Class::Nothing | Class::Jump | Class::JumpIf | Class::Direction(_) => {}
                Class::Native | Class::NativeFp if windowed || !item.memory => {}
                Class::Push | Class::Pop | Class::PushMemory | Class::Leave if windowed => {}
                _ => return true,
            }
        }
        false
    }

    /// The entries and the poll of a block that wants its flags saved, if any are live. If it runs over into a second page, that
    /// must be mapped as it was when it was translated.
    fn prologue_with_flags_saved(&mut self, live: bool, second_page: Option<u32>) -> Entries {
        let host = self.entry();
        if live {
            self.flags = Flags::Host;
            self.mark();
            self.store_flags_with_t1();
        }
        let saved = self.entry();
        self.flags = Flags::Saved;
        self.mark();
        if let Some(number) = second_page {
            let entry = code_page_offset(self.key.mode & mode::CPL == 3, self.key.rip.wrapping_add(PAGE));
            dynasm!(self.e ; .arch x64 ; gs cmp DWORD [entry], number as i32);
            let other = self.e.jcc(cc::NE);
            self.leave_at_start(other, exit::LOOKUP);
        }
        if self.icount {
            self.take_count(false);
        } else {
            self.poll();
            self.poll_again();
        }
        Entries { saved, host, forward: host }
    }

    /// The present place as an entry.
    fn entry(&self) -> u8 {
        u8::try_from(self.e.len()).expect("entries are close to a block's start")
    }

    /// After a poll: the next one is to leave, if that is asked for.
    pub(super) fn poll_again(&mut self) {
        if self.stress.kicks {
            dynasm!(self.e ; .arch x64 ; mov DWORD [rsp], POLL_AGAIN as i32);
        }
    }

    /// Looks whether the CPU is to leave; EFLAGS is free.
    pub(super) fn poll(&mut self) {
        dynasm!(self.e ; .arch x64 ; cmp DWORD [rsp], 0);
        let patch = self.e.jcc(cc::NE);
        self.leave_at_start(patch, exit::POLL);
    }

    /// `patch` leaves before the block's first instruction.
    pub(super) fn leave_at_start(&mut self, patch: Patch, reason: u64) {
        self.exit_stubs.push(ExitStub {
            patch,
            flags: self.flags,
            rip: self.key.rip,
            reason,
            payload: self.id.into(),
            slot: None,
            ungrouped: false,
            forward: false,
            guard: None,
            live: flags::ALL,
            left: 0,
        });
    }
}
