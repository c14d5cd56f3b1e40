//! CPUID bits as SDM vol. 2A, *CPUID*, AMD APM vol. 3, *CPUID Functions*, and Linux,
//! Documentation/virt/kvm/x86/cpuid.rst, name them.

pub(super) const LEAF_1_ECX_X2APIC: u32 = 1 << 21;
pub(super) const LEAF_1_ECX_TSC_DEADLINE: u32 = 1 << 24;
pub(super) const LEAF_1_ECX_XSAVE: u32 = 1 << 26;
pub(super) const LEAF_1_ECX_HYPERVISOR: u32 = 1 << 31;

pub(super) const LEAF_8000_0007_EDX_INVARIANT_TSC: u32 = 1 << 8;

/// `KVMKVMKVM`, with the greatest leaf in EAX.
pub(super) const KVM_SIGNATURE: u32 = 0x4000_0000;
/// KVM's paravirtual features.
pub(super) const KVM_FEATURES: u32 = 0x4000_0001;
/// TSC and APIC bus frequency in kHz, in VMware's format, which Linux and the BSDs read.
pub(super) const TIMING: u32 = 0x4000_0010;
/// The kernel's APIC timer counts nanoseconds.
pub(super) const APIC_BUS_KHZ: u32 = 1_000_000;

/// Features of [`KVM_FEATURES`] that work through the kernel's local APIC: asynchronous page faults (4, 10, 14),
/// PV_EOI (6), PV_UNHALT (7), SEND_IPI (11), POLL_CONTROL (12), SCHED_YIELD (13), MSI_EXT_DEST_ID (15).
pub(super) const KVM_FEATURES_OF_APIC: u32 =
    1 << 4 | 1 << 6 | 1 << 7 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 15;
