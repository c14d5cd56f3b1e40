//! Instruction streams as lists of items that can be dropped one by one, and their bytes.

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, Formatter, Instruction, NasmFormatter, OpKind, Register,
};

use crate::layout::{EXIT32, EXIT64};

/// One instruction of a stream.
#[derive(Clone, Debug)]
pub enum Item {
    /// As it stands; RIP-relative operands name their target absolutely.
    Plain(Instruction),
    /// A direct branch to the item with this index.
    Branch(Code, usize),
    /// The address of the item with this index, into a register.
    Address(Register, usize),
    /// The jump out. Subroutines come after it.
    End,
    /// Bytes of a regression, as they stand.
    Raw(Vec<u8>),
}

/// A stream for 64-bit or compatibility mode.
#[derive(Clone, Debug)]
pub struct Program {
    pub bits: u32,
    pub items: Vec<Item>,
}

/// Assembles streams. One per thread; it keeps its encoders.
pub struct Assembler {
    encoders: [Encoder; 2],
    offsets: Vec<u64>,
}

impl Default for Assembler {
    fn default() -> Self {
        Self { encoders: [Encoder::new(64), Encoder::new(32)], offsets: Vec::new() }
    }
}

impl Assembler {
    fn instruction(bits: u32, item: &Item, target: u64) -> Instruction {
        match item {
            Item::Plain(instruction) => *instruction,
            Item::Branch(code, _) => Instruction::with_branch(*code, target).expect("a branch"),
            Item::Address(register, _) if bits == 64 => {
                let mut lea = Instruction::default();
                lea.set_code(Code::Lea_r64_m);
                lea.set_op0_register(*register);
                lea.set_op1_kind(OpKind::Memory);
                lea.set_memory_base(Register::RIP);
                lea.set_memory_displ_size(8);
                lea.set_memory_displacement64(target);
                lea
            }
            Item::Address(register, _) => {
                Instruction::with2(Code::Mov_r32_imm32, *register, target as u32).expect("a mov")
            }
            Item::End if bits == 64 => Instruction::with_branch(Code::Jmp_rel32_64, EXIT64).expect("a jump"),
            Item::End => Instruction::with_branch(Code::Jmp_rel32_32, EXIT32).expect("a jump"),
            Item::Raw(_) => unreachable!("raw bytes are no instruction"),
        }
    }

    /// The bytes of `program` at `at`; `None` if one of its instructions cannot be encoded.
    pub fn assemble(&mut self, program: &Program, at: u64) -> Option<Vec<u8>> {
        let encoder = &mut self.encoders[usize::from(program.bits == 32)];
        encoder.set_buffer(Vec::with_capacity(program.items.len() * 8));
        self.offsets.clear();
        let mut ip = at;
        let mut raw = false;
        for item in &program.items {
            self.offsets.push(ip);
            ip += match item {
                Item::Raw(bytes) => {
                    for &byte in bytes {
                        encoder.write_u8(byte);
                    }
                    raw = true;
                    bytes.len() as u64
                }
                item => encoder.encode(&Self::instruction(program.bits, item, ip), ip).ok()? as u64,
            };
        }
        let mut bytes = encoder.take_buffer();
        debug_assert!(!raw || !bytes.is_empty());
        // Branches again, now that their targets are known: their lengths do not depend on them.
        for (index, item) in program.items.iter().enumerate() {
            let (Item::Branch(_, target) | Item::Address(_, target)) = item else { continue };
            let here = self.offsets[index];
            let target = self.offsets.get(*target).copied()?;
            encoder.set_buffer(Vec::new());
            encoder.encode(&Self::instruction(program.bits, item, target), here).ok()?;
            let again = encoder.take_buffer();
            let start = (here - at) as usize;
            bytes[start..start + again.len()].copy_from_slice(&again);
        }
        Some(bytes)
    }
}

impl Program {
    /// Without item `index`.
    pub fn without(&self, index: usize) -> Self {
        let mut items = self.items.clone();
        items.remove(index);
        let last = items.len() - 1;
        for item in &mut items {
            if let Item::Branch(_, target) | Item::Address(_, target) = item {
                if *target > index {
                    *target -= 1;
                }
                *target = (*target).min(last);
            }
        }
        Self { bits: self.bits, items }
    }

    /// Whether this is one instruction and the way out.
    pub fn is_single(&self) -> bool {
        matches!(self.items[..], [_, Item::End])
    }

    /// Items that a run to the end executes at least once, roughly: those before the end.
    pub fn length(&self) -> usize {
        self.items.iter().take_while(|item| !matches!(item, Item::End)).count()
    }
}

/// One line per instruction: address, bytes, text.
pub fn disassemble(bits: u32, at: u64, bytes: &[u8]) -> String {
    let mut decoder = Decoder::with_ip(bits, bytes, at, DecoderOptions::NONE);
    let mut formatter = NasmFormatter::new();
    let mut out = String::new();
    while decoder.can_decode() {
        let start = decoder.position();
        let instruction = decoder.decode();
        let mut text = String::new();
        formatter.format(&instruction, &mut text);
        let hex: String = bytes[start..decoder.position()].iter().map(|byte| format!("{byte:02x}")).collect();
        out += &format!("    {:#x}  {hex:24} {text}\n", instruction.ip());
    }
    out
}
