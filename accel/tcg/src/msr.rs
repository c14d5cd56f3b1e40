//! Model-specific registers (SDM vol. 4, *Model-Specific Registers*).

use crate::cpu::Cpu;
use crate::env::Msrs;
use crate::exception::{Exception, Exec};
use crate::machine_check::{self, Banks};
use crate::mmu::walk::PHYS_BITS;
use crate::mmu::walk::cr::CR0_PG;
use crate::operand::is_canonical;

pub mod spec;

use spec::*;

/// Frequency of the time-stamp counter: guest time in nanoseconds.
pub const TSC_HZ: u64 = 1_000_000_000;

/// Variable-range MTRRs.
const MTRR_VAR_COUNT: u32 = 8;
/// IA32_MTRRCAP: the count, fixed ranges, write-combining.
const MTRR_CAP: u64 = MTRR_VAR_COUNT as u64 | 1 << 8 | 1 << 10;
/// MSR_PLATFORM_INFO: the base ratio, in units of 100 MHz.
const PLATFORM_INFO: u64 = (TSC_HZ / 100_000_000) << 8;
/// IA32_BIOS_SIGN_ID: a microcode revision; the register is there for kernels that ask.
const MICROCODE_REVISION: u64 = 1 << 32;
/// IA32_FEATURE_CONTROL: locked, nothing enabled.
const FEATURE_CONTROL_LOCKED: u64 = 1;
/// IA32_SPEC_CTRL: IBRS, STIBP, SSBD, BHI_DIS_S. Kept, without effect: predictors are the host's business.
const SPEC_CTRL_BITS: u64 = 7 | 1 << 10;
/// IA32_DEBUGCTL: LBR and BTF, which are accepted and have no effect, as in a KVM guest.
const DEBUGCTL_IGNORED: u64 = 3;

const GP: Exception = Exception::gp(0);

fn unknown(what: &str, index: u32) -> Exception {
    tracing::trace!(target: "unimp", "{what} {index:#x}: no such register");
    GP
}

/// RDMSR.
pub fn read(cpu: &mut Cpu, index: u32) -> Exec<u64> {
    Ok(match index {
        IA32_APIC_BASE | IA32_TSC_DEADLINE | X2APIC_FIRST..=X2APIC_LAST => {
            let interrupts = cpu.io().interrupts().ok_or(GP)?;
            interrupts.read_msr(index).map_err(|_| GP)?
        }
        IA32_FS_BASE => cpu.env.seg[4].base,
        IA32_GS_BASE => cpu.env.seg[5].base,
        IA32_TIME_STAMP_COUNTER => cpu.read_tsc(),
        IA32_EFER => cpu.env.efer,
        IA32_ARCH_CAPABILITIES if cpu.cpuid.arch_capabilities() => arch_capabilities::SHOWN,
        IA32_PLATFORM_ID | MSR_SMI_COUNT | MSR_MISC_FEATURES_ENABLES | IA32_DEBUGCTL => 0,
        IA32_P5_MC_ADDR | IA32_P5_MC_TYPE => 0,
        IA32_MCG_CAP..=IA32_MCG_CTL | IA32_MC0_CTL..=machine_check::LAST => cpu.machine_checks.read(index)?,
        IA32_PERF_STATUS | IA32_PERF_CTL => 0,
        IA32_FEATURE_CONTROL => FEATURE_CONTROL_LOCKED,
        IA32_BIOS_SIGN_ID => MICROCODE_REVISION,
        MSR_PLATFORM_INFO => PLATFORM_INFO,
        IA32_MTRRCAP => MTRR_CAP,
        _ => *slot(&mut cpu.env.msr, index).ok_or_else(|| unknown("RDMSR", index))?,
    })
}

