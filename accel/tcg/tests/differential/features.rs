//! Which instructions a CPU with given CPUID leaves has (SDM vol. 2A, *CPUID*; AMD APM vol. 3, appendix E).

use iced_x86::{Code, CpuidFeature};

/// A reading of CPUID: leaf, sub-leaf -> EAX EBX ECX EDX.
pub type Cpuid<'a> = dyn FnMut(u32, u32) -> [u32; 4] + 'a;

/// Leaves read.
pub const LEAVES: [(u32, u32); 5] = [(1, 0), (7, 0), (7, 1), (0xd, 1), (0x8000_0001, 0)];

/// What one CPU shows.
#[derive(Clone, Debug, Default)]
pub struct Shown([[u32; 4]; LEAVES.len()]);

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

enum Needs {
    /// Every x86-64 CPU.
    Always,
    /// Index in [`LEAVES`], register, bit.
    Bit(usize, usize, u32),
    /// Never generated.
    Never,
}

fn needs(feature: CpuidFeature) -> Needs {
    use CpuidFeature as F;
    use Needs::{Always, Bit, Never};
    match feature {
        F::INTEL8086
        | F::INTEL186
        | F::INTEL286
        | F::INTEL386
        | F::INTEL486
        | F::X64
        | F::FPU
        | F::FPU287
        | F::FPU387
        | F::PAUSE
        | F::MULTIBYTENOP
        | F::CET_IBT
        | F::CPUID => Always,
        F::CX8 => Bit(0, EDX, 8),
        F::CMOV => Bit(0, EDX, 15),
        F::CLFSH => Bit(0, EDX, 19),
        F::MMX => Bit(0, EDX, 23),
        F::FXSR => Bit(0, EDX, 24),
        F::SSE => Bit(0, EDX, 25),
        F::SSE2 => Bit(0, EDX, 26),
        F::SSE3 => Bit(0, ECX, 0),
        F::PCLMULQDQ => Bit(0, ECX, 1),
        F::SSSE3 => Bit(0, ECX, 9),
        F::FMA => Bit(0, ECX, 12),
        F::CMPXCHG16B => Bit(0, ECX, 13),
        F::SSE4_1 => Bit(0, ECX, 19),
        F::SSE4_2 => Bit(0, ECX, 20),
        F::MOVBE => Bit(0, ECX, 22),
        F::POPCNT => Bit(0, ECX, 23),
        F::AES => Bit(0, ECX, 25),
        F::XSAVE => Bit(0, ECX, 27),
        F::AVX => Bit(0, ECX, 28),
        F::F16C => Bit(0, ECX, 29),
        F::FSGSBASE => Bit(1, EBX, 0),
        F::BMI1 => Bit(1, EBX, 3),
        F::AVX2 => Bit(1, EBX, 5),
        F::BMI2 => Bit(1, EBX, 8),
        F::AVX512F => Bit(1, EBX, 16),
        F::AVX512DQ => Bit(1, EBX, 17),
        F::ADX => Bit(1, EBX, 19),
        F::AVX512_IFMA => Bit(1, EBX, 21),
        F::CLFLUSHOPT => Bit(1, EBX, 23),
        F::CLWB => Bit(1, EBX, 24),
        F::AVX512CD => Bit(1, EBX, 28),
        F::SHA => Bit(1, EBX, 29),
        F::AVX512BW => Bit(1, EBX, 30),
        F::AVX512VL => Bit(1, EBX, 31),
        F::AVX512_VBMI => Bit(1, ECX, 1),
        F::AVX512_VBMI2 => Bit(1, ECX, 6),
        F::GFNI => Bit(1, ECX, 8),
        F::VAES => Bit(1, ECX, 9),
        F::VPCLMULQDQ => Bit(1, ECX, 10),
        F::AVX512_VNNI => Bit(1, ECX, 11),
        F::AVX512_BITALG => Bit(1, ECX, 12),
        F::AVX512_VPOPCNTDQ => Bit(1, ECX, 14),
        F::MOVDIRI => Bit(1, ECX, 27),
        F::MOVDIR64B => Bit(1, ECX, 28),
        F::AVX512_VP2INTERSECT => Bit(1, EDX, 8),
        F::SERIALIZE => Bit(1, EDX, 14),
        F::AVX512_FP16 => Bit(1, EDX, 23),
        F::AVX_VNNI => Bit(2, EAX, 4),
        F::AVX512_BF16 => Bit(2, EAX, 5),
        F::AVX_IFMA => Bit(2, EAX, 23),
        F::XSAVEOPT => Bit(3, EAX, 0),
        F::XSAVEC => Bit(3, EAX, 1),
        F::LZCNT => Bit(4, ECX, 5),
        F::SSE4A => Bit(4, ECX, 6),
        F::PREFETCHW => Bit(4, ECX, 8),
        _ => Never,
    }
}

impl Shown {
    pub fn read(cpuid: &mut Cpuid<'_>) -> Self {
        Self(LEAVES.map(|(leaf, subleaf)| cpuid(leaf, subleaf)))
    }

    /// Whether this CPU has every feature that `code` needs.
    pub fn has(&self, code: Code) -> bool {
        code.cpuid_features().iter().all(|&feature| match needs(feature) {
            Needs::Always => true,
            Needs::Bit(leaf, register, bit) => self.0[leaf][register] >> bit & 1 != 0,
            Needs::Never => false,
        })
    }
}
