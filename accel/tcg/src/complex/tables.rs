//! Descriptor tables and questions about descriptors: LGDT, SGDT, LLDT, LTR, LAR, LSL, VERR, VERW, ARPL and their kin
//! (SDM vol. 2; vol. 3A, *Pointer Validation*).

use iced_x86::{Instruction, OpKind};

use crate::complex::Next;
use crate::complex::control::store_word;
use crate::complex::system::{privileged, umip};
use crate::cpu::Cpu;
use crate::env::{Segment, Table, flag};
use crate::exception::{Exception, Exec};
use crate::mmu::Access;
use crate::operand::is_canonical;
use crate::segment::{Descriptor, is_null, rpl, selector_code, system_type};

/// Bytes of the base in the memory operand of LGDT and its kin.
fn base_bytes(cpu: &Cpu) -> usize {
    if cpu.env.is_64bit() { 8 } else { 4 }
}

/// SGDT and SIDT.
pub fn store_table(cpu: &mut Cpu, insn: &Instruction, table: Table) -> Exec<Next> {
    umip(cpu)?;
    let base_bytes = base_bytes(cpu);
    let linear = cpu.operand_linear(insn, 0, 2 + base_bytes as u64, true)?;
    let mut image = [0; 10];
    image[..2].copy_from_slice(&table.limit.to_le_bytes());
    image[2..].copy_from_slice(&table.base.to_le_bytes());
    cpu.write_bytes(linear, &image[..2 + base_bytes], Access::Current)?;
    Ok(Next::Fallthrough)
}

/// The operand of LGDT and LIDT; `narrow`: 16-bit operand size, of whose base 24 bits count.
pub fn load_table(cpu: &mut Cpu, insn: &Instruction, narrow: bool) -> Exec<Table> {
    privileged(cpu)?;
    let base_bytes = base_bytes(cpu);
    let linear = cpu.operand_linear(insn, 0, 2 + base_bytes as u64, false)?;
    let limit = cpu.read(linear, 2, Access::Current)? as u16;
    let base = cpu.read(cpu.wrap(linear.wrapping_add(2)), base_bytes, Access::Current)?;
    let base = if narrow && base_bytes == 4 { base & 0xff_ffff } else { base };
    if !is_canonical(base) {
        return Err(Exception::gp(0));
    }
    Ok(Table { base, limit })
}

/// #UD where selectors are paragraph numbers.
fn protected(cpu: &Cpu) -> Exec<()> {
    if cpu.env.is_real_or_vm86() { Err(Exception::UD) } else { Ok(()) }
}

/// SLDT and STR.
pub fn store_selector(cpu: &mut Cpu, insn: &Instruction, selector: u16) -> Exec<Next> {
    protected(cpu)?;
    umip(cpu)?;
    store_word(cpu, insn, u64::from(selector))
}

/// A system segment (LDT, TSS) as a register holds it, in IA-32e mode with its 64-bit base.
pub fn system_segment(cpu: &mut Cpu, selector: u16, descriptor: Descriptor) -> Exec<Segment> {
    let mut segment = descriptor.segment(selector);
    if cpu.is_long_mode() {
        segment.base |= cpu.descriptor_high(selector, Exception::gp)? << 32;
        if !is_canonical(segment.base) {
            return Err(Exception::gp(selector_code(selector)));
        }
    }
    Ok(segment)
}

/// LLDT.
pub fn lldt(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    protected(cpu)?;
    privileged(cpu)?;
    let selector = cpu.read_operand(insn, 0, 2)? as u16;
    if is_null(selector) {
        cpu.env.ldt = Segment { selector, ..Segment::default() };
        return Ok(Next::Fallthrough);
    }
    let code = selector_code(selector);
    if selector & 4 != 0 {
        return Err(Exception::gp(code));
    }
    let (descriptor, _) = cpu.descriptor(selector, Exception::gp)?;
    if descriptor.is_user() || descriptor.kind() != system_type::LDT {
        return Err(Exception::gp(code));
    }
    if !descriptor.is_present() {
        return Err(Exception::np(code));
    }
    cpu.env.ldt = system_segment(cpu, selector, descriptor)?;
    Ok(Next::Fallthrough)
}