/// WRMSR.
pub fn write(cpu: &mut Cpu, index: u32, value: u64) -> Exec<()> {
    match index {
        IA32_APIC_BASE | IA32_TSC_DEADLINE | X2APIC_FIRST..=X2APIC_LAST => {
            let interrupts = cpu.io().interrupts().ok_or(GP)?;
            return interrupts.write_msr(index, value).map_err(|_| GP);
        }
        IA32_FS_BASE => cpu.env.seg[4].base = canonical(value)?,
        IA32_GS_BASE => cpu.env.seg[5].base = canonical(value)?,
        IA32_TIME_STAMP_COUNTER => {
            cpu.publish_count();
            let change = cpu.tsc.write(value);
            cpu.env.msr.tsc_adjust = cpu.env.msr.tsc_adjust.wrapping_add(change);
            tsc_moved(cpu);
        }
        IA32_TSC_ADJUST => {
            let change = value.wrapping_sub(cpu.env.msr.tsc_adjust);
            cpu.env.msr.tsc_adjust = value;
            cpu.tsc.set_offset(cpu.tsc.offset().wrapping_add(change));
            tsc_moved(cpu);
        }
        IA32_EFER => write_efer(cpu, value)?,
        IA32_LSTAR | IA32_CSTAR | IA32_KERNEL_GS_BASE | IA32_SYSENTER_ESP | IA32_SYSENTER_EIP => {
            *slot(&mut cpu.env.msr, index).ok_or_else(|| unknown("WRMSR", index))? = canonical(value)?;
        }
        IA32_FMASK | IA32_TSC_AUX if value >> 32 != 0 => return Err(GP),
        IA32_SPEC_CTRL if !cpu.cpuid.spec_ctrl() || value & !SPEC_CTRL_BITS != 0 => return Err(GP),
        // The barrier is for the host's predictors, which the host keeps apart.
        IA32_PRED_CMD if cpu.cpuid.spec_ctrl() && value & !1 == 0 => {}
        IA32_PAT if value.to_le_bytes().iter().any(|&kind| !is_memory_type(kind) && kind != 7) => {
            return Err(GP);
        }
        IA32_MTRR_DEF_TYPE if value & !0xcff != 0 || !is_memory_type(value as u8) => return Err(GP),
        IA32_MTRR_FIX64K_00000..=0x26f if !value.to_le_bytes().iter().all(|&kind| is_memory_type(kind)) => {
            return Err(GP);
        }
        IA32_MTRR_PHYSBASE0..=0x20f if !is_variable_range(index, value) => return Err(GP),
        IA32_BIOS_SIGN_ID | IA32_PERF_CTL => {}
        IA32_P5_MC_ADDR | IA32_P5_MC_TYPE | MSR_MISC_FEATURES_ENABLES if value == 0 => {}
        IA32_MCG_CAP..=IA32_MCG_CTL | IA32_MC0_CTL..=machine_check::LAST => {
            cpu.machine_checks.write(index, value)?;
        }
        IA32_DEBUGCTL if value & !DEBUGCTL_IGNORED == 0 => {}
        _ => *slot(&mut cpu.env.msr, index).ok_or_else(|| unknown("WRMSR", index))? = value,
    }
    Ok(())
}

fn canonical(value: u64) -> Exec<u64> {
    if is_canonical(value) { Ok(value) } else { Err(GP) }
}

/// UC, WC, WT, WP, WB.
fn is_memory_type(kind: u8) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6)
}

fn is_variable_range(index: u32, value: u64) -> bool {
    let beyond = value >> PHYS_BITS != 0;
    if index & 1 == 0 {
        !beyond && value & 0xf00 == 0 && is_memory_type(value as u8)
    } else {
        !beyond && value & 0x7ff == 0
    }
}

fn write_efer(cpu: &mut Cpu, value: u64) -> Exec<()> {
    let before = cpu.env.efer;
    if value & !(efer::LMA | cpu.cpuid.efer_bits()) != 0 {
        return Err(GP);
    }
    if (value ^ before) & efer::LME != 0 && cpu.env.cr0 & CR0_PG != 0 {
        return Err(GP);
    }
    // LMA is the CPU's to set.
    cpu.env.efer = value & !efer::LMA | before & efer::LMA;
    if (value ^ before) & efer::NXE != 0 {
        cpu.mmu.flush_all();
    }
    Ok(())
}

fn tsc_moved(cpu: &mut Cpu) {
    cpu.env.tsc_offset = cpu.tsc.offset();
    if let Some(interrupts) = cpu.io().interrupts() {
        interrupts.tsc_changed();
    }
}

