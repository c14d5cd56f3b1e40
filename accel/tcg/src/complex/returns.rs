//! IRET and far RET (SDM vol. 2, *IRET/IRETD/IRETQ*, *RET*).

use crate::complex::Next;
use crate::complex::flags::{iopl, writable_flags};
use crate::cpu::Cpu;
use crate::env::{Segment, flag};
use crate::exception::{Exception, Exec};
use crate::operand::is_canonical;
use crate::segment::{Descriptor, is_null, rpl, selector_code};
use crate::stack::Stack;

/// Where a return goes.
struct Target {
    ip: u64,
    cs: u16,
    /// Bytes of each popped item.
    size: usize,
}

/// Checks that `ip` may be executed in the code segment `code`.
pub fn check_ip(cpu: &Cpu, code: Descriptor, ip: u64) -> Exec<()> {
    let fits =
        if cpu.is_long_mode() && code.is_long() { is_canonical(ip) } else { ip <= u64::from(code.limit()) };
    if fits { Ok(()) } else { Err(Exception::gp(0)) }
}

/// RETF: releases `release` bytes of parameters.
pub fn retf(cpu: &mut Cpu, size: usize, release: u64) -> Exec<Next> {
    let mut stack = Stack::current(cpu);
    let ip = stack.pop(cpu, size)?;
    let cs = stack.pop(cpu, size)? as u16;
    if cpu.env.is_real_or_vm86() {
        stack.skip(release);
        return paragraph_return(cpu, &stack, ip, cs);
    }
    let target = Target { ip, cs, size };
    let (code, address) = check_code(cpu, &target)?;
    stack.skip(release);
    let outer = rpl(cs) > cpu.env.cpl();
    let new_stack = if outer { Some(pop_stack(cpu, &mut stack, &target, code)?) } else { None };
    cpu.mark_accessed(code, address)?;
    commit(cpu, &target, code, new_stack, stack.sp);
    if outer {
        let sp = cpu.env.gpr[4].wrapping_add(release);
        cpu.set_stack_pointer(sp);
        cpu.drop_inner_segments();
    }
    Ok(Next::Jumped)
}

/// IRET with items of `size` bytes, an instruction of `len` bytes.
pub fn iret(cpu: &mut Cpu, size: usize, len: u64) -> Exec<Next> {
    let next = if cpu.env.is_real_or_vm86() {
        iret_paragraph(cpu, size)
    } else if cpu.env.sysflags & flag::NT != 0 {
        if cpu.is_long_mode() {
            return Err(Exception::gp(0));
        }
        crate::task::return_to_previous(cpu, cpu.env.rip.wrapping_add(len))
    } else {
        iret_protected(cpu, size)
    }?;
    cpu.env.nmi_blocked = false;
    Ok(next)
}

fn iret_paragraph(cpu: &mut Cpu, size: usize) -> Exec<Next> {
    let vm86 = cpu.env.sysflags & flag::VM != 0;
    if vm86 && iopl(cpu) < 3 {
        return Err(Exception::gp(0));
    }
    let mut stack = Stack::current(cpu);
    let ip = stack.pop(cpu, size)?;
    let cs = stack.pop(cpu, size)? as u16;
    let image = stack.pop(cpu, size)? as u32;
    let mask = writable_flags(cpu, size);
    let next = paragraph_return(cpu, &stack, ip, cs)?;
    let before = cpu.env.rflags();
    cpu.env.set_rflags(before & !mask | image & mask);
    Ok(next)
}

/// Sets CS:IP in real and virtual-8086 mode.
fn paragraph_return(cpu: &mut Cpu, stack: &Stack, ip: u64, cs: u16) -> Exec<Next> {
    if ip > u64::from(cpu.env.seg[1].limit) {
        return Err(Exception::gp(0));
    }
    cpu.set_stack_pointer(stack.sp);
    cpu.env.seg[1] = cpu.paragraph_segment(1, cs);
    cpu.env.rip = ip;
    Ok(Next::Jumped)
}

