//! Named CPU models as sets of features: the levels of the x86-64 psABI, QEMU's generic CPUs, and real families.

use super::{Feature, features};

/// A model: what another one has, and more.
struct Model {
    name: &'static str,
    description: &'static str,
    extends: Option<&'static str>,
    /// Names as in the feature table, separated by spaces.
    features: &'static str,
}

const MODELS: &[Model] = &[
    Model {
        name: "x86-64-v1",
        description: "x86-64 psABI baseline",
        extends: None,
        features: "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 \
                   syscall nx lm",
    },
    Model {
        name: "x86-64-v2",
        description: "x86-64 psABI level 2",
        extends: Some("x86-64-v1"),
        features: "cx16 lahf-lm popcnt pni ssse3 sse4.1 sse4.2",
    },
    Model {
        name: "x86-64-v3",
        description: "x86-64 psABI level 3",
        extends: Some("x86-64-v2"),
        features: "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave",
    },
    Model {
        name: "x86-64-v4",
        description: "x86-64 psABI level 4",
        extends: Some("x86-64-v3"),
        features: "avx512f avx512bw avx512cd avx512dq avx512vl",
    },
    Model {
        name: "kvm64",
        description: "common KVM processor",
        extends: Some("x86-64-v1"),
        features: "pni cx16",
    },
    Model {
        name: "qemu64",
        description: "generic 64-bit processor",
        extends: Some("kvm64"),
        features: "lahf-lm svm",
    },
    Model {
        name: "Nehalem",
        description: "Intel Core i7 9xx (Nehalem, 2008)",
        extends: Some("x86-64-v2"),
        features: "",
    },
    Model {
        name: "Westmere",
        description: "Intel Westmere (2010)",
        extends: Some("Nehalem"),
        features: "aes pclmulqdq arat",
    },
    Model {
        name: "SandyBridge",
        description: "Intel Xeon E312xx (Sandy Bridge, 2011)",
        extends: Some("Westmere"),
        features: "x2apic tsc-deadline xsave avx rdtscp xsaveopt",
    },
    Model {
        name: "IvyBridge",
        description: "Intel Xeon E3-12xx v2 (Ivy Bridge, 2012)",
        extends: Some("SandyBridge"),
        features: "f16c rdrand fsgsbase smep erms",
    },
    Model {
        name: "Haswell-noTSX",
        description: "Intel Core (Haswell, 2013), without TSX",
        extends: Some("IvyBridge"),
        features: "fma pcid movbe bmi1 avx2 bmi2 invpcid abm",
    },
    Model {
        name: "Haswell",
        description: "Intel Core (Haswell, 2013)",
        extends: Some("Haswell-noTSX"),
        features: "hle rtm",
    },
    Model {
        name: "Broadwell-noTSX",
        description: "Intel Core (Broadwell, 2014), without TSX",
        extends: Some("Haswell-noTSX"),
        features: "rdseed adx smap 3dnowprefetch",
    },
    Model {
        name: "Broadwell",
        description: "Intel Core (Broadwell, 2014)",
        extends: Some("Broadwell-noTSX"),
        features: "hle rtm",
    },
    Model {
        name: "Skylake-Client",
        description: "Intel Core (Skylake, 2015)",
        extends: Some("Broadwell"),
        features: "xsavec xgetbv1",
    },
    Model {
        name: "Skylake-Server-noTSX",
        description: "Intel Xeon (Skylake, 2017), without TSX",
        extends: Some("Broadwell-noTSX"),
        features: "xsavec xgetbv1 pdpe1gb clwb clflushopt avx512f avx512dq avx512bw avx512cd avx512vl pku",
    },
    Model {
        name: "Skylake-Server",
        description: "Intel Xeon (Skylake, 2017)",
        extends: Some("Skylake-Server-noTSX"),
        features: "hle rtm",
    },
    Model {
        name: "Icelake-Server-noTSX",
        description: "Intel Xeon (Ice Lake, 2021), without TSX",
        extends: Some("Skylake-Server-noTSX"),
        features: "avx512vbmi umip avx512vbmi2 gfni vaes vpclmulqdq avx512vnni avx512bitalg avx512-vpopcntdq la57 \
                   wbnoinvd spec-ctrl ssbd",
    },
    Model {
        name: "Icelake-Server",
        description: "Intel Xeon (Ice Lake, 2021)",
        extends: Some("Icelake-Server-noTSX"),
        features: "hle rtm",
    },
    Model {
        name: "EPYC",
        description: "AMD EPYC (Naples, 2017)",
        extends: Some("x86-64-v3"),
        features: "pclmulqdq aes rdrand mmxext fxsr-opt pdpe1gb rdtscp svm cr8legacy sse4a misalignsse \
                   3dnowprefetch osvw topoext fsgsbase smep rdseed adx smap clflushopt sha-ni xsaveopt xsavec xgetbv1 \
                   arat",
    },
    Model {
        name: "EPYC-Rome",
        description: "AMD EPYC (Rome, 2019)",
        extends: Some("EPYC"),
        features: "clwb rdpid umip wbnoinvd clzero xsaveerptr perfctr-core ibpb amd-stibp",
    },
    Model {
        name: "EPYC-Milan",
        description: "AMD EPYC (Milan, 2021)",
        extends: Some("EPYC-Rome"),
        features: "pcid invpcid erms fsrm pku xsaves ibrs amd-ssbd",
    },
    Model {
        name: "EPYC-Genoa",
        description: "AMD EPYC (Genoa, 2022)",
        extends: Some("EPYC-Milan"),
        features: "avx512f avx512dq avx512ifma avx512cd avx512bw avx512vl avx512vbmi avx512vbmi2 gfni vaes \
                   vpclmulqdq avx512vnni avx512bitalg avx512-vpopcntdq avx512-bf16 la57 no-nested-data-bp \
                   lfence-always-serializing null-sel-clr-base auto-ibrs",
    },
];

fn find(name: &str) -> Option<&'static Model> {
    MODELS.iter().find(|model| model.name == name)
}

/// The features of the model called `name`, with the static name.
pub(super) fn by_name(name: &str) -> Option<(&'static str, Vec<Feature>)> {
    let model = find(name)?;
    let mut all = Vec::new();
    let mut next = Some(model);
    while let Some(model) = next {
        all.extend(
            model
                .features
                .split_ascii_whitespace()
                .map(|feature| features::by_name(feature).expect("models name features of the table")),
        );
        next = model.extends.map(|base| find(base).expect("models extend models of the table"));
    }
    Some((model.name, all))
}

/// Names and descriptions.
pub(super) fn list() -> impl Iterator<Item = (&'static str, &'static str)> {
    MODELS.iter().map(|model| (model.name, model.description))
}
