//! The XSAVE and FXSAVE families and MXCSR (SDM vol. 1, *Managing State Using the XSAVE Feature Set*; vol. 2).
//!
//! Instructions save from and restore to the image in [`crate::env::Env::xsave`]. All checks and all reads of memory
//! come before the first change.

pub mod image;
pub mod layout;
mod restore;
mod save;
#[cfg(test)]
mod tests;

use iced_x86::{Code, Instruction};

use crate::complex::Next;
use crate::cpu::Cpu;
use crate::exception::{Exception, Exec};
use crate::mmu::Access;
use layout::MXCSR_MASK;

/// CR0.EM.
const CR0_EM: u64 = 1 << 2;
/// CR0.TS.
const CR0_TS: u64 = 1 << 3;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXSAVE: u64 = 1 << 18;

/// Executes `insn` if it is one of these.
pub fn execute(cpu: &mut Cpu, insn: &Instruction) -> Option<Exec<Next>> {
    let done = match insn.code() {
        Code::Xsave_mem | Code::Xsave64_mem => save::xsave(cpu, insn, save::Form::Standard),
        Code::Xsaveopt_mem | Code::Xsaveopt64_mem => save::xsave(cpu, insn, save::Form::Optimised),
        Code::Xsavec_mem | Code::Xsavec64_mem => save::xsave(cpu, insn, save::Form::Compacted),
        Code::Xsaves_mem | Code::Xsaves64_mem => save::xsave(cpu, insn, save::Form::Supervisor),
        Code::Xrstor_mem | Code::Xrstor64_mem => restore::xrstor(cpu, insn, false),
        Code::Xrstors_mem | Code::Xrstors64_mem => restore::xrstor(cpu, insn, true),
        Code::Fxsave_m512byte | Code::Fxsave64_m512byte => save::fxsave(cpu, insn),
        Code::Fxrstor_m512byte | Code::Fxrstor64_m512byte => restore::fxrstor(cpu, insn),
        Code::Ldmxcsr_m32 => mxcsr(cpu, insn, false, true),
        Code::VEX_Vldmxcsr_m32 => mxcsr(cpu, insn, true, true),
        Code::Stmxcsr_m32 => mxcsr(cpu, insn, false, false),
        Code::VEX_Vstmxcsr_m32 => mxcsr(cpu, insn, true, false),
        _ => return None,
    };
    Some(done.map(|()| Next::Fallthrough))
}

/// Raises #UD or #NM unless the operating system has enabled what VEX and EVEX instructions need: the components
/// `needed` in XCR0.
pub fn require_vector(cpu: &Cpu, needed: u64) -> Exec<()> {
    if cpu.env.cr4 & CR4_OSXSAVE == 0 || cpu.env.xcr0 & needed != needed || cpu.env.is_real_or_vm86() {
        return Err(Exception::UD);
    }
    if cpu.env.cr0 & CR0_TS != 0 { Err(Exception::NM) } else { Ok(()) }
}

/// Raises #UD or #NM unless SSE instructions may run.
pub fn require_sse(cpu: &Cpu) -> Exec<()> {
    if cpu.env.cr0 & CR0_EM != 0 || cpu.env.cr4 & CR4_OSFXSR == 0 {
        return Err(Exception::UD);
    }
    if cpu.env.cr0 & CR0_TS != 0 { Err(Exception::NM) } else { Ok(()) }
}

/// Raises #NM unless x87 state may be touched.
pub fn require_x87(cpu: &Cpu) -> Exec<()> {
    if cpu.env.cr0 & (CR0_EM | CR0_TS) != 0 { Err(Exception::NM) } else { Ok(()) }
}

fn require_xsave(cpu: &Cpu) -> Exec<()> {
    if cpu.env.cr4 & CR4_OSXSAVE == 0 {
        return Err(Exception::UD);
    }
    if cpu.env.cr0 & CR0_TS != 0 { Err(Exception::NM) } else { Ok(()) }
}

/// The requested components: EDX:EAX, as far as XCR0 has them.
fn requested(cpu: &Cpu) -> u64 {
    let mask = u64::from(cpu.env.gpr[2] as u32) << 32 | u64::from(cpu.env.gpr[0] as u32);
    mask & cpu.env.xcr0
}

/// Raises #GP(0) for bits that this host's MXCSR does not have.
fn check_mxcsr(value: u32) -> Exec<()> {
    if value & !*MXCSR_MASK != 0 { Err(Exception::gp(0)) } else { Ok(()) }
}

fn mxcsr(cpu: &mut Cpu, insn: &Instruction, vex: bool, load: bool) -> Exec<()> {
    if vex {
        require_vector(cpu, 6)?;
    } else {
        require_sse(cpu)?;
    }
    let linear = cpu.operand_linear(insn, 0, 4, !load)?;
    if load {
        let value = cpu.read(linear, 4, Access::Current)? as u32;
        check_mxcsr(value)?;
        cpu.env.xsave.set_mxcsr(value);
        return Ok(());
    }
    let value = cpu.env.xsave.mxcsr();
    cpu.write(linear, 4, u64::from(value), Access::Current)
}
