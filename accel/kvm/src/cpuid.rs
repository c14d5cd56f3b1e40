//! What CPUID shows the guest: what the kernel supports, less what the model leaves out, plus what is this CPU's own
//! (SDM vol. 2A, *CPUID*; AMD APM vol. 3, *CPUID Functions*; Linux, Documentation/virt/kvm/x86/cpuid.rst).

use accel::VcpuError;
use accel::cpu_model::{CpuModel, CpuPlace, CpuidRegister};
use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

mod spec;
mod topology;

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
    place: CpuPlace,
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
    // With it Linux prefers the TSC to the kernel's clock; but that one stands still while the machine is paused.
    let invariant_tsc = model.added.iter().any(|feature| feature.name == "invtsc");
    if !invariant_tsc {
        set(&mut entries, 0x8000_0007, 0, CpuidRegister::Edx, spec::LEAF_8000_0007_EDX_INVARIANT_TSC, false);
    }
    drop_lost_state(&mut entries);
    set(&mut entries, 1, 0, CpuidRegister::Ecx, spec::LEAF_1_ECX_HYPERVISOR, true);
    hypervisor_leaves(&mut entries, platform);
    topology::apply(place, &mut entries);
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

fn apply_model(entries: &mut [kvm_cpuid_entry2], model: &CpuModel) -> Result<(), VcpuError> {
    model.check(|leaf, subleaf| {
        find(entries, leaf, subleaf).map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
    })?;
    for entry in entries {
        let offered = [entry.eax, entry.ebx, entry.ecx, entry.edx];
        [entry.eax, entry.ebx, entry.ecx, entry.edx] = model.apply(entry.function, entry.index, offered);
    }
    Ok(())
}

/// Takes out the sub-leaves of leaf 0xd for state that the model has ruled out: the kernel lets the guest enable in
/// XCR0 what this leaf shows.
fn drop_lost_state(entries: &mut Vec<kvm_cpuid_entry2>) {
    let leaf_1_ecx = find(entries, 1, 0).map_or(0, |entry| entry.ecx);
    if leaf_1_ecx & spec::LEAF_1_ECX_XSAVE == 0 {
        entries.retain(|entry| entry.function != 0xd);
        return;
    }
    let of = |entry: Option<&mut kvm_cpuid_entry2>, low: CpuidRegister, high: CpuidRegister| {
        entry.map_or(0, |entry| u64::from(*register(entry, high)) << 32 | u64::from(*register(entry, low)))
    };
    let user = of(find(entries, 0xd, 0), CpuidRegister::Eax, CpuidRegister::Edx);
    // Supervisor state: what IA32_XSS may enable.
    let supervisor = of(find(entries, 0xd, 1), CpuidRegister::Ecx, CpuidRegister::Edx);
    let shown = user | supervisor;
    entries.retain(|entry| entry.function != 0xd || entry.index < 2 || shown >> entry.index.min(63) & 1 != 0);
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
