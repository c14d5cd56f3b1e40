//! What is found out once about all instructions of a kind: those of one code, with or without a memory operand, in
//! one mode.

use iced_x86::{Code, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register};

use crate::exec::helpers;
use crate::translate::classify::{Class, classify};
use crate::translate::features::Features;
use crate::translate::flags::{self, Effect};
use crate::translate::native::{has_memory, is_x87, needs_alignment, waits};

/// Modes that facts are kept for.
const MODES: usize = 8;

/// What is known of an instruction by its kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Facts<'a> {
    /// What is done with it.
    pub class: &'a Class,
    /// Its memory operand.
    pub access: MemoryAccess,
    /// It has an explicit one.
    pub memory: bool,
    /// What it does to the arithmetic flags.
    pub flags: Effect,
}

/// How a natively executed instruction uses its memory operand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryAccess {
    /// It writes it.
    pub writes: bool,
    /// What the helpers must know of it, beside its size and segment.
    pub packed: u32,
}

/// Classes that all instructions of a kind are in if one is. The others may be told apart by their prefixes or by which
/// special register they name.
static CLASSES: [Class; 16] = [
    Class::Native,
    Class::NativeFp,
    Class::Nothing,
    Class::Lea,
    Class::BitTest,
    Class::Push,
    Class::PushMemory,
    Class::Pop,
    Class::Leave,
    Class::Jump,
    Class::JumpIf,
    Class::JumpCount,
    Class::JumpIndirect,
    Class::Call,
    Class::CallIndirect,
    Class::Return,
];

/// Facts, if they are known.
#[derive(Clone, Copy, Default)]
struct Entry {
    /// 1 + the number in [`CLASSES`]; 0: not known.
    class: u8,
    /// The effect on the flags is not the same for all of the kind.
    flags_vary: bool,
    flags: Effect,
    access: MemoryAccess,
}

/// The facts of one mode, two entries a code.
struct Table {
    mode: u32,
    entries: Box<[Entry]>,
}

/// Facts by mode.
#[derive(Default)]
pub struct Kinds {
    /// The one asked last comes first.
    tables: Vec<Table>,
}

impl Kinds {
    /// The facts of mode `mode`, for code of `bits`.
    pub fn of_mode<'a>(
        &'a mut self,
        bits: u32,
        mode: u32,
        features: &'a Features,
        info: &'a mut InstructionInfoFactory,
    ) -> ModeKinds<'a> {
        match self.tables.iter().position(|table| table.mode == mode) {
            Some(index) => self.tables.swap(0, index),
            None => {
                self.tables.truncate(MODES - 1);
                let entries = vec![Entry::default(); 2 * Code::values().len()].into();
                self.tables.insert(0, Table { mode, entries });
            }
        }
        ModeKinds { entries: &mut self.tables[0].entries, bits, mode, features, info, other: Class::Nothing }
    }
}

/// Facts of one mode.
pub struct ModeKinds<'a> {
    entries: &'a mut [Entry],
    bits: u32,
    mode: u32,
    features: &'a Features,
    info: &'a mut InstructionInfoFactory,
    /// The class found out last.
    other: Class,
}

impl ModeKinds<'_> {
    /// The facts of `insn`, which has just been decoded.
    #[inline]
    pub fn of(&mut self, insn: &Instruction) -> Facts<'_> {
        let masked = insn.op_mask() != Register::None;
        // One by one, as they were written: [`has_memory`] is faster where that was a while ago.
        let memory = (0..insn.op_count()).any(|operand| insn.op_kind(operand) == OpKind::Memory);
        let at = 2 * insn.code() as usize + usize::from(memory);
        let Entry { class, flags_vary, flags, access } = self.entries[at];
        if class != 0 && !masked {
            let flags = if flags_vary { flags::effect(insn) } else { flags };
            return Facts { class: &CLASSES[usize::from(class) - 1], access, memory, flags };
        }
        self.find_out(insn, at, masked)
    }

    #[cold]
    fn find_out(&mut self, insn: &Instruction, at: usize, masked: bool) -> Facts<'_> {
        let class = classify(insn, self.bits, self.mode, self.features);
        let access = match class {
            Class::Native | Class::NativeFp if has_memory(insn) => {
                memory_access(insn, self.info, class == Class::NativeFp)
            }
            _ => MemoryAccess::default(),
        };
        let flags = effect(&class, insn);
        if let Some(number) = CLASSES.iter().position(|&known| known == class)
            && !masked
        {
            let flags_vary = matches!(class, Class::Native | Class::NativeFp | Class::BitTest)
                && flags::varies(insn.code());
            self.entries[at] = Entry { class: number as u8 + 1, flags_vary, flags, access };
        }
        self.other = class;
        Facts { class: &self.other, access, memory: has_memory(insn), flags }
    }
}

