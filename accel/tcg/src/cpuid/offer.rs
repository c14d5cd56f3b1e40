//! What the engine offers on this host, the same for every CPU and model (SDM vol. 2A, *CPUID*).

use std::arch::x86_64::__cpuid_count;

use super::features::{ALLOWED, XCR0};
use crate::mmu::walk::PHYS_BITS;
use crate::msr::TSC_HZ;

/// One answer of CPUID: EAX, EBX, ECX, EDX.
pub type Registers = [u32; 4];

/// An XSAVE component in the host's standard format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Component {
    /// Its bit in XCR0.
    pub bit: u32,
    /// Bytes.
    pub size: u32,
    /// Offset in the standard format.
    pub offset: u32,
    /// ECX of its leaf: aligned in the compacted format, and the like.
    pub flags: u32,
}

/// The engine's leaves on this host.
pub struct Offer {
    leaves: Vec<(u32, u32, Registers)>,
    /// XCR0 bits.
    pub xcr0: u64,
    /// Components 2 and up that `xcr0` has.
    pub components: Vec<Component>,
}

/// Family 6, model 6AH, stepping 6: the class of server CPU whose features the guest sees. Kernels look for
/// IA32_ARCH_CAPABILITIES and the frequency leaves on Intel's CPUs.
const SIGNATURE: u32 = 0x0006_06a6;
const VENDOR: &[u8; 12] = b"GenuineIntel";
const HYPERVISOR: &[u8; 12] = b"Bivisor TCG\0";
const BRAND: &[u8; 48] = b"Bivisor TCG Virtual CPU @ 1.00GHz\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// The highest leaves.
const MAX_BASIC: u32 = 0x1f;
const MAX_HYPERVISOR: u32 = 0x4000_0010;
const MAX_EXTENDED: u32 = 0x8000_0008;
/// Bits of a linear address: no 5-level paging.
const LINEAR_BITS: u32 = 48;

fn host(leaf: u32, subleaf: u32) -> Registers {
    let limit = __cpuid_count(leaf & 0x8000_0000, 0).eax;
    if leaf > limit {
        return [0; 4];
    }
    let result = __cpuid_count(leaf, subleaf);
    [result.eax, result.ebx, result.ecx, result.edx]
}

fn word(text: &[u8], index: usize) -> u32 {
    text[index * 4..index * 4 + 4].iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte))
}

impl Offer {
    /// Asks the host. Slow: where the host is itself a guest, each CPUID leaves it.
    pub fn of_host() -> Self {
        let xcr0 = host_xcr0();
        let mut offer = Self { leaves: Vec::new(), xcr0, components: Vec::new() };
        offer.components = (2..63)
            .filter(|bit| xcr0 >> bit & 1 != 0)
            .map(|bit| {
                let [size, offset, flags, _] = host(0xd, bit);
                Component { bit, size, offset, flags }
            })
            .collect();
        offer.fixed();
        for allow in ALLOWED {
            let mut mask = allow.host;
            if super::features::AVX512 {
                mask |= allow.avx512;
            }
            let theirs = host(allow.leaf, allow.subleaf)[allow.register];
            offer.register(allow.leaf, allow.subleaf)[allow.register] |= theirs & mask | allow.own;
        }
        if xcr0 & 4 == 0 {
            offer.without_avx();
        }
        offer
    }

    /// The registers of a leaf; zeros for one that is not there.
    pub fn get(&self, leaf: u32, subleaf: u32) -> Registers {
        let found = self.leaves.iter().find(|&&(l, s, _)| (l, s) == (leaf, subleaf));
        found.map_or([0; 4], |&(_, _, registers)| registers)
    }

    /// All leaves.
    pub fn leaves(&self) -> impl Iterator<Item = (u32, u32, Registers)> {
        self.leaves.iter().copied()
    }

    fn register(&mut self, leaf: u32, subleaf: u32) -> &mut Registers {
        let found = self.leaves.iter().position(|&(l, s, _)| (l, s) == (leaf, subleaf));
        let index = found.unwrap_or_else(|| {
            self.leaves.push((leaf, subleaf, [0; 4]));
            self.leaves.len() - 1
        });
        &mut self.leaves[index].2
    }

