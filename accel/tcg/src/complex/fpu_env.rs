//! FNSTENV, FLDENV, FNSAVE and FRSTOR (SDM vol. 1, *x87 FPU Execution Environment*: figures of the image in memory).
//!
//! Instruction and data pointers and the opcode are stored as zero: see [`crate::env::XsaveArea::forget_x87_pointers`].

use iced_x86::{Code, Instruction};

use crate::complex::Next;
use crate::complex::xstate::image::FCW_INIT;
use crate::complex::xstate::require_x87;
use crate::cpu::Cpu;
use crate::env::XsaveArea;
use crate::exception::{Exception, Exec, vector};
use crate::mmu::Access;

/// FSW.ES: an unmasked exception is pending.
const ES: u16 = 1 << 7;
/// CR0.NE.
const CR0_NE: u64 = 1 << 5;
/// All exceptions masked.
const MASKED: u16 = 0x3f;
/// Bytes of the eight registers.
const REGISTERS: usize = 80;

/// Executes `insn` if it is one of these.
pub fn execute(cpu: &mut Cpu, insn: &Instruction) -> Option<Exec<Next>> {
    let done = match insn.code() {
        Code::Fnstenv_m14byte | Code::Fstenv_m14byte => store(cpu, insn, false, false),
        Code::Fnstenv_m28byte | Code::Fstenv_m28byte => store(cpu, insn, true, false),
        Code::Fnsave_m94byte | Code::Fsave_m94byte => store(cpu, insn, false, true),
        Code::Fnsave_m108byte | Code::Fsave_m108byte => store(cpu, insn, true, true),
        Code::Fldenv_m14byte => load(cpu, insn, false, false),
        Code::Fldenv_m28byte => load(cpu, insn, true, false),
        Code::Frstor_m94byte => load(cpu, insn, false, true),
        Code::Frstor_m108byte => load(cpu, insn, true, true),
        _ => return None,
    };
    Some(done.map(|()| Next::Fallthrough))
}

/// The full tag word: two bits for each physical register: 0 valid, 1 zero, 2 special, 3 empty.
pub fn full_tag_word(image: &XsaveArea) -> u16 {
    let (abridged, top) = (image.ftw(), usize::from(image.fsw() >> 11 & 7));
    (0..8).fold(0, |tags, physical| {
        let tag = if abridged >> physical & 1 == 0 { 3 } else { tag(&image.st((physical + 8 - top) & 7)) };
        tags | tag << (2 * physical)
    })
}

/// The tag of a value in a register that is not empty.
fn tag(value: &[u8; 10]) -> u16 {
    let exponent = u16::from_le_bytes([value[8], value[9]]) & 0x7fff;
    let zero = value[..8].iter().all(|&byte| byte == 0);
    let integer_bit = value[7] & 0x80 != 0;
    match exponent {
        0 if zero => 1,
        0 | 0x7fff => 2,
        _ if integer_bit => 0,
        _ => 2,
    }
}

fn abridged(tags: u16) -> u8 {
    (0..8).fold(0, |bits, physical| bits | u8::from(tags >> (2 * physical) & 3 != 3) << physical)
}

/// FNSTENV, FNSAVE.
fn store(cpu: &mut Cpu, insn: &Instruction, wide: bool, registers: bool) -> Exec<()> {
    require_x87(cpu)?;
    let image = &cpu.env.xsave;
    let environment = if wide { 28 } else { 14 };
    let mut bytes = [0; 108];
    // 32-bit form: 16-bit values in 32-bit slots, the upper halves all ones.
    let slot = if wide { 4 } else { 2 };
    for (index, value) in [image.fcw(), image.fsw(), full_tag_word(image)].into_iter().enumerate() {
        bytes[index * slot..][..2].copy_from_slice(&value.to_le_bytes());
        if wide {
            bytes[index * slot + 2..][..2].fill(0xff);
        }
    }
    if wide && !cpu.env.is_real_or_vm86() {
        bytes[26..28].fill(0xff);
    }
    let mut len = environment;
    if registers {
        for index in 0..8 {
            bytes[environment + 10 * index..][..10].copy_from_slice(&image.st(index));
        }
        len += REGISTERS;
    }
    let linear = cpu.operand_linear(insn, 0, len as u64, true)?;
    cpu.write_bytes(linear, &bytes[..len], Access::Current)?;
    let image = &mut cpu.env.xsave;
    if registers {
        image.set_x87_environment(FCW_INIT, 0, 0);
    } else {
        let (fcw, fsw, ftw) = (image.fcw(), image.fsw(), image.ftw());
        image.set_x87_environment(fcw | MASKED, fsw, ftw);
    }
    Ok(())
}

/// FLDENV, FRSTOR.
fn load(cpu: &mut Cpu, insn: &Instruction, wide: bool, registers: bool) -> Exec<()> {
    require_x87(cpu)?;
    if cpu.env.xsave.fsw() & ES != 0 && cpu.env.cr0 & CR0_NE != 0 {
        return Err(Exception::plain(vector::MF));
    }
    let environment = if wide { 28 } else { 14 };
    let len = if registers { environment + REGISTERS } else { environment };
    let linear = cpu.operand_linear(insn, 0, len as u64, false)?;
    let mut bytes = [0; 108];
    cpu.read_bytes(linear, &mut bytes[..len], Access::Current)?;
    let slot = if wide { 4 } else { 2 };
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let image = &mut cpu.env.xsave;
    image.set_x87_environment(word(0), word(slot), abridged(word(2 * slot)));
    if registers {
        for index in 0..8 {
            image.set_st(index, &bytes[environment + 10 * index..][..10]);
        }
    }
    Ok(())
}