/// MSRs that are plain storage, whatever may be written to them.
fn slot(msr: &mut Msrs, index: u32) -> Option<&mut u64> {
    Some(match index {
        IA32_TSC_ADJUST => &mut msr.tsc_adjust,
        IA32_SPEC_CTRL => &mut msr.spec_ctrl,
        IA32_SYSENTER_CS => &mut msr.sysenter_cs,
        IA32_SYSENTER_ESP => &mut msr.sysenter_esp,
        IA32_SYSENTER_EIP => &mut msr.sysenter_eip,
        IA32_MISC_ENABLE => &mut msr.misc_enable,
        IA32_MTRR_PHYSBASE0..=0x20f => &mut msr.mtrr_var[(index - IA32_MTRR_PHYSBASE0) as usize],
        IA32_MTRR_FIX64K_00000 => &mut msr.mtrr_fixed[0],
        IA32_MTRR_FIX16K_80000 | IA32_MTRR_FIX16K_A0000 => {
            &mut msr.mtrr_fixed[(1 + index - IA32_MTRR_FIX16K_80000) as usize]
        }
        IA32_MTRR_FIX4K_C0000..=0x26f => &mut msr.mtrr_fixed[(3 + index - IA32_MTRR_FIX4K_C0000) as usize],
        IA32_PAT => &mut msr.pat,
        IA32_MTRR_DEF_TYPE => &mut msr.mtrr_def_type,
        IA32_STAR => &mut msr.star,
        IA32_LSTAR => &mut msr.lstar,
        IA32_CSTAR => &mut msr.cstar,
        IA32_FMASK => &mut msr.fmask,
        IA32_KERNEL_GS_BASE => &mut msr.kernel_gs_base,
        IA32_TSC_AUX => &mut msr.tsc_aux,
        _ => return None,
    })
}

/// The MSRs of [`accel::CpuArchState::msrs`], ascending: [`slot`]'s, the machine-check banks and the time-stamp counter. FS and GS bases are
/// part of the segments, the APIC's MSRs of the APIC.
fn saved_indices() -> impl Iterator<Item = u32> {
    [IA32_TIME_STAMP_COUNTER, IA32_TSC_ADJUST, IA32_SPEC_CTRL]
        .into_iter()
        .chain(IA32_SYSENTER_CS..=IA32_SYSENTER_EIP)
        .chain(Banks::indices().filter(|&index| index < IA32_MISC_ENABLE))
        .chain([IA32_MISC_ENABLE])
        .chain(IA32_MTRR_PHYSBASE0..=0x20f)
        .chain([IA32_MTRR_FIX64K_00000, IA32_MTRR_FIX16K_80000, IA32_MTRR_FIX16K_A0000])
        .chain(IA32_MTRR_FIX4K_C0000..=0x26f)
        .chain([IA32_PAT, IA32_MTRR_DEF_TYPE])
        .chain(Banks::indices().filter(|&index| index > IA32_MTRR_DEF_TYPE))
        .chain(IA32_STAR..=IA32_FMASK)
        .chain(IA32_KERNEL_GS_BASE..=IA32_TSC_AUX)
}

/// All MSRs that make up the CPU's state, ascending by index.
pub fn save(cpu: &mut Cpu) -> Vec<(u32, u64)> {
    saved_indices()
        .map(|index| {
            let value = match index {
                IA32_TIME_STAMP_COUNTER => cpu.read_tsc(),
                IA32_MCG_STATUS | IA32_MCG_CTL | IA32_MC0_CTL..=machine_check::LAST => {
                    cpu.machine_checks.read(index).expect("these can be read")
                }
                _ => *slot(&mut cpu.env.msr, index).expect("what is saved is storage"),
            };
            (index, value)
        })
        .collect()
}

/// Restores an MSR of [`save`] without the checks and the effects of WRMSR; others are left alone.
pub fn restore(cpu: &mut Cpu, index: u32, value: u64) {
    if index == IA32_TIME_STAMP_COUNTER {
        cpu.tsc.write(value);
        cpu.env.tsc_offset = cpu.tsc.offset();
    } else if !cpu.machine_checks.restore(index, value)
        && let Some(slot) = slot(&mut cpu.env.msr, index)
    {
        *slot = value;
    }
}

/// Every MSR as RESET leaves it; the time-stamp counter is guest time again.
pub fn power_on(cpu: &mut Cpu) {
    cpu.tsc.set_offset(0);
    cpu.env.tsc_offset = 0;
    *cpu.machine_checks = Banks::default();
    cpu.env.msr = Msrs { pat: PAT_RESET, misc_enable: MISC_ENABLE_FAST_STRING, ..Msrs::default() };
}

impl Cpu {
    /// The time-stamp counter.
    pub fn read_tsc(&self) -> u64 {
        self.publish_count();
        self.clock.now_ns().wrapping_add(self.env.tsc_offset)
    }
}
