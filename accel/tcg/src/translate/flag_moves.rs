//! Moving the arithmetic flags between EFLAGS and the environment.

use dynasmrt::{DynasmApi, dynasm};

use crate::code::thunks::gpr_offset;
use crate::env_offset;
use crate::translate::block::Item;
use crate::translate::flags::Flags;
use crate::translate::generator::Translator;

/// Where the flags are, as a displacement of one byte.
const LAHF: i8 = env_offset!(lahf) as i8;
/// Where RAX is put meanwhile: nothing else is there as long as generated code has it.
const RAX: i8 = gpr_offset(0) as i8;

impl Translator {
    /// Makes sure that `env.lahf` has the flags. Clobbers T1.
    pub(super) fn flags_saved(&mut self) {
        match self.flags {
            Flags::Saved | Flags::Both => {}
            // Nothing will read them: what `env.lahf` holds is as good as any.
            Flags::Dead => self.flags = Flags::Saved,
            Flags::Host => {
                self.store_flags_with_t1();
                self.flags = Flags::Both;
            }
        }
    }

    /// Frees EFLAGS for use by the emitted code, keeping `live` flags. Clobbers T1.
    pub(super) fn flags_free(&mut self, live: u8) {
        if live == 0 {
            self.flags = Flags::Dead;
            return;
        }
        self.flags_saved();
        self.flags = Flags::Saved;
    }

    /// Brings the flags into EFLAGS where `item` reads them or leaves some of them in place.
    pub(super) fn flags_for(&mut self, item: &Item) {
        let kept = item.flags.writes && item.live_out & !item.flags.killed != 0;
        if self.flags == Flags::Saved && (item.flags.read != 0 || kept) {
            self.load_flags();
            self.flags = Flags::Both;
        }
    }

    /// Notes what executing `item` natively has done to the flags.
    pub(super) fn flags_after(&mut self, item: &Item) {
        if item.flags.writes {
            self.flags = Flags::Host;
        }
    }

    /// EFLAGS to `env.lahf`. Clobbers T1, keeps EFLAGS but for OF.
    pub(super) fn store_flags_with_t1(&mut self) {
        self.t1 = None;
        dynasm!(self.e ; .arch x64
            ; mov r11, rax
            ; lahf
            ; seto al
            ; mov [BYTE rsp + LAHF], ax
            ; mov rax, r11);
    }

    pub(super) fn load_flags_with_t1(&mut self) {
        self.t1 = None;
        dynasm!(self.e ; .arch x64
            ; mov r11, rax
            ; movzx eax, WORD [BYTE rsp + LAHF]
            ; add al, 0x7f
            ; sahf
            ; mov rax, r11);
    }

    /// `env.lahf` to EFLAGS, keeping both scratch registers.
    pub(super) fn load_flags(&mut self) {
        dynasm!(self.e ; .arch x64
            ; mov [BYTE rsp + RAX], rax
            ; movzx eax, WORD [BYTE rsp + LAHF]
            ; add al, 0x7f
            ; sahf
            ; mov rax, [BYTE rsp + RAX]);
    }
}
