//! Near branches and stack instructions where generated code does not do them: 16-bit and segmented stacks, operand
//! sizes that a prefix has changed, POP to memory (SDM vol. 1, *Procedure Calls*).

#[cfg(test)]
mod tests;

use iced_x86::{ConditionCode, FlowControl, Instruction, Mnemonic, OpKind};

use crate::complex::Next;
use crate::cpu::Cpu;
use crate::env::flag;
use crate::exception::{Exception, Exec};
use crate::operand::{is_canonical, is_memory};
use crate::stack::Stack;

/// Executes `insn` if it is of this family.
pub fn execute_near(cpu: &mut Cpu, insn: &Instruction) -> Option<Exec<Next>> {
    Some(match insn.mnemonic() {
        Mnemonic::Push => push(cpu, insn),
        Mnemonic::Pop => pop(cpu, insn),
        Mnemonic::Leave => leave(cpu, insn),
        Mnemonic::Call if insn.is_call_near() || insn.is_call_near_indirect() => call(cpu, insn),
        Mnemonic::Ret => ret(cpu, insn),
        Mnemonic::Jmp if insn.is_jmp_short_or_near() || insn.is_jmp_near_indirect() => {
            target(cpu, insn).and_then(|target| jump(cpu, target))
        }
        _ if insn.flow_control() == FlowControl::ConditionalBranch => branch_if(cpu, insn),
        _ => return None,
    })
}

fn width(insn: &Instruction) -> usize {
    insn.stack_pointer_increment().unsigned_abs() as usize
}

fn push(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    let size = width(insn);
    let value = cpu.read_operand(insn, 0, size)?;
    let mut stack = Stack::current(cpu);
    stack.push(cpu, size, value)?;
    cpu.set_stack_pointer(stack.sp);
    Ok(Next::Fallthrough)
}

fn pop(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    let size = width(insn);
    let mut stack = Stack::current(cpu);
    let value = stack.pop(cpu, size)?;
    let before = cpu.env.gpr[4];
    // An address that involves the stack pointer uses the incremented one.
    cpu.set_stack_pointer(stack.sp);
    if let Err(exception) = cpu.write_operand(insn, 0, size, value) {
        cpu.env.gpr[4] = before;
        return Err(exception);
    }
    Ok(Next::Fallthrough)
}

fn leave(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    // The stack pointer is loaded from RBP first, and moves by the slot that is popped.
    let size = match insn.code() {
        iced_x86::Code::Leavew => 2,
        iced_x86::Code::Leaved => 4,
        _ => 8,
    };
    let mut stack = Stack::current(cpu);
    stack.sp = cpu.env.gpr[5] & u64::MAX >> (64 - cpu.env.stack_bits());
    let value = stack.pop(cpu, size)?;
    cpu.set_stack_pointer(stack.sp);
    let rbp = &mut cpu.env.gpr[5];
    *rbp = match size {
        2 => *rbp & !0xffff | value,
        _ => value,
    };
    Ok(Next::Fallthrough)
}

/// Bytes of the instruction pointer that a near branch moves.
fn branch_width(insn: &Instruction) -> usize {
    match insn.op0_kind() {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        OpKind::NearBranch64 => 8,
        OpKind::Register => insn.op0_register().size(),
        _ => insn.memory_size().size(),
    }
}

fn target(cpu: &mut Cpu, insn: &Instruction) -> Exec<u64> {
    if insn.op0_kind() == OpKind::Register || is_memory(insn.op0_kind()) {
        return cpu.read_operand(insn, 0, branch_width(insn));
    }
    Ok(insn.near_branch_target())
}

fn check_target(cpu: &Cpu, target: u64) -> Exec<()> {
    let good =
        if cpu.env.is_64bit() { is_canonical(target) } else { target <= u64::from(cpu.env.seg[1].limit) };
    if good { Ok(()) } else { Err(Exception::gp(0)) }
}

