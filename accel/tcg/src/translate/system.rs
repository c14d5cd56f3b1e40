//! System instructions that have generated code of their own, in 64-bit mode. All others are helpers'.
//!
//! They work on the state in memory with T0 and T1 alone, so vector state stays where it is. What is rare about one
//! (a fault, a mode that Linux does not use) goes to the helper, which executes the whole instruction.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Instruction, Mnemonic};

use crate::code::emitter::cc;
use crate::code::tb::mode;
use crate::env::flag;
use crate::env_offset;
use crate::mmu::walk::cr;
use crate::translate::block::Item;
use crate::translate::features::Features;
use crate::translate::generator::Translator;

/// A system instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// CLAC and STAC.
    SetAc(bool),
}

/// What generated code does with `insn` in mode `mode`, if it does anything.
pub fn plan(insn: &Instruction, mode: u32, features: &Features) -> Option<System> {
    let plain = mode & (mode::LONG | mode::SINGLE) == mode::LONG;
    let shown = insn.cpuid_features().iter().all(|&feature| features.has(feature));
    if !plain || !shown {
        return None;
    }
    let kernel = mode & mode::CPL == 0;
    Some(match insn.mnemonic() {
        Mnemonic::Clac if kernel => System::SetAc(false),
        Mnemonic::Stac if kernel => System::SetAc(true),
        _ => return None,
    })
}

impl System {
    /// Whether a block of mode `mode` ends with it.
    pub fn ends_block(self, mode: u32) -> bool {
        match self {
            // From one view of memory to the other.
            System::SetAc(set) => set != (mode & mode::SMAP_OFF != 0),
        }
    }

    /// Whether its code goes on to another block by itself.
    pub fn ends_flow(self, mode: u32) -> bool {
        match self {
            System::SetAc(_) => self.ends_block(mode),
        }
    }
}

impl Translator {
    pub(super) fn system(&mut self, item: &Item, system: System) {
        match system {
            System::SetAc(set) => self.set_ac(item, set),
        }
    }

    /// CLAC and STAC. The code that follows is that of the other mode.
    fn set_ac(&mut self, item: &Item, set: bool) {
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
                dynasm!(self.e ; .arch x64
                    ; test DWORD [rsp + env_offset!(cr4)], cr::CR4_SMAP as i32);
                let smap = self.e.jcc_short(cc::NE);
                let (flags, fp_loaded) = (self.flags, self.fp_loaded);
                self.complex(&item.insn, None);
                (self.flags, self.fp_loaded) = (flags, fp_loaded);
                self.e.bind_short(smap);
                dynasm!(self.e ; .arch x64 ; mov DWORD [rsp + env_offset!(ac)], 0);
                self.change_mode(self.key.mode & !mode::SMAP_OFF);
                self.go_to(item.insn.next_ip());
            }
        }
    }

    /// Code of mode `bits` comes next.
    fn change_mode(&mut self, bits: u32) {
        self.class = mode::class(bits);
    }
}
