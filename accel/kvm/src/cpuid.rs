//! What CPUID shows the guest: what the kernel supports, less what the model leaves out, plus what is this CPU's own
//! (SDM vol. 2A, *CPUID*; AMD APM vol. 3, *CPUID Functions*; Linux, Documentation/virt/kvm/x86/cpuid.rst).

use accel::VcpuError;
use accel::cpu_model::{CpuModel, CpuidRegister, Feature, ModelBase};
use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

mod spec;
mod topology;

pub(crate) use topology::Topology;

/// What of the VM the CPU's CPUID depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Platform {
    /// The kernel has the local APICs.
    pub(crate) kernel_apic: bool,
    /// The kernel's local APIC has the TSC-deadline mode.
    pub(crate) tsc_deadline: bool,
    /// Frequency of the guest's TSC, where the kernel knows it.
    pub(crate) tsc_khz: Option<u32>,
}

/// The entries for one CPU, from those that the kernel supports.
pub(crate) fn entries(
    supported: &[kvm_cpuid_entry2],
    model: &CpuModel,
    topology: Topology,
    platform: Platform,
) -> Result<Vec<kvm_cpuid_entry2>, VcpuError> {
    let mut entries = supported.to_vec();
    set(
        &mut entries,
        1,
        0,
        CpuidRegister::Ecx,
        spec::LEAF_1_ECX_TSC_DEADLINE,
        platform.kernel_apic && platform.tsc_deadline,
    );
    if !platform.kernel_apic {
        set(&mut entries, 1, 0, CpuidRegister::Ecx, spec::LEAF_1_ECX_X2APIC, false);
    }
    apply_model(&mut entries, model)?;
    trim_xsave(&mut entries);
    set(&mut entries, 1, 0, CpuidRegister::Ecx, spec::LEAF_1_ECX_HYPERVISOR, true);
    hypervisor_leaves(&mut entries, platform);
    topology.apply(&mut entries);
    Ok(entries)
}

/// The entry of a leaf.
fn find(entries: &mut [kvm_cpuid_entry2], leaf: u32, subleaf: u32) -> Option<&mut kvm_cpuid_entry2> {
    entries.iter_mut().find(|entry| {
        entry.function == leaf
            && (entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0 || entry.index == subleaf)
    })
}

fn register(entry: &mut kvm_cpuid_entry2, register: CpuidRegister) -> &mut u32 {
    match register {
        CpuidRegister::Eax => &mut entry.eax,
        CpuidRegister::Ebx => &mut entry.ebx,
        CpuidRegister::Ecx => &mut entry.ecx,
        CpuidRegister::Edx => &mut entry.edx,
    }
}

/// Sets or clears the bits of `mask`. Nothing happens where the leaf is not there.
fn set(entries: &mut [kvm_cpuid_entry2], leaf: u32, subleaf: u32, reg: CpuidRegister, mask: u32, on: bool) {
    if let Some(entry) = find(entries, leaf, subleaf) {
        let word = register(entry, reg);
        *word = if on { *word | mask } else { *word & !mask };
    }
}

fn has(entries: &mut [kvm_cpuid_entry2], feature: &Feature) -> bool {
    find(entries, feature.leaf, feature.subleaf)
        .is_some_and(|entry| *register(entry, feature.register) & (1 << feature.bit) != 0)
}

fn apply_model(entries: &mut [kvm_cpuid_entry2], model: &CpuModel) -> Result<(), VcpuError> {
    // Before the base cuts them off: what the user adds is measured by what the host has.
    if let Some(missing) = model.added.iter().find(|feature| !has(entries, feature)) {
        return Err(VcpuError::MissingFeature(missing.name));
    }
    if let ModelBase::Named { features, .. } = &model.base {
        for &(leaf, subleaf, reg) in spec::FEATURE_WORDS {
            let kept = features
                .iter()
                .chain(&model.added)
                .filter(|feature| (feature.leaf, feature.subleaf, feature.register) == (leaf, subleaf, reg))
                .fold(0, |mask, feature| mask | 1 << feature.bit);
            set(entries, leaf, subleaf, reg, !kept, false);
        }
    }
    for feature in &model.removed {
        set(entries, feature.leaf, feature.subleaf, feature.register, 1 << feature.bit, false);
    }
    Ok(())
}

/// Takes state components out of leaf 0xd whose instructions are not there: the kernel lets the guest enable in XCR0
/// what this leaf shows.
fn trim_xsave(entries: &mut Vec<kvm_cpuid_entry2>) {
    let mut word = |leaf, reg| find(entries, leaf, 0).map_or(0, |entry| *register(entry, reg));
    let (leaf_1, leaf_7_ebx) = (word(1, CpuidRegister::Ecx), word(7, CpuidRegister::Ebx));
    let (leaf_7_ecx, leaf_7_edx) = (word(7, CpuidRegister::Ecx), word(7, CpuidRegister::Edx));
    if leaf_1 & spec::LEAF_1_ECX_XSAVE == 0 {
        entries.retain(|entry| entry.function != 0xd);
        return;
    }
    let avx = leaf_1 & spec::LEAF_1_ECX_AVX != 0;
    let mut gone = 0;
    if !avx {
        gone |= spec::XCR0_AVX;
    }
    if !avx || leaf_7_ebx & spec::LEAF_7_EBX_AVX512F == 0 {
        gone |= spec::XCR0_AVX512;
    }
    if leaf_7_ebx & spec::LEAF_7_EBX_MPX == 0 {
        gone |= spec::XCR0_MPX;
    }
    if leaf_7_ecx & spec::LEAF_7_ECX_PKU == 0 {
        gone |= spec::XCR0_PKRU;
    }
    if leaf_7_edx & spec::LEAF_7_EDX_AMX_TILE == 0 {
        gone |= spec::XCR0_AMX;
    }
    set(entries, 0xd, 0, CpuidRegister::Eax, gone, false);
    entries.retain(|entry| {
        !(entry.function == 0xd && entry.index >= 2 && entry.index < 32 && gone & (1 << entry.index) != 0)
    });
}

/// Keeps the kernel's signature and its paravirtual features, less those that need its local APIC, and says how
/// fast the TSC runs.
fn hypervisor_leaves(entries: &mut Vec<kvm_cpuid_entry2>, platform: Platform) {
    if !platform.kernel_apic {
        set(entries, spec::KVM_FEATURES, 0, CpuidRegister::Eax, spec::KVM_FEATURES_OF_APIC, false);
    }
    let Some(khz) = platform.tsc_khz else { return };
    let Some(signature) = find(entries, spec::KVM_SIGNATURE, 0) else { return };
    signature.eax = signature.eax.max(spec::TIMING);
    entries.retain(|entry| entry.function != spec::TIMING);
    entries.push(kvm_cpuid_entry2 {
        function: spec::TIMING,
        eax: khz,
        ebx: spec::APIC_BUS_KHZ,
        ..Default::default()
    });
}

#[cfg(test)]
mod tests;
