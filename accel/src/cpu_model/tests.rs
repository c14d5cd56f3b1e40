//! Tests of CPU models.

use std::collections::HashSet;

use super::*;

fn names(features: &[Feature]) -> Vec<&'static str> {
    features.iter().map(|feature| feature.name).collect()
}

/// A host with everything.
const ALL: [u32; 4] = [u32::MAX; 4];

fn shows(model: &CpuModel, name: &str) -> bool {
    let feature = feature(name).unwrap();
    let shown = model.apply(feature.leaf, feature.subleaf, ALL);
    shown[feature.register.index()] & feature.mask() != 0
}

#[test]
fn a_name_is_one_bit_and_a_bit_one_name() {
    let mut names = HashSet::new();
    let mut bits = HashSet::new();
    for feature in features() {
        assert!(names.insert(feature.name), "{} twice", feature.name);
        assert!(bits.insert((feature.leaf, feature.subleaf, feature.register.index(), feature.bit)));
        assert_eq!(super::feature(feature.name), Some(feature));
    }
}

#[test]
fn this_hosts_cpuid_agrees_with_the_table() {
    // An independent reading of a few bits, by the standard library.
    for (name, detected) in [
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("avx512f", std::is_x86_feature_detected!("avx512f")),
        ("bmi1", std::is_x86_feature_detected!("bmi1")),
        ("lzcnt", std::is_x86_feature_detected!("lzcnt")),
        ("sha", std::is_x86_feature_detected!("sha")),
        ("sse4_1", std::is_x86_feature_detected!("sse4.1")),
        ("rdseed", std::is_x86_feature_detected!("rdseed")),
        ("xsavec", std::is_x86_feature_detected!("xsavec")),
        ("vaes", std::is_x86_feature_detected!("vaes")),
    ] {
        let feature = feature(name).unwrap();
        let host = std::arch::x86_64::__cpuid_count(feature.leaf, feature.subleaf);
        let registers = [host.eax, host.ebx, host.ecx, host.edx];
        assert_eq!(registers[feature.register.index()] & feature.mask() != 0, detected, "{name}");
    }
}

#[test]
fn spellings() {
    for (name, is) in [
        ("sse3", "pni"),
        ("sse4_1", "sse4.1"),
        ("SSE4.1", "sse4.1"),
        ("tsc_deadline", "tsc-deadline"),
        ("lzcnt", "abm"),
    ] {
        assert_eq!(feature(name).unwrap().name, is);
    }
    assert_eq!(feature("sse5"), None);
}

#[test]
fn every_named_model_resolves() {
    for (name, _) in models::list() {
        let model = CpuModel::named(name).unwrap();
        let ModelBase::Named { features, .. } = &model.base else { panic!("{name}") };
        assert!(shows(&model, "lm") && shows(&model, "sse2"), "{name}");
        let distinct: HashSet<_> = features.iter().map(|feature| feature.name).collect();
        assert_eq!(distinct.len(), features.len(), "{name} names a feature twice");
        for (name, dependents) in features::DEPENDENTS {
            let base = super::feature(name).unwrap();
            for dependent in dependents.iter().map(|name| super::feature(name).unwrap()) {
                assert!(
                    features.contains(&base) || !features.contains(&dependent),
                    "{dependent:?} without {name}"
                );
            }
        }
    }
    assert_eq!(CpuModel::named("pentium9"), None);
}

#[test]
fn the_last_word_counts() {
    let model = parse("max,+avx2,-avx512f,rdseed=off,sse4_1=on,-aes,+aes").unwrap();
    assert_eq!(model.base, ModelBase::Max);
    assert_eq!(names(&model.added), ["avx2", "sse4.1", "aes"]);
    assert_eq!(names(&model.removed), ["avx512f", "rdseed"]);
}

#[test]
fn errors_name_the_culprit() {
    assert_eq!(parse("max,+foo"), Err(CpuModelError::UnknownFeature("foo".into())));
    assert_eq!(parse("max,foo=on"), Err(CpuModelError::UnknownFeature("foo".into())));
    assert_eq!(parse(""), Err(CpuModelError::UnknownModel(String::new())));
    assert_eq!(parse("pentium9,+avx"), Err(CpuModelError::UnknownModel("pentium9".into())));
    assert_eq!(parse("max,avx2=maybe"), Err(CpuModelError::BadSwitch("avx2")));
    assert_eq!(parse("max,-xsave,+avx2"), Err(CpuModelError::Conflict("avx2", "xsave")));
}

#[test]
fn max_takes_away_only_what_was_removed() {
    let max = CpuModel::default();
    assert_eq!(max.apply(7, 0, ALL), ALL);
    let model = parse("max,-avx").unwrap();
    for gone in ["avx", "avx2", "fma", "vaes", "avx512f", "avx512vnni"] {
        assert!(!shows(&model, gone), "{gone}");
    }
    assert!(shows(&model, "sse4.2") && shows(&model, "xsave"));
    assert_eq!(model.xcr0(0x6_02e7), 0x6_0203);
    assert_eq!(model.apply(0xd, 0, [0xe7, 1, 2, 0]), [3, 1, 2, 0]);
    assert_eq!(parse("max,-fpu").unwrap().apply(0x8000_0001, 0, [0, 0, 0, 3]), [0, 0, 0, 2]);
}

#[test]
fn a_named_model_shows_its_own() {
    let model = parse("x86-64-v3,+rdseed,-movbe").unwrap();
    assert!(shows(&model, "avx2") && shows(&model, "rdseed") && shows(&model, "hypervisor"));
    assert!(!shows(&model, "avx512f") && !shows(&model, "movbe") && !shows(&model, "smep"));
    // Leaf 7's EAX is the number of sub-leaves; leaf 0 is no feature leaf.
    assert_eq!(model.apply(7, 0, [2, 0, 0, 0])[0], 2);
    assert_eq!(model.apply(0, 0, [16, 1, 2, 3]), [16, 1, 2, 3]);
    // Nothing that the engine lacks appears.
    assert_eq!(model.apply(7, 0, [0; 4]), [0; 4]);
}

#[test]
fn what_was_added_must_be_there() {
    let model = parse("x86-64-v2,+avx2,+rdseed").unwrap();
    let avx2_only = |leaf, _| if leaf == 7 { [0, 1 << 5, 0, 0] } else { [0; 4] };
    assert!(matches!(model.check(avx2_only), Err(VcpuError::MissingFeature("rdseed"))));
    assert!(model.check(|_, _| ALL).is_ok());
    assert!(parse("EPYC").unwrap().check(|_, _| [0; 4]).is_ok());
}

#[test]
fn help_lists_all() {
    let help = help();
    for name in
        ["max", "host", "qemu64", "kvm64", "x86-64-v4", "Haswell", "Skylake-Server", "EPYC", "fsrm", "la57"]
    {
        assert!(help.contains(name), "{name}");
    }
    assert!(help.lines().all(|line| line.len() < 110));
}
