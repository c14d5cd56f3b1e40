//! Instructions of 64-bit code on the host, straight from their bytes: as they are, or with another memory operand.
//!
//! Only for instructions all of whose registers are the host's of the same name. What is unusual beyond that (EVEX,
//! absolute offsets, more prefixes than there is room for) is left to the encoder.

use iced_x86::{Instruction, Register};

use crate::translate::block::MAX_INSN_BYTES;
use crate::translate::place::Place;
use crate::translate::shape::{Operands, Rm, Shape};

/// An instruction's bytes and what follows it, or nothing.
pub type Bytes = [u8; MAX_INSN_BYTES + 1];

/// A register that is another one on the host, or none.
const AWAY: u8 = 1;
/// AH, CH, DH or BH.
const HIGH_BYTE: u8 = 2;

/// What is to be known of each register, by number of [`Register`].
static REGISTERS: [u8; 256] = {
    use Register as R;
    const NOT_AT_HOME: [Register; 16] = [
        R::SPL,
        R::SP,
        R::ESP,
        R::RSP,
        R::R9L,
        R::R9W,
        R::R9D,
        R::R9,
        R::R10L,
        R::R10W,
        R::R10D,
        R::R10,
        R::R11L,
        R::R11W,
        R::R11D,
        R::R11,
    ];
    let mut table = [0; 256];
    let mut index = 0;
    while index < NOT_AT_HOME.len() {
        table[NOT_AT_HOME[index] as usize] = AWAY;
        index += 1;
    }
    table[R::AH as usize] = HIGH_BYTE;
    table[R::CH as usize] = HIGH_BYTE;
    table[R::DH as usize] = HIGH_BYTE;
    table[R::BH as usize] = HIGH_BYTE;
    table
};

/// How the registers and the memory operand of an instruction stand to a copy of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copying {
    /// Its bytes do the same on the host.
    Verbatim,
    /// They do with another memory operand.
    Memory,
    /// They do not.
    No,
}

/// What of `insn` can be copied. `memory`: it has an explicit memory operand.
pub fn copying(insn: &Instruction, memory: bool) -> Copying {
    // The register of an operand that is none is none, too. The fifth can only be an immediate.
    let registers = REGISTERS[insn.op0_register() as usize]
        | REGISTERS[insn.op1_register() as usize]
        | REGISTERS[insn.op2_register() as usize]
        | REGISTERS[insn.op3_register() as usize];
    match (registers, memory) {
        (0 | HIGH_BYTE, false) => Copying::Verbatim,
        (0, true) => Copying::Memory,
        // A new operand needs a REX prefix, with which there are no high bytes.
        _ => Copying::No,
    }
}

