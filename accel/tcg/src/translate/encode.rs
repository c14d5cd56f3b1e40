//! Moves and address computations of generated code's own, with the shortest displacement.
//!
//! What `dynasm!` is given as an expression it encodes in four bytes; most displacements here are known only when a block is
//! translated, and fit in one.

use crate::code::emitter::Emitter;

/// A memory operand of 64-bit host registers: base, index and its scale (1, 2, 4 or 8), displacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Base register.
    pub base: Option<u8>,
    /// Index register, not RSP, and scale.
    pub index: Option<(u8, u32)>,
    /// In bytes.
    pub displacement: i32,
}

/// Opcodes that take a register and a memory operand of 2, 4 or 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// Register = memory.
    Load = 0x8b,
    /// Memory = register.
    Store = 0x89,
    /// Register = address.
    Lea = 0x8d,
    /// Memory = constant, which follows; the register is none.
    StoreConstant = 0xc7,
}

/// An operand's share of an instruction's bytes.
#[derive(Clone, Copy, Debug)]
pub struct Encoded {
    /// X and B of a REX prefix.
    pub extension: u8,
    /// ModRM, the bits of the other operand clear, and what follows it.
    pub bytes: [u8; 6],
    /// How many of them there are.
    pub len: usize,
}

impl Memory {
    /// In the environment, `offset` bytes from its start.
    pub const fn env(offset: i32) -> Self {
        Self { base: Some(4), index: None, displacement: offset }
    }

    /// As bytes, the shortest form.
    pub fn encode(self) -> Encoded {
        let Self { base, index, displacement } = self;
        let index_number = index.map_or(4, |(index, _)| index);
        debug_assert!(index.is_none_or(|(index, _)| index != 4), "RSP is no index");
        // Without a displacement a base of 5 (RBP, R13) would be none.
        let (mode, displacement_len) = match (base, i8::try_from(displacement)) {
            (None, _) => (0, 4),
            (Some(base), Ok(0)) if base & 7 != 5 => (0, 0),
            (Some(_), Ok(_)) => (0x40, 1),
            (Some(_), Err(_)) => (0x80, 4),
        };
        let mut bytes = [0; 6];
        let len = match (base, index) {
            // 4 asks for a SIB byte.
            (Some(base), None) if base & 7 != 4 => {
                bytes[0] = mode | base & 7;
                1
            }
            _ => {
                let scale = index.map_or(0, |(_, scale)| scale.trailing_zeros() as u8);
                bytes[0] = mode | 4;
                bytes[1] = scale << 6 | (index_number & 7) << 3 | base.unwrap_or(5) & 7;
                2
            }
        };
        bytes[len..][..4].copy_from_slice(&displacement.to_le_bytes());
        let extension = index_number >> 3 << 1 | base.unwrap_or(0) >> 3;
        Encoded { extension, bytes, len: len + displacement_len }
    }
}

impl Emitter {
    /// Emits `op` on the register `register` and `memory`. `size`: 8, 4 or 2 bytes.
    pub fn memory_op(&mut self, op: Op, register: u8, memory: Memory, size: u32) {
        let operand = memory.encode();
        let mut bytes = [0; 9];
        let mut len = 0;
        if size == 2 {
            bytes[0] = 0x66;
            len = 1;
        }
        let rex = u8::from(size == 8) << 3 | register >> 3 << 2 | operand.extension;
        if rex != 0 {
            bytes[len] = 0x40 | rex;
            len += 1;
        }
        bytes[len] = op as u8;
        bytes[len + 1..][..6].copy_from_slice(&operand.bytes);
        bytes[len + 1] |= (register & 7) << 3;
        self.raw_start(&bytes, len + 1 + operand.len);
    }

    /// Host register `to` = the word in the environment at `offset`.
    pub fn load_env(&mut self, to: u8, offset: i32) {
        self.memory_op(Op::Load, to, Memory::env(offset), 8);
    }

    /// The word in the environment at `offset` = host register `from`.
    pub fn store_env(&mut self, offset: i32, from: u8) {
        self.memory_op(Op::Store, from, Memory::env(offset), 8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind, Register};

    fn register(number: u8) -> Register {
        Register::RAX + u32::from(number)
    }

    #[test]
    fn every_form_decodes_as_what_was_meant() {
        let bases = (0..16).map(Some).chain([None]);
        for base in bases {
            for index in (0..16).filter(|&index| index != 4).map(Some).chain([None]) {
                for scale in [1, 2, 4, 8] {
                    for displacement in [0, 1, -1, 127, -128, 128, -129, i32::MAX, i32::MIN] {
                        for (op, size) in [(Op::Load, 8), (Op::Store, 4), (Op::Store, 2), (Op::Lea, 8)] {
                            let to = (displacement as u8).wrapping_add(scale as u8) & 15;
                            let memory =
                                Memory { base, index: index.map(|index| (index, scale)), displacement };
                            look(op, to, memory, size);
                        }
                    }
                }
            }
        }
    }

    fn look(op: Op, to: u8, memory: Memory, size: u32) {
        let mut e = Emitter::new(0x1000);
        e.memory_op(op, to, memory, size);
        let insn = Decoder::with_ip(64, e.bytes(), 0x1000, DecoderOptions::NONE).decode();
        assert_eq!(insn.len(), e.len(), "{op:?} {memory:?}");
        assert_eq!(insn.mnemonic(), if op == Op::Lea { Mnemonic::Lea } else { Mnemonic::Mov });
        let (register_at, memory_at) = if op == Op::Store { (1, 0) } else { (0, 1) };
        assert_eq!(insn.op_kind(memory_at), OpKind::Memory);
        assert_eq!(insn.op_register(register_at).full_register(), register(to), "{insn}");
        assert_eq!(insn.op_register(register_at).size(), size as usize, "{insn}");
        assert_eq!(insn.memory_base(), memory.base.map_or(Register::None, register), "{insn}");
        assert_eq!(insn.memory_index(), memory.index.map_or(Register::None, |(index, _)| register(index)));
        if let Some((_, scale)) = memory.index {
            assert_eq!(insn.memory_index_scale(), scale, "{insn}");
        }
        assert_eq!(insn.memory_displacement64(), memory.displacement as u64, "{insn}");
    }
}
