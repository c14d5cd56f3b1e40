//! Any instruction with random operands, from iced-x86's description of its encoding.

use iced_x86::{
    Code, EncodingKind, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpCodeOperandKind as K,
    OpKind, Register, RoundingControl,
};

use crate::layout::{ABSENT, DATA, PAGE, READ_ONLY};
use crate::rng::Rng;

/// How a stream uses the general registers.
#[derive(Clone, Debug)]
pub struct Pools {
    pub bits: u32,
    /// Hold addresses in the data pages; RSP is always one.
    pub pointers: Vec<u8>,
    /// Hold small numbers.
    pub indices: Vec<u8>,
    /// Anything.
    pub free: Vec<u8>,
    /// One instruction alone: all operands are open, registers are set to fit afterwards.
    pub alone: bool,
}

/// What GS points to in streams.
pub const GS_BASE: u64 = DATA + 0x400;

const BYTES: [Register; 20] = [
    Register::AL,
    Register::CL,
    Register::DL,
    Register::BL,
    Register::SPL,
    Register::BPL,
    Register::SIL,
    Register::DIL,
    Register::R8L,
    Register::R9L,
    Register::R10L,
    Register::R11L,
    Register::R12L,
    Register::R13L,
    Register::R14L,
    Register::R15L,
    Register::AH,
    Register::CH,
    Register::DH,
    Register::BH,
];

/// A general register by number and size in bytes.
pub fn gpr(number: u8, bytes: u32) -> Register {
    match bytes {
        1 => BYTES[usize::from(number)],
        2 => Register::AX + u32::from(number),
        4 => Register::EAX + u32::from(number),
        _ => Register::RAX + u32::from(number),
    }
}

impl Pools {
    fn count(&self) -> usize {
        if self.bits == 64 { 16 } else { 8 }
    }

    fn any(&self, rng: &mut Rng) -> u8 {
        if self.alone || rng.percent(20) { rng.below(self.count()) as u8 } else { rng.pick(&self.free) }
    }

    fn operand(&self, bytes: u32, rng: &mut Rng) -> Register {
        if bytes == 1 && rng.percent(25) {
            return BYTES[16 + rng.below(4)];
        }
        if bytes == 1 && self.bits == 32 {
            return gpr(rng.below(4) as u8, 1);
        }
        gpr(self.any(rng), bytes)
    }
}

/// Addresses worth touching: `size` bytes at, around and across the edges of the pages.
pub fn target(size: usize, rng: &mut Rng) -> u64 {
    let size = size.max(1) as u64;
    let page = PAGE as u64;
    let inside = |rng: &mut Rng| DATA + 64 + (rng.below(2 * PAGE - 256) as u64);
    match rng.below(20) {
        0..8 => inside(rng) & !63,
        8..11 => inside(rng),
        // Across the two writable pages.
        11 | 12 => DATA + page - 1 - rng.below(size as usize) as u64,
        // The read-only page, and across into it.
        13 => READ_ONLY + (rng.below(PAGE - 128) as u64 & !63),
        14 => READ_ONLY - 1 - rng.below(size as usize) as u64,
        // The absent page, and across into it.
        15 => ABSENT + (rng.below(PAGE - 128) as u64 & !63),
        16 => ABSENT - 1 - rng.below(size as usize) as u64,
        17 => DATA - 1 - rng.below(size as usize) as u64,
        18 => DATA + page - size,
        _ => 0x8000_0000_0000_0000 | rng.next(),
    }
}

