//! Guest instructions by class, and what host code each became.

use accel_tcg::translate::block::Item;
use accel_tcg::translate::classify::Class;
use iced_x86::{Mnemonic, OpKind};

/// The classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// MOV and kin between registers and constants.
    Move,
    Load,
    Store,
    /// Any other integer instruction without memory operand.
    Alu,
    /// With one.
    AluMemory,
    Lea,
    /// PUSH, POP, LEAVE.
    Stack,
    Call,
    Return,
    ConditionalJump,
    /// Direct, indirect, counting.
    Jump,
    /// Vector and x87 instructions without memory operand.
    Vector,
    VectorLoad,
    VectorStore,
    /// String instructions with code of their own.
    Strings,
    /// System instructions with code of their own.
    System,
    /// A helper executes it.
    Helper,
    /// NOP, ENDBR.
    Nothing,
    /// Not an instruction: the poll, and flags brought in, at a block's start.
    Entry,
}

/// The classes with their names.
pub const KINDS: [(Kind, &str); 19] = [
    (Kind::Move, "move between registers"),
    (Kind::Load, "move, load"),
    (Kind::Store, "move, store"),
    (Kind::Alu, "ALU on registers"),
    (Kind::AluMemory, "ALU with memory operand"),
    (Kind::Lea, "lea"),
    (Kind::Stack, "push, pop, leave"),
    (Kind::Call, "call"),
    (Kind::Return, "ret"),
    (Kind::ConditionalJump, "jcc"),
    (Kind::Jump, "jmp"),
    (Kind::Vector, "SSE, x87 on registers"),
    (Kind::VectorLoad, "SSE, x87 load"),
    (Kind::VectorStore, "SSE, x87 store"),
    (Kind::Strings, "string"),
    (Kind::System, "system"),
    (Kind::Helper, "helper"),
    (Kind::Nothing, "nop, endbr"),
    (Kind::Entry, "(block entry)"),
];

/// The class of `item`.
pub fn kind(item: &Item) -> Kind {
    let insn = &item.insn;
    let memory = (0..insn.op_count()).any(|op| insn.op_kind(op) == OpKind::Memory);
    let store = memory && insn.op0_kind() == OpKind::Memory;
    match item.class {
        Class::Native => match (is_move(insn.mnemonic()), memory) {
            (true, false) => Kind::Move,
            (true, true) if store => Kind::Store,
            (true, true) => Kind::Load,
            (false, false) => Kind::Alu,
            (false, true) => Kind::AluMemory,
        },
        Class::NativeFp if store => Kind::VectorStore,
        Class::NativeFp if memory => Kind::VectorLoad,
        Class::NativeFp => Kind::Vector,
        Class::Nothing => Kind::Nothing,
        Class::Lea => Kind::Lea,
        Class::BitTest => Kind::AluMemory,
        Class::Push | Class::PushMemory | Class::Pop | Class::Leave => Kind::Stack,
        Class::Jump | Class::JumpCount | Class::JumpIndirect => Kind::Jump,
        Class::JumpIf => Kind::ConditionalJump,
        Class::Call | Class::CallIndirect => Kind::Call,
        Class::Return => Kind::Return,
        Class::System(_) if insn.is_string_instruction() => Kind::Strings,
        Class::System(_) | Class::Direction(_) => Kind::System,
        Class::Complex(_) | Class::Raise(_) => Kind::Helper,
    }
}

/// Whether the instruction ends a block by itself: what is emitted behind others at a block's end is not theirs.
pub fn goes_on(item: &Item) -> bool {
    matches!(
        item.class,
        Class::Jump
            | Class::JumpCount
            | Class::JumpIndirect
            | Class::JumpIf
            | Class::Call
            | Class::CallIndirect
            | Class::Return
    )
}

fn is_move(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd | Mnemonic::Movbe)
}

/// What has been made of each class.
#[derive(Default)]
pub struct Tally([Made; KINDS.len()]);

/// Guest instructions and what they became.
#[derive(Clone, Copy, Default)]
pub struct Made {
    /// Guest instructions.
    pub guest: u64,
    /// Host instructions, misses and other rare ways not counted.
    pub host: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Tally {
    /// Of one class.
    pub fn of(&mut self, kind: Kind) -> &mut Made {
        &mut self.0[kind as usize]
    }
}
