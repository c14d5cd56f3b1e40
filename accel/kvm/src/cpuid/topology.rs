//! A CPU's place in the machine, in all the leaves that tell it: one package of `cpu_count` cores with one thread each.

use accel::cpu_model::CpuidRegister;
use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::{find, set, spec};

/// Level types of leaf 0xb's ECX, bits 15:8.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// One CPU of how many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Topology {
    /// Local APIC ID.
    pub(crate) apic_id: u32,
    /// CPUs of the machine.
    pub(crate) cpu_count: u32,
}

impl Topology {
    /// How many low bits of an APIC ID number the CPUs of the package.
    fn package_shift(self) -> u32 {
        self.cpu_count.next_power_of_two().trailing_zeros()
    }

    pub(super) fn apply(self, entries: &mut Vec<kvm_cpuid_entry2>) {
        let max_leaf = find(entries, 0, 0).map_or(0, |entry| entry.eax);
        self.legacy(entries);
        self.caches(entries);
        self.amd(entries);
        for leaf in [0xb, 0x1f] {
            entries.retain(|entry| entry.function != leaf);
            if leaf <= max_leaf {
                self.extended(entries, leaf);
            }
        }
    }

    /// Leaf 1: eight bits of the APIC ID, and how many IDs a package has.
    fn legacy(self, entries: &mut [kvm_cpuid_entry2]) {
        let many = self.cpu_count > 1;
        if let Some(entry) = find(entries, 1, 0) {
            let ids = (1u32 << self.package_shift()).min(255);
            entry.ebx = (entry.ebx & 0xff00) | (ids << 16) | (self.apic_id << 24);
        }
        set(entries, 1, 0, CpuidRegister::Edx, spec::LEAF_1_EDX_HTT, many);
        set(
            entries,
            0x8000_0001,
            0,
            CpuidRegister::Ecx,
            spec::LEAF_8000_0001_ECX_CMP_LEGACY,
            many && self.is_amd(entries),
        );
    }

    fn is_amd(self, entries: &[kvm_cpuid_entry2]) -> bool {
        // "AuthenticAMD" and "HygonGenuine".
        entries.iter().any(|entry| entry.function == 0 && matches!(entry.ebx, 0x6874_7541 | 0x6f67_7948))
    }

    /// Leaves 4 (Intel) and 0x8000001d (AMD): who shares a cache. Level 3 is the package's, the others a core's.
    fn caches(self, entries: &mut [kvm_cpuid_entry2]) {
        let package = (1u32 << self.package_shift()) - 1;
        for entry in entries.iter_mut().filter(|entry| matches!(entry.function, 4 | 0x8000_001d)) {
            let (kind, level) = (entry.eax & 0x1f, entry.eax >> 5 & 7);
            if kind == 0 {
                continue;
            }
            let sharing = if level >= 3 { package.min(0xfff) } else { 0 };
            let cores = if entry.function == 4 { package.min(0x3f) } else { 0 };
            entry.eax = (entry.eax & 0x3fff) | sharing << 14 | cores << 26;
        }
    }

    /// AMD's leaves 0x80000008 (how many cores) and 0x8000001e (which one).
    fn amd(self, entries: &mut [kvm_cpuid_entry2]) {
        let amd = self.is_amd(entries);
        if let Some(entry) = find(entries, 0x8000_0008, 0) {
            // Intel reserves the register.
            entry.ecx = if amd { (self.cpu_count - 1).min(0xff) | self.package_shift() << 12 } else { 0 };
        }
        if let Some(entry) = find(entries, 0x8000_001e, 0) {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (self.apic_id, self.apic_id & 0xff, 0, 0);
        }
    }

    /// Leaves 0xb and 0x1f: thread, core, end.
    fn extended(self, entries: &mut Vec<kvm_cpuid_entry2>, leaf: u32) {
        let level = |index, shift, count, kind: u32| kvm_cpuid_entry2 {
            function: leaf,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: count,
            ecx: index | kind << 8,
            edx: self.apic_id,
            ..Default::default()
        };
        entries.push(level(0, 0, 1, LEVEL_SMT));
        entries.push(level(1, self.package_shift(), self.cpu_count, LEVEL_CORE));
        entries.push(level(2, 0, 0, 0));
    }
}