fn memory(instruction: &mut Instruction, operand: u32, size: usize, pools: &Pools, rng: &mut Rng) {
    instruction.set_op_kind(operand, OpKind::Memory);
    let wide = pools.bits == 64;
    let small = !wide || rng.percent(6);
    let bytes = if small { 4 } else { 8 };
    let natural = if small { 4 } else { 8 };
    let step = if size >= 16 && !rng.percent(5) { size.min(64) as i64 } else { 1 };
    let displacement = match rng.below(4) {
        0 => 0,
        1 | 2 => (rng.below(128) as i64 - 64) / step * step,
        _ => (rng.below(640) as i64 - 320) / step * step,
    };
    let set = |instruction: &mut Instruction, value: i64, size: u32| {
        let value = if small { value as u32 as u64 } else { value as u64 };
        instruction.set_memory_displacement64(value);
        instruction.set_memory_displ_size(size);
    };
    match rng.below(20) {
        0 | 1 if wide => {
            instruction.set_memory_base(if small { Register::EIP } else { Register::RIP });
            set(instruction, target(size, rng) as i64 & 0x3fff_ffff, natural);
        }
        0..3 => set(instruction, target(size, rng) as i64 & 0x3fff_ffff, natural),
        3 => {
            // No base.
            let index = if pools.alone { rng.below(pools.count()) as u8 } else { rng.pick(&pools.indices) };
            if index != 4 {
                instruction.set_memory_index(gpr(index, bytes));
                instruction.set_memory_index_scale(1 << rng.below(4));
            }
            set(instruction, DATA as i64 + 0x800 + displacement, natural);
        }
        4 if wide => {
            instruction.set_segment_prefix(Register::GS);
            let base = if pools.alone { rng.below(pools.count()) as u8 } else { rng.pick(&pools.indices) };
            instruction.set_memory_base(gpr(base, bytes));
            set(instruction, displacement.abs(), 1);
        }
        form => {
            let base = if pools.alone { rng.below(pools.count()) as u8 } else { rng.pick(&pools.pointers) };
            instruction.set_memory_base(gpr(base, bytes));
            // Streams leave what is at RSP alone: it may be their return address.
            let displacement = if base == 4 && !pools.alone { 64 + displacement.abs() } else { displacement };
            if form > 14 && (base != 4 || pools.alone) {
                let index =
                    if pools.alone { rng.below(pools.count()) as u8 } else { rng.pick(&pools.indices) };
                if index != 4 {
                    instruction.set_memory_index(gpr(index, bytes));
                    instruction.set_memory_index_scale(1 << rng.below(4));
                }
            }
            let size = if displacement == 0 && rng.percent(50) { 0 } else { rng.pick(&[1, natural]) };
            set(instruction, displacement, size);
            if rng.percent(3) {
                let segments = [Register::DS, Register::ES, Register::SS, Register::CS];
                instruction.set_segment_prefix(rng.pick(&segments));
            }
        }
    }
}

fn vector(first: Register, evex: bool, pools: &Pools, rng: &mut Rng) -> Register {
    let count = match (pools.bits, evex) {
        (64, true) => 32,
        (64, false) => 16,
        _ => 8,
    };
    first + rng.below(count) as u32
}

