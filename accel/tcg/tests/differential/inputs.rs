//! Initial register states that make sense for a stream.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::layout::{DATA, PAGE, STACK};
use crate::operands::{GS_BASE, Pools, is_string, target};
use crate::rng::Rng;
use crate::shared::{Input, MEMORY_TEMPLATES, VECTOR_TEMPLATES};
use crate::xsave::FIRST_INDEX_TEMPLATE;

/// CF PF AF ZF SF OF.
const ARITHMETIC: u64 = 0x8d5;
const DIRECTION: u64 = 1 << 10;
const ID: u64 = 1 << 21;

fn common(bits: u32, cpl: u32, rng: &mut Rng) -> Input {
    let mut input = Input { bits, cpl, gs_base: GS_BASE, ..Input::default() };
    for register in &mut input.gpr {
        *register = rng.interesting();
    }
    input.gpr[4] = STACK + 0x800;
    input.rflags = 0x202 | rng.next() & ARITHMETIC;
    if rng.percent(3) {
        input.rflags |= ID;
    }
    input.memory_template = rng.below(MEMORY_TEMPLATES) as u32;
    input.vector_template = rng.below(FIRST_INDEX_TEMPLATE) as u32;
    input
}

fn narrow(input: &mut Input) {
    if input.bits == 32 {
        input.gpr[..8].iter_mut().for_each(|register| *register &= 0xffff_ffff);
        input.gpr[8..].fill(0);
    }
}

/// For a stream of several instructions.
pub fn for_stream(pools: &Pools, cpl: u32, rng: &mut Rng) -> Input {
    let mut input = common(pools.bits, cpl, rng);
    // Unmasked floating-point exceptions end streams early: seldom.
    while input.vector_template % 8 >= 6 && !rng.percent(10) {
        input.vector_template = rng.below(FIRST_INDEX_TEMPLATE) as u32;
    }
    let crossing = rng.percent(8);
    for &pointer in &pools.pointers {
        input.gpr[usize::from(pointer)] = match rng.below(100) {
            0 => target(8, rng),
            1..4 => DATA + 0x200 + rng.below(2 * PAGE - 0x400) as u64,
            _ if crossing => DATA + PAGE as u64 - 8 + rng.below(16) as u64,
            _ => DATA + 0x200 + (rng.below(2 * PAGE - 0xc00) as u64 & !63),
        };
    }
    for &index in &pools.indices {
        let value = rng.below(33) as u64;
        input.gpr[usize::from(index)] = if rng.percent(70) { value / 2 * 8 } else { value };
    }
    let misaligned = if rng.percent(5) { rng.below(16) as u64 } else { 0 };
    input.gpr[4] = STACK + 0x800 + 8 * (rng.below(32) as u64) + misaligned;
    if rng.percent(1) {
        input.gpr[4] = STACK + rng.below(64) as u64;
    }
    narrow(&mut input);
    input
}

fn number(register: Register) -> Option<usize> {
    let full = register.full_register();
    full.is_gpr64().then(|| full.number())
}

/// For `instruction` alone: registers are set so that its memory operand meets one of the addresses worth touching.
pub fn for_instruction(instruction: &Instruction, bits: u32, cpl: u32, rng: &mut Rng) -> Input {
    let mut input = common(bits, cpl, rng);
    if rng.percent(5) {
        input.rflags |= DIRECTION;
    }
    let size = instruction.memory_size().size();
    if is_string(instruction.code()) {
        let count = if rng.percent(4) { rng.next() >> rng.below(64) } else { rng.below(24) as u64 };
        input.gpr[1] = count;
        input.gpr[6] = target(size, rng);
        input.gpr[7] = target(size, rng);
    }
    if instruction.is_stack_instruction() {
        input.gpr[4] = match rng.below(10) {
            0 => STACK + rng.below(16) as u64,
            1 => STACK + PAGE as u64 - rng.below(16) as u64,
            2 => target(8, rng),
            3 => STACK + 0x800 + rng.below(64) as u64,
            _ => STACK + 0x800,
        };
        if instruction.mnemonic() == Mnemonic::Leave || instruction.mnemonic() == Mnemonic::Enter {
            input.gpr[5] = input.gpr[4];
            input.gpr[4] = if rng.percent(80) { STACK + 0xa00 } else { rng.next() };
        }
    }
    if let Some(counter) = shift_count(instruction) {
        input.gpr[counter] = rng.below(70) as u64;
    }
    for operand in 0..instruction.op_count() {
        match instruction.op_kind(operand) {
            OpKind::MemorySegRDI | OpKind::MemorySegEDI => input.gpr[7] = target(size.max(16), rng),
            OpKind::Memory => memory(instruction, size, &mut input, rng),
            _ => {}
        }
    }
    narrow(&mut input);
    input
}

fn shift_count(instruction: &Instruction) -> Option<usize> {
    let last = instruction.op_count().checked_sub(1)?;
    (instruction.op_kind(last) == OpKind::Register && instruction.op_register(last) == Register::CL)
        .then_some(1)
}

fn memory(instruction: &Instruction, size: usize, input: &mut Input, rng: &mut Rng) {
    let displacement = instruction.memory_displacement64();
    let displacement = if input.bits == 32 { displacement as u32 as i32 as i64 as u64 } else { displacement };
    let segment = if instruction.segment_prefix() == Register::GS { GS_BASE } else { 0 };
    let vector = instruction.memory_index().is_vector_register();
    if vector {
        input.vector_template =
            (FIRST_INDEX_TEMPLATE + rng.below(VECTOR_TEMPLATES - FIRST_INDEX_TEMPLATE)) as u32;
    }
    let mut wanted = target(size, rng);
    // A bit offset in a register reaches beyond the operand.
    if matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && instruction.op1_kind() == OpKind::Register
        && let Some(offset) = number(instruction.op1_register())
    {
        let value = (rng.below(0x1000) as i64 - 0x800) as u64;
        input.gpr[offset] = value;
        wanted = wanted.wrapping_sub((value as i64 >> 3) as u64);
    }
    if vector {
        wanted = DATA + 0x200 + rng.below(0x800) as u64;
    }
    let index = number(instruction.memory_index());
    let base = number(instruction.memory_base());
    let scale = u64::from(instruction.memory_index_scale());
    if let Some(index) = index {
        input.gpr[index] = if instruction.mnemonic() == Mnemonic::Xlatb {
            input.gpr[index]
        } else if rng.percent(70) {
            rng.below(64) as u64
        } else {
            rng.interesting()
        };
    }
    if let Some(base) = base {
        let offset = match index {
            Some(index) if instruction.mnemonic() == Mnemonic::Xlatb => input.gpr[index] & 0xff,
            Some(index) if index == base => {
                // (1 + scale) * register: only near.
                input.gpr[base] = wanted.wrapping_sub(displacement).wrapping_sub(segment) / (1 + scale);
                return;
            }
            Some(index) => input.gpr[index].wrapping_mul(scale),
            None => 0,
        };
        let value = wanted.wrapping_sub(displacement).wrapping_sub(segment).wrapping_sub(offset);
        // 32-bit addressing ignores the upper half: leave something there.
        let short = instruction.memory_base().size() == 4 && input.bits == 64;
        input.gpr[base] = if short { value & 0xffff_ffff | rng.next() << 32 } else { value };
    }
}
