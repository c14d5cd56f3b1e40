//! The parts of an instruction of 64-bit code, by its bytes, and the same instruction with other operands.

use crate::translate::block::MAX_INSN_BYTES;
use crate::translate::encode::Memory;
use crate::translate::reencode::Bytes;

/// Prefixes that stay, at most.
const PREFIXES: usize = 4;

/// An instruction's parts.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    prefixes: [u8; PREFIXES],
    prefixes_len: usize,
    map: Map,
    opcode: u8,
    /// Of an instruction that has none: 0xc0.
    modrm: u8,
    has_modrm: bool,
    /// What follows the operands: immediates.
    tail: &'a [u8],
}

/// How the opcode map and the upper bits of register numbers are said.
#[derive(Clone, Copy, Debug)]
enum Map {
    /// REX prefix or 0, escape bytes, how many.
    Legacy(u8, [u8; 2], usize),
    /// The two bytes behind C4.
    Vex(u8, u8),
}

/// The operand that the lower bits of ModRM name.
#[derive(Clone, Copy, Debug)]
pub enum Rm {
    /// The register that it was.
    Same,
    /// This register.
    Register(u8),
    /// In memory.
    Memory(Memory),
}

/// The operands of an instruction that is made of a [`Shape`]; what is `None` stays.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// The register in the middle bits of ModRM.
    pub reg: Option<u8>,
    /// The other one.
    pub rm: Rm,
    /// The one in a VEX prefix.
    pub vvvv: Option<u8>,
    /// A REX prefix without a bit set may go: no byte register needs it.
    pub spare_rex: bool,
}

impl<'a> Shape<'a> {
    /// The parts of the instruction that is `bytes`. `None` for what is unusual: EVEX and XOP, 3DNow!, absolute offsets, REX
    /// prefixes that do not count, many prefixes. `has_modrm`: its code has a ModRM byte.
    pub fn parse(bytes: &'a [u8], has_modrm: bool) -> Option<Self> {
        let mut prefixes = [0; PREFIXES];
        let (mut prefixes_len, mut at) = (0, 0);
        // Segment and address size go into the new operand.
        let first = loop {
            let byte = *bytes.get(at)?;
            match byte {
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67 => {}
                0x66 | 0xf0 | 0xf2 | 0xf3 => {
                    *prefixes.get_mut(prefixes_len)? = byte;
                    prefixes_len += 1;
                }
                _ => break byte,
            }
            at += 1;
        };
        let map = match first {
            0xc5 => {
                let second = *bytes.get(at + 1)?;
                at += 2;
                Map::Vex(second & 0x80 | 0x61, second & 0x7f)
            }
            0xc4 => {
                at += 3;
                Map::Vex(*bytes.get(at - 2)?, *bytes.get(at - 1)?)
            }
            0x62 | 0x8f => return None,
            _ => {
                let rex = if first & 0xf0 == 0x40 { first } else { 0 };
                at += usize::from(rex != 0);
                match *bytes.get(at)? {
                    0x0f => {
                        at += 1;
                        match *bytes.get(at)? {
                            // 3DNow!
                            0x0f => return None,
                            map @ (0x38 | 0x3a) => {
                                at += 1;
                                Map::Legacy(rex, [0x0f, map], 2)
                            }
                            _ => Map::Legacy(rex, [0x0f, 0], 1),
                        }
                    }
                    // A REX prefix that counts is the last; absolute offsets and XLAT have no ModRM byte.
                    0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 => {
                        return None;
                    }
                    0xa0..=0xa3 | 0xd7 => return None,
                    _ => Map::Legacy(rex, [0, 0], 0),
                }
            }
        };
        let opcode = *bytes.get(at)?;
        at += 1;
        let mut modrm = 0xc0;
        if has_modrm {
            modrm = *bytes.get(at)?;
            at += 1;
            let mut base = modrm & 7;
            if modrm >> 6 != 3 && base == 4 {
                base = *bytes.get(at)? & 7;
                at += 1;
            }
            at += match (modrm >> 6, base) {
                (0, 5) | (2, _) => 4,
                (1, _) => 1,
                _ => 0,
            };
        }
        Some(Self { prefixes, prefixes_len, map, opcode, modrm, has_modrm, tail: bytes.get(at..)? })
    }

    /// Whether its operand in the lower bits of ModRM is in memory.
    pub fn has_memory(&self) -> bool {
        self.modrm >> 6 != 3
    }

    /// The opcode, of an instruction with a one-byte one.
    pub fn opcode(&self) -> Option<u8> {
        matches!(self.map, Map::Legacy(_, _, 0)).then_some(self.opcode)
    }

    /// The immediate that ends it, of 4 bytes.
    pub fn immediate(&self) -> Option<i32> {
        self.tail.try_into().ok().map(i32::from_le_bytes)
    }

    /// The same instruction for operands the other way round, if there is a code for that: the caller exchanges them.
    pub fn turned(mut self) -> Option<Self> {
        match self.opcode()? {
            // ALU operations and MOV: bit 1 tells which is the destination.
            opcode if opcode < 0x40 && opcode & 4 == 0 || (0x88..=0x8b).contains(&opcode) => self.opcode ^= 2,
            // TEST has none.
            0x84 | 0x85 => {}
            _ => return None,
        }
        Some(self)
    }