/// The instruction of `len` bytes at the start of `bytes` with the memory operand `place`: its bytes and their number.
/// `None`: the encoder must do it.
pub fn with_memory(bytes: &Bytes, len: usize, place: Place) -> Option<(Bytes, usize)> {
    let shape = Shape::parse(bytes.get(..len)?, true)?;
    if !shape.has_memory() {
        return None;
    }
    shape.with(&Operands { reg: None, rm: Rm::Memory(place.memory()), vvvv: None, spare_rex: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::tb::mode;
    use crate::translate::classify::{Class, classify};
    use crate::translate::features::Features;
    use crate::translate::native::{has_memory, set_operand};
    use crate::translate::registers::host_register;
    use iced_x86::{Code, Decoder, DecoderOptions, Encoder, OpKind};

    const PLACES: [Place; 12] = [
        Place::Sum(0),
        Place::Sum(24),
        Place::Sum(0xffc),
        Place::Host(0),
        Place::Host(-3),
        Place::Host(254),
        Place::Base { base: 0, displacement: 0 },
        Place::Base { base: 5, displacement: 0 },
        Place::Base { base: 9, displacement: -128 },
        Place::Base { base: 13, displacement: 0 },
        Place::Base { base: 12, displacement: 127 },
        Place::Base { base: 15, displacement: -0x1234_5678 },
    ];

    fn decode(bytes: &[u8]) -> Instruction {
        let mut insn = Decoder::new(64, bytes, DecoderOptions::FORCE_RESERVED_NOP).decode();
        insn.set_memory_displ_size(0);
        insn
    }

    struct Tally {
        encoder: Encoder,
        features: Features,
        codes: Vec<bool>,
        left: Vec<bool>,
    }

    impl Tally {
        /// Compares what becomes of `text` with what the encoder makes of it.
        fn look(&mut self, text: &[u8]) {
            let mode = mode::LONG | mode::FLAT_CODE | mode::SSE | mode::AVX | mode::AVX512 | 3;
            let insn = Decoder::new(64, text, DecoderOptions::FORCE_RESERVED_NOP).decode();
            let class = classify(&insn, 64, mode, &self.features);
            if !matches!(class, Class::Native | Class::NativeFp) {
                return;
            }
            let mut bytes = Bytes::default();
            bytes[..insn.len()].copy_from_slice(&text[..insn.len()]);
            match copying(&insn, has_memory(&insn)) {
                Copying::No => {}
                Copying::Verbatim => {
                    assert!(!has_memory(&insn), "{insn}");
                    for operand in 0..insn.op_count() {
                        let register = insn.op_register(operand);
                        let high =
                            matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
                        if insn.op_kind(operand) == OpKind::Register && register.is_gpr() && !high {
                            assert_eq!(host_register(register), Some(register), "{insn}");
                        }
                    }
                    self.codes[insn.code() as usize] = true;
                }
                Copying::Memory => {
                    for place in PLACES {
                        let mut wanted = insn;
                        wanted.set_segment_prefix(Register::None);
                        set_operand(&mut wanted, place);
                        let Some((made, len)) = with_memory(&bytes, insn.len(), place) else {
                            self.left[insn.code() as usize] = true;
                            continue;
                        };
                        self.encoder.encode(&wanted, 0).expect("the encoder knows what the decoder knows");
                        let wanted = self.encoder.take_buffer();
                        let (made, wanted) = (decode(&made[..len]), decode(&wanted));
                        assert_eq!(made.len(), len, "{insn}");
                        assert_eq!(made, wanted, "{insn} {bytes:x?}");
                        self.codes[insn.code() as usize] = true;
                    }
                }
            }
        }
    }

    #[test]
    fn copies_are_what_the_encoder_makes() {
        let mut tally = Tally {
            encoder: Encoder::new(64),
            features: Features::new(|_, _| [u32::MAX; 4]),
            codes: vec![false; Code::values().len()],
            left: vec![false; Code::values().len()],
        };
        let tail = [0x15, 0x91, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x18, 0x29];
        // Registers and kinds of memory operand: none, base, index, RIP-relative, displacements.
        let modrms = (0..=255u8).filter(|modrm| modrm & 0x38 != 0x30 || modrm % 3 == 0);
        let modrms: Vec<u8> = modrms.collect();
        let prefixes: [&[u8]; 14] = [
            &[],
            &[0x66],
            &[0xf2],
            &[0xf3],
            &[0xf0],
            &[0x48],
            &[0x4f],
            &[0x66, 0x41],
            &[0xf3, 0x4c],
            &[0xf2, 0x44],
            &[0x67],
            &[0x64, 0x66],
            &[0x2e, 0x42],
            &[0x48, 0x66],
        ];
        let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
        for opcode in 0..=255u8 {
            for &modrm in &modrms {
                for prefix in prefixes {
                    for map in maps {
                        tally.look(&[prefix, map, &[opcode, modrm], &tail].concat());
                    }
                }
                for payload in [0x00u8, 0x40, 0x78, 0x7d, 0xf9, 0xc6, 0x82, 0xff, 0x7b, 0xfa] {
                    tally.look(&[&[0xc5, payload, opcode, modrm], &tail[..]].concat());
                    for map in [0xe1u8, 0xe2, 0xe3, 0x41, 0x02, 0xc3] {
                        tally.look(&[&[0xc4, map, payload, opcode, modrm], &tail[..]].concat());
                    }
                }
            }
        }
        let covered = tally.codes.iter().filter(|&&covered| covered).count();
        assert!(covered > 1500, "{covered} codes");
        let moffs = [
            Code::Mov_AL_moffs8,
            Code::Mov_AX_moffs16,
            Code::Mov_EAX_moffs32,
            Code::Mov_RAX_moffs64,
            Code::Mov_moffs8_AL,
            Code::Mov_moffs16_AX,
            Code::Mov_moffs32_EAX,
            Code::Mov_moffs64_RAX,
        ];
        for code in Code::values().filter(|&code| tally.left[code as usize] && !tally.codes[code as usize]) {
            assert!(moffs.contains(&code), "{code:?} is left to the encoder");
        }
    }

    #[test]
    fn what_grows_too_long_is_left_to_the_encoder() {
        // 66 66 66 66 66 48 81 05 disp32 imm32 has 15 bytes; another byte would be one too many.
        let bytes = [0x66, 0x66, 0x66, 0x66, 0x48, 0x81, 0x05, 1, 2, 3, 4, 5, 6, 7, 8, 0];
        assert_eq!(with_memory(&bytes, 15, Place::Base { base: 0, displacement: 0x1000 }), None);
        assert_ne!(with_memory(&bytes, 15, Place::Sum(0)), None);
    }
}
