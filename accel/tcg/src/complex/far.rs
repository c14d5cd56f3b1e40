//! Far JMP and CALL: through code segments, call gates, task gates and TSSs (SDM vol. 2A, *CALL*, *JMP*; vol. 3A,
//! *Call Gates*).

use iced_x86::{Code, Instruction};

use crate::complex::Next;
use crate::complex::returns::check_ip;
use crate::cpu::Cpu;
use crate::exception::{Exception, Exec};
use crate::mmu::Access;
use crate::operand::is_canonical;
use crate::segment::{Descriptor, is_null, null_stack, rpl, selector_code, system_type};
use crate::stack::Stack;
use crate::task::{self, Outgoing, Via};

/// Where a far transfer goes.
#[derive(Clone, Copy)]
struct Target {
    selector: u16,
    offset: u64,
    /// Operand size in bytes: of the offset, and of what CALL pushes.
    size: usize,
    call: bool,
    /// Offset of the next instruction.
    next: u64,
}

/// Far JMP or CALL; `call` tells which.
pub fn transfer(cpu: &mut Cpu, insn: &Instruction, call: bool) -> Exec<Next> {
    let next = cpu.env.rip.wrapping_add(insn.len() as u64);
    let (selector, offset, size) = match insn.code() {
        Code::Jmp_ptr1616 | Code::Call_ptr1616 => {
            (insn.far_branch_selector(), u64::from(insn.far_branch16()), 2)
        }
        Code::Jmp_ptr1632 | Code::Call_ptr1632 => {
            (insn.far_branch_selector(), u64::from(insn.far_branch32()), 4)
        }
        code => {
            let size = match code {
                Code::Jmp_m1616 | Code::Call_m1616 => 2,
                Code::Jmp_m1632 | Code::Call_m1632 => 4,
                _ => 8,
            };
            let (selector, offset) = read_pointer(cpu, insn, 0, size)?;
            (selector, offset, size)
        }
    };
    let target = Target { selector, offset, size, call, next };
    if cpu.env.is_real_or_vm86() {
        return paragraph_transfer(cpu, target);
    }
    if is_null(selector) {
        return Err(Exception::gp(0));
    }
    let (descriptor, address) = cpu.descriptor(selector, Exception::gp)?;
    if descriptor.is_user() {
        return code_transfer(cpu, target, descriptor, address);
    }
    let code = selector_code(selector);
    use system_type::*;
    let long = cpu.is_long_mode();
    match descriptor.kind() {
        CALL_GATE32 => gate_transfer(cpu, target, descriptor),
        CALL_GATE16 if !long => gate_transfer(cpu, target, descriptor),
        TASK_GATE | TSS16_AVAILABLE | TSS32_AVAILABLE if !long => {
            if descriptor.dpl() < cpu.env.cpl().max(rpl(selector)) {
                return Err(Exception::gp(code));
            }
            if !descriptor.is_present() {
                return Err(Exception::np(code));
            }
            let via = if call { Via::Call } else { Via::Jump };
            let old = Outgoing { ip: next, flags: cpu.env.rflags() };
            if descriptor.kind() == TASK_GATE {
                task::switch_by_gate(cpu, descriptor, via, old)
            } else {
                task::switch(cpu, selector, via, old)
            }
        }
        _ => Err(Exception::gp(code)),
    }
}

/// Reads the far pointer in memory operand `operand`: `size` bytes of offset, then a selector.
pub fn read_pointer(cpu: &mut Cpu, insn: &Instruction, operand: u32, size: usize) -> Exec<(u16, u64)> {
    let linear = cpu.operand_linear(insn, operand, size as u64 + 2, false)?;
    let offset = cpu.read(linear, size, Access::Current)?;
    let selector = cpu.read(cpu.wrap(linear.wrapping_add(size as u64)), 2, Access::Current)?;
    Ok((selector as u16, offset))
}

fn paragraph_transfer(cpu: &mut Cpu, target: Target) -> Exec<Next> {
    if target.offset > u64::from(cpu.env.seg[1].limit) {
        return Err(Exception::gp(0));
    }
    if target.call {
        push_return(cpu, target.size, target.next)?;
    }
    cpu.env.seg[1] = cpu.paragraph_segment(1, target.selector);
    cpu.env.rip = target.offset;
    Ok(Next::Jumped)
}

/// Pushes CS and `next` on the present stack.
fn push_return(cpu: &mut Cpu, size: usize, next: u64) -> Exec<()> {
    let mut stack = Stack::current(cpu);
    stack.push(cpu, size, u64::from(cpu.env.seg[1].selector))?;
    stack.push(cpu, size, next)?;
    cpu.set_stack_pointer(stack.sp);
    Ok(())
}