    /// The instruction with `operands`. `None`: it would be too long.
    pub fn with(&self, operands: &Operands) -> Option<(Bytes, usize)> {
        let mut out = Output::default();
        out.put_all(&self.prefixes[..self.prefixes_len])?;
        let (extension, mut bytes, mut len) = match operands.rm {
            Rm::Same => (self.extension(), [self.modrm & 0xc7, 0, 0, 0, 0, 0], 1),
            Rm::Register(number) => (number >> 3, [0xc0 | number & 7, 0, 0, 0, 0, 0], 1),
            Rm::Memory(memory) => {
                let operand = memory.encode();
                (operand.extension, operand.bytes, operand.len)
            }
        };
        let mut opcode = self.opcode;
        if self.has_modrm {
            bytes[0] |= operands.reg.map_or(self.modrm & 0x38, |number| (number & 7) << 3);
        } else {
            // The register is in the opcode.
            len = 0;
            if let Rm::Register(number) = operands.rm {
                opcode = opcode & 0xf8 | number & 7;
            }
        }
        match self.map {
            Map::Legacy(old, escape, escape_len) => {
                let reg = operands.reg.map_or(old & 4, |number| number >> 3 << 2);
                let rex = old & 8 | reg | extension;
                if rex != 0 || old != 0 && !operands.spare_rex {
                    out.put(0x40 | rex)?;
                }
                out.put_all(&escape[..escape_len])?;
            }
            Map::Vex(first, second) => {
                let reg = operands.reg.map_or(first & 0x80, |number| (!number >> 3 & 1) << 7);
                let vvvv = operands.vvvv.map_or(second & 0x78, |number| (!number & 15) << 3);
                out.put_all(&[0xc4, reg | !extension << 5 & 0x60 | first & 0x1f, second & 0x87 | vvvv])?;
            }
        }
        out.put(opcode)?;
        out.put_all(&bytes[..len])?;
        out.put_all(self.tail)?;
        Some((out.bytes, out.len))
    }

    /// X and B as they are.
    fn extension(&self) -> u8 {
        match self.map {
            Map::Legacy(rex, ..) => rex & 3,
            Map::Vex(first, _) => !first >> 5 & 3,
        }
    }
}

#[derive(Default)]
struct Output {
    bytes: Bytes,
    len: usize,
}

impl Output {
    /// `None`: no instruction is that long.
    fn put(&mut self, byte: u8) -> Option<()> {
        *self.bytes[..MAX_INSN_BYTES].get_mut(self.len)? = byte;
        self.len += 1;
        Some(())
    }

