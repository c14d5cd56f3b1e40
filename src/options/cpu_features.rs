//! The names of CPUID's feature bits, as QEMU spells them (SDM vol. 2A, *CPUID*; AMD APM vol. 3, appendix E).

use accel::cpu_model::{CpuidRegister, Feature};

/// One CPUID register's features: bit and name.
struct Word {
    leaf: u32,
    subleaf: u32,
    register: CpuidRegister,
    bits: &'static [(u8, &'static str)],
}

const WORDS: &[Word] = &[
    Word {
        leaf: 1,
        subleaf: 0,
        register: CpuidRegister::Edx,
        bits: &[
            (0, "fpu"),
            (1, "vme"),
            (2, "de"),
            (3, "pse"),
            (4, "tsc"),
            (5, "msr"),
            (6, "pae"),
            (7, "mce"),
            (8, "cx8"),
            (9, "apic"),
            (11, "sep"),
            (12, "mtrr"),
            (13, "pge"),
            (14, "mca"),
            (15, "cmov"),
            (16, "pat"),
            (17, "pse36"),
            (18, "pn"),
            (19, "clflush"),
            (21, "ds"),
            (22, "acpi"),
            (23, "mmx"),
            (24, "fxsr"),
            (25, "sse"),
            (26, "sse2"),
            (27, "ss"),
            (28, "ht"),
            (29, "tm"),
            (30, "ia64"),
            (31, "pbe"),
        ],
    },
    Word {
        leaf: 1,
        subleaf: 0,
        register: CpuidRegister::Ecx,
        bits: &[
            (0, "pni"),
            (1, "pclmulqdq"),
            (2, "dtes64"),
            (3, "monitor"),
            (4, "ds-cpl"),
            (5, "vmx"),
            (6, "smx"),
            (7, "est"),
            (8, "tm2"),
            (9, "ssse3"),
            (10, "cid"),
            (12, "fma"),
            (13, "cx16"),
            (14, "xtpr"),
            (15, "pdcm"),
            (17, "pcid"),
            (18, "dca"),
            (19, "sse4.1"),
            (20, "sse4.2"),
            (21, "x2apic"),
            (22, "movbe"),
            (23, "popcnt"),
            (24, "tsc-deadline"),
            (25, "aes"),
            (26, "xsave"),
            (28, "avx"),
            (29, "f16c"),
            (30, "rdrand"),
            (31, "hypervisor"),
        ],
    },
    Word { leaf: 6, subleaf: 0, register: CpuidRegister::Eax, bits: &[(2, "arat")] },
    Word {
        leaf: 7,
        subleaf: 0,
        register: CpuidRegister::Ebx,
        bits: &[
            (0, "fsgsbase"),
            (1, "tsc-adjust"),
            (2, "sgx"),
            (3, "bmi1"),
            (4, "hle"),
            (5, "avx2"),
            (7, "smep"),
            (8, "bmi2"),
            (9, "erms"),
            (10, "invpcid"),
            (11, "rtm"),
            (14, "mpx"),
            (16, "avx512f"),
            (17, "avx512dq"),
            (18, "rdseed"),
            (19, "adx"),
            (20, "smap"),
            (21, "avx512ifma"),
            (23, "clflushopt"),
            (24, "clwb"),
            (25, "intel-pt"),
            (26, "avx512pf"),
            (27, "avx512er"),
            (28, "avx512cd"),
            (29, "sha-ni"),
            (30, "avx512bw"),
            (31, "avx512vl"),
        ],
    },
    Word {
        leaf: 7,
        subleaf: 0,
        register: CpuidRegister::Ecx,
        bits: &[
            (1, "avx512vbmi"),
            (2, "umip"),
            (3, "pku"),
            (5, "waitpkg"),
            (6, "avx512vbmi2"),
            (8, "gfni"),
            (9, "vaes"),
            (10, "vpclmulqdq"),
            (11, "avx512vnni"),
            (12, "avx512bitalg"),
            (14, "avx512-vpopcntdq"),
            (16, "la57"),
            (22, "rdpid"),
            (24, "bus-lock-detect"),
            (25, "cldemote"),
            (27, "movdiri"),
            (28, "movdir64b"),
            (30, "sgxlc"),
            (31, "pks"),
        ],
    },
    Word {
        leaf: 7,
        subleaf: 0,
        register: CpuidRegister::Edx,
        bits: &[
            (2, "avx512-4vnniw"),
            (3, "avx512-4fmaps"),
            (4, "fsrm"),
            (8, "avx512-vp2intersect"),
            (10, "md-clear"),
            (14, "serialize"),
            (16, "tsx-ldtrk"),
            (22, "amx-bf16"),
            (23, "avx512-fp16"),
            (24, "amx-tile"),
            (25, "amx-int8"),
            (26, "spec-ctrl"),
            (27, "stibp"),
            (28, "flush-l1d"),
            (29, "arch-capabilities"),
            (30, "core-capability"),
            (31, "ssbd"),
        ],
    },
    Word {
        leaf: 7,
        subleaf: 1,
        register: CpuidRegister::Eax,
        bits: &[
            (4, "avx-vnni"),
            (5, "avx512-bf16"),
            (7, "cmpccxadd"),
            (10, "fzrm"),
            (11, "fsrs"),
            (12, "fsrc"),
            (21, "amx-fp16"),
            (23, "avx-ifma"),
            (26, "lam"),
        ],
    },
    Word {
        leaf: 0xd,
        subleaf: 1,
        register: CpuidRegister::Eax,
        bits: &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves"), (4, "xfd")],
    },
    Word {
        leaf: 0x8000_0001,
        subleaf: 0,
        register: CpuidRegister::Edx,
        bits: &[
            (11, "syscall"),
            (19, "mp"),
            (20, "nx"),
            (22, "mmxext"),
            (25, "fxsr-opt"),
            (26, "pdpe1gb"),
            (27, "rdtscp"),
            (29, "lm"),
            (30, "3dnowext"),
            (31, "3dnow"),
        ],
    },
    Word {
        leaf: 0x8000_0001,
        subleaf: 0,
        register: CpuidRegister::Ecx,
        bits: &[
            (0, "lahf-lm"),
            (1, "cmp-legacy"),
            (2, "svm"),
            (3, "extapic"),
            (4, "cr8legacy"),
            (5, "abm"),
            (6, "sse4a"),
            (7, "misalignsse"),
            (8, "3dnowprefetch"),
            (9, "osvw"),
            (10, "ibs"),
            (11, "xop"),
            (12, "skinit"),
            (13, "wdt"),
            (15, "lwp"),
            (16, "fma4"),
            (17, "tce"),
            (19, "nodeid-msr"),
            (21, "tbm"),
            (22, "topoext"),
            (23, "perfctr-core"),
            (24, "perfctr-nb"),
        ],
    },
    Word { leaf: 0x8000_0007, subleaf: 0, register: CpuidRegister::Edx, bits: &[(8, "invtsc")] },
    Word {
        leaf: 0x8000_0008,
        subleaf: 0,
        register: CpuidRegister::Ebx,
        bits: &[
            (0, "clzero"),
            (2, "xsaveerptr"),
            (9, "wbnoinvd"),
            (12, "ibpb"),
            (14, "ibrs"),
            (15, "amd-stibp"),
            (24, "amd-ssbd"),
            (25, "virt-ssbd"),
            (26, "amd-no-ssb"),
        ],
    },
];

