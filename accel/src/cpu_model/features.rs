//! Names of CPUID's feature bits (SDM vol. 2A, *CPUID*; APM vol. 3, *Appendix E*), spelled as on QEMU's command line.

use super::CpuidRegister::{self, Eax, Ebx, Ecx, Edx};
use super::Feature;

/// The feature bits of one output register: position and name.
pub(super) struct Word {
    pub(super) leaf: u32,
    pub(super) subleaf: u32,
    pub(super) register: CpuidRegister,
    pub(super) bits: &'static [(u8, &'static str)],
}

#[rustfmt::skip]
pub(super) const WORDS: &[Word] = &[
    Word { leaf: 1, subleaf: 0, register: Edx, bits: &[
        (0, "fpu"), (1, "vme"), (2, "de"), (3, "pse"), (4, "tsc"), (5, "msr"), (6, "pae"), (7, "mce"),
        (8, "cx8"), (9, "apic"), (11, "sep"), (12, "mtrr"), (13, "pge"), (14, "mca"), (15, "cmov"), (16, "pat"),
        (17, "pse36"), (18, "pn"), (19, "clflush"), (21, "ds"), (22, "acpi"), (23, "mmx"), (24, "fxsr"), (25, "sse"),
        (26, "sse2"), (27, "ss"), (28, "ht"), (29, "tm"), (30, "ia64"), (31, "pbe"),
    ] },
    Word { leaf: 1, subleaf: 0, register: Ecx, bits: &[
        (0, "pni"), (1, "pclmulqdq"), (2, "dtes64"), (3, "monitor"), (4, "ds-cpl"), (5, "vmx"), (6, "smx"), (7, "est"),
        (8, "tm2"), (9, "ssse3"), (10, "cid"), (12, "fma"), (13, "cx16"), (14, "xtpr"), (15, "pdcm"), (17, "pcid"),
        (18, "dca"), (19, "sse4.1"), (20, "sse4.2"), (21, "x2apic"), (22, "movbe"), (23, "popcnt"),
        (24, "tsc-deadline"), (25, "aes"), (26, "xsave"), (27, "osxsave"), (28, "avx"), (29, "f16c"), (30, "rdrand"),
        (31, "hypervisor"),
    ] },
    Word { leaf: 6, subleaf: 0, register: Eax, bits: &[(2, "arat")] },
    Word { leaf: 7, subleaf: 0, register: Ebx, bits: &[
        (0, "fsgsbase"), (1, "tsc-adjust"), (2, "sgx"), (3, "bmi1"), (4, "hle"), (5, "avx2"), (6, "fdp-excptn-only"),
        (7, "smep"), (8, "bmi2"), (9, "erms"), (10, "invpcid"), (11, "rtm"), (13, "zero-fcs-fds"), (14, "mpx"),
        (16, "avx512f"), (17, "avx512dq"), (18, "rdseed"), (19, "adx"), (20, "smap"), (21, "avx512ifma"),
        (22, "pcommit"), (23, "clflushopt"), (24, "clwb"), (25, "intel-pt"), (26, "avx512pf"), (27, "avx512er"),
        (28, "avx512cd"), (29, "sha-ni"), (30, "avx512bw"), (31, "avx512vl"),
    ] },
    Word { leaf: 7, subleaf: 0, register: Ecx, bits: &[
        (1, "avx512vbmi"), (2, "umip"), (3, "pku"), (4, "ospke"), (5, "waitpkg"), (6, "avx512vbmi2"), (7, "shstk"),
        (8, "gfni"), (9, "vaes"), (10, "vpclmulqdq"), (11, "avx512vnni"), (12, "avx512bitalg"),
        (14, "avx512-vpopcntdq"), (16, "la57"), (22, "rdpid"), (24, "bus-lock-detect"), (25, "cldemote"),
        (27, "movdiri"), (28, "movdir64b"), (30, "sgxlc"), (31, "pks"),
    ] },
    Word { leaf: 7, subleaf: 0, register: Edx, bits: &[
        (2, "avx512-4vnniw"), (3, "avx512-4fmaps"), (4, "fsrm"), (8, "avx512-vp2intersect"), (10, "md-clear"),
        (14, "serialize"), (16, "tsx-ldtrk"), (19, "arch-lbr"), (20, "ibt"), (22, "amx-bf16"), (23, "avx512-fp16"),
        (24, "amx-tile"), (25, "amx-int8"), (26, "spec-ctrl"), (27, "stibp"), (28, "flush-l1d"),
        (29, "arch-capabilities"), (30, "core-capability"), (31, "ssbd"),
    ] },
    Word { leaf: 7, subleaf: 1, register: Eax, bits: &[
        (0, "sha512"), (1, "sm3"), (2, "sm4"), (4, "avx-vnni"), (5, "avx512-bf16"), (6, "lass"), (7, "cmpccxadd"),
        (10, "fzrm"), (11, "fsrs"), (12, "fsrc"), (17, "fred"), (18, "lkgs"), (19, "wrmsrns"), (21, "amx-fp16"),
        (23, "avx-ifma"), (26, "lam"),
    ] },
    Word { leaf: 7, subleaf: 1, register: Edx, bits: &[
        (4, "avx-vnni-int8"), (5, "avx-ne-convert"), (8, "amx-complex"), (10, "avx-vnni-int16"), (14, "prefetchiti"),
        (19, "avx10"),
    ] },
    Word { leaf: 0xd, subleaf: 1, register: Eax, bits: &[
        (0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves"), (4, "xfd"),
    ] },
    Word { leaf: 0x8000_0001, subleaf: 0, register: Edx, bits: &[
        (11, "syscall"), (19, "mp"), (20, "nx"), (22, "mmxext"), (25, "fxsr-opt"), (26, "pdpe1gb"), (27, "rdtscp"),
        (29, "lm"), (30, "3dnowext"), (31, "3dnow"),
    ] },
    Word { leaf: 0x8000_0001, subleaf: 0, register: Ecx, bits: &[
        (0, "lahf-lm"), (1, "cmp-legacy"), (2, "svm"), (3, "extapic"), (4, "cr8legacy"), (5, "abm"), (6, "sse4a"),
        (7, "misalignsse"), (8, "3dnowprefetch"), (9, "osvw"), (10, "ibs"), (11, "xop"), (12, "skinit"), (13, "wdt"),
        (15, "lwp"), (16, "fma4"), (17, "tce"), (19, "nodeid-msr"), (21, "tbm"), (22, "topoext"),
        (23, "perfctr-core"), (24, "perfctr-nb"),
    ] },
    Word { leaf: 0x8000_0007, subleaf: 0, register: Edx, bits: &[(8, "invtsc")] },
    Word { leaf: 0x8000_0008, subleaf: 0, register: Ebx, bits: &[
        (0, "clzero"), (2, "xsaveerptr"), (9, "wbnoinvd"), (12, "ibpb"), (14, "ibrs"), (15, "amd-stibp"),
        (17, "stibp-always-on"), (24, "amd-ssbd"), (25, "virt-ssbd"), (26, "amd-no-ssb"), (28, "amd-psfd"),
    ] },
    Word { leaf: 0x8000_0021, subleaf: 0, register: Eax, bits: &[
        (0, "no-nested-data-bp"), (2, "lfence-always-serializing"), (6, "null-sel-clr-base"), (8, "auto-ibrs"),
    ] },
];

/// Other names of the same bits.
const ALIASES: &[(&str, &str)] = &[
    ("sse3", "pni"),
    ("sse4-1", "sse4.1"),
    ("sse4-2", "sse4.2"),
    ("lzcnt", "abm"),
    ("i64", "lm"),
    ("xd", "nx"),
    ("ffxsr", "fxsr-opt"),
    ("sha", "sha-ni"),
    ("avx512vpopcntdq", "avx512-vpopcntdq"),
    ("pclmuldq", "pclmulqdq"),
    ("cmpxchg16b", "cx16"),
    ("cmpxchg8b", "cx8"),
];

/// Which features are nothing without another: (that one, those).
pub(super) const DEPENDENTS: &[(&str, &[&str])] = &[
    ("xsave", &["osxsave", "avx", "xsaveopt", "xsavec", "xgetbv1", "xsaves", "xfd", "pku", "amx-tile"]),
    ("avx", &["avx2", "fma", "f16c", "xop", "fma4", "vaes", "vpclmulqdq", "avx512f"]),
    (
        "avx2",
        &["avx-vnni", "avx-ifma", "avx-vnni-int8", "avx-vnni-int16", "avx-ne-convert", "sha512", "avx10"],
    ),
    (
        "avx512f",
        &[
            "avx512dq",
            "avx512ifma",
            "avx512pf",
            "avx512er",
            "avx512cd",
            "avx512bw",
            "avx512vl",
            "avx512vbmi",
            "avx512vbmi2",
            "avx512vnni",
            "avx512bitalg",
            "avx512-vpopcntdq",
            "avx512-4vnniw",
            "avx512-4fmaps",
            "avx512-vp2intersect",
            "avx512-bf16",
            "avx512-fp16",
        ],
    ),
    ("sse", &["sse2"]),
    ("sse2", &["pni", "aes", "pclmulqdq", "sha-ni", "gfni"]),
    ("pni", &["ssse3", "sse4a"]),
    ("ssse3", &["sse4.1"]),
    ("sse4.1", &["sse4.2"]),
    ("sse4.2", &["avx"]),
    ("pku", &["ospke"]),
    ("pae", &["nx", "lm"]),
    ("lm", &["lahf-lm", "pcid", "la57", "fsgsbase", "pdpe1gb", "cx16", "lam"]),
    ("apic", &["x2apic", "tsc-deadline"]),
    ("amx-tile", &["amx-bf16", "amx-int8", "amx-fp16", "amx-complex"]),
];

/// All features, in the order of their leaves.
pub fn all() -> impl Iterator<Item = Feature> {
    WORDS.iter().flat_map(|word| {
        let &Word { leaf, subleaf, register, bits } = word;
        bits.iter().map(move |&(bit, name)| Feature { name, leaf, subleaf, register, bit })
    })
}

/// The feature called `name`. Dashes and underscores, lower and upper case are alike.
pub fn by_name(name: &str) -> Option<Feature> {
    let name = name.to_ascii_lowercase().replace('_', "-");
    let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name.as_str(), |(_, name)| name);
    all().find(|feature| feature.name == name)
}

/// `features` and all that are nothing without them.
pub(super) fn with_dependents(features: &[Feature]) -> Vec<Feature> {
    let mut closed = features.to_vec();
    let mut next = 0;
    while next < closed.len() {
        let name = closed[next].name;
        let dependents =
            DEPENDENTS.iter().filter(|(on, _)| *on == name).flat_map(|(_, dependents)| *dependents);
        for dependent in dependents.map(|name| by_name(name).expect("the table names features it has")) {
            if !closed.contains(&dependent) {
                closed.push(dependent);
            }
        }
        next += 1;
    }
    closed
}
