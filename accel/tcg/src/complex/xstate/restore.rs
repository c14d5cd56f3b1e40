//! XRSTOR, XRSTORS and FXRSTOR (SDM vol. 1, *Operation of XRSTOR*, *Operation of XRSTORS*).

use iced_x86::Instruction;

use crate::complex::xstate::image::MXCSR_INIT;
use crate::complex::xstate::layout::{SSE, X87, compacted, extended, visible};
use crate::complex::xstate::save::area;
use crate::complex::xstate::{check_mxcsr, requested, require_x87, require_xsave};
use crate::cpu::Cpu;
use crate::env::{XSAVE_BYTES, XsaveArea};
use crate::exception::{Exception, Exec};
use crate::mmu::Access;

const LEGACY_AND_HEADER: usize = 576;
const COMPACT: u64 = 1 << 63;

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

/// Checks the header; returns XSTATE_BV and XCOMP_BV.
fn check_header(cpu: &Cpu, bytes: &[u8], supervisor: bool) -> Exec<(u64, u64)> {
    let (xstate_bv, xcomp_bv) = (u64_at(bytes, 512), u64_at(bytes, 520));
    let rest_from = if xcomp_bv & COMPACT != 0 { 528 } else { 520 };
    let rest_to = if xcomp_bv & COMPACT != 0 { 576 } else { 536 };
    let allowed = if xcomp_bv & COMPACT != 0 {
        if xcomp_bv & !(cpu.env.xcr0 | COMPACT) != 0 {
            return Err(Exception::gp(0));
        }
        xcomp_bv & !COMPACT
    } else if supervisor {
        return Err(Exception::gp(0));
    } else {
        cpu.env.xcr0
    };
    if xstate_bv & !allowed != 0 || bytes[rest_from..rest_to].iter().any(|&byte| byte != 0) {
        return Err(Exception::gp(0));
    }
    Ok((xstate_bv, xcomp_bv))
}

/// XRSTOR, or XRSTORS.
pub fn xrstor(cpu: &mut Cpu, insn: &Instruction, supervisor: bool) -> Exec<()> {
    require_xsave(cpu)?;
    if supervisor && cpu.env.cpl() != 0 {
        return Err(Exception::gp(0));
    }
    let rfbm = requested(cpu);
    let wide = cpu.env.is_64bit();
    let linear = area(cpu, insn, LEGACY_AND_HEADER, 63, false)?;
    let mut bytes = [0; XSAVE_BYTES];
    cpu.read_bytes(linear, &mut bytes[..LEGACY_AND_HEADER], Access::Current)?;
    let (xstate_bv, xcomp_bv) = check_header(cpu, &bytes, supervisor)?;
    let compact = xcomp_bv & COMPACT != 0;
    let load = rfbm & xstate_bv;
    let offsets = if compact { Some(compacted(xcomp_bv).0) } else { None };
    for index in extended(load) {
        let (at, size) = XsaveArea::place(index);
        let len = visible(index, size, wide);
        if len != 0 {
            let from = offsets.map_or(at, |offsets| offsets[index]);
            // The limit was checked for the fixed part; this part may reach beyond it.
            area(cpu, insn, from + len, 63, false)?;
            let piece = cpu.wrap(linear.wrapping_add(from as u64));
            cpu.read_bytes(piece, &mut bytes[at..at + len], Access::Current)?;
        }
    }
    let mxcsr = if compact {
        match (rfbm & 2 != 0, load & 2 != 0) {
            (true, true) => Some(u64_at(&bytes, 24) as u32),
            (true, false) => Some(MXCSR_INIT),
            (false, _) => None,
        }
    } else {
        (rfbm & 6 != 0).then(|| u64_at(&bytes, 24) as u32)
    };
    if let Some(value) = mxcsr {
        check_mxcsr(value)?;
    }
    let image = &mut cpu.env.xsave;
    if let Some(value) = mxcsr {
        image.set_mxcsr(value);
    }
    if load & 1 != 0 {
        image.load_x87(&bytes);
    } else if rfbm & 1 != 0 {
        image.initialise(X87, 0);
    }
    for index in (rfbm & 2 != 0).then_some(SSE).into_iter().chain(extended(rfbm)) {
        let (at, size) = XsaveArea::place(index);
        let len = if index == SSE && !wide { size / 2 } else { visible(index, size, wide) };
        if load >> index & 1 != 0 {
            image.touch(index);
            image.0[at..at + len].copy_from_slice(&bytes[at..at + len]);
        } else {
            image.initialise(index, len);
        }
    }
    Ok(())
}

/// FXRSTOR, in the 64-bit form and the other.
pub fn fxrstor(cpu: &mut Cpu, insn: &Instruction) -> Exec<()> {
    require_x87(cpu)?;
    let linear = area(cpu, insn, 512, 15, false)?;
    let mut bytes = [0; 416];
    cpu.read_bytes(linear, &mut bytes, Access::Current)?;
    let mxcsr = u64_at(&bytes, 24) as u32;
    check_mxcsr(mxcsr)?;
    let (at, size) = XsaveArea::place(SSE);
    let len = if cpu.env.is_64bit() { size } else { size / 2 };
    let image = &mut cpu.env.xsave;
    image.set_mxcsr(mxcsr);
    image.load_x87(&bytes);
    image.touch(SSE);
    image.0[at..at + len].copy_from_slice(&bytes[at..at + len]);
    Ok(())
}
