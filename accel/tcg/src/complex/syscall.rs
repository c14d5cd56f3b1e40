//! SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS as Intel's CPUs have them (SDM vol. 2B).

use crate::complex::Next;
use crate::complex::system::privileged;
use crate::cpu::Cpu;
use crate::env::{Segment, flag};
use crate::exception::{Exception, Exec};
use crate::msr::spec::efer;
use crate::operand::is_canonical;

const RCX: usize = 1;
const RDX: usize = 2;
const RSP: usize = 4;
const R11: usize = 11;

/// Rights of flat 64-bit code, DPL 0; [`USER`] makes it DPL 3.
pub const CODE64: u16 = 0xa09b;
const CODE32: u16 = 0xc09b;
/// Rights of flat data, DPL 0.
pub const DATA: u16 = 0xc093;
/// DPL 3.
pub const USER: u16 = 0x60;

fn flat(selector: u16, access: u16) -> Segment {
    Segment { base: 0, limit: u32::MAX, access, selector }
}

/// SYSCALL. Outside 64-bit mode it does not exist.
pub fn syscall(cpu: &mut Cpu, len: u64) -> Exec<Next> {
    let env = &mut *cpu.env;
    if env.efer & efer::SCE == 0 || !env.is_64bit() {
        return Err(Exception::UD);
    }
    env.gpr[RCX] = env.rip.wrapping_add(len);
    let flags = env.rflags() & !flag::RF;
    env.gpr[R11] = u64::from(flags);
    let selector = (env.msr.star >> 32) as u16 & !3;
    env.seg[1] = flat(selector, CODE64);
    env.seg[2] = flat(selector.wrapping_add(8), DATA);
    env.set_rflags(flags & !(env.msr.fmask as u32));
    env.rip = env.msr.lstar;
    Ok(Next::Jumped)
}

/// SYSRET; `long`: to 64-bit code.
pub fn sysret(cpu: &mut Cpu, long: bool) -> Exec<Next> {
    let env = &mut *cpu.env;
    if env.efer & efer::SCE == 0 || !env.is_64bit() {
        return Err(Exception::UD);
    }
    if env.cpl() != 0 || long && !is_canonical(env.gpr[RCX]) {
        return Err(Exception::gp(0));
    }
    let base = (env.msr.star >> 48) as u16;
    if long {
        env.rip = env.gpr[RCX];
        env.seg[1] = flat(base.wrapping_add(16) | 3, CODE64 | USER);
    } else {
        env.rip = env.gpr[RCX] & 0xffff_ffff;
        env.seg[1] = flat(base | 3, CODE32 | USER);
    }
    env.seg[2] = flat(base.wrapping_add(8) | 3, DATA | USER);
    env.set_rflags(env.gpr[R11] as u32 & !(flag::RF | flag::VM));
    Ok(Next::Jumped)
}

/// SYSENTER.
pub fn sysenter(cpu: &mut Cpu) -> Exec<Next> {
    let long = cpu.is_long_mode();
    let env = &mut *cpu.env;
    let selector = env.msr.sysenter_cs as u16 & !3;
    if env.cr0 & 1 == 0 || selector == 0 {
        return Err(Exception::gp(0));
    }
    env.iflag = 0;
    env.sysflags &= !(flag::VM | flag::RF);
    env.seg[1] = flat(selector, if long { CODE64 } else { CODE32 });
    env.seg[2] = flat(selector.wrapping_add(8), DATA);
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    env.gpr[RSP] = env.msr.sysenter_esp & mask;
    env.rip = env.msr.sysenter_eip & mask;
    Ok(Next::Jumped)
}

/// SYSEXIT; `long`: to 64-bit code.
pub fn sysexit(cpu: &mut Cpu, long: bool) -> Exec<Next> {
    let env = &mut *cpu.env;
    let base = env.msr.sysenter_cs as u16 & !3;
    if env.cr0 & 1 == 0 || base == 0 || env.cpl() != 0 {
        return Err(Exception::gp(0));
    }
    let (rip, rsp) = (env.gpr[RDX], env.gpr[RCX]);
    if long {
        if !is_canonical(rip) || !is_canonical(rsp) {
            return Err(Exception::gp(0));
        }
        env.rip = rip;
        env.gpr[RSP] = rsp;
        env.seg[1] = flat(base.wrapping_add(32) | 3, CODE64 | USER);
        env.seg[2] = flat(base.wrapping_add(40) | 3, DATA | USER);
    } else {
        env.rip = rip & 0xffff_ffff;
        env.gpr[RSP] = rsp & 0xffff_ffff;
        env.seg[1] = flat(base.wrapping_add(16) | 3, CODE32 | USER);
        env.seg[2] = flat(base.wrapping_add(24) | 3, DATA | USER);
    }
    Ok(Next::Jumped)
}

/// SWAPGS.
pub fn swapgs(cpu: &mut Cpu) -> Exec<Next> {
    if !cpu.env.is_64bit() {
        return Err(Exception::UD);
    }
    privileged(cpu)?;
    let env = &mut *cpu.env;
    std::mem::swap(&mut env.seg[5].base, &mut env.msr.kernel_gs_base);
    Ok(Next::Fallthrough)
}