    fn put_all(&mut self, bytes: &[u8]) -> Option<()> {
        self.bytes[..MAX_INSN_BYTES].get_mut(self.len..)?.get_mut(..bytes.len())?.copy_from_slice(bytes);
        self.len += bytes.len();
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::tb::mode;
    use crate::translate::classify::{Class, classify};
    use crate::translate::cold::Fields;
    use crate::translate::features::Features;
    use crate::translate::native::has_memory;
    use crate::translate::registers::{gpr_number, sized};
    use iced_x86::{
        Code, Decoder, DecoderOptions, Encoder, Instruction, InstructionInfoFactory, OpKind, Register,
    };

    fn decode(bytes: &[u8]) -> Instruction {
        let mut insn = Decoder::new(64, bytes, DecoderOptions::FORCE_RESERVED_NOP).decode();
        insn.set_memory_displ_size(0);
        insn
    }

    struct Tally {
        encoder: Encoder,
        features: Features,
        info: InstructionInfoFactory,
        codes: Vec<bool>,
        in_memory: Vec<bool>,
        turned: usize,
    }

    impl Tally {
        fn encoded(&mut self, insn: &Instruction) -> Instruction {
            self.encoder.encode(insn, 0).expect("the encoder knows what the decoder knows");
            decode(&self.encoder.take_buffer())
        }

        /// Compares `text` with other operands with what the encoder makes of that.
        fn look(&mut self, text: &[u8]) {
            let mode = mode::LONG | mode::FLAT_CODE | mode::SSE | mode::AVX | mode::AVX512 | 3;
            let insn = Decoder::new(64, text, DecoderOptions::FORCE_RESERVED_NOP).decode();
            if !matches!(classify(&insn, 64, mode, &self.features), Class::Native | Class::NativeFp) {
                return;
            }
            let Some(fields) = Fields::of(&insn, &mut self.info) else { return };
            if fields.reg.is_none() && fields.rm.is_none() && fields.vvvv.is_none() {
                return;
            }
            let Some(shape) = Shape::parse(&text[..insn.len()], !fields.in_opcode) else { return };
            assert_eq!(shape.has_memory(), has_memory(&insn), "{insn}");
            self.codes[insn.code() as usize] = true;
            for number in [0, 9, 10, 11, 12] {
                let mut wanted = insn;
                wanted.set_segment_prefix(Register::None);
                for operand in 0..insn.op_count() {
                    let register = insn.op_register(operand);
                    let implicit = insn.op_code().op_kind(operand);
                    if insn.op_kind(operand) == OpKind::Register
                        && gpr_number(register).is_some()
                        && Fields::is_named(implicit)
                    {
                        wanted.set_op_register(operand, sized(number, register.size()));
                    }
                }
                let one = number as u8;
                let memory = Memory::env(8 * i32::from(one) + 120);
                let mut rm = fields.rm.map_or(Rm::Same, |_| Rm::Register(one));
                if has_memory(&insn) {
                    to_memory(&mut wanted, memory);
                    rm = Rm::Memory(memory);
                }
                let operands = Operands {
                    reg: fields.reg.map(|_| one),
                    rm,
                    vvvv: fields.vvvv.map(|_| one),
                    spare_rex: false,
                };
                let made = shape.with(&operands).map(|(bytes, len)| (decode(&bytes[..len]), len));
                let (made, len) = made.expect("it is not long");
                assert_eq!((made, made.len()), (self.encoded(&wanted), len), "{insn} {text:x?}");
                let Some(rm) = fields.rm.filter(|rm| rm.or_memory) else { continue };
                if let (Some(turned), Some(reg)) = (shape.turned(), fields.reg) {
                    let exchanged =
                        Operands { reg: Some(rm.guest as u8), rm: Rm::Register(reg.guest as u8), ..operands };
                    let (bytes, len) = turned.with(&exchanged).expect("it is not long");
                    let back = decode(&bytes[..len]);
                    let same = (0..2).all(|operand| back.op_register(operand) == insn.op_register(operand));
                    let exchanged = back.op0_register() == insn.op1_register()
                        && back.op1_register() == insn.op0_register();
                    assert_eq!(back.mnemonic(), insn.mnemonic());
                    assert!(
                        same || exchanged && insn.mnemonic() == iced_x86::Mnemonic::Test,
                        "{insn}: {back}"
                    );
                    self.turned += 1;
                }
                let operand = (0..insn.op_count())
                    .find(|&operand| {
                        insn.op_kind(operand) == OpKind::Register
                            && Fields::is_rm(insn.op_code().op_kind(operand))
                    })
                    .expect("it has been found");
                wanted.set_op_kind(operand, OpKind::Memory);
                to_memory(&mut wanted, memory);
                let operands = Operands { rm: Rm::Memory(memory), ..operands };
                let (bytes, len) = shape.with(&operands).expect("it is not long");
                assert_eq!(decode(&bytes[..len]), self.encoded(&wanted), "{insn} {text:x?}");
                self.in_memory[insn.code() as usize] = true;
            }
        }
    }

    fn to_memory(insn: &mut Instruction, memory: Memory) {
        insn.set_memory_base(Register::RSP);
        insn.set_memory_index(Register::None);
        insn.set_memory_index_scale(1);
        insn.set_memory_displacement64(memory.displacement as u64);
        insn.set_memory_displ_size(1);
    }

    #[test]
    fn other_operands_are_what_the_encoder_makes_of_them() {
        let count = Code::values().len();
        let mut tally = Tally {
            encoder: Encoder::new(64),
            features: Features::new(|_, _| [u32::MAX; 4]),
            info: InstructionInfoFactory::new(),
            codes: vec![false; count],
            in_memory: vec![false; count],
            turned: 0,
        };
        let tail = [0x15, 0x91, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x18, 0x29];
        let prefixes: [&[u8]; 12] = [
            &[],
            &[0x66],
            &[0xf2],
            &[0xf3],
            &[0x48],
            &[0x4d],
            &[0x40],
            &[0x66, 0x45],
            &[0xf3, 0x4c],
            &[0xf2, 0x49],
            &[0x64, 0x66],
            &[0x66, 0x48],
        ];
        let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
        for opcode in 0..=255u8 {
            for modrm in (0..=255u8).filter(|modrm| modrm >> 6 == 3 || modrm % 5 == 1) {
                for prefix in prefixes {
                    for map in maps {
                        tally.look(&[prefix, map, &[opcode, modrm], &tail].concat());
                    }
                }
                for payload in [0x00u8, 0x40, 0x78, 0x7d, 0xf9, 0xc6, 0x82, 0xff, 0x7b, 0xfa, 0x83] {
                    tally.look(&[&[0xc5, payload, opcode, modrm], &tail[..]].concat());
                    for map in [0xe1u8, 0xe2, 0xe3, 0x41, 0x02, 0xc3, 0x62] {
                        tally.look(&[&[0xc4, map, payload, opcode, modrm], &tail[..]].concat());
                    }
                }
            }
        }
        let count = |codes: &[bool]| codes.iter().filter(|&&covered| covered).count();
        let (all, in_memory) = (count(&tally.codes), count(&tally.in_memory));
        assert!(all > 300 && in_memory > 200 && tally.turned > 1000, "{all} {in_memory} {}", tally.turned);
    }
}
