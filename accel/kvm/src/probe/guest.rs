//! The probe's guest: its code, its memory, and what it should leave there.

use kvm_bindings::kvm_cpuid_entry2;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// The guest's RAM.
pub(super) const RAM: usize = 0x8000;
pub(super) const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
/// The code: first the instructions that emulators lack.
pub(super) const INSTRUCTIONS: u64 = 0x4000;
/// Then a loop of as many turns as R8 says.
pub(super) const LOOP: u64 = INSTRUCTIONS + 0x69;
/// What the code works on; 64-byte aligned.
pub(super) const DATA: u64 = 0x5000;
pub(super) const DATA_BYTES: usize = 0x1000;

/// Bits of R9: what CPUID offers.
pub(super) const CX16: u64 = 1 << 0;
pub(super) const XSAVE: u64 = 1 << 1;
pub(super) const XSAVES: u64 = 1 << 2;

const PATTERN: [u8; 16] = *b"SSE moves these!";
const EXCHANGED: [u64; 2] = [0x55aa, 0x33cc];
/// Offsets into the data.
const MOVED: usize = 0x10;
const CELL: usize = 0x20;
const XSAVE_AREA: usize = 0x40;
const XSAVES_AREA: usize = 0x400;
/// Offsets into an XSAVE area (SDM vol. 1, *XSAVE Area*).
const XMM0: usize = 160;
const XSTATE_BV: usize = 512;
const XSTATE_SSE: u8 = 1 << 1;

/// In: RSI the data, R8 turns, R9 features. EDI says where it is.
const CODE: &[u8] = &[
    0xbf, 0x01, 0x00, 0x00, 0x00, // 00: mov edi, 1
    0xf3, 0x0f, 0x6f, 0x06, // 05: movdqu xmm0, [rsi]
    0x66, 0x0f, 0x7f, 0x46, 0x10, // 09: movdqa [rsi + 0x10], xmm0
    0xbf, 0x02, 0x00, 0x00, 0x00, // 0e: mov edi, 2
    0x31, 0xc0, // 13: xor eax, eax
    0x31, 0xd2, // 15: xor edx, edx
    0x41, 0xf7, 0xc1, 0x01, 0x00, 0x00, 0x00, // 17: test r9d, 1
    0x74, 0x10, // 1e: jz 30
    0xbb, 0xaa, 0x55, 0x00, 0x00, // 20: mov ebx, 0x55aa
    0xb9, 0xcc, 0x33, 0x00, 0x00, // 25: mov ecx, 0x33cc
    0xf0, 0x48, 0x0f, 0xc7, 0x4e, 0x20, // 2a: lock cmpxchg16b [rsi + 0x20]
    0x41, 0xf7, 0xc1, 0x02, 0x00, 0x00, 0x00, // 30: test r9d, 2
    0x74, 0x2a, // 37: jz 63
    0xbf, 0x03, 0x00, 0x00, 0x00, // 39: mov edi, 3
    0x31, 0xc9, // 3e: xor ecx, ecx
    0x31, 0xd2, // 40: xor edx, edx
    0xb8, 0x03, 0x00, 0x00, 0x00, // 42: mov eax, 3
    0x0f, 0x01, 0xd1, // 47: xsetbv
    0x0f, 0xae, 0x66, 0x40, // 4a: xsave [rsi + 0x40]
    0x41, 0xf7, 0xc1, 0x04, 0x00, 0x00, 0x00, // 4e: test r9d, 4
    0x74, 0x0c, // 55: jz 63
    0xbf, 0x04, 0x00, 0x00, 0x00, // 57: mov edi, 4
    0x0f, 0xc7, 0xae, 0x00, 0x04, 0x00, 0x00, // 5c: xsaves [rsi + 0x400]
    0xbf, 0x05, 0x00, 0x00, 0x00, // 63: mov edi, 5
    0xf4, // 68: hlt
    0x44, 0x89, 0xc1, // 69: mov ecx, r8d
    0xff, 0xc9, // 6c: dec ecx
    0x75, 0xfc, // 6e: jnz 6c
    0xf4, // 70: hlt
    0xeb, 0xf6, // 71: jmp 69
];

/// Where the guest is, by EDI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Begin,
    Sse,
    Cmpxchg16b,
    Xsave,
    Xsaves,
    Loop,
}

impl Step {
    pub(super) fn from_register(edi: u64) -> Self {
        match edi {
            1 => Self::Sse,
            2 => Self::Cmpxchg16b,
            3 => Self::Xsave,
            4 => Self::Xsaves,
            5 => Self::Loop,
            _ => Self::Begin,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Begin => "its start",
            Self::Sse => "an SSE move",
            Self::Cmpxchg16b => "lock cmpxchg16b",
            Self::Xsave => "xsave",
            Self::Xsaves => "xsaves",
            Self::Loop => "an empty loop",
        }
    }
}

