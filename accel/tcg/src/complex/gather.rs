//! Gathers and scatters, VEX and EVEX (SDM vol. 2C, *VPGATHERDD/VPGATHERQD*, *VPSCATTERDD/...*).
//!
//! Elements are done from the lowest up; the mask loses a bit with each, so that a fault leaves the finished ones.

#[cfg(test)]
mod tests;

use iced_x86::{EncodingKind, Instruction, OpKind, Register};

use crate::complex::Next;
use crate::complex::xstate::require_vector;
use crate::cpu::Cpu;
use crate::exception::{Exception, Exec};
use crate::mmu::Access;

/// XCR0 for VEX and for EVEX instructions.
const XCR0_AVX: u64 = 0x6;
const XCR0_AVX512: u64 = 0xe6;

/// Executes `insn` if it is one of these.
pub fn execute(cpu: &mut Cpu, insn: &Instruction) -> Option<Exec<Next>> {
    if !insn.is_vsib() {
        return None;
    }
    // The prefetching ones have no register operand; they may do nothing.
    let plain =
        insn.op_count() == 2 && insn.op_kinds().any(|kind| kind == OpKind::Register) || insn.op_count() == 3;
    if !plain {
        return Some(require_vector(cpu, XCR0_AVX512).map(|()| Next::Fallthrough));
    }
    let done = match (insn.code().encoding(), insn.op0_kind()) {
        (EncodingKind::VEX, _) => gather_vex(cpu, insn),
        (EncodingKind::EVEX, OpKind::Register) => gather_evex(cpu, insn),
        (EncodingKind::EVEX, _) => scatter(cpu, insn),
        _ => Err(Exception::UD),
    };
    Some(done.map(|()| Next::Fallthrough))
}

/// The value of element `index` of `size` bytes.
pub fn element(vector: &[u8; 64], index: usize, size: usize) -> u64 {
    let mut value = [0; 8];
    value[..size].copy_from_slice(&vector[index * size..][..size]);
    u64::from_le_bytes(value)
}

fn set_element(vector: &mut [u8; 64], index: usize, size: usize, value: u64) {
    vector[index * size..][..size].copy_from_slice(&value.to_le_bytes()[..size]);
}

/// Bytes of a data element, and how many elements there are: as many as both the data and the index register have.
fn shape(insn: &Instruction, data: Register) -> (usize, usize) {
    let size = insn.memory_size().element_size();
    let index_size = if insn.is_vsib64() { 8 } else { 4 };
    (size, (data.size() / size).min(insn.memory_index().size() / index_size))
}

/// The linear address of element `index`, which the vector `indices` names.
fn linear(
    cpu: &Cpu,
    insn: &Instruction,
    operand: u32,
    index: usize,
    indices: &[u8; 64],
    size: usize,
    write: bool,
) -> Exec<u64> {
    let offset = insn.virtual_address(operand, index, |register, at, element_size| {
        if register.is_segment_register() {
            Some(0)
        } else if register.is_vector_register() {
            Some(element(indices, at, element_size))
        } else {
            Some(cpu.reg(register))
        }
    });
    let offset = offset.expect("every register of the operand has a value");
    cpu.linear(cpu.operand_segment(insn), offset, size as u64, write)
}

fn gather_vex(cpu: &mut Cpu, insn: &Instruction) -> Exec<()> {
    require_vector(cpu, XCR0_AVX)?;
    let (dest, mask) = (insn.op0_register(), insn.op2_register());
    let index = insn.memory_index().number();
    if dest.number() == mask.number() || dest.number() == index || mask.number() == index {
        return Err(Exception::UD);
    }
    let (size, count) = shape(insn, dest);
    let indices = cpu.env.xsave.vector(index);
    let mut value = cpu.env.xsave.vector(dest.number());
    let mut chosen = cpu.env.xsave.vector(mask.number());
    let mut result = Ok(());
    for at in 0..count {
        if element(&chosen, at, size) >> (8 * size - 1) & 1 != 0 {
            let loaded = linear(cpu, insn, 1, at, &indices, size, false)
                .and_then(|linear| cpu.read_element(linear, size, Access::Current));
            match loaded {
                Ok(loaded) => set_element(&mut value, at, size, loaded),
                Err(fault) => {
                    result = Err(fault);
                    break;
                }
            }
        }
        set_element(&mut chosen, at, size, 0);
    }
    if result.is_ok() {
        chosen.fill(0);
        value[count * size..].fill(0);
    }
    // The rest of both registers is cleared when all is done, not by a fault half-way.
    let (dest_len, mask_len) = if result.is_ok() { (dest.size(), mask.size()) } else { (64, 64) };
    cpu.env.xsave.set_vector(dest.number(), &value, dest_len);
    cpu.env.xsave.set_vector(mask.number(), &chosen, mask_len);
    result
}

fn gather_evex(cpu: &mut Cpu, insn: &Instruction) -> Exec<()> {
    require_vector(cpu, XCR0_AVX512)?;
    let (dest, index) = (insn.op0_register(), insn.memory_index().number());
    let mask = write_mask(insn)?;
    if dest.number() == index {
        return Err(Exception::UD);
    }
    let (size, count) = shape(insn, dest);
    let indices = cpu.env.xsave.vector(index);
    let mut value = cpu.env.xsave.vector(dest.number());
    let mut chosen = cpu.env.xsave.opmask(mask);
    let mut result = Ok(());
    for at in 0..count {
        if chosen >> at & 1 != 0 {
            let loaded = linear(cpu, insn, 1, at, &indices, size, false)
                .and_then(|linear| cpu.read_element(linear, size, Access::Current));
            match loaded {
                Ok(loaded) => set_element(&mut value, at, size, loaded),
                Err(fault) => {
                    result = Err(fault);
                    break;
                }
            }
            chosen &= !(1 << at);
        }
    }
    if result.is_ok() {
        chosen = 0;
        value[count * size..].fill(0);
    }
    cpu.env.xsave.set_vector(dest.number(), &value, dest.size());
    cpu.env.xsave.set_opmask(mask, chosen);
    result
}

fn scatter(cpu: &mut Cpu, insn: &Instruction) -> Exec<()> {
    require_vector(cpu, XCR0_AVX512)?;
    let (source, index) = (insn.op1_register(), insn.memory_index().number());
    let mask = write_mask(insn)?;
    let (size, count) = shape(insn, source);
    let indices = cpu.env.xsave.vector(index);
    let value = cpu.env.xsave.vector(source.number());
    let mut chosen = cpu.env.xsave.opmask(mask);
    for at in 0..count {
        if chosen >> at & 1 != 0 {
            let stored = linear(cpu, insn, 0, at, &indices, size, true).and_then(|linear| {
                cpu.write_element(linear, size, element(&value, at, size), Access::Current)
            });
            chosen &= !(u64::from(stored.is_ok()) << at);
            if stored.is_err() {
                cpu.env.xsave.set_opmask(mask, chosen);
                return stored;
            }
        }
    }
    cpu.env.xsave.set_opmask(mask, 0);
    Ok(())
}

/// The K register, which these instructions must name.
fn write_mask(insn: &Instruction) -> Exec<usize> {
    match insn.op_mask() {
        Register::None => Err(Exception::UD),
        register => Ok(register.number()),
    }
}
