//! The feature bits that the guest may see (SDM vol. 2A, *CPUID*).
//!
//! A bit is shown if the engine itself provides it ("own"), or if the translator passes the instructions through and
//! the host has them ("host"). Anything not named here is hidden: VMX, MONITOR, TSX, protection keys, CET, AMX, the
//! performance monitor ...

/// Whether the translator passes AVX-512 through.
pub const AVX512: bool = false;

/// The bits of one output register.
pub struct Allow {
    /// EAX at CPUID.
    pub leaf: u32,
    /// ECX at CPUID.
    pub subleaf: u32,
    /// 0 to 3: EAX, EBX, ECX, EDX.
    pub register: usize,
    /// Shown if the host has them.
    pub host: u32,
    /// Shown if the host has them and [`AVX512`].
    pub avx512: u32,
    /// Shown always.
    pub own: u32,
}

const fn bits(list: &[u32]) -> u32 {
    let (mut mask, mut index) = (0, 0);
    while index < list.len() {
        mask |= 1 << list[index];
        index += 1;
    }
    mask
}

#[rustfmt::skip]
pub const ALLOWED: &[Allow] = &[
    Allow { leaf: 1, subleaf: 0, register: 2,
        // SSE3 PCLMULQDQ SSSE3 FMA CMPXCHG16B SSE4.1 SSE4.2 MOVBE POPCNT AESNI XSAVE AVX F16C RDRAND
        host: bits(&[0, 1, 9, 12, 13, 19, 20, 22, 23, 25, 26, 28, 29, 30]),
        avx512: 0,
        // PCID x2APIC TSC-Deadline hypervisor
        own: bits(&[17, 21, 24, 31]) },
    Allow { leaf: 1, subleaf: 0, register: 3,
        // FPU CX8 CMOV CLFSH MMX FXSR SSE SSE2
        host: bits(&[0, 8, 15, 19, 23, 24, 25, 26]),
        avx512: 0,
        // DE PSE TSC MSR PAE MCE APIC SEP MTRR PGE MCA PAT PSE-36 SS
        own: bits(&[2, 3, 4, 5, 6, 7, 9, 11, 12, 13, 14, 16, 17, 27]) },
    Allow { leaf: 6, subleaf: 0, register: 0, host: 0, avx512: 0,
        // ARAT
        own: bits(&[2]) },
    Allow { leaf: 7, subleaf: 0, register: 1,
        // BMI1 AVX2 FDP_EXCPTN_ONLY BMI2 ZERO_FCS_FDS RDSEED ADX CLFLUSHOPT CLWB SHA
        host: bits(&[3, 5, 6, 8, 13, 18, 19, 23, 24, 29]),
        // F DQ IFMA CD BW VL
        avx512: bits(&[16, 17, 21, 28, 30, 31]),
        // FSGSBASE TSC_ADJUST SMEP ERMS INVPCID SMAP
        own: bits(&[0, 1, 7, 9, 10, 20]) },
    Allow { leaf: 7, subleaf: 0, register: 2,
        // GFNI VAES VPCLMULQDQ
        host: bits(&[8, 9, 10]),
        // VBMI VBMI2 VNNI BITALG VPOPCNTDQ
        avx512: bits(&[1, 6, 11, 12, 14]),
        // UMIP RDPID
        own: bits(&[2, 22]) },
    Allow { leaf: 7, subleaf: 0, register: 3, host: 0, avx512: 0,
        // FSRM SPEC_CTRL ARCH_CAPABILITIES
        own: bits(&[4, 26, 29]) },
    Allow { leaf: 7, subleaf: 1, register: 0,
        // AVX-VNNI
        host: bits(&[4]),
        // BF16
        avx512: bits(&[5]),
        own: 0 },
    Allow { leaf: 7, subleaf: 2, register: 3, host: 0, avx512: 0,
        // BHI_CTRL MCDT_NO: kernels that do not know BHI_NO would clear the branch history by software at each entry.
        own: bits(&[4, 5]) },
    Allow { leaf: 0xd, subleaf: 1, register: 0,
        // XSAVEOPT XSAVEC
        host: bits(&[0, 1]),
        avx512: 0, own: 0 },
    Allow { leaf: 0x8000_0001, subleaf: 0, register: 2,
        // LAHF LZCNT PREFETCHW
        host: bits(&[0, 5, 8]),
        avx512: 0, own: 0 },
    Allow { leaf: 0x8000_0001, subleaf: 0, register: 3, host: 0, avx512: 0,
        // SYSCALL NX Page1GB RDTSCP LM
        own: bits(&[11, 20, 26, 27, 29]) },
    Allow { leaf: 0x8000_0007, subleaf: 0, register: 3, host: 0, avx512: 0,
        // invariant TSC
        own: bits(&[8]) },
];

/// The XCR0 bits that the guest may set, the host permitting: x87, SSE, AVX, AVX-512.
pub const XCR0: u64 = if AVX512 { 0xe7 } else { 0x7 };