    /// Leaves that depend on nothing.
    fn fixed(&mut self) {
        *self.register(0, 0) = [MAX_BASIC, word(VENDOR, 0), word(VENDOR, 2), word(VENDOR, 1)];
        // CLFLUSH line: 8 quadwords.
        *self.register(1, 0) = [SIGNATURE, 8 << 8, 0, 0];
        // Caches are in leaf 4; no TLB geometry.
        *self.register(2, 0) = [0x00ff_ff01, 0, 0, 0];
        *self.register(4, 0) = cache(1, 1, 64, 8);
        *self.register(4, 1) = cache(2, 1, 64, 8);
        *self.register(4, 2) = cache(3, 2, 1024, 16);
        *self.register(4, 3) = cache(3, 3, 16384, 16);
        // Sub-leaves 0 to 2.
        *self.register(7, 0) = [2, 0, 0, 0];
        let xcr0 = self.xcr0;
        *self.register(0xd, 0) = [xcr0 as u32, 0, 0, (xcr0 >> 32) as u32];
        for component in self.components.clone() {
            *self.register(0xd, component.bit) = [component.size, component.offset, component.flags, 0];
        }
        // TSC and local APIC timer: both count at the crystal's rate.
        *self.register(0x15, 0) = [1, 1, TSC_HZ as u32, 0];
        let mhz = (TSC_HZ / 1_000_000) as u32;
        *self.register(0x16, 0) = [mhz, mhz, 100, 0];
        *self.register(0x4000_0000, 0) =
            [MAX_HYPERVISOR, word(HYPERVISOR, 0), word(HYPERVISOR, 1), word(HYPERVISOR, 2)];
        // TSC and APIC timer frequencies in kHz.
        let khz = (TSC_HZ / 1000) as u32;
        *self.register(0x4000_0010, 0) = [khz, khz, 0, 0];
        *self.register(0x8000_0000, 0) = [MAX_EXTENDED, 0, 0, 0];
        for leaf in 0..3 {
            let at = leaf as usize * 4;
            *self.register(0x8000_0002 + leaf, 0) = std::array::from_fn(|index| word(BRAND, at + index));
        }
        // L2: 1 MiB, 16 ways (code 8), 64-byte lines.
        *self.register(0x8000_0006, 0) = [0, 0, 1024 << 16 | 8 << 12 | 64, 0];
        *self.register(0x8000_0008, 0) = [PHYS_BITS | LINEAR_BITS << 8, 0, 0, 0];
    }

    /// The host's kernel does not switch the AVX state: nothing that works on it may be seen.
    fn without_avx(&mut self) {
        // FMA AVX F16C
        self.register(1, 0)[2] &= !(1 << 12 | 1 << 28 | 1 << 29);
        // AVX2
        self.register(7, 0)[1] &= !(1 << 5);
        // VAES VPCLMULQDQ
        self.register(7, 0)[2] &= !(1 << 9 | 1 << 10);
        *self.register(7, 1) = [0; 4];
    }
}

/// The XCR0 bits that the host's kernel has set, so far as the guest may have them.
/// The vector state components that guests can have on this host, as XCR0 bits.
pub fn host_xcr0() -> u64 {
    let mut xcr0 = 3;
    if is_x86_feature_detected!("avx") {
        xcr0 |= 4;
    }
    if is_x86_feature_detected!("avx512f") {
        xcr0 |= 0xe0;
    }
    xcr0 & XCR0
}

/// Leaf 4 for a cache of `kind` (1 data, 2 code, 3 unified) with 64-byte lines, without the sharing fields.
fn cache(kind: u32, level: u32, sets: u32, ways: u32) -> Registers {
    const SELF_INITIALIZING: u32 = 1 << 8;
    [kind | level << 5 | SELF_INITIALIZING, (ways - 1) << 22 | 63, sets - 1, 0]
}
