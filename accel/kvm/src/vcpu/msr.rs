//! Model-specific registers (SDM vol. 4; Linux, Documentation/virt/kvm/api.rst, *KVM_GET_MSRS*, *KVM_SET_MSRS*).

use accel::VcpuError;
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::host;

const IA32_TIME_STAMP_COUNTER: u32 = 0x10;
const IA32_APIC_BASE: u32 = 0x1b;
const IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRINGS: u64 = 1;
const IA32_EFER: u32 = 0xc000_0080;

/// IA32_MC0_CTL and the registers after it, of the banks that a CPU has.
const BANKS: std::ops::Range<u32> = 0x400..0x400 + 4 * super::machine_check::BANKS;

/// KVM_GET_MSRS takes no more at once.
const BATCH: usize = 128;

/// MTRRs and PAT (variable ranges, fixed ranges, default type) and the machine-check banks, which the kernel has and does not
/// list.
fn unlisted() -> impl Iterator<Item = u32> {
    (0x200..=0x20f).chain([0x250, 0x258, 0x259]).chain(0x268..=0x26f).chain([0x277, 0x2ff]).chain(BANKS)
}

/// Which of the MSRs that the kernel `listed` are part of a CPU's state, ascending. Left out: those that
/// [`accel::CpuArchState`] has fields for, time itself, capabilities of nested virtualization, which are constants,
/// and Hyper-V's, which are off.
pub(crate) fn of_state(listed: &[u32]) -> Vec<u32> {
    let mut indices: Vec<u32> = listed
        .iter()
        .copied()
        .filter(|index| {
            !matches!(
                index,
                &IA32_TIME_STAMP_COUNTER | &IA32_APIC_BASE | &IA32_EFER | 0x480..=0x4ff | 0x4000_0000..=0x400f_ffff
            )
        })
        .chain(unlisted())
        .collect();
    indices.sort_unstable();
    indices.dedup();
    indices
}

/// Those of `indices` that can be read, with their values.
pub(crate) fn read(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, VcpuError> {
    let mut values = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(BATCH)];
        let entries: Vec<_> =
            batch.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        let mut msrs = Msrs::from_entries(&entries).expect("a batch fits");
        // The kernel stops at the first that it cannot read; the one after it may be fine.
        let count = fd.get_msrs(&mut msrs).map_err(host("KVM_GET_MSRS failed"))?;
        values.extend(msrs.as_slice()[..count].iter().map(|entry| (entry.index, entry.data)));
        rest = &rest[if count < batch.len() { count + 1 } else { count }..];
    }
    Ok(values)
}

/// Writes those of `wanted` that are not what the CPU has now, all that can be written.
pub(super) fn write(fd: &VcpuFd, wanted: &[(u32, u64)]) -> Result<(), VcpuError> {
    let indices: Vec<u32> = wanted.iter().map(|&(index, _)| index).collect();
    let present = read(fd, &indices)?;
    let changed: Vec<_> = wanted
        .iter()
        .filter(|pair| present.binary_search(pair).is_err())
        .map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() })
        .collect();
    let mut rest = &changed[..];
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(BATCH)];
        let msrs = Msrs::from_entries(batch).expect("a batch fits");
        let count = fd.set_msrs(&msrs).map_err(host("KVM_SET_MSRS failed"))?;
        if let Some(refused) = batch.get(count) {
            tracing::debug!(target: "cpu", index = refused.index, value = refused.data, "the kernel refuses an MSR");
        }
        rest = &rest[if count < batch.len() { count + 1 } else { count }..];
    }
    Ok(())
}

/// Brings the CPU's time-stamp counter to the machine's, which the others have: the kernel takes a zero for that, whenever
/// it is written. A guest may have moved one CPU's.
pub(super) fn join_tsc(fd: &VcpuFd) -> Result<(), VcpuError> {
    let zero = kvm_msr_entry { index: IA32_TIME_STAMP_COUNTER, data: 0, ..Default::default() };
    let msrs = Msrs::from_entries(&[zero]).expect("one fits");
    fd.set_msrs(&msrs).map_err(host("KVM_SET_MSRS failed")).map(drop)
}

/// Power-on has fast strings on; where they are off Linux stops using REP MOVS and REP STOS.
pub(super) fn enable_fast_strings(fd: &VcpuFd) -> Result<(), VcpuError> {
    if let [(index, value)] = read(fd, &[IA32_MISC_ENABLE])?[..] {
        write(fd, &[(index, value | MISC_ENABLE_FAST_STRINGS)])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_and_leaves_out_what_is_not_state() {
        let indices = of_state(&[0xc000_0080, 0x10, 0x174, 0x1b, 0x480, 0x4000_0000, 0x4b56_4d01, 0x277]);
        assert!(indices.is_sorted());
        assert_eq!(indices.first(), Some(&0x174));
        assert_eq!(indices.last(), Some(&0x4b56_4d01));
        assert_eq!(indices.iter().filter(|&&index| index == 0x277).count(), 1);
        assert!(!indices.contains(&0x10) && !indices.contains(&0x480));
    }
}
