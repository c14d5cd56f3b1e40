//! Which instruction-set extensions the guest's CPUID shows: those alone are passed through.

use iced_x86::CpuidFeature;

/// The extensions that are shown, a bit for each [`CpuidFeature`].
#[derive(Clone, Debug)]
pub struct Features {
    shown: [u64; 4],
}

/// Where CPUID shows an extension: leaf, sub-leaf, register (0 EAX to 3 EDX), bit.
#[rustfmt::skip]
fn place(feature: CpuidFeature) -> Option<(u32, u32, usize, u32)> {
    use CpuidFeature as F;
    Some(match feature {
        F::FPU | F::FPU287 | F::FPU387 => (1, 0, 3, 0),
        F::CX8 => (1, 0, 3, 8),
        F::CMOV => (1, 0, 3, 15),
        F::CLFSH => (1, 0, 3, 19),
        F::MMX => (1, 0, 3, 23),
        F::SSE => (1, 0, 3, 25),
        F::SSE2 => (1, 0, 3, 26),
        F::SSE3 => (1, 0, 2, 0),
        F::PCLMULQDQ => (1, 0, 2, 1),
        F::SSSE3 => (1, 0, 2, 9),
        F::FMA => (1, 0, 2, 12),
        F::CMPXCHG16B => (1, 0, 2, 13),
        F::SSE4_1 => (1, 0, 2, 19),
        F::SSE4_2 => (1, 0, 2, 20),
        F::MOVBE => (1, 0, 2, 22),
        F::POPCNT => (1, 0, 2, 23),
        F::AES => (1, 0, 2, 25),
        F::AVX => (1, 0, 2, 28),
        F::F16C => (1, 0, 2, 29),
        F::RDRAND => (1, 0, 2, 30),
        F::BMI1 => (7, 0, 1, 3),
        F::AVX2 => (7, 0, 1, 5),
        F::BMI2 => (7, 0, 1, 8),
        F::AVX512F => (7, 0, 1, 16),
        F::AVX512DQ => (7, 0, 1, 17),
        F::FSGSBASE => (7, 0, 1, 0),
        F::SMAP => (7, 0, 1, 20),
        F::RDSEED => (7, 0, 1, 18),
        F::ADX => (7, 0, 1, 19),
        F::AVX512_IFMA => (7, 0, 1, 21),
        F::CLFLUSHOPT => (7, 0, 1, 23),
        F::CLWB => (7, 0, 1, 24),
        F::AVX512CD => (7, 0, 1, 28),
        F::SHA => (7, 0, 1, 29),
        F::AVX512BW => (7, 0, 1, 30),
        F::AVX512VL => (7, 0, 1, 31),
        F::AVX512_VBMI => (7, 0, 2, 1),
        F::AVX512_VBMI2 => (7, 0, 2, 6),
        F::GFNI => (7, 0, 2, 8),
        F::VAES => (7, 0, 2, 9),
        F::VPCLMULQDQ => (7, 0, 2, 10),
        F::AVX512_VNNI => (7, 0, 2, 11),
        F::AVX512_BITALG => (7, 0, 2, 12),
        F::AVX512_VPOPCNTDQ => (7, 0, 2, 14),
        F::AVX_VNNI => (7, 1, 0, 4),
        F::AVX512_BF16 => (7, 1, 0, 5),
        F::TSC => (1, 0, 3, 4),
        F::RDTSCP => (0x8000_0001, 0, 3, 27),
        F::SYSCALL => (0x8000_0001, 0, 3, 11),
        F::LZCNT => (0x8000_0001, 0, 2, 5),
        F::SSE4A => (0x8000_0001, 0, 2, 6),
        F::PREFETCHW | F::D3NOW => (0x8000_0001, 0, 2, 8),
        _ => return None,
    })
}

impl Features {
    /// What `cpuid(leaf, sub-leaf)` shows.
    pub fn new(cpuid: impl Fn(u32, u32) -> [u32; 4]) -> Self {
        let mut shown = [0; 4];
        let leaves =
            [(1, 0), (7, 0), (7, 1), (0x8000_0001, 0)].map(|(leaf, sub)| (leaf, sub, cpuid(leaf, sub)));
        for feature in CpuidFeature::values() {
            let visible = match place(feature) {
                Some((leaf, sub, register, bit)) => leaves
                    .iter()
                    .any(|(l, s, regs)| (*l, *s) == (leaf, sub) && regs[register] >> bit & 1 != 0),
                // What every x86-64 has. Anything else that has no place above is not passed through.
                None => matches!(
                    feature,
                    CpuidFeature::INTEL8086
                        | CpuidFeature::INTEL186
                        | CpuidFeature::INTEL286
                        | CpuidFeature::INTEL386
                        | CpuidFeature::INTEL486
                        | CpuidFeature::X64
                        | CpuidFeature::MULTIBYTENOP
                        | CpuidFeature::PAUSE
                        | CpuidFeature::CET_IBT
                        | CpuidFeature::PREFETCHITI
                ),
            };
            if visible {
                shown[feature as usize / 64] |= 1 << (feature as usize % 64);
            }
        }
        Self { shown }
    }

    /// Whether the guest may use `feature`.
    pub fn has(&self, feature: CpuidFeature) -> bool {
        self.shown[feature as usize / 64] >> (feature as usize % 64) & 1 != 0
    }
}
