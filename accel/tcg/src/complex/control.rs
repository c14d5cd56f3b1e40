//! Control registers and what hangs on them: MOV CRn, CLTS, LMSW, SMSW, XSETBV, XGETBV, INVLPG, INVPCID
//! (SDM vol. 3A, *Control Registers*; vol. 2).

use iced_x86::{Instruction, OpKind, Register};

use crate::complex::Next;
use crate::complex::system::{privileged, umip};
use crate::cpu::Cpu;
use crate::exception::{Exception, Exec};
use crate::mmu::Access;
use crate::mmu::walk::PHYS_BITS;
use crate::mmu::walk::cr::{CR0_PG, CR0_WP, CR4_PAE, CR4_PCIDE, CR4_PGE, CR4_PSE, CR4_SMAP, CR4_SMEP};
use crate::msr::spec::efer;
use crate::operand::is_canonical;
use crate::segment::system_type;

const CR0_PE: u64 = 1 << 0;
const CR0_TS: u64 = 1 << 3;
const CR0_ET: u64 = 1 << 4;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
/// PE MP EM TS ET NE WP AM NW CD PG.
const CR0_BITS: u64 = 0xe005_003f;
const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_UMIP: u64 = 1 << 11;
/// MOV CR3: keep the TLB entries of the new PCID.
const CR3_KEEP: u64 = 1 << 63;
/// CR4 bits whose change makes cached translations void.
const CR4_PAGING: u64 = CR4_PSE | CR4_PAE | CR4_PGE | CR4_SMEP | CR4_SMAP;

const GP: Exception = Exception::gp(0);

/// MOV from a control register.
pub fn read(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    privileged(cpu)?;
    let value = match insn.op1_register() {
        Register::CR0 => cpu.env.cr0,
        Register::CR2 => cpu.env.cr2,
        Register::CR3 => cpu.env.cr3,
        Register::CR4 => cpu.env.cr4,
        Register::CR8 => cpu.io().interrupts().map_or(0, |interrupts| u64::from(interrupts.cr8())),
        _ => return Err(Exception::UD),
    };
    cpu.set_reg(insn.op0_register(), value);
    Ok(Next::Fallthrough)
}

/// MOV to a control register.
pub fn write(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    privileged(cpu)?;
    let value = cpu.reg(insn.op1_register());
    match insn.op0_register() {
        Register::CR0 => set_cr0(cpu, value)?,
        Register::CR2 => cpu.env.cr2 = value,
        Register::CR3 => set_cr3(cpu, value)?,
        Register::CR4 => set_cr4(cpu, value)?,
        Register::CR8 => {
            if value > 15 {
                return Err(GP);
            }
            if let Some(interrupts) = cpu.io().interrupts() {
                interrupts.set_cr8(value as u8);
            }
            return Ok(Next::Fallthrough);
        }
        _ => return Err(Exception::UD),
    }
    Ok(Next::EndBlock)
}

/// Writes CR0 with all that follows from it.
pub fn set_cr0(cpu: &mut Cpu, value: u64) -> Exec<()> {
    let before = cpu.env.cr0;
    if value >> 32 != 0
        || value & CR0_PG != 0 && value & CR0_PE == 0
        || value & CR0_NW != 0 && value & CR0_CD == 0
    {
        return Err(GP);
    }
    let value = value & CR0_BITS | CR0_ET;
    let changed = value ^ before;
    let env = &mut *cpu.env;
    if changed & CR0_PG != 0 {
        if value & CR0_PG == 0 {
            if env.is_64bit() || env.cr4 & CR4_PCIDE != 0 {
                return Err(GP);
            }
            env.efer &= !efer::LMA;
        } else if env.efer & efer::LME != 0 {
            let tss16 = env.task.access as u8 & 0xf == system_type::TSS16_BUSY;
            let code_l = env.seg[1].access & 1 << 13 != 0;
            if env.cr4 & CR4_PAE == 0 || code_l || tss16 {
                return Err(GP);
            }
            env.efer |= efer::LMA;
        }
    }
    env.cr0 = value;
    if changed & (CR0_PG | CR0_PE | CR0_WP) != 0 {
        cpu.mmu.flush_all();
    }
    Ok(())
}

/// MOV CR3.
fn set_cr3(cpu: &mut Cpu, value: u64) -> Exec<()> {
    let keep = if cpu.env.cr4 & CR4_PCIDE != 0 { CR3_KEEP } else { 0 };
    if cpu.is_long_mode() && (value & !keep) >> PHYS_BITS != 0 {
        return Err(GP);
    }
    cpu.mmu.switch_to(&mut cpu.env, value);
    cpu.env.cr3 = value & !CR3_KEEP;
    Ok(())
}

/// Loads CR3 in a task switch.
pub fn load_cr3(cpu: &mut Cpu, value: u64) {
    cpu.mmu.switch_to(&mut cpu.env, value);
    cpu.env.cr3 = value;
}