/// What `insn` of class `class` does to the arithmetic flags.
fn effect(class: &Class, insn: &Instruction) -> Effect {
    match class {
        Class::Native | Class::NativeFp | Class::BitTest => flags::effect(insn),
        Class::JumpIf | Class::JumpCount => Effect { read: flags::effect(insn).read, ..Effect::default() },
        Class::System(system) => system.effect(),
        // Helpers may show the flags to the guest.
        Class::Complex(_) | Class::Raise(_) => Effect { read: flags::ALL, ..Effect::default() },
        _ => Effect::default(),
    }
}

fn memory_access(insn: &Instruction, info: &mut InstructionInfoFactory, fp: bool) -> MemoryAccess {
    let info = info.info(insn);
    let operand = (0..insn.op_count()).find(|&operand| insn.op_kind(operand) == OpKind::Memory);
    let (reads, writes) = match operand.map(|operand| info.op_access(operand)) {
        Some(OpAccess::Write | OpAccess::CondWrite) => (false, true),
        Some(OpAccess::ReadWrite | OpAccess::ReadCondWrite) => (true, true),
        _ => (true, false),
    };
    // A store with an unmasked exception of its own stores nothing: the bounce buffer must hold what is there.
    let x87 = fp && is_x87(insn);
    let packed = if reads || x87 { helpers::ALSO_LOADS } else { 0 }
        | if fp && waits(insn) { helpers::X87 } else { 0 }
        | if needs_alignment(insn, fp) { helpers::ALIGNED } else { 0 };
    MemoryAccess { writes, packed }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::tb::mode;
    use iced_x86::{Decoder, DecoderOptions};

    /// Every opcode, with a register and with a memory operand and all prefixes that make a difference: the second of a
    /// kind is told what it would be told alone.
    #[test]
    fn facts_of_a_kind_are_those_of_each() {
        let features = Features::new(|_, _| [u32::MAX; 4]);
        let (mut info, mut kinds) = (InstructionInfoFactory::new(), Kinds::default());
        let all = mode::SSE | mode::AVX | mode::AVX512 | mode::FLAT_CODE;
        for (bits, mode) in [(64, all | mode::LONG | 3), (64, all | mode::LONG), (32, all | mode::CODE32 | 3)]
        {
            let mut modes_kinds = kinds.of_mode(bits, mode, &features, &mut info);
            let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
            let prefixes: [&[u8]; 8] =
                [&[], &[0x66], &[0xf2], &[0xf3], &[0x48], &[0xf3, 0x48], &[0x67], &[0xf0]];
            for (map, prefix) in maps.iter().flat_map(|map| prefixes.iter().map(move |prefix| (map, prefix)))
            {
                for (opcode, modrm) in
                    (0..=255).flat_map(|opcode| (0..=255).map(move |modrm| (opcode, modrm)))
                {
                    let bytes = [prefix, *map, &[opcode, modrm, 1, 2, 3, 4, 5, 6, 7]].concat();
                    let insn = Decoder::new(bits, &bytes, DecoderOptions::FORCE_RESERVED_NOP).decode();
                    let class = classify(&insn, bits, mode, &features);
                    let facts = modes_kinds.of(&insn);
                    assert_eq!(*facts.class, class, "{insn}");
                    assert_eq!(facts.flags, effect(&class, &insn), "{insn}");
                    if matches!(class, Class::Native | Class::NativeFp) && has_memory(&insn) {
                        let mut info = InstructionInfoFactory::new();
                        let access = memory_access(&insn, &mut info, class == Class::NativeFp);
                        assert_eq!(facts.access, access, "{insn}");
                    }
                }
            }
        }
    }
}
