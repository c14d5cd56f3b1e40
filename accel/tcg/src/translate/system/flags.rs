//! Instructions that move the system flags: CLI, STI, CLAC, STAC, PUSHF, POPF.

use dynasmrt::{DynasmApi, dynasm};

use crate::code::emitter::cc;
use crate::code::tb::mode;
use crate::code::thunks::scratch_offset;
use crate::env::{ARITH_FLAGS, SHADOW_STI, flag};
use crate::env_offset;
use crate::exec::helpers::STACK;
use crate::translate::address::Use;
use crate::translate::block::Item;
use crate::translate::flags::Flags;
use crate::translate::generator::Translator;

/// Flags that live in `env.sysflags` and that software at CPL 0 sets and clears.
const SYSTEM_FLAGS: u32 = flag::NT | flag::IOPL | flag::ID;
/// Flags that POPF and IRET leave alone.
const KEPT_FLAGS: u32 = flag::VM | flag::VIF | flag::VIP;

impl Translator {
    /// CLAC and STAC. The code that follows is that of the other mode.
    pub(super) fn set_ac(&mut self, item: &Item, set: bool) {
        let off = self.key.mode & mode::SMAP_OFF != 0;
        match (set, off) {
            // AC is clear: SMAP is in force.
            (false, false) => {}
            // It may be clear, where CR4.SMAP is too.
            (true, true) => {
                dynasm!(self.e ; .arch x64 ; mov DWORD [rsp + env_offset!(ac)], flag::AC as i32);
            }
            (true, false) => {
                dynasm!(self.e ; .arch x64 ; mov DWORD [rsp + env_offset!(ac)], flag::AC as i32);
                self.change_mode(self.key.mode | mode::SMAP_OFF);
                self.go_to(item.insn.next_ip());
            }
            (false, true) => {
                self.flags_free(item.live_in);
                let slow = self.unless_smap();
                self.slow_from(vec![slow]);
                dynasm!(self.e ; .arch x64 ; mov DWORD [rsp + env_offset!(ac)], 0);
                self.change_mode(self.key.mode & !mode::SMAP_OFF);
                self.go_to(item.insn.next_ip());
            }
        }
    }

    /// CLI.
    pub(super) fn cli(&mut self) {
        dynasm!(self.e ; .arch x64 ; mov DWORD [rsp + env_offset!(iflag)], 0);
    }

    /// STI. With nothing waiting, what comes is seen at the next poll: behind the instruction in the shadow, unless the
    /// block ends here.
    pub(super) fn sti(&mut self, item: &Item) {
        if self.flags.in_host() {
            // JRCXZ looks without touching the flags.
            dynasm!(self.e ; .arch x64 ; mov r10, rcx ; mov ecx, [rsp + env_offset!(waiting)]);
            let quiet = self.e.jrcxz();
            dynasm!(self.e ; .arch x64 ; mov rcx, r10);
            let slow = self.e.jmp();
            self.slow_from(vec![slow]);
            self.e.bind_short(quiet);
            dynasm!(self.e ; .arch x64 ; mov rcx, r10);
        } else {
            self.flags_free(item.live_in);
            let slow = self.if_interrupts_wait();
            self.slow_from(vec![slow]);
        }
        if self.now == self.last {
            // An STI with IF set already has no shadow; one more instruction without interrupts does no harm.
            dynasm!(self.e ; .arch x64
                ; mov DWORD [rsp + env_offset!(interrupt_shadow)], SHADOW_STI as i32);
        }
        dynasm!(self.e ; .arch x64 ; mov DWORD [rsp + env_offset!(iflag)], flag::IF as i32);
    }

    /// PUSHFQ.
    pub(super) fn push_flags(&mut self, item: &Item) {
        self.rflags_to_t0();
        dynasm!(self.e ; .arch x64
            ; and r10d, !(flag::VM | flag::RF) as i32
            ; mov [rsp + scratch_offset(1)], r10);
        let stub = self.reach_push(item.live_in, 8, Use::PushScratch);
        self.store_scratch(item);
        self.checked_access_ends(stub);
    }

    /// POPFQ at CPL 0.
    pub(super) fn pop_flags(&mut self) {
        self.flags_free(0);
        dynasm!(self.e ; .arch x64 ; mov r10, r9);
        let path = self.stack_path(0);
        self.check(8 | STACK, false, path, Use::Load);
        self.load(10, 8);
        dynasm!(self.e ; .arch x64
            // TF, or another AC than now: other code comes next.
            ; mov r11d, r10d
            ; and r11d, (flag::TF | flag::AC) as i32
            ; cmp r11d, [rsp + env_offset!(ac)]);
        let other = self.e.jcc(cc::NE);
        dynasm!(self.e ; .arch x64 ; test r10d, flag::IF as i32);
        let masked = self.e.jcc_short(cc::E);
        let waiting = self.if_interrupts_wait();
        self.e.bind_short(masked);
        self.slow_from(vec![other, waiting]);
        self.rflags_from_t0();
        dynasm!(self.e ; .arch x64 ; lea r9, [r9 + 8]);
    }

    /// T0 = RFLAGS. Clobbers T1 and EFLAGS; the flags are in memory afterwards.
    pub(super) fn rflags_to_t0(&mut self) {
        self.flags_saved();
        self.flags = Flags::Saved;
        dynasm!(self.e ; .arch x64
            ; movzx r10d, WORD [rsp + env_offset!(lahf)]
            ; mov r11d, r10d
            ; shr r10d, 8
            ; and r10d, 0xd5
            ; and r11d, 1
            ; shl r11d, 11
            ; or r10d, r11d
            ; or r10d, [rsp + env_offset!(df)]
            ; or r10d, [rsp + env_offset!(iflag)]
            ; or r10d, [rsp + env_offset!(ac)]
            ; or r10d, [rsp + env_offset!(sysflags)]
            ; or r10d, 2);
    }

    /// RFLAGS = T0, as code at CPL 0 may set it: VM, VIF and VIP stay, RF becomes clear. Clobbers T0, T1 and EFLAGS; the
    /// arithmetic flags are in memory afterwards. T0 must not have TF.
    pub(super) fn rflags_from_t0(&mut self) {
        debug_assert_eq!(
            flag::ALL,
            ARITH_FLAGS | flag::DF | flag::IF | flag::AC | flag::TF | flag::RF | SYSTEM_FLAGS | KEPT_FLAGS
        );
        dynasm!(self.e ; .arch x64
            ; mov r11d, r10d ; and r11d, flag::DF as i32 ; mov [rsp + env_offset!(df)], r11d
            ; mov r11d, r10d ; and r11d, flag::IF as i32 ; mov [rsp + env_offset!(iflag)], r11d
            ; mov r11d, r10d ; and r11d, flag::AC as i32 ; mov [rsp + env_offset!(ac)], r11d
            ; mov r11d, r10d ; and r11d, SYSTEM_FLAGS as i32
            ; and DWORD [rsp + env_offset!(sysflags)], KEPT_FLAGS as i32
            ; or [rsp + env_offset!(sysflags)], r11d
            ; mov r11d, r10d ; shr r11d, 11 ; and r11d, 1
            ; and r10d, 0xd5 ; shl r10d, 8 ; lea r10d, [r10 + r11 + 0x200]
            ; mov [rsp + env_offset!(lahf)], r10d);
        self.flags = Flags::Saved;
    }
}