fn iret_protected(cpu: &mut Cpu, size: usize) -> Exec<Next> {
    let from_long = cpu.env.is_64bit();
    let mut stack = Stack::current(cpu);
    let ip = stack.pop(cpu, size)?;
    let cs = stack.pop(cpu, size)? as u16;
    let image = stack.pop(cpu, size)? as u32;
    if image & flag::VM != 0 && size == 4 && cpu.env.cpl() == 0 && !cpu.is_long_mode() {
        return iret_to_vm86(cpu, stack, ip, cs, image);
    }
    let target = Target { ip, cs, size };
    let (code, address) = check_code(cpu, &target)?;
    let outer = rpl(cs) > cpu.env.cpl();
    let new_stack = if outer || from_long { Some(pop_stack(cpu, &mut stack, &target, code)?) } else { None };
    cpu.mark_accessed(code, address)?;
    // At the privilege that IRET runs at, not the one it returns to.
    let mask = writable_flags(cpu, size);
    commit(cpu, &target, code, new_stack, stack.sp);
    let before = cpu.env.rflags();
    cpu.env.set_rflags(before & !mask | image & mask);
    if outer {
        cpu.drop_inner_segments();
    }
    Ok(Next::Jumped)
}

/// Checks the code segment that a return goes to.
fn check_code(cpu: &mut Cpu, target: &Target) -> Exec<(Descriptor, u64)> {
    let cs = target.cs;
    if is_null(cs) {
        return Err(Exception::gp(0));
    }
    let (code, address) = cpu.descriptor(cs, Exception::gp)?;
    let privileged = if code.is_conforming() { code.dpl() <= rpl(cs) } else { code.dpl() == rpl(cs) };
    if !code.is_code() || rpl(cs) < cpu.env.cpl() || !privileged {
        return Err(Exception::gp(selector_code(cs)));
    }
    if cpu.is_long_mode() && code.is_long() && code.is_big() {
        return Err(Exception::gp(selector_code(cs)));
    }
    if !code.is_present() {
        return Err(Exception::np(selector_code(cs)));
    }
    check_ip(cpu, code, target.ip)?;
    Ok((code, address))
}

/// Pops and checks SS:SP of the program that a return goes to.
fn pop_stack(cpu: &mut Cpu, stack: &mut Stack, target: &Target, code: Descriptor) -> Exec<(Segment, u64)> {
    let sp = stack.pop(cpu, target.size)?;
    let selector = stack.pop(cpu, target.size)? as u16;
    let long = cpu.is_long_mode() && code.is_long();
    let segment = cpu.stack_segment(selector, rpl(target.cs), long, Exception::gp)?;
    Ok((segment, sp))
}

fn commit(cpu: &mut Cpu, target: &Target, code: Descriptor, new_stack: Option<(Segment, u64)>, sp: u64) {
    if new_stack.is_none() {
        // The old CS says how wide the pointer is.
        cpu.set_stack_pointer(sp);
    }
    cpu.env.seg[1] = code.segment(target.cs);
    cpu.env.rip = target.ip;
    if let Some((segment, sp)) = new_stack {
        cpu.env.seg[2] = segment;
        cpu.set_stack_pointer(sp);
    }
}

fn iret_to_vm86(cpu: &mut Cpu, mut stack: Stack, ip: u64, cs: u16, image: u32) -> Exec<Next> {
    let sp = stack.pop(cpu, 4)?;
    let mut selectors = [0; 5];
    for selector in &mut selectors {
        *selector = stack.pop(cpu, 4)? as u16;
    }
    if ip > 0xffff {
        return Err(Exception::gp(0));
    }
    cpu.env.set_rflags(image);
    for (index, selector) in [2, 0, 3, 4, 5].into_iter().zip(selectors) {
        cpu.env.seg[index] = cpu.paragraph_segment(index, selector);
    }
    cpu.env.seg[1] = cpu.paragraph_segment(1, cs);
    cpu.env.rip = ip;
    cpu.env.gpr[4] = sp;
    Ok(Next::Jumped)
}
