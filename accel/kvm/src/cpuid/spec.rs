//! CPUID bits as SDM vol. 2A, *CPUID*, AMD APM vol. 3, *CPUID Functions*, and Linux,
//! Documentation/virt/kvm/x86/cpuid.rst, name them.

use accel::cpu_model::CpuidRegister::{self, Eax, Ebx, Ecx, Edx};

pub(super) const LEAF_1_ECX_X2APIC: u32 = 1 << 21;
pub(super) const LEAF_1_ECX_TSC_DEADLINE: u32 = 1 << 24;
pub(super) const LEAF_1_ECX_XSAVE: u32 = 1 << 26;
pub(super) const LEAF_1_ECX_AVX: u32 = 1 << 28;
pub(super) const LEAF_1_ECX_HYPERVISOR: u32 = 1 << 31;
pub(super) const LEAF_1_EDX_HTT: u32 = 1 << 28;

pub(super) const LEAF_7_EBX_MPX: u32 = 1 << 14;
pub(super) const LEAF_7_EBX_AVX512F: u32 = 1 << 16;
pub(super) const LEAF_7_ECX_PKU: u32 = 1 << 3;
pub(super) const LEAF_7_EDX_AMX_TILE: u32 = 1 << 24;

pub(super) const XCR0_AVX: u32 = 1 << 2;
pub(super) const XCR0_MPX: u32 = 0b11 << 3;
pub(super) const XCR0_AVX512: u32 = 0b111 << 5;
pub(super) const XCR0_PKRU: u32 = 1 << 9;
pub(super) const XCR0_AMX: u32 = 0b11 << 17;

pub(super) const LEAF_8000_0001_ECX_CMP_LEGACY: u32 = 1 << 1;

/// The registers that hold nothing but feature bits.
pub(super) const FEATURE_WORDS: &[(u32, u32, CpuidRegister)] = &[
    (1, 0, Ecx),
    (1, 0, Edx),
    (6, 0, Eax),
    (7, 0, Ebx),
    (7, 0, Ecx),
    (7, 0, Edx),
    (7, 1, Eax),
    (7, 1, Ebx),
    (7, 1, Ecx),
    (7, 1, Edx),
    (7, 2, Edx),
    (0xd, 1, Eax),
    (0x8000_0001, 0, Ecx),
    (0x8000_0001, 0, Edx),
    (0x8000_0007, 0, Edx),
    (0x8000_0008, 0, Ebx),
    (0x8000_000a, 0, Edx),
    (0x8000_0021, 0, Eax),
];

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
