//! Liveness of the arithmetic flags within a block, and where they are.

use iced_x86::{Instruction, Mnemonic, RflagsBits};

/// CF PF AF ZF SF OF as bits of this module.
pub const ALL: u8 = 0x3f;

/// Where the guest's arithmetic flags are while the block is emitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    /// In EFLAGS.
    Host,
    /// In `env.lahf`; EFLAGS is anything.
    Saved,
    /// In both.
    Both,
    /// Nowhere: nothing reads them before they are written.
    Dead,
}

impl Flags {
    /// EFLAGS has them.
    pub fn in_host(self) -> bool {
        matches!(self, Flags::Host | Flags::Both)
    }
}

/// What an instruction does to the flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Read.
    pub read: u8,
    /// Given a value that does not depend on their old one.
    pub killed: u8,
    /// EFLAGS is changed in any way.
    pub writes: bool,
}

fn pack(rflags: u32) -> u8 {
    let mut bits = 0;
    for (index, flag) in
        [RflagsBits::CF, RflagsBits::PF, RflagsBits::AF, RflagsBits::ZF, RflagsBits::SF, RflagsBits::OF]
            .iter()
            .enumerate()
    {
        if rflags & flag != 0 {
            bits |= 1 << index;
        }
    }
    bits
}

/// Instructions that leave "undefined" flags at a value of their own, whatever it was before, on every host we know.
fn undefined_is_written(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::And | Mnemonic::Or | Mnemonic::Xor | Mnemonic::Test)
}

/// The effect of a natively executed instruction.
pub fn effect(insn: &Instruction) -> Effect {
    let mut read = pack(insn.rflags_read());
    let undefined = pack(insn.rflags_undefined());
    let mut killed = pack(insn.rflags_written() | insn.rflags_cleared() | insn.rflags_set());
    let writes = killed | undefined != 0;
    match insn.mnemonic() {
        // A count of zero leaves all flags alone.
        Mnemonic::Shl
        | Mnemonic::Sal
        | Mnemonic::Shr
        | Mnemonic::Sar
        | Mnemonic::Rol
        | Mnemonic::Ror
        | Mnemonic::Rcl
        | Mnemonic::Rcr
        | Mnemonic::Shld
        | Mnemonic::Shrd => read |= if killed | undefined != 0 { ALL } else { 0 },
        // So does one of elements.
        Mnemonic::Cmpsb
        | Mnemonic::Cmpsw
        | Mnemonic::Cmpsd
        | Mnemonic::Cmpsq
        | Mnemonic::Scasb
        | Mnemonic::Scasw
        | Mnemonic::Scasd
        | Mnemonic::Scasq
            if insn.has_rep_prefix() || insn.has_repne_prefix() =>
        {
            read |= ALL;
        }
        other if undefined_is_written(other) => killed |= undefined,
        _ => {}
    }
    Effect { read, killed, writes }
}
