//! A CPU's place in the machine, in all the leaves that tell it.

use accel::cpu_model::{CpuPlace, Vendor};
use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::find;

/// Sub-leaves of leaves 0xb and 0x1f: thread, core, end.
const LEVELS: u32 = 3;

/// Replaces what the kernel says of its own place by `place`.
pub(super) fn apply(place: CpuPlace, entries: &mut Vec<kvm_cpuid_entry2>) {
    let Some(leaf_0) = find(entries, 0, 0).map(|entry| registers(entry)) else { return };
    let vendor = Vendor::of_leaf_0(leaf_0);
    for entry in entries.iter_mut() {
        let shown = place.apply(vendor, entry.function, entry.index, registers(entry));
        [entry.eax, entry.ebx, entry.ecx, entry.edx] = shown;
    }
    for leaf in [0xb, 0x1f] {
        entries.retain(|entry| entry.function != leaf);
        let [max_leaf, ..] = leaf_0;
        if leaf <= max_leaf {
            entries.extend((0..LEVELS).map(|index| level(place, leaf, index)));
        }
    }
}

fn registers(entry: &kvm_cpuid_entry2) -> [u32; 4] {
    [entry.eax, entry.ebx, entry.ecx, entry.edx]
}

fn level(place: CpuPlace, leaf: u32, index: u32) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = place.level(index);
    let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    kvm_cpuid_entry2 { function: leaf, index, flags, eax, ebx, ecx, edx, ..Default::default() }
}
