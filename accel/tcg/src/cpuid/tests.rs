use std::sync::Arc;

use accel::cpu_model::{CpuModel, feature};
use accel::{VcpuConfig, VcpuError};

use super::*;

fn config(model: CpuModel, index: usize, cpu_count: usize) -> VcpuConfig {
    VcpuConfig { index, apic_id: index as u32, cpu_count, model: Arc::new(model) }
}

const CR4: u64 = 0;

#[test]
fn leaves_that_kernels_rely_on() {
    let [max, ebx, ecx, edx] = MAX.query(0, 0, CR4, 1);
    let name: Vec<u8> = [ebx, edx, ecx].iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(name, b"GenuineIntel");
    assert!(max >= 0x16);
    let [denominator, numerator, crystal, _] = MAX.query(0x15, 0, CR4, 1);
    assert_eq!(u64::from(crystal) * u64::from(numerator) / u64::from(denominator), crate::msr::TSC_HZ);
    assert_eq!(MAX.query(0x8000_0008, 0, CR4, 1)[0], 0x302e);
    assert_eq!(MAX.query(0x8000_0007, 0, CR4, 1)[3], 0x100);
    assert!(MAX.query(0x4000_0000, 0, CR4, 1)[0] >= 0x4000_0010);
    assert_eq!(MAX.query(0x4000_0010, 0, CR4, 1)[0], 1_000_000);
    // VMX, MONITOR, PDCM; TSX, PKU.
    assert_eq!(MAX.query(1, 0, CR4, 1)[2] & (1 << 5 | 1 << 3 | 1 << 15), 0);
    assert_eq!(MAX.query(7, 0, CR4, 1)[1] & (1 << 4 | 1 << 11), 0);
    assert_eq!(MAX.query(7, 0, CR4, 1)[2] & (1 << 3 | 1 << 16), 0);
}

#[test]
fn osxsave_follows_cr4_and_the_area_follows_xcr0() {
    assert_eq!(MAX.query(1, 0, 0, 1)[2] & 1 << 27, 0);
    if MAX.query(1, 0, 0, 1)[2] & 1 << 26 == 0 {
        return;
    }
    assert_ne!(MAX.query(1, 0, CR4_OSXSAVE, 1)[2] & 1 << 27, 0);
    assert_eq!(MAX.query(0xd, 0, 0, 1)[1], 576);
    assert_eq!(MAX.query(0xd, 0, 0, 3)[1], 576);
    if MAX.xcr0() & 4 != 0 {
        let [size, offset, ..] = MAX.query(0xd, 2, 0, 1);
        assert_eq!((size, offset), (256, 576));
        assert_eq!(MAX.query(0xd, 0, 0, 7)[1], 832);
        assert!(MAX.query(0xd, 0, 0, 1)[2] >= 832);
    }
    assert_eq!(MAX.query(0xd, 9, 0, 7), [0; 4], "no protection keys");
}

#[test]
fn topology_of_several_cpus() {
    let third = Cpuid::new(&config(CpuModel::default(), 2, 3)).unwrap();
    let [_, ebx, _, edx] = third.query(1, 0, 0, 1);
    assert_eq!((ebx >> 24, ebx >> 16 & 0xff), (2, 4));
    assert_ne!(edx & 1 << 28, 0);
    assert_eq!(third.query(0xb, 0, 0, 1), [0, 1, 0x100, 2]);
    assert_eq!(third.query(0xb, 1, 0, 1), [2, 3, 0x201, 2]);
    assert_eq!(third.query(0xb, 2, 0, 1), [0, 0, 2, 2]);
    assert_eq!(third.query(4, 3, 0, 1)[0] >> 14 & 0xfff, 3, "all share the last cache");
    assert_eq!(third.query(4, 0, 0, 1)[0] >> 14 & 0xfff, 0);
    assert_eq!(third.query(4, 4, 0, 1), [0; 4]);
    assert_eq!(MAX.query(1, 0, 0, 1)[3] & 1 << 28, 0);
}

#[test]
fn a_leaf_beyond_the_last_answers_as_the_last() {
    assert_eq!(MAX.query(0x20, 1, 0, 1), MAX.query(0x1f, 1, 0, 1));
    assert_eq!(MAX.query(0xc000_0000, 0, 0, 1), MAX.query(0x1f, 0, 0, 1));
}

#[test]
fn a_removed_feature_takes_its_control_bit_along() {
    let mut model = CpuModel::default();
    assert_ne!(MAX.cr4_bits() & 1 << 21, 0);
    model.removed.push(feature("smap").unwrap());
    let without = Cpuid::new(&config(model, 0, 1)).unwrap();
    assert_eq!(without.query(7, 0, 0, 1)[1] & 1 << 20, 0);
    assert_eq!(MAX.cr4_bits() ^ without.cr4_bits(), 1 << 21);
}

#[test]
fn a_feature_that_must_be_there_and_is_not() {
    let mut model = CpuModel::default();
    model.added.push(feature("vmx").unwrap());
    let refused = Cpuid::new(&config(model, 0, 1)).err();
    assert!(matches!(refused, Some(VcpuError::MissingFeature("vmx"))));
}
