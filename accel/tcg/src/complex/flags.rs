//! Instructions that move the system flags (SDM vol. 1, *EFLAGS Register*; vol. 2, *PUSHF*, *POPF*, *STI*).

use crate::complex::Next;
use crate::cpu::Cpu;
use crate::env::{SHADOW_STI, flag};
use crate::exception::{Exception, Exec};
use crate::stack::Stack;

/// I/O privilege level.
pub fn iopl(cpu: &Cpu) -> u8 {
    ((cpu.env.sysflags & flag::IOPL) >> 12) as u8
}

/// Virtual-8086 mode below IOPL 3: the instruction is for the monitor to emulate.
fn trap_vm86(cpu: &Cpu) -> Exec<()> {
    let trapped = cpu.env.sysflags & flag::VM != 0 && iopl(cpu) < 3;
    if trapped { Err(Exception::gp(0)) } else { Ok(()) }
}

/// CLI.
pub fn cli(cpu: &mut Cpu) -> Exec<Next> {
    if cpu.env.cpl() > iopl(cpu) {
        return Err(Exception::gp(0));
    }
    cpu.env.iflag = 0;
    Ok(Next::Fallthrough)
}

/// STI: interrupts are taken after the next instruction.
pub fn sti(cpu: &mut Cpu) -> Exec<Next> {
    if cpu.env.cpl() > iopl(cpu) {
        return Err(Exception::gp(0));
    }
    if cpu.env.iflag != 0 {
        return Ok(Next::Fallthrough);
    }
    cpu.env.iflag = flag::IF;
    cpu.env.interrupt_shadow = SHADOW_STI;
    Ok(after_enabling(cpu))
}

/// What follows once IF is set: if nothing waited for it, there is no need to look; what comes from now on kicks.
fn after_enabling(cpu: &Cpu) -> Next {
    if cpu.handle.interrupt_request() == 0 { Next::Fallthrough } else { Next::EndBlock }
}

/// CLAC and STAC.
pub fn set_ac(cpu: &mut Cpu, set: bool) -> Exec<Next> {
    if cpu.env.cpl() != 0 || cpu.cpuid.cr4_bits() & crate::mmu::walk::cr::CR4_SMAP == 0 {
        return Err(Exception::UD);
    }
    cpu.env.ac = if set { flag::AC } else { 0 };
    Ok(Next::EndBlock)
}

/// PUSHF of `size` bytes.
pub fn pushf(cpu: &mut Cpu, size: usize) -> Exec<Next> {
    trap_vm86(cpu)?;
    let mut stack = Stack::current(cpu);
    stack.push(cpu, size, u64::from(cpu.env.rflags() & !(flag::VM | flag::RF)))?;
    cpu.set_stack_pointer(stack.sp);
    Ok(Next::Fallthrough)
}

/// The flags that POPF and IRET may write at this privilege with an operand of `size` bytes.
pub fn writable_flags(cpu: &Cpu, size: usize) -> u32 {
    let cpl = cpu.env.cpl();
    let mut mask = crate::env::ARITH_FLAGS | flag::TF | flag::DF | flag::NT | flag::RF | flag::AC | flag::ID;
    if cpl <= iopl(cpu) {
        mask |= flag::IF;
    }
    if cpl == 0 {
        mask |= flag::IOPL;
    }
    if size == 2 { mask & 0xffff } else { mask }
}

/// POPF of `size` bytes.
pub fn popf(cpu: &mut Cpu, size: usize) -> Exec<Next> {
    trap_vm86(cpu)?;
    let mut stack = Stack::current(cpu);
    let image = stack.pop(cpu, size)? as u32 & !flag::RF;
    cpu.set_stack_pointer(stack.sp);
    let mask = writable_flags(cpu, size);
    let before = cpu.env.rflags();
    let after = before & !mask | image & mask;
    cpu.env.set_rflags(after);
    Ok(if (before ^ after) & (flag::TF | flag::AC) != 0 {
        Next::EndBlock
    } else if !before & after & flag::IF != 0 {
        after_enabling(cpu)
    } else {
        Next::Fallthrough
    })
}