fn jump(cpu: &mut Cpu, target: u64) -> Exec<Next> {
    check_target(cpu, target)?;
    cpu.env.rip = target;
    Ok(Next::Jumped)
}

fn call(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    let target = target(cpu, insn)?;
    check_target(cpu, target)?;
    let mut stack = Stack::current(cpu);
    stack.push(cpu, branch_width(insn), insn.next_ip())?;
    cpu.set_stack_pointer(stack.sp);
    jump(cpu, target)
}

fn ret(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    use iced_x86::Code;
    let size = match insn.code() {
        Code::Retnw | Code::Retnw_imm16 => 2,
        Code::Retnd | Code::Retnd_imm16 => 4,
        _ => 8,
    };
    let mut stack = Stack::current(cpu);
    let target = stack.pop(cpu, size)?;
    check_target(cpu, target)?;
    if insn.op_count() == 1 {
        stack.skip(u64::from(insn.immediate16()));
    }
    cpu.set_stack_pointer(stack.sp);
    jump(cpu, target)
}

/// Jcc, JCXZ and LOOP whose target has another width than the code.
fn branch_if(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    let count = |cpu: &Cpu| cpu.env.gpr[1] & 0xffff;
    let wide = |cpu: &Cpu| cpu.env.gpr[1] & 0xffff_ffff;
    let taken = if insn.is_jcc_short_or_near() {
        holds(insn.condition_code(), cpu.env.arith)
    } else {
        match insn.mnemonic() {
            Mnemonic::Jcxz => count(cpu) == 0,
            Mnemonic::Jecxz => wide(cpu) == 0,
            Mnemonic::Jrcxz => cpu.env.gpr[1] == 0,
            _ => {
                check_target(cpu, insn.near_branch_target())?;
                loop_taken(cpu, insn)
            }
        }
    };
    if !taken {
        return Ok(Next::Fallthrough);
    }
    jump(cpu, insn.near_branch_target())
}

fn loop_taken(cpu: &mut Cpu, insn: &Instruction) -> bool {
    use iced_x86::Code as C;
    let narrow = matches!(
        insn.code(),
        C::Loop_rel8_16_CX
            | C::Loop_rel8_32_CX
            | C::Loope_rel8_16_CX
            | C::Loope_rel8_32_CX
            | C::Loopne_rel8_16_CX
            | C::Loopne_rel8_32_CX
    );
    let rcx = cpu.env.gpr[1];
    let left = rcx.wrapping_sub(1) & if narrow { 0xffff } else { 0xffff_ffff };
    cpu.env.gpr[1] = if narrow { rcx & !0xffff | left } else { left };
    let zero = cpu.env.arith & flag::ZF != 0;
    left != 0
        && match insn.mnemonic() {
            Mnemonic::Loope => zero,
            Mnemonic::Loopne => !zero,
            _ => true,
        }
}

/// Whether `condition` holds for these arithmetic flags.
fn holds(condition: ConditionCode, flags: u32) -> bool {
    let set = |flag: u32| flags & flag != 0;
    let less = set(flag::SF) != set(flag::OF);
    match condition {
        ConditionCode::o => set(flag::OF),
        ConditionCode::no => !set(flag::OF),
        ConditionCode::b => set(flag::CF),
        ConditionCode::ae => !set(flag::CF),
        ConditionCode::e => set(flag::ZF),
        ConditionCode::ne => !set(flag::ZF),
        ConditionCode::be => set(flag::CF | flag::ZF),
        ConditionCode::a => !set(flag::CF | flag::ZF),
        ConditionCode::s => set(flag::SF),
        ConditionCode::ns => !set(flag::SF),
        ConditionCode::p => set(flag::PF),
        ConditionCode::np => !set(flag::PF),
        ConditionCode::l => less,
        ConditionCode::ge => !less,
        ConditionCode::le => less || set(flag::ZF),
        _ => !less && !set(flag::ZF),
    }
}