/// One operand. `None`: this kind is not generated here.
fn operand(
    instruction: &mut Instruction,
    index: u32,
    kind: K,
    size: usize,
    pools: &Pools,
    rng: &mut Rng,
) -> Option<()> {
    let evex = instruction.code().op_code().encoding() == EncodingKind::EVEX;
    let wide = pools.bits == 64;
    let string = |rng: &mut Rng, long: OpKind, short: OpKind| {
        if wide && !rng.percent(8) { long } else { short }
    };
    let register = match kind {
        K::r8_or_mem
        | K::r16_or_mem
        | K::r32_or_mem
        | K::r64_or_mem
        | K::mm_or_mem
        | K::xmm_or_mem
        | K::ymm_or_mem
        | K::zmm_or_mem
        | K::k_or_mem
            if rng.percent(55) =>
        {
            memory(instruction, index, size, pools, rng);
            return Some(());
        }
        K::mem => {
            memory(instruction, index, size, pools, rng);
            return Some(());
        }
        K::mem_vsib32x
        | K::mem_vsib64x
        | K::mem_vsib32y
        | K::mem_vsib64y
        | K::mem_vsib32z
        | K::mem_vsib64z => {
            let first = match kind {
                K::mem_vsib32x | K::mem_vsib64x => Register::XMM0,
                K::mem_vsib32y | K::mem_vsib64y => Register::YMM0,
                _ => Register::ZMM0,
            };
            instruction.set_op_kind(index, OpKind::Memory);
            instruction.set_memory_base(gpr(rng.pick(&pools.pointers), 8.min(pools.bits / 8)));
            let high = if evex && wide && rng.percent(30) { 16 } else { 0 };
            instruction.set_memory_index(first + (high + rng.below(8) as u32));
            instruction.set_memory_index_scale(1 << rng.below(4));
            let displacement = rng.below(256) as i64 - 128;
            instruction.set_memory_displacement64(if wide {
                displacement as u64
            } else {
                u64::from(displacement as u32)
            });
            instruction.set_memory_displ_size(1);
            return Some(());
        }
        K::mem_offs => {
            instruction.set_op_kind(index, OpKind::Memory);
            instruction.set_memory_displ_size(if wide && rng.percent(90) { 8 } else { 4 });
            instruction.set_memory_displacement64(target(size, rng) & 0x3fff_ffff);
            return Some(());
        }
        K::seg_rSI => {
            instruction.set_op_kind(index, string(rng, OpKind::MemorySegRSI, OpKind::MemorySegESI));
            return Some(());
        }
        K::es_rDI => {
            // Both operands of MOVS and CMPS have one address size.
            let long = if index > 0 && instruction.op0_kind() == OpKind::MemorySegESI
                || instruction.op_count() > 1 && instruction.op1_kind() == OpKind::MemorySegESI
            {
                OpKind::MemoryESEDI
            } else {
                OpKind::MemoryESRDI
            };
            let kind = if wide { long } else { OpKind::MemoryESEDI };
            instruction.set_op_kind(index, kind);
            return Some(());
        }
        K::seg_rDI => {
            instruction.set_op_kind(index, string(rng, OpKind::MemorySegRDI, OpKind::MemorySegEDI));
            return Some(());
        }
        K::seg_rBX_al => {
            instruction.set_op_kind(index, OpKind::Memory);
            instruction.set_memory_base(if wide { Register::RBX } else { Register::EBX });
            instruction.set_memory_index(Register::AL);
            instruction.set_memory_index_scale(1);
            return Some(());
        }
        K::imm8 | K::imm8_const_1 => {
            let value = if kind == K::imm8_const_1 { 1 } else { rng.interesting() as u8 };
            // ENTER, INSERTQ and EXTRQ have two.
            let second = (0..index).any(|earlier| {
                matches!(instruction.op_kind(earlier), OpKind::Immediate8 | OpKind::Immediate16)
            });
            if second {
                instruction.set_op_kind(index, OpKind::Immediate8_2nd);
                instruction.set_immediate8_2nd(value);
            } else {
                instruction.set_op_kind(index, OpKind::Immediate8);
                instruction.set_immediate8(value);
            }
            return Some(());
        }
        K::imm8sex16 | K::imm8sex32 | K::imm8sex64 => {
            let value = i64::from(rng.interesting() as i8);
            match kind {
                K::imm8sex16 => {
                    instruction.set_op_kind(index, OpKind::Immediate8to16);
                    instruction.set_immediate8to16(value as i16);
                }
                K::imm8sex32 => {
                    instruction.set_op_kind(index, OpKind::Immediate8to32);
                    instruction.set_immediate8to32(value as i32);
                }
                _ => {
                    instruction.set_op_kind(index, OpKind::Immediate8to64);
                    instruction.set_immediate8to64(value);
                }
            }
            return Some(());
        }
        K::imm16 => {
            instruction.set_op_kind(index, OpKind::Immediate16);
            instruction.set_immediate16(rng.interesting() as u16);
            return Some(());
        }
        K::imm32 => {
            instruction.set_op_kind(index, OpKind::Immediate32);
            instruction.set_immediate32(rng.interesting() as u32);
            return Some(());
        }
        K::imm32sex64 => {
            instruction.set_op_kind(index, OpKind::Immediate32to64);
            instruction.set_immediate32to64(i64::from(rng.interesting() as i32));
            return Some(());
        }
        K::imm64 => {
            instruction.set_op_kind(index, OpKind::Immediate64);
            instruction.set_immediate64(rng.interesting());
            return Some(());
        }
        K::r8_or_mem | K::r8_reg | K::r8_opcode => pools.operand(1, rng),
        K::r16_or_mem | K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode => pools.operand(2, rng),
        K::r32_or_mem | K::r32_reg | K::r32_reg_mem | K::r32_rm | K::r32_opcode | K::r32_vvvv => {
            pools.operand(4, rng)
        }
        K::r64_or_mem | K::r64_reg | K::r64_reg_mem | K::r64_rm | K::r64_opcode | K::r64_vvvv => {
            pools.operand(8, rng)
        }
        K::mm_or_mem | K::mm_reg | K::mm_rm => Register::MM0 + rng.below(8) as u32,
        K::xmm_or_mem | K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 | K::xmm_is5 => {
            vector(Register::XMM0, evex, pools, rng)
        }
        K::ymm_or_mem | K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 | K::ymm_is5 => {
            vector(Register::YMM0, evex, pools, rng)
        }
        K::zmm_or_mem | K::zmm_reg | K::zmm_rm | K::zmm_vvvv => vector(Register::ZMM0, evex, pools, rng),
        K::k_or_mem | K::k_reg | K::k_rm | K::k_vvvv => Register::K0 + rng.below(8) as u32,
        K::kp1_reg => Register::K0 + 2 * rng.below(4) as u32,
        K::seg_reg => Register::ES + rng.below(6) as u32,
        K::es => Register::ES,
        K::cs => Register::CS,
        K::ss => Register::SS,
        K::ds => Register::DS,
        K::fs => Register::FS,
        K::gs => Register::GS,
        K::al => Register::AL,
        K::cl => Register::CL,
        K::ax => Register::AX,
        K::dx => Register::DX,
        K::eax => Register::EAX,
        K::rax => Register::RAX,
        K::st0 => Register::ST0,
        K::sti_opcode => Register::ST0 + rng.below(8) as u32,
        K::cr_reg => Register::CR0,
        K::dr_reg => Register::DR0,
        _ => return None,
    };
    instruction.set_op_kind(index, OpKind::Register);
    instruction.set_op_register(index, register);
    Some(())
}

