//! Liveness of the arithmetic flags within a block, and where they are.

use std::sync::LazyLock;

use iced_x86::{Code, Instruction, Mnemonic, OpKind, RflagsBits};

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

/// Shifts and rotates: what they do to the flags depends on the count.
fn shifts(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    )
}

/// Whether the last operand of a shift, its count, is CL.
fn counts_by_register(insn: &Instruction) -> bool {
    insn.op_kind(insn.op_count() - 1) == OpKind::Register
}

fn compares_elements(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq | M::Scasb | M::Scasw | M::Scasd | M::Scasq)
}

/// The effects of instructions by code, where that decides.
static EFFECTS: LazyLock<Vec<Option<Effect>>> = LazyLock::new(|| {
    let effect_of = |code: Code| {
        let mut insn = Instruction::default();
        insn.set_code(code);
        let by_code = !shifts(insn.mnemonic()) && !compares_elements(insn.mnemonic());
        by_code.then(|| effect_of_operands(&insn))
    };
    Code::values().map(effect_of).collect()
});

/// The effect of a natively executed instruction.
pub fn effect(insn: &Instruction) -> Effect {
    match EFFECTS[insn.code() as usize] {
        Some(effect) => effect,
        None => effect_of_operands(insn),
    }
}

/// Whether the effects of the instructions with code `code` differ.
pub fn varies(code: Code) -> bool {
    EFFECTS[code as usize].is_none()
}

fn effect_of_operands(insn: &Instruction) -> Effect {
    let mut read = pack(insn.rflags_read());
    let undefined = pack(insn.rflags_undefined());
    let mut killed = pack(insn.rflags_written() | insn.rflags_cleared() | insn.rflags_set());
    let writes = killed | undefined != 0;
    match insn.mnemonic() {
        // A count of zero leaves all flags alone. One that is a constant is known not to be, where any are said to change.
        other if shifts(other) && counts_by_register(insn) => {
            read |= if killed | undefined != 0 { ALL } else { 0 };
        }
        // So does one of elements.
        other if compares_elements(other) && (insn.has_rep_prefix() || insn.has_repne_prefix()) => {
            read |= ALL;
        }
        other if undefined_is_written(other) => killed |= undefined,
        _ => {}
    }
    Effect { read, killed, writes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    #[test]
    fn effects_by_code_are_those_of_each_instruction() {
        let maps: [&[u8]; 3] = [&[], &[0x0f], &[0x0f, 0x38]];
        let prefixes: [&[u8]; 5] = [&[], &[0x66], &[0xf2], &[0xf3], &[0x48]];
        for (map, prefix) in maps.iter().flat_map(|map| prefixes.iter().map(move |prefix| (map, prefix))) {
            for (opcode, modrm) in (0..=255).flat_map(|opcode| (0..=255).map(move |modrm| (opcode, modrm))) {
                for count in [0, 1, 7, 32] {
                    let bytes = [prefix, *map, &[opcode, modrm, count, 2, 3, 4, 5, 6, 7]].concat();
                    let insn = Decoder::new(64, &bytes, DecoderOptions::FORCE_RESERVED_NOP).decode();
                    assert_eq!(effect(&insn), effect_of_operands(&insn), "{insn}");
                }
            }
        }
    }
}
