//! System instructions that have generated code of their own, in 64-bit mode. All others are helpers'.
//!
//! They work on the state in memory with T0 and T1 alone, so vector state stays where it is. What is rare about one
//! (a fault, a mode that Linux does not use, an interrupt that waits for IF) goes to the helper, which executes the
//! whole instruction: nothing is written before the last check.

pub mod flags;
pub mod gates;
pub mod registers;
pub mod strings;

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::code::emitter::{Patch, cc};
use crate::code::tb::mode;
use crate::env_offset;
use crate::mmu::walk::cr;
use crate::operand::segment_index;
use crate::translate::block::Item;
use crate::translate::features::Features;
use crate::translate::flags::{ALL, Effect, Flags};
use crate::translate::generator::Translator;
use crate::translate::system::strings::Repeated;

/// A system instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// CLAC and STAC.
    SetAc(bool),
    /// CLI.
    Cli,
    /// STI.
    Sti,
    /// PUSHFQ.
    PushFlags,
    /// POPFQ at CPL 0.
    PopFlags,
    /// SWAPGS.
    SwapGs,
    /// RDFSBASE, RDGSBASE: from segment register 4 or 5.
    ReadBase(usize),
    /// WRFSBASE, WRGSBASE.
    WriteBase(usize),
    /// MOV from CR0, CR2, CR3 or CR4.
    ReadControl,
    /// RDTSC, and RDTSCP if that is said.
    ReadTsc(bool),
    /// SYSCALL.
    Syscall,
    /// SYSRET to 64-bit code.
    Sysret,
    /// IRETQ at CPL 0.
    Iret,
    /// MOV from a segment register.
    ReadSelector(usize),
    /// REP MOVS, REP STOS.
    Repeated(Repeated),
}

/// What generated code does with `insn` in mode `mode`, if it does anything.
pub fn plan(insn: &Instruction, mode: u32, features: &Features) -> Option<System> {
    let shown = insn.cpuid_features().iter().all(|&feature| features.has(feature));
    // The modes that are left for each other here have classes.
    let plain = matches!(mode::class(mode), Some(mode::USER64 | mode::KERNEL64 | mode::KERNEL64_AC));
    if !plain || !shown {
        return None;
    }
    if let Some(repeated) = strings::plan(insn) {
        return Some(System::Repeated(repeated));
    }
    let kernel = mode & mode::CPL == 0;
    Some(match insn.mnemonic() {
        Mnemonic::Syscall => System::Syscall,
        Mnemonic::Rdtsc => System::ReadTsc(false),
        Mnemonic::Rdtscp => System::ReadTsc(true),
        Mnemonic::Pushfq => System::PushFlags,
        Mnemonic::Rdfsbase => System::ReadBase(4),
        Mnemonic::Rdgsbase => System::ReadBase(5),
        Mnemonic::Wrfsbase => System::WriteBase(4),
        Mnemonic::Wrgsbase => System::WriteBase(5),
        Mnemonic::Mov if is_selector_to_register(insn) => {
            System::ReadSelector(segment_index(insn.op1_register()))
        }
        _ if !kernel => return None,
        Mnemonic::Clac => System::SetAc(false),
        Mnemonic::Stac => System::SetAc(true),
        Mnemonic::Cli => System::Cli,
        Mnemonic::Sti => System::Sti,
        Mnemonic::Popfq => System::PopFlags,
        Mnemonic::Swapgs => System::SwapGs,
        Mnemonic::Sysretq => System::Sysret,
        Mnemonic::Iretq => System::Iret,
        Mnemonic::Mov if insn.op1_kind() == OpKind::Register && is_stored_control(insn.op1_register()) => {
            System::ReadControl
        }
        _ => return None,
    })
}

fn is_selector_to_register(insn: &Instruction) -> bool {
    let register = |operand| insn.op_kind(operand) == OpKind::Register;
    register(0) && register(1) && insn.op1_register().is_segment_register()
}

fn is_stored_control(register: Register) -> bool {
    matches!(register, Register::CR0 | Register::CR2 | Register::CR3 | Register::CR4)
}

impl System {
    /// Whether a block of mode `mode` ends with it.
    pub fn ends_block(self, mode: u32) -> bool {
        match self {
            // From one view of memory to the other.
            System::SetAc(set) => set != (mode & mode::SMAP_OFF != 0),
            System::Syscall | System::Sysret | System::Iret => true,
            _ => false,
        }
    }

    /// Whether its code goes on to another block by itself.
    pub fn ends_flow(self, mode: u32) -> bool {
        self.ends_block(mode)
    }

    /// What it does to the arithmetic flags.
    pub fn effect(self) -> Effect {
        match self {
            System::PushFlags | System::Syscall => Effect { read: ALL, ..Effect::default() },
            System::PopFlags | System::Sysret | System::Iret => Effect { read: 0, killed: ALL, writes: true },
            _ => Effect::default(),
        }
    }
}

/// The way of an instruction that the helper must execute, emitted behind the block.
pub struct SlowStub {
    patches: Vec<Patch>,
    insn: usize,
    /// State at the jumps.
    flags: Flags,
    fp_loaded: bool,
}

impl Translator {
    pub(super) fn system(&mut self, item: &Item, system: System) {
        self.t1 = None;
        match system {
            System::ReadSelector(segment) => self.read_selector(item, segment),
            System::Repeated(repeated) => self.repeated(item, repeated),
            System::SetAc(set) => self.set_ac(item, set),
            System::Cli => self.cli(),
            System::Sti => self.sti(item),
            System::PushFlags => self.push_flags(item),
            System::PopFlags => self.pop_flags(),
            System::SwapGs => self.swap_gs(),
            System::ReadBase(segment) => self.read_base(item, segment),
            System::WriteBase(segment) => self.write_base(item, segment),
            System::ReadControl => self.read_control(item),
            System::ReadTsc(and_aux) => self.read_tsc(item, and_aux),
            System::Syscall => self.syscall(item),
            System::Sysret => self.sysret(),
            System::Iret => self.iret(),
        }
    }

    /// From `patches` on the helper executes the instruction.
    pub(super) fn slow_from(&mut self, patches: Vec<Patch>) {
        let (insn, flags, fp_loaded) = (self.now, self.flags, self.fp_loaded);
        self.slow_stubs.push(SlowStub { patches, insn, flags, fp_loaded });
    }

    pub(super) fn slow_stub(&mut self, items: &[Item], stub: SlowStub) {
        let item = &items[stub.insn];
        (self.now, self.flags, self.fp_loaded) = (stub.insn, stub.flags, stub.fp_loaded);
        self.mark();
        for patch in stub.patches {
            self.e.bind(patch);
        }
        self.complex(&item.insn, None);
        // The helper found nothing to leave for.
        self.give_back(self.left());
        self.leave_to(item.insn.next_ip());
    }

    /// Jumps away if an interrupt may be waiting for IF. Clobbers EFLAGS.
    fn if_interrupts_wait(&mut self) -> Patch {
        dynasm!(self.e ; .arch x64 ; cmp DWORD [rsp + env_offset!(waiting)], 0);
        self.e.jcc(cc::NE)
    }

    /// Jumps away unless SMAP is enabled: the mode of the next block is known then. Clobbers EFLAGS.
    fn unless_smap(&mut self) -> Patch {
        dynasm!(self.e ; .arch x64 ; test DWORD [rsp + env_offset!(cr4)], cr::CR4_SMAP as i32);
        self.e.jcc(cc::E)
    }

    /// Code of mode `bits` comes next.
    fn change_mode(&mut self, bits: u32) {
        self.class = mode::class(bits);
    }
}