/// LTR: marks the TSS busy.
pub fn ltr(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    const BUSY: u16 = 2;
    protected(cpu)?;
    privileged(cpu)?;
    let selector = cpu.read_operand(insn, 0, 2)? as u16;
    let code = selector_code(selector);
    if is_null(selector) {
        return Err(Exception::gp(0));
    }
    if selector & 4 != 0 {
        return Err(Exception::gp(code));
    }
    let (descriptor, address) = cpu.descriptor(selector, Exception::gp)?;
    let available = match descriptor.kind() {
        system_type::TSS32_AVAILABLE => true,
        system_type::TSS16_AVAILABLE => !cpu.is_long_mode(),
        _ => false,
    };
    if descriptor.is_user() || !available {
        return Err(Exception::gp(code));
    }
    if !descriptor.is_present() {
        return Err(Exception::np(code));
    }
    let mut segment = system_segment(cpu, selector, descriptor)?;
    segment.access |= BUSY;
    let byte = cpu.wrap_system(address.wrapping_add(5));
    cpu.write(byte, 1, u64::from(segment.access as u8), Access::System)?;
    cpu.env.task = segment;
    Ok(Next::Fallthrough)
}

fn set_zf(cpu: &mut Cpu, set: bool) {
    cpu.env.arith = cpu.env.arith & !flag::ZF | if set { flag::ZF } else { 0 };
}

/// The descriptor of `selector` if it exists and this privilege may see it.
fn visible(cpu: &mut Cpu, selector: u16) -> Exec<Option<Descriptor>> {
    if is_null(selector) {
        return Ok(None);
    }
    let descriptor = match cpu.descriptor(selector, Exception::gp) {
        Ok((descriptor, _)) => descriptor,
        Err(Exception { error_code: Some(_), vector: crate::exception::vector::GP, .. }) => return Ok(None),
        Err(page_fault) => return Err(page_fault),
    };
    let privilege = cpu.env.cpl().max(rpl(selector));
    let seen = descriptor.is_conforming() || privilege <= descriptor.dpl();
    Ok(seen.then_some(descriptor))
}

/// The selector that LAR, LSL, VERR and VERW ask about.
fn selector_operand(cpu: &mut Cpu, insn: &Instruction, operand: u32) -> Exec<u16> {
    if insn.op_kind(operand) == OpKind::Register {
        return Ok(cpu.reg(insn.op_register(operand)) as u16);
    }
    Ok(cpu.read_operand(insn, operand, 2)? as u16)
}

/// LAR.
pub fn lar(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    use system_type::*;
    protected(cpu)?;
    let selector = selector_operand(cpu, insn, 1)?;
    let long = cpu.is_long_mode();
    let found = visible(cpu, selector)?.filter(|descriptor| {
        descriptor.is_user()
            || match descriptor.kind() {
                LDT | TSS32_AVAILABLE | TSS32_BUSY | CALL_GATE32 => true,
                TSS16_AVAILABLE | TSS16_BUSY | CALL_GATE16 | TASK_GATE => !long,
                _ => false,
            }
    });
    if let Some(descriptor) = found {
        cpu.set_reg(insn.op0_register(), descriptor.0 >> 32 & 0x00f0_ff00);
    }
    set_zf(cpu, found.is_some());
    Ok(Next::Fallthrough)
}

/// LSL.
pub fn lsl(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    use system_type::*;
    protected(cpu)?;
    let selector = selector_operand(cpu, insn, 1)?;
    let long = cpu.is_long_mode();
    let found = visible(cpu, selector)?.filter(|descriptor| {
        descriptor.is_user()
            || match descriptor.kind() {
                LDT | TSS32_AVAILABLE | TSS32_BUSY => true,
                TSS16_AVAILABLE | TSS16_BUSY => !long,
                _ => false,
            }
    });
    if let Some(descriptor) = found {
        cpu.set_reg(insn.op0_register(), u64::from(descriptor.limit()));
    }
    set_zf(cpu, found.is_some());
    Ok(Next::Fallthrough)
}

/// VERR and VERW.
pub fn verify(cpu: &mut Cpu, insn: &Instruction, write: bool) -> Exec<Next> {
    protected(cpu)?;
    let selector = selector_operand(cpu, insn, 0)?;
    let found = visible(cpu, selector)?;
    let granted =
        found.is_some_and(
            |descriptor| {
                if write { descriptor.is_writable_data() } else { descriptor.is_readable() }
            },
        );
    set_zf(cpu, granted);
    Ok(Next::Fallthrough)
}

/// ARPL.
pub fn arpl(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    protected(cpu)?;
    let target = cpu.read_operand(insn, 0, 2)? as u16;
    let wanted = rpl(cpu.reg(insn.op1_register()) as u16);
    let raise = rpl(target) < wanted;
    if raise {
        let value = u64::from(target & !3 | u16::from(wanted));
        if insn.op0_kind() == OpKind::Register {
            // The decoder names the 32-bit register; 16 bits of it change.
            let slot = &mut cpu.env.gpr[insn.op0_register().full_register().number()];
            *slot = *slot & !0xffff | value;
        } else {
            cpu.write_operand(insn, 0, 2, value)?;
        }
    }
    set_zf(cpu, raise);
    Ok(Next::Fallthrough)
}
