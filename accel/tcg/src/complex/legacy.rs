//! Instructions from before 64-bit mode: decimal adjustment, BOUND, ENTER, PUSHA, POPA, XLAT, SALC (SDM vol. 2).

#[cfg(test)]
mod tests;

use iced_x86::{Code, Instruction};

use crate::complex::Next;
use crate::cpu::Cpu;
use crate::env::flag;
use crate::exception::{Exception, Exec, vector};
use crate::mmu::Access;
use crate::stack::Stack;

const RAX: usize = 0;
const RSP: usize = 4;
const RBP: usize = 5;

/// Executes `insn` if it is one of these.
pub fn execute(cpu: &mut Cpu, insn: &Instruction) -> Option<Exec<Next>> {
    let done = match insn.code() {
        Code::Aaa => ascii_adjust(cpu, true),
        Code::Aas => ascii_adjust(cpu, false),
        Code::Daa => decimal_adjust(cpu, true),
        Code::Das => decimal_adjust(cpu, false),
        Code::Aam_imm8 => aam(cpu, insn.immediate8()),
        Code::Aad_imm8 => aad(cpu, insn.immediate8()),
        Code::Bound_r16_m1616 => bound(cpu, insn, 2),
        Code::Bound_r32_m3232 => bound(cpu, insn, 4),
        Code::Enterw_imm16_imm8 => enter(cpu, insn, 2),
        Code::Enterd_imm16_imm8 => enter(cpu, insn, 4),
        Code::Enterq_imm16_imm8 => enter(cpu, insn, 8),
        Code::Pushaw => pusha(cpu, 2),
        Code::Pushad => pusha(cpu, 4),
        Code::Popaw => popa(cpu, 2),
        Code::Popad => popa(cpu, 4),
        Code::Xlat_m8 => xlat(cpu, insn),
        Code::Salc => salc(cpu),
        _ => return None,
    };
    Some(done.map(|()| Next::Fallthrough))
}

/// SF, ZF and PF of a byte.
fn byte_flags(value: u8) -> u32 {
    let mut flags = 0;
    if value & 0x80 != 0 {
        flags |= flag::SF;
    }
    if value == 0 {
        flags |= flag::ZF;
    }
    if value.count_ones().is_multiple_of(2) {
        flags |= flag::PF;
    }
    flags
}

fn set_ax(cpu: &mut Cpu, value: u16) {
    cpu.env.gpr[RAX] = cpu.env.gpr[RAX] & !0xffff | u64::from(value);
}

fn set_al(cpu: &mut Cpu, value: u8) {
    cpu.env.gpr[RAX] = cpu.env.gpr[RAX] & !0xff | u64::from(value);
}

/// AAA, AAS. SF, ZF, PF and OF are undefined; they are left clear but for those of the result.
fn ascii_adjust(cpu: &mut Cpu, add: bool) -> Exec<()> {
    let ax = cpu.env.gpr[RAX] as u16;
    let adjust = ax & 0xf > 9 || cpu.env.arith & flag::AF != 0;
    let adjusted = match (adjust, add) {
        (false, _) => ax,
        (true, true) => ax.wrapping_add(0x106),
        (true, false) => ax.wrapping_sub(0x106),
    };
    let result = adjusted & 0xff0f;
    set_ax(cpu, result);
    cpu.env.arith = byte_flags(result as u8) | if adjust { flag::AF | flag::CF } else { 0 };
    Ok(())
}

/// DAA, DAS. OF is undefined and left clear.
fn decimal_adjust(cpu: &mut Cpu, add: bool) -> Exec<()> {
    let (old, carry) = (cpu.env.gpr[RAX] as u8, cpu.env.arith & flag::CF != 0);
    let apply = |value: u8, by: u8| if add { value.overflowing_add(by) } else { value.overflowing_sub(by) };
    let (mut value, mut flags) = (old, 0);
    if old & 0xf > 9 || cpu.env.arith & flag::AF != 0 {
        let (adjusted, out) = apply(value, 6);
        value = adjusted;
        flags |= flag::AF | if carry || out { flag::CF } else { 0 };
    }
    if old > 0x99 || carry {
        value = apply(value, 0x60).0;
        flags |= flag::CF;
    }
    set_al(cpu, value);
    cpu.env.arith = flags | byte_flags(value);
    Ok(())
}

