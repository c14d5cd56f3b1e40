//! Moves of chosen elements: VMASKMOVPS/PD, VPMASKMOVD/Q, MASKMOVQ and MASKMOVDQU (SDM vol. 2).
//!
//! Elements that are not chosen are not accessed and cannot fault. Stores check every chosen element before the first
//! is written.

use iced_x86::{Code, Instruction};

use crate::complex::Next;
use crate::complex::gather::element;
use crate::complex::xstate::{require_sse, require_vector, require_x87};
use crate::cpu::Cpu;
use crate::exception::{Exception, Exec, vector};
use crate::mmu::Access;
use crate::translate::address::address_width;

const XCR0_AVX: u64 = 0x6;
/// FSW.ES.
const ES: u16 = 1 << 7;

/// Executes `insn` if it is one of these.
pub fn execute(cpu: &mut Cpu, insn: &Instruction) -> Option<Exec<Next>> {
    let done = match insn.code() {
        Code::VEX_Vmaskmovps_xmm_xmm_m128
        | Code::VEX_Vmaskmovps_ymm_ymm_m256
        | Code::VEX_Vpmaskmovd_xmm_xmm_m128
        | Code::VEX_Vpmaskmovd_ymm_ymm_m256 => load(cpu, insn, 4),
        Code::VEX_Vmaskmovpd_xmm_xmm_m128
        | Code::VEX_Vmaskmovpd_ymm_ymm_m256
        | Code::VEX_Vpmaskmovq_xmm_xmm_m128
        | Code::VEX_Vpmaskmovq_ymm_ymm_m256 => load(cpu, insn, 8),
        Code::VEX_Vmaskmovps_m128_xmm_xmm
        | Code::VEX_Vmaskmovps_m256_ymm_ymm
        | Code::VEX_Vpmaskmovd_m128_xmm_xmm
        | Code::VEX_Vpmaskmovd_m256_ymm_ymm => store(cpu, insn, 4),
        Code::VEX_Vmaskmovpd_m128_xmm_xmm
        | Code::VEX_Vmaskmovpd_m256_ymm_ymm
        | Code::VEX_Vpmaskmovq_m128_xmm_xmm
        | Code::VEX_Vpmaskmovq_m256_ymm_ymm => store(cpu, insn, 8),
        Code::Maskmovq_rDI_mm_mm => maskmovq(cpu, insn),
        Code::Maskmovdqu_rDI_xmm_xmm => require_sse(cpu).and_then(|()| maskmovdqu(cpu, insn)),
        Code::VEX_Vmaskmovdqu_rDI_xmm_xmm => {
            require_vector(cpu, XCR0_AVX).and_then(|()| maskmovdqu(cpu, insn))
        }
        _ => return None,
    };
    Some(done.map(|()| Next::Fallthrough))
}

/// Which of the `count` elements of `size` bytes have their highest bit set.
fn chosen(mask: &[u8; 64], count: usize, size: usize) -> impl Iterator<Item = usize> {
    let bits =
        (0..count).filter(|&at| mask[at * size + size - 1] & 0x80 != 0).fold(0u64, |bits, at| bits | 1 << at);
    (0..count).filter(move |&at| bits >> at & 1 != 0)
}

fn element_linear(
    cpu: &Cpu,
    insn: &Instruction,
    operand: u32,
    at: usize,
    size: usize,
    write: bool,
) -> Exec<u64> {
    let segment = cpu.operand_segment(insn);
    let offset = cpu.effective_offset(insn, operand).wrapping_add((at * size) as u64);
    // With a 32-bit address size each element's offset wraps by itself.
    let narrow = cpu.env.is_64bit() && address_width(insn, 64) == 32;
    let offset = if narrow { offset & 0xffff_ffff } else { offset };
    cpu.linear(segment, offset, size as u64, write)
}

fn load(cpu: &mut Cpu, insn: &Instruction, size: usize) -> Exec<()> {
    require_vector(cpu, XCR0_AVX)?;
    let dest = insn.op0_register();
    let mask = cpu.env.xsave.vector(insn.op1_register().number());
    let mut value = [0; 64];
    for at in chosen(&mask, dest.size() / size, size) {
        let linear = element_linear(cpu, insn, 2, at, size, false)?;
        let loaded = cpu.read_element(linear, size, Access::Current)?;
        value[at * size..][..size].copy_from_slice(&loaded.to_le_bytes()[..size]);
    }
    cpu.env.xsave.set_vector(dest.number(), &value, dest.size());
    Ok(())
}

fn store(cpu: &mut Cpu, insn: &Instruction, size: usize) -> Exec<()> {
    require_vector(cpu, XCR0_AVX)?;
    let source = insn.op2_register();
    let mask = cpu.env.xsave.vector(insn.op1_register().number());
    let value = cpu.env.xsave.vector(source.number());
    store_chosen(cpu, insn, &mask, &value, source.size() / size, size)
}

fn store_chosen(
    cpu: &mut Cpu,
    insn: &Instruction,
    mask: &[u8; 64],
    value: &[u8; 64],
    count: usize,
    size: usize,
) -> Exec<()> {
    for at in chosen(mask, count, size) {
        let linear = element_linear(cpu, insn, 0, at, size, true)?;
        cpu.probe_write(linear, size as u64, Access::Current)?;
    }
    for at in chosen(mask, count, size) {
        let linear = element_linear(cpu, insn, 0, at, size, true)?;
        cpu.write_element(linear, size, element(value, at, size), Access::Current)?;
    }
    Ok(())
}

fn maskmovdqu(cpu: &mut Cpu, insn: &Instruction) -> Exec<()> {
    let value = cpu.env.xsave.vector(insn.op1_register().number());
    let mask = cpu.env.xsave.vector(insn.op2_register().number());
    store_chosen(cpu, insn, &mask, &value, 16, 1)
}

fn maskmovq(cpu: &mut Cpu, insn: &Instruction) -> Exec<()> {
    if cpu.env.cr0 & 4 != 0 {
        return Err(Exception::UD);
    }
    require_x87(cpu)?;
    if cpu.env.xsave.fsw() & ES != 0 {
        return Err(Exception::plain(vector::MF));
    }
    let (mut value, mut mask) = ([0; 64], [0; 64]);
    value[..8].copy_from_slice(&cpu.env.xsave.mm(insn.op1_register().number()).to_le_bytes());
    mask[..8].copy_from_slice(&cpu.env.xsave.mm(insn.op2_register().number()).to_le_bytes());
    store_chosen(cpu, insn, &mask, &value, 8, 1)?;
    cpu.env.xsave.enter_mmx();
    Ok(())
}