fn evex(instruction: &mut Instruction, code: Code, has_memory: bool, rng: &mut Rng) {
    let text = code.op_code();
    if text.require_op_mask_register() || text.can_use_op_mask_register() && rng.percent(60) {
        instruction.set_op_mask(Register::K1 + rng.below(7) as u32);
        if text.can_use_zeroing_masking() && rng.percent(40) && instruction.op0_kind() == OpKind::Register {
            instruction.set_zeroing_masking(true);
        }
    }
    if has_memory {
        if text.can_broadcast() && rng.percent(40) {
            instruction.set_is_broadcast(true);
        }
    } else if text.can_use_rounding_control() && rng.percent(40) {
        let modes = [
            RoundingControl::RoundToNearest,
            RoundingControl::RoundDown,
            RoundingControl::RoundUp,
            RoundingControl::RoundTowardZero,
        ];
        instruction.set_rounding_control(rng.pick(&modes));
    } else if text.can_suppress_all_exceptions() && rng.percent(30) {
        instruction.set_suppress_all_exceptions(true);
    }
}

/// `code` with random operands; `None` where the dice gave what cannot be encoded, or what the generator leaves to others.
pub fn build(code: Code, pools: &Pools, rng: &mut Rng) -> Option<Instruction> {
    let text = code.op_code();
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    let size = text.memory_size().size();
    for index in 0..text.op_count() {
        operand(&mut instruction, index, text.op_kind(index), size, pools, rng)?;
    }
    let has_memory = (0..text.op_count()).any(|index| instruction.op_kind(index) == OpKind::Memory);
    if text.encoding() == EncodingKind::EVEX {
        evex(&mut instruction, code, has_memory, rng);
    }
    if text.can_use_lock_prefix() && has_memory && instruction.op0_kind() == OpKind::Memory && rng.percent(35)
    {
        instruction.set_has_lock_prefix(true);
    }
    if text.is_string_operation() && rng.percent(60) {
        if text.can_use_repne_prefix() && rng.percent(40) {
            instruction.set_has_repne_prefix(true);
        } else if text.can_use_rep_prefix() {
            instruction.set_has_rep_prefix(true);
        }
    }
    if matches!(code.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && has_memory
        && instruction.op1_kind() == OpKind::Register
        && !pools.alone
    {
        let bytes = instruction.op1_register().size() as u32;
        instruction.set_op1_register(gpr(rng.pick(&pools.indices), bytes));
    }
    if code.mnemonic() == Mnemonic::Enter {
        instruction.set_immediate16(rng.below(256) as u16);
        instruction.set_immediate8_2nd(if rng.percent(80) { rng.below(3) as u8 } else { rng.next() as u8 });
    }
    if !pools.alone && writes_reserved(&instruction, pools) && !rng.percent(2) {
        return None;
    }
    Some(instruction)
}

trait StringOperation {
    fn is_string_operation(&self) -> bool;
}

impl StringOperation for iced_x86::OpCodeInfo {
    fn is_string_operation(&self) -> bool {
        (0..self.op_count()).any(|index| matches!(self.op_kind(index), K::seg_rSI | K::es_rDI))
    }
}

/// Whether an instruction is MOVS, STOS, LODS, CMPS or SCAS.
pub fn is_string(code: Code) -> bool {
    code.op_code().is_string_operation()
}

fn writes_reserved(instruction: &Instruction, pools: &Pools) -> bool {
    writes_any(instruction, |number| pools.pointers.contains(&number) || pools.indices.contains(&number))
}

/// Whether `instruction` writes a general register that `which` chooses; RSP not where it moves as the stack's do.
pub fn writes_any(instruction: &Instruction, which: impl Fn(u8) -> bool) -> bool {
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(instruction);
    let stack = instruction.is_stack_instruction() && instruction.stack_pointer_increment().abs() <= 32;
    info.used_registers().iter().any(|used| {
        let writes = matches!(
            used.access(),
            OpAccess::Write | OpAccess::ReadWrite | OpAccess::CondWrite | OpAccess::ReadCondWrite
        );
        let full = used.register().full_register();
        if !writes || !full.is_gpr64() {
            return false;
        }
        let number = full.number() as u8;
        if number == 4 && stack {
            return (0..instruction.op_count()).any(|index| {
                instruction.op_kind(index) == OpKind::Register
                    && instruction.op_register(index).full_register() == Register::RSP
                    && instruction.mnemonic() == Mnemonic::Pop
            });
        }
        which(number)
    })
}