fn code_transfer(cpu: &mut Cpu, target: Target, code: Descriptor, address: u64) -> Exec<Next> {
    let cpl = cpu.env.cpl();
    let fault = selector_code(target.selector);
    let privileged = if code.is_conforming() {
        code.dpl() <= cpl
    } else {
        rpl(target.selector) <= cpl && code.dpl() == cpl
    };
    if !code.is_code() || !privileged || cpu.is_long_mode() && code.is_long() && code.is_big() {
        return Err(Exception::gp(fault));
    }
    if !code.is_present() {
        return Err(Exception::np(fault));
    }
    check_ip(cpu, code, target.offset)?;
    cpu.mark_accessed(code, address)?;
    if target.call {
        push_return(cpu, target.size, target.next)?;
    }
    cpu.env.seg[1] = code.segment(target.selector & !3 | u16::from(cpl));
    cpu.env.rip = target.offset;
    Ok(Next::Jumped)
}

fn gate_transfer(cpu: &mut Cpu, target: Target, gate: Descriptor) -> Exec<Next> {
    let long = cpu.is_long_mode();
    let cpl = cpu.env.cpl();
    let fault = selector_code(target.selector);
    if gate.dpl() < cpl.max(rpl(target.selector)) {
        return Err(Exception::gp(fault));
    }
    if !gate.is_present() {
        return Err(Exception::np(fault));
    }
    let wide = gate.kind() == system_type::CALL_GATE32;
    let mut offset = gate.0 & 0xffff;
    if wide {
        offset |= gate.0 >> 32 & 0xffff_0000;
    }
    if long {
        offset |= cpu.descriptor_high(target.selector, Exception::gp)? << 32;
    }
    let selector = (gate.0 >> 16) as u16;
    if is_null(selector) {
        return Err(Exception::gp(0));
    }
    let (code, address) = cpu.descriptor(selector, Exception::gp)?;
    let fault = selector_code(selector);
    let jump_outward = !target.call && !code.is_conforming() && code.dpl() != cpl;
    if !code.is_code() || code.dpl() > cpl || jump_outward {
        return Err(Exception::gp(fault));
    }
    if long && (!code.is_long() || code.is_big()) {
        return Err(Exception::gp(fault));
    }
    if !code.is_present() {
        return Err(Exception::np(fault));
    }
    check_ip(cpu, code, offset)?;
    cpu.mark_accessed(code, address)?;
    let size = if long {
        8
    } else if wide {
        4
    } else {
        2
    };
    let new_cpl = if code.is_conforming() { cpl } else { code.dpl() };
    let new_cs = code.segment(selector & !3 | u16::from(new_cpl));
    let mut stack_change = None;
    if !target.call {
        cpu.env.seg[1] = new_cs;
        cpu.env.rip = offset;
        return Ok(Next::Jumped);
    }
    let (old_cs, old_ss, old_sp) = (cpu.env.seg[1].selector, cpu.env.seg[2].selector, cpu.env.gpr[4]);
    let mut stack = if new_cpl == cpl {
        if long { Stack::flat(cpu, cpu.env.gpr[4], cpl) } else { Stack::current(cpu) }
    } else if long {
        let sp = cpu.tss_rsp(new_cpl)?;
        if !is_canonical(sp) {
            return Err(Exception::ss(0));
        }
        stack_change = Some(null_stack(u16::from(new_cpl), new_cpl));
        let mut stack = Stack::flat(cpu, sp, new_cpl);
        stack.push(cpu, 8, u64::from(old_ss))?;
        stack.push(cpu, 8, old_sp)?;
        stack
    } else {
        let (ss, sp) = cpu.tss_stack(new_cpl)?;
        let segment = cpu.stack_segment(ss, new_cpl, false, Exception::ts)?;
        stack_change = Some(segment);
        // The parameters, last pushed first.
        let count = (gate.0 >> 32 & 0x1f) as usize;
        let mut parameters = [0; 31];
        let mut caller = Stack::current(cpu);
        for parameter in &mut parameters[..count] {
            *parameter = caller.pop(cpu, size)?;
        }
        let mut stack = Stack::other(cpu, segment, sp, new_cpl);
        stack.push(cpu, size, u64::from(old_ss))?;
        stack.push(cpu, size, old_sp)?;
        for &parameter in parameters[..count].iter().rev() {
            stack.push(cpu, size, parameter)?;
        }
        stack
    };
    stack.push(cpu, size, u64::from(old_cs))?;
    stack.push(cpu, size, target.next)?;
    cpu.env.seg[1] = new_cs;
    if let Some(segment) = stack_change {
        cpu.env.seg[2] = segment;
    }
    cpu.set_stack_pointer(stack.sp);
    cpu.env.rip = offset;
    Ok(Next::Jumped)
}