fn set_cr4(cpu: &mut Cpu, value: u64) -> Exec<()> {
    let before = cpu.env.cr4;
    let changed = value ^ before;
    if value & !cpu.cpuid.cr4_bits() != 0 || cpu.is_long_mode() && value & CR4_PAE == 0 {
        return Err(GP);
    }
    if changed & value & CR4_PCIDE != 0 && (!cpu.is_long_mode() || cpu.env.cr3 & 0xfff != 0) {
        return Err(GP);
    }
    cpu.env.cr4 = value;
    if changed & CR4_PCIDE != 0 {
        cpu.mmu.reset_contexts(&mut cpu.env);
    } else if changed & CR4_PAGING != 0 {
        cpu.mmu.flush_all();
    }
    Ok(())
}

/// CLTS.
pub fn clts(cpu: &mut Cpu) -> Exec<Next> {
    privileged(cpu)?;
    cpu.env.cr0 &= !CR0_TS;
    Ok(Next::EndBlock)
}

/// LMSW: sets PE, MP, EM, TS; cannot clear PE.
pub fn lmsw(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    privileged(cpu)?;
    let value = cpu.read_operand(insn, 0, 2)? & 0xf;
    let before = cpu.env.cr0;
    set_cr0(cpu, before & !0xe | value)?;
    Ok(Next::EndBlock)
}

/// SMSW.
pub fn smsw(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    umip(cpu)?;
    store_word(cpu, insn, cpu.env.cr0)
}

/// Stores a system word: 16 bits in memory, as much as the register has of `value` in a register.
pub fn store_word(cpu: &mut Cpu, insn: &Instruction, value: u64) -> Exec<Next> {
    if insn.op0_kind() == OpKind::Register {
        cpu.set_reg(insn.op0_register(), value);
    } else {
        cpu.write_operand(insn, 0, 2, value & 0xffff)?;
    }
    Ok(Next::Fallthrough)
}

/// XGETBV.
pub fn xgetbv(cpu: &mut Cpu) -> Exec<Next> {
    if cpu.env.cr4 & CR4_OSXSAVE == 0 {
        return Err(Exception::UD);
    }
    // ECX = 1 (what is in use) is not shown in CPUID.
    if cpu.env.gpr[1] as u32 != 0 {
        return Err(GP);
    }
    let value = cpu.env.xcr0;
    set_edx_eax(cpu, value);
    Ok(Next::Fallthrough)
}

/// XSETBV.
pub fn xsetbv(cpu: &mut Cpu) -> Exec<Next> {
    const X87: u64 = 1;
    const SSE: u64 = 2;
    const AVX: u64 = 4;
    const AVX512: u64 = 0xe0;
    if cpu.env.cr4 & CR4_OSXSAVE == 0 {
        return Err(Exception::UD);
    }
    privileged(cpu)?;
    let value = edx_eax(cpu);
    let avx512 = value & AVX512;
    if cpu.env.gpr[1] as u32 != 0
        || value & !cpu.cpuid.xcr0() != 0
        || value & X87 == 0
        || value & AVX != 0 && value & SSE == 0
        || avx512 != 0 && (avx512 != AVX512 || value & AVX == 0)
    {
        return Err(GP);
    }
    cpu.env.xcr0 = value;
    Ok(Next::EndBlock)
}

/// EDX:EAX.
pub fn edx_eax(cpu: &Cpu) -> u64 {
    cpu.env.gpr[2] << 32 | cpu.env.gpr[0] & 0xffff_ffff
}

/// Sets EDX:EAX; the upper halves of RDX and RAX become zero.
pub fn set_edx_eax(cpu: &mut Cpu, value: u64) {
    cpu.env.gpr[0] = value & 0xffff_ffff;
    cpu.env.gpr[2] = value >> 32;
}

/// INVLPG.
pub fn invlpg(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    privileged(cpu)?;
    let segment = cpu.operand_segment(insn);
    let offset = cpu.effective_offset(insn, 0);
    let base = if cpu.env.is_64bit() && segment < 4 { 0 } else { cpu.env.seg[segment].base };
    let linear = cpu.wrap(base.wrapping_add(offset));
    if is_canonical(linear) {
        cpu.mmu.flush_page(linear);
    }
    Ok(Next::EndBlock)
}

/// INVPCID.
pub fn invpcid(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    if !cpu.cpuid.invpcid() {
        return Err(Exception::UD);
    }
    // In virtual-8086 mode too: the privilege is 3 there.
    privileged(cpu)?;
    let kind = cpu.reg(insn.op0_register());
    let at = cpu.operand_linear(insn, 1, 16, false)?;
    let pcid = cpu.read(at, 8, Access::Current)?;
    let linear = cpu.read(cpu.wrap(at.wrapping_add(8)), 8, Access::Current)?;
    if pcid >> 12 != 0 || kind < 2 && pcid != 0 && cpu.env.cr4 & CR4_PCIDE == 0 {
        return Err(GP);
    }
    match kind {
        0 if !is_canonical(linear) => return Err(GP),
        0 => cpu.mmu.flush_page_of(pcid as u16, linear),
        1 => cpu.mmu.flush_pcid(pcid as u16),
        // Global pages may go as well.
        2 | 3 => cpu.mmu.flush_all(),
        _ => return Err(GP),
    }
    Ok(Next::EndBlock)
}

/// Whether SGDT, SIDT, SLDT, SMSW and STR are privileged.
pub fn umip_enabled(cpu: &Cpu) -> bool {
    cpu.env.cr4 & CR4_UMIP != 0
}
