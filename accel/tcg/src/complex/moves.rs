//! Loads and stores of segment registers (SDM vol. 2, *MOV*, *POP*, *PUSH*, *LDS/LES/LFS/LGS/LSS*).

use iced_x86::{Instruction, OpKind, Register};

use crate::complex::Next;
use crate::complex::far::read_pointer;
use crate::cpu::Cpu;
use crate::env::SHADOW_SS;
use crate::exception::{Exception, Exec};
use crate::operand::segment_index;
use crate::stack::Stack;

const SS: usize = 2;

/// What a load of segment register `index` means for translated code: outside 64-bit mode bases, limits and the stack's
/// width are part of what code is translated for.
fn after_load(cpu: &mut Cpu, index: usize, shadow: bool) -> Next {
    if index == SS && shadow {
        cpu.env.interrupt_shadow = SHADOW_SS;
    }
    if index == SS || !cpu.env.is_64bit() { Next::EndBlock } else { Next::Fallthrough }
}

/// MOV with a segment register.
pub fn mov(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    if insn.op0_kind() == OpKind::Register && insn.op0_register().is_segment_register() {
        if insn.op0_register() == Register::CS {
            return Err(Exception::UD);
        }
        let index = segment_index(insn.op0_register());
        let selector = cpu.read_operand(insn, 1, 2)? as u16;
        cpu.load_segment(index, selector)?;
        return Ok(after_load(cpu, index, true));
    }
    let selector = cpu.env.seg[segment_index(insn.op1_register())].selector;
    cpu.write_operand(insn, 0, 2, u64::from(selector))?;
    Ok(Next::Fallthrough)
}

/// POP of a segment register, `size` bytes.
pub fn pop(cpu: &mut Cpu, insn: &Instruction, size: usize) -> Exec<Next> {
    let index = segment_index(insn.op0_register());
    let mut stack = Stack::current(cpu);
    let selector = stack.pop(cpu, size)? as u16;
    let pointer_bits = cpu.env.stack_bits();
    cpu.load_segment(index, selector)?;
    if index == SS && cpu.env.stack_bits() != pointer_bits {
        // The pointer moved on the old stack, as wide as that has it.
        let rsp = &mut cpu.env.gpr[4];
        let mask = if pointer_bits == 16 { 0xffff } else { 0xffff_ffff };
        *rsp = *rsp & !mask | stack.sp & mask;
    } else {
        cpu.set_stack_pointer(stack.sp);
    }
    Ok(after_load(cpu, index, true))
}

/// PUSH of a segment register, `size` bytes.
pub fn push(cpu: &mut Cpu, insn: &Instruction, size: usize) -> Exec<Next> {
    let selector = cpu.env.seg[segment_index(insn.op0_register())].selector;
    let mut stack = Stack::current(cpu);
    stack.push(cpu, size, u64::from(selector))?;
    cpu.set_stack_pointer(stack.sp);
    Ok(Next::Fallthrough)
}

/// LDS, LES, LFS, LGS, LSS.
pub fn load_far_pointer(cpu: &mut Cpu, insn: &Instruction, index: usize) -> Exec<Next> {
    let register = insn.op0_register();
    let (selector, offset) = read_pointer(cpu, insn, 1, register.size())?;
    cpu.load_segment(index, selector)?;
    cpu.set_reg(register, offset);
    Ok(after_load(cpu, index, false))
}
