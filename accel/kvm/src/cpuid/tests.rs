//! What a small AMD host's CPUID becomes for the guest.

use accel::cpu_model::{CpuTopology, ModelBase};

use super::*;

fn feature(name: &str) -> accel::cpu_model::Feature {
    accel::cpu_model::feature(name).expect("a feature of this name")
}

fn leaf(function: u32, index: Option<u32>, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    let flags = if index.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
    kvm_cpuid_entry2 { function, index: index.unwrap_or(0), flags, eax, ebx, ecx, edx, ..Default::default() }
}

/// A small AMD host: AVX2, no AVX-512.
fn host() -> Vec<kvm_cpuid_entry2> {
    vec![
        leaf(0, None, [0x1f, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        leaf(1, None, [0xa2_0f12, 0x0708_0800, 1 | 1 << 21 | 1 << 26 | 1 << 28, 1 << 25]),
        leaf(7, Some(0), [0, 1 << 5, 0, 0]),
        leaf(0xb, Some(0), [1, 2, 0x100, 7]),
        leaf(0xd, Some(0), [7, 832, 832, 0]),
        leaf(0xd, Some(1), [0xf, 0, 0, 0]),
        leaf(0xd, Some(2), [256, 576, 0, 0]),
        leaf(0x4000_0000, None, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        leaf(0x4000_0001, None, [0x0100_ffff, 0, 0, 0]),
        leaf(0x8000_0001, None, [0, 0, 2, 0]),
        leaf(0x8000_0007, None, [0, 0, 0, 1 << 8]),
        leaf(0x8000_0008, None, [0x3030, 0, 0x400f, 0]),
        leaf(0x8000_001d, Some(3), [0x0001_c163, 0, 0, 0]),
        leaf(0x8000_001e, None, [7, 0x103, 1, 0]),
    ]
}

const KERNEL: Platform = Platform { kernel_apic: true, tsc_deadline: true, tsc_khz: Some(2_445_433) };
const OURS: Platform = Platform { kernel_apic: false, ..KERNEL };
const FOUR: CpuPlace = CpuPlace { topology: CpuTopology { sockets: 1, cores: 4, threads: 1 }, apic_id: 3 };

fn shown(model: &CpuModel, platform: Platform) -> Vec<kvm_cpuid_entry2> {
    entries(&host(), model, FOUR, platform).expect("the host has it all")
}

fn word(entries: &mut [kvm_cpuid_entry2], leaf: u32, subleaf: u32, reg: CpuidRegister) -> u32 {
    *register(find(entries, leaf, subleaf).expect("the leaf is there"), reg)
}

#[test]
fn the_kernels_apic_brings_its_features() {
    let mut with = shown(&CpuModel::default(), KERNEL);
    let ecx = word(&mut with, 1, 0, CpuidRegister::Ecx);
    assert_eq!(ecx, 1 | 1 << 21 | 1 << 24 | 1 << 26 | 1 << 28 | 1 << 31);
    assert_eq!(word(&mut with, 0x4000_0001, 0, CpuidRegister::Eax), 0x0100_ffff);

    let mut without = shown(&CpuModel::default(), OURS);
    let ecx = word(&mut without, 1, 0, CpuidRegister::Ecx);
    assert_eq!(ecx, 1 | 1 << 26 | 1 << 28 | 1 << 31);
    assert_eq!(word(&mut without, 0x4000_0001, 0, CpuidRegister::Eax), 0x0100_032f);
}

#[test]
fn the_tsc_frequency_is_told_behind_the_signature() {
    let mut shown = shown(&CpuModel::default(), KERNEL);
    assert_eq!(word(&mut shown, 0x4000_0000, 0, CpuidRegister::Eax), 0x4000_0010);
    assert_eq!(word(&mut shown, 0x4000_0010, 0, CpuidRegister::Eax), 2_445_433);
}

#[test]
fn each_leaf_tells_the_same_place() {
    let mut shown = shown(&CpuModel::default(), KERNEL);
    assert_eq!(word(&mut shown, 1, 0, CpuidRegister::Ebx), 3 << 24 | 4 << 16 | 8 << 8);
    assert_ne!(word(&mut shown, 1, 0, CpuidRegister::Edx) & 1 << 28, 0);
    for leaf in [0xb, 0x1f] {
        let core = find(&mut shown, leaf, 1).expect("the core level");
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (2, 4, 0x201, 3));
        assert_eq!(shown.iter().filter(|entry| entry.function == leaf).count(), 3);
    }
    assert_eq!(word(&mut shown, 0x8000_0008, 0, CpuidRegister::Ecx), 0x2003);
    assert_eq!(word(&mut shown, 0x8000_001e, 0, CpuidRegister::Eax), 3);
    assert_eq!(word(&mut shown, 0x8000_001d, 3, CpuidRegister::Eax), 0xc163);
}

#[test]
fn removed_features_go_with_their_state() {
    let model = CpuModel { removed: vec![feature("avx")], ..CpuModel::default() };
    let mut shown = shown(&model, KERNEL);
    assert_eq!(word(&mut shown, 1, 0, CpuidRegister::Ecx) & 1 << 28, 0);
    assert_eq!(word(&mut shown, 0xd, 0, CpuidRegister::Eax), 3);
    assert!(find(&mut shown, 0xd, 2).is_none());
}

#[test]
fn a_named_model_has_its_features_and_the_machines() {
    let base = ModelBase::Named { name: "test", features: vec![feature("pni")] };
    let model = CpuModel { base, added: vec![feature("avx2")], ..CpuModel::default() };
    let mut shown = shown(&model, KERNEL);
    assert_eq!(word(&mut shown, 1, 0, CpuidRegister::Ecx), 1 | 1 << 21 | 1 << 24 | 1 << 31);
    assert_eq!(word(&mut shown, 7, 0, CpuidRegister::Ebx), 1 << 5);
    assert!(find(&mut shown, 0xd, 0).is_none());
}

#[test]
fn an_added_feature_that_the_host_lacks_is_an_error() {
    let model = CpuModel { added: vec![feature("avx512f")], ..CpuModel::default() };
    let error = entries(&host(), &model, FOUR, KERNEL).expect_err("the host lacks it");
    assert!(matches!(error, VcpuError::MissingFeature("avx512f")));
}

#[test]
fn the_invariant_tsc_is_shown_on_request() {
    let plain = CpuModel::default();
    assert_eq!(word(&mut shown(&plain, KERNEL), 0x8000_0007, 0, CpuidRegister::Edx), 0);
    let asked = CpuModel { added: vec![feature("invtsc")], ..CpuModel::default() };
    assert_eq!(word(&mut shown(&asked, KERNEL), 0x8000_0007, 0, CpuidRegister::Edx), 1 << 8);
}