/// What of the instructions CPUID offers.
pub(super) fn features(cpuid: &[kvm_cpuid_entry2]) -> u64 {
    let leaf =
        |function, index| cpuid.iter().find(|entry| (entry.function, entry.index) == (function, index));
    let leaf_1 = leaf(1, 0).map_or(0, |entry| entry.ecx);
    let leaf_d = leaf(0xd, 1).map_or(0, |entry| entry.eax);
    let bit = |word: u32, at: u32, feature| if word >> at & 1 != 0 { feature } else { 0 };
    bit(leaf_1, 13, CX16) | bit(leaf_1, 26, XSAVE) | bit(leaf_1 & leaf_d << 23, 26, XSAVES)
}

/// Fills the guest's memory: page tables that map it one to one, code, data.
pub(super) fn load(memory: &GuestMemoryMmap) {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let put = |value: u64, at| memory.write_obj(value, GuestAddress(at)).expect("the tables lie in RAM");
    put(PDPT | PRESENT_WRITABLE, PML4);
    put(PD | PRESENT_WRITABLE, PDPT);
    put(LARGE | PRESENT_WRITABLE, PD);
    memory.write_slice(CODE, GuestAddress(INSTRUCTIONS)).expect("the code lies in RAM");
    memory.write_slice(&PATTERN, GuestAddress(DATA)).expect("the data lie in RAM");
}

/// The first step whose result in `data` is not what a CPU leaves.
pub(super) fn wrong_result(data: &[u8; DATA_BYTES], features: u64) -> Option<Step> {
    let pattern_at = |offset: usize| data[offset..offset + PATTERN.len()] == PATTERN;
    let word_at = |offset: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&data[offset..offset + 8]);
        u64::from_le_bytes(word)
    };
    let saved = |area: usize| data[area + XSTATE_BV] & XSTATE_SSE != 0 && pattern_at(area + XMM0);
    if !pattern_at(MOVED) {
        return Some(Step::Sse);
    }
    if features & CX16 != 0 && [word_at(CELL), word_at(CELL + 8)] != EXCHANGED {
        return Some(Step::Cmpxchg16b);
    }
    if features & XSAVE != 0 && !saved(XSAVE_AREA) {
        return Some(Step::Xsave);
    }
    if features & XSAVES != 0 && !saved(XSAVES_AREA) {
        return Some(Step::Xsaves);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, eax: u32, ecx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ecx, ..Default::default() }
    }

    #[test]
    fn features_come_from_their_leaves() {
        assert_eq!(
            features(&[leaf(1, 0, 0, 1 << 13 | 1 << 26), leaf(0xd, 1, 1 << 3, 0)]),
            CX16 | XSAVE | XSAVES
        );
        assert_eq!(features(&[leaf(1, 0, 0, 1 << 26), leaf(0xd, 1, 0xf7, 0)]), XSAVE);
        // Without XSAVE, XSAVES does not count.
        assert_eq!(features(&[leaf(1, 0, 0, 1 << 13), leaf(0xd, 1, 1 << 3, 0)]), CX16);
    }

    #[test]
    fn each_wrong_result_is_named() {
        let all = CX16 | XSAVE | XSAVES;
        let mut data = [0; DATA_BYTES];
        assert_eq!(wrong_result(&data, all), Some(Step::Sse));
        data[MOVED..MOVED + 16].copy_from_slice(&PATTERN);
        assert_eq!(wrong_result(&data, 0), None);
        assert_eq!(wrong_result(&data, all), Some(Step::Cmpxchg16b));
        data[CELL..CELL + 8].copy_from_slice(&EXCHANGED[0].to_le_bytes());
        data[CELL + 8..CELL + 16].copy_from_slice(&EXCHANGED[1].to_le_bytes());
        for (area, step) in [(XSAVE_AREA, Step::Xsave), (XSAVES_AREA, Step::Xsaves)] {
            assert_eq!(wrong_result(&data, all), Some(step));
            data[area + XSTATE_BV] = 3;
            data[area + XMM0..area + XMM0 + 16].copy_from_slice(&PATTERN);
        }
        assert_eq!(wrong_result(&data, all), None);
    }

    #[test]
    fn the_loop_is_where_it_is_entered() {
        assert_eq!(&CODE[(LOOP - INSTRUCTIONS) as usize..][..3], [0x44, 0x89, 0xc1]);
    }
}