fn aam(cpu: &mut Cpu, base: u8) -> Exec<()> {
    let al = cpu.env.gpr[RAX] as u8;
    let Some(quotient) = al.checked_div(base) else {
        return Err(Exception::plain(vector::DE));
    };
    let remainder = al % base;
    set_ax(cpu, u16::from(quotient) << 8 | u16::from(remainder));
    cpu.env.arith = byte_flags(remainder);
    Ok(())
}

fn aad(cpu: &mut Cpu, base: u8) -> Exec<()> {
    let [al, ah] = (cpu.env.gpr[RAX] as u16).to_le_bytes();
    let result = al.wrapping_add(ah.wrapping_mul(base));
    set_ax(cpu, u16::from(result));
    cpu.env.arith = byte_flags(result);
    Ok(())
}

fn salc(cpu: &mut Cpu) -> Exec<()> {
    set_al(cpu, if cpu.env.arith & flag::CF != 0 { 0xff } else { 0 });
    Ok(())
}

fn xlat(cpu: &mut Cpu, insn: &Instruction) -> Exec<()> {
    let linear = cpu.operand_linear(insn, 0, 1, false)?;
    let value = cpu.read(linear, 1, Access::Current)?;
    set_al(cpu, value as u8);
    Ok(())
}

fn sign_extend(value: u64, size: usize) -> i64 {
    let shift = 64 - 8 * size as u32;
    (value << shift) as i64 >> shift
}

fn bound(cpu: &mut Cpu, insn: &Instruction, size: usize) -> Exec<()> {
    let index = sign_extend(cpu.reg(insn.op0_register()), size);
    let linear = cpu.operand_linear(insn, 1, 2 * size as u64, false)?;
    let lower = sign_extend(cpu.read(linear, size, Access::Current)?, size);
    let above = cpu.wrap(linear.wrapping_add(size as u64));
    let upper = sign_extend(cpu.read(above, size, Access::Current)?, size);
    if index < lower || index > upper { Err(Exception::plain(vector::BR)) } else { Ok(()) }
}

/// Writes the low `size` bytes of a register: 32-bit writes clear the upper half.
fn set_sized(slot: &mut u64, size: usize, value: u64) {
    *slot = match size {
        2 => *slot & !0xffff | value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    };
}

fn enter(cpu: &mut Cpu, insn: &Instruction, size: usize) -> Exec<()> {
    let (space, level) = (u64::from(insn.immediate16()), insn.immediate8_2nd() & 0x1f);
    let mut stack = Stack::current(cpu);
    let stack_mask = u64::MAX >> (64 - cpu.env.stack_bits());
    let mut frame = cpu.env.gpr[RBP];
    stack.push(cpu, size, frame)?;
    let new_frame = stack.sp;
    for _ in 1..level {
        frame = frame.wrapping_sub(size as u64);
        let linear = cpu.linear(2, frame & stack_mask, size as u64, false)?;
        let outer = cpu.read(linear, size, Access::Current)?;
        stack.push(cpu, size, outer)?;
    }
    if level > 0 {
        stack.push(cpu, size, new_frame)?;
    }
    let sp = stack.sp.wrapping_sub(space) & stack_mask;
    // The new top must be writable, though nothing is written there yet.
    let top = cpu.linear(2, sp, size as u64, true)?;
    cpu.check_alignment(top, size, Access::Current)?;
    cpu.probe_write(top, size as u64, Access::Current)?;
    set_sized(&mut cpu.env.gpr[RBP], size, new_frame);
    cpu.set_stack_pointer(sp);
    Ok(())
}

fn pusha(cpu: &mut Cpu, size: usize) -> Exec<()> {
    let mut stack = Stack::current(cpu);
    for index in 0..8 {
        // RSP among them, as it was.
        stack.push(cpu, size, cpu.env.gpr[index])?;
    }
    cpu.set_stack_pointer(stack.sp);
    Ok(())
}

fn popa(cpu: &mut Cpu, size: usize) -> Exec<()> {
    let mut stack = Stack::current(cpu);
    let mut values = [0; 8];
    for value in values.iter_mut().rev() {
        *value = stack.pop(cpu, size)?;
    }
    for (index, value) in values.into_iter().enumerate().filter(|&(index, _)| index != RSP) {
        set_sized(&mut cpu.env.gpr[index], size, value);
    }
    cpu.set_stack_pointer(stack.sp);
    Ok(())
}
