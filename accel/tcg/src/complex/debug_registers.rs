//! MOV to and from debug registers (SDM vol. 3B, *Debug Registers*).

use iced_x86::{Instruction, Register};

use crate::complex::Next;
use crate::complex::system::privileged;
use crate::cpu::Cpu;
use crate::exception::{Exception, Exec};
use crate::interrupt::{DR6_BD, DR7_GD};

const CR4_DE: u64 = 1 << 3;
/// DR6: B0 to B3, BD, BS, BT can be written; the others read as one or zero.
const DR6_WRITABLE: u64 = 0xe00f;
const DR6_FIXED: u64 = 0xffff_0ff0;
/// DR7: enables, GD, conditions can be written; bit 10 reads as one.
const DR7_WRITABLE: u64 = 0xffff_23ff;
const DR7_FIXED: u64 = 0x400;
/// DR7: local and global enables of all breakpoints.
const DR7_ENABLES: u64 = 0xff;

/// The number of the register that `register` means now: DR4 and DR5 are DR6 and DR7 unless CR4.DE is set.
fn number(cpu: &mut Cpu, register: Register) -> Exec<usize> {
    let number = register.number();
    if number > 7 || matches!(number, 4 | 5) && cpu.env.cr4 & CR4_DE != 0 {
        return Err(Exception::UD);
    }
    privileged(cpu)?;
    if cpu.env.dr7 & DR7_GD != 0 {
        return Err(Exception::debug(DR6_BD));
    }
    Ok(if matches!(number, 4 | 5) { number + 2 } else { number })
}

/// MOV from a debug register.
pub fn read(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    let value = match number(cpu, insn.op1_register())? {
        6 => cpu.env.dr6,
        7 => cpu.env.dr7,
        index => cpu.env.dr[index],
    };
    cpu.set_reg(insn.op0_register(), value);
    Ok(Next::Fallthrough)
}

/// MOV to a debug register.
pub fn write(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    let number = number(cpu, insn.op0_register())?;
    let value = cpu.reg(insn.op1_register());
    let enabled = cpu.env.dr7 & DR7_ENABLES != 0;
    match number {
        6 | 7 if value >> 32 != 0 => return Err(Exception::gp(0)),
        6 => cpu.env.dr6 = value & DR6_WRITABLE | DR6_FIXED,
        7 => cpu.env.dr7 = value & DR7_WRITABLE | DR7_FIXED,
        index => cpu.env.dr[index] = value,
    }
    // Pages with a data breakpoint have no TLB entry.
    if number != 6 && (enabled || cpu.env.dr7 & DR7_ENABLES != 0) {
        cpu.mmu.flush_all();
    }
    Ok(Next::EndBlock)
}