/// All features, in CPUID's order.
pub fn all() -> impl Iterator<Item = Feature> {
    WORDS.iter().flat_map(|word| {
        word.bits.iter().map(|&(bit, name)| Feature {
            name,
            leaf: word.leaf,
            subleaf: word.subleaf,
            register: word.register,
            bit,
        })
    })
}

/// QEMU takes `_` and `-` as one; Linux writes `sse4_1` for `sse4.1`. Further names that QEMU knows stand here.
fn canonical(name: &str) -> String {
    let name = name.to_ascii_lowercase().replace('_', "-");
    match name.as_str() {
        "sse3" => "pni".into(),
        "sse4-1" => "sse4.1".into(),
        "sse4-2" => "sse4.2".into(),
        "xd" => "nx".into(),
        "i64" => "lm".into(),
        "ffxsr" => "fxsr-opt".into(),
        "lzcnt" => "abm".into(),
        "avx512vpopcntdq" => "avx512-vpopcntdq".into(),
        "lahf" => "lahf-lm".into(),
        "sha" => "sha-ni".into(),
        _ => name,
    }
}

/// The feature that QEMU calls `name`.
pub fn find(name: &str) -> Option<Feature> {
    let name = canonical(name);
    all().find(|feature| feature.name == name)
}

/// What every x86-64 CPU has (System V ABI, AMD64 supplement, *Processor Architecture*: the baseline), and what
/// Linux cannot do without.
const BASELINE: &[&str] = &[
    "fpu",
    "de",
    "pse",
    "tsc",
    "msr",
    "pae",
    "mce",
    "cx8",
    "apic",
    "sep",
    "mtrr",
    "pge",
    "mca",
    "cmov",
    "pat",
    "pse36",
    "clflush",
    "mmx",
    "fxsr",
    "sse",
    "sse2",
    "syscall",
    "nx",
    "lm",
    "hypervisor",
];
/// What x86-64-v2 adds.
const V2: &[&str] = &["cx16", "lahf-lm", "popcnt", "pni", "sse4.1", "sse4.2", "ssse3"];
/// What x86-64-v3 adds.
const V3: &[&str] = &["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"];
/// What x86-64-v4 adds.
const V4: &[&str] = &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"];

/// The models of fixed content.
pub const NAMED: &[(&str, &[&[&str]])] = &[
    ("base", &[BASELINE]),
    ("x86-64-v1", &[BASELINE]),
    ("x86-64-v2", &[BASELINE, V2]),
    ("x86-64-v3", &[BASELINE, V2, V3]),
    ("x86-64-v4", &[BASELINE, V2, V3, V4]),
];

/// The features of the model `name`.
pub fn of_model(name: &str) -> Option<(&'static str, Vec<Feature>)> {
    let (name, levels) = NAMED.iter().find(|(known, _)| *known == name)?;
    let features = levels
        .iter()
        .flat_map(|level| level.iter())
        .map(|feature| find(feature).expect("the lists name features of the table"));
    Some((name, features.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_and_bits_are_unique() {
        let (mut names, mut bits) = (HashSet::new(), HashSet::new());
        for feature in all() {
            assert!(names.insert(feature.name), "{}", feature.name);
            assert!(
                bits.insert((feature.leaf, feature.subleaf, format!("{:?}", feature.register), feature.bit)),
                "{}",
                feature.name
            );
            assert_eq!(canonical(feature.name), feature.name);
        }
    }

    #[test]
    fn spellings() {
        assert_eq!(find("sse4_1"), find("sse4.1"));
        assert_eq!(find("lahf_lm").map(|f| f.name), Some("lahf-lm"));
        assert!(find("frobnicate").is_none());
    }

    #[test]
    fn models_hold_what_their_level_adds() {
        for (name, _) in NAMED {
            assert!(of_model(name).unwrap().1.len() >= BASELINE.len());
        }
        assert!(of_model("x86-64-v3").unwrap().1.iter().any(|f| f.name == "avx2"));
        assert!(of_model("max").is_none());
    }
}
