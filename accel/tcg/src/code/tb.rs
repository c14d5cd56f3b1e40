//! A translation block: one entry, straight guest code, at most two direct ways on.

use iced_x86::Instruction;

use crate::exception::Exception;
use crate::ram::RamPage;

/// Number of a block, its index in the cache.
pub type TbId = u32;

/// What a block depends on beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TbKey {
    /// RAM page number and offset of the first byte.
    pub physical: u64,
    /// Offset in CS of the first instruction: RIP-relative operands are baked in.
    pub rip: u64,
    /// Mode bits; see [`mode`].
    pub mode: u32,
    /// The RAM page that the last instruction runs over into, where it does.
    pub second_page: Option<u32>,
}

/// Mode bits: all CPU state that translation depends on.
pub mod mode {
    /// Current privilege level, two bits.
    pub const CPL: u32 = 3;
    /// 64-bit code.
    pub const LONG: u32 = 1 << 2;
    /// CS.D.
    pub const CODE32: u32 = 1 << 3;
    /// SS.B.
    pub const STACK32: u32 = 1 << 4;
    /// Misaligned data accesses raise #AC: CR0.AM, EFLAGS.AC and CPL 3.
    pub const ALIGN: u32 = 1 << 5;
    /// DS, ES and SS are flat, writable and usable (outside 64-bit mode).
    pub const FLAT: u32 = 1 << 6;
    /// CS has base 0.
    pub const FLAT_CODE: u32 = 1 << 7;
    /// CR0.TS.
    pub const TS: u32 = 1 << 8;
    /// CR0.EM.
    pub const EM: u32 = 1 << 9;
    /// CR4.OSFXSR.
    pub const SSE: u32 = 1 << 10;
    /// CR4.OSXSAVE and XCR0 has AVX.
    pub const AVX: u32 = 1 << 11;
    /// XCR0 has AVX-512 as well.
    pub const AVX512: u32 = 1 << 12;
    /// Supervisor accesses reach user pages: CPL below 3, and EFLAGS.AC set or CR4.SMAP clear.
    pub const SMAP_OFF: u32 = 1 << 13;
    /// Real or virtual-8086 mode.
    pub const REAL: u32 = 1 << 14;
    /// One instruction to a block, none chained: single-step, data breakpoints, interrupt shadow, `step`. Such blocks
    /// are in no jump cache.
    pub const SINGLE: u32 = 1 << 15;

    /// What the tag of a block in a jump cache differs by from the block's address.
    ///
    /// Bits 48 to 62 are the mode, so that no two modes' tags of canonical addresses are equal: there those bits equal
    /// bit 47. The rest is made of a number that the guest cannot know. With a known one a program could jump to a
    /// non-canonical address with the tag of a kernel's block.
    pub fn jump_key(bits: u32) -> u64 {
        let mixed = u64::from(bits + 1).wrapping_mul(*SECRET);
        u64::from(bits & !SINGLE) << 48 | mixed >> 17
    }

    static SECRET: std::sync::LazyLock<u64> = std::sync::LazyLock::new(|| {
        use std::hash::BuildHasher;
        std::hash::RandomState::new().hash_one(0) | 1
    });

    /// The soft-TLB mode of a block's own accesses.
    pub fn tlb_mode(bits: u32) -> usize {
        use crate::mmu::access::{MODE_SMAP, MODE_SUPERVISOR, MODE_USER};
        match (bits & CPL, bits & SMAP_OFF) {
            (3, _) => MODE_USER,
            (_, 0) => MODE_SMAP,
            _ => MODE_SUPERVISOR,
        }
    }
}

/// An instruction that a helper executes, at an address that generated code passes.
pub struct Site {
    /// The instruction.
    pub insn: Instruction,
    /// Raise this instead of executing.
    pub raise: Option<Exception>,
    /// Its address as offset in CS.
    pub rip: u64,
}

/// From `host` on (offset in the block's code), the code belongs to guest instruction `insn`.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// Offset of the first byte.
    pub host: u32,
    /// Index of the instruction.
    pub insn: u16,
    /// The guest's flags are in EFLAGS here (else in `env.lahf`, or dead).
    pub flags_in_host: bool,
    /// Host registers that stand in for others meanwhile, a bit each; their own values are parked from scratch word
    /// [`PARKED`] on, in [`PARKING_ORDER`].
    pub parked: u8,
}

/// Host registers that may stand in for others, in the order in which they are taken. They hold the guest registers of the
/// same number.
pub const PARKING_ORDER: [usize; 6] = [3, 6, 7, 2, 1, 0];
/// First scratch word for parked registers.
pub const PARKED: usize = 4;

/// A direct way on.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Executable address of the jump's displacement.
    pub displacement: u64,
    /// Where the jump goes while unlinked.
    pub stub: u64,
    /// The target block is entered with its flags saved.
    pub flags_saved: bool,
    /// The block that it is linked to.
    pub linked: Option<TbId>,
}

/// A block.
pub struct Tb {
    /// What it was translated from.
    pub key: TbKey,
    /// Its page.
    pub page: RamPage,
    /// Guest bytes.
    pub guest_len: u32,
    /// Executable address.
    pub code: u64,
    /// Bytes of code.
    pub code_len: u32,
    /// Entry with the flags in EFLAGS.
    pub entry: u64,
    /// Entry with the flags in `env.lahf`.
    pub entry_saved: u64,
    /// Direct ways on.
    pub slots: [Option<Slot>; 2],
    /// Blocks linked to this one: block number * 2 + slot. May name links that are gone.
    pub incoming: Vec<u32>,
    /// Code to guest instruction, ascending.
    pub marks: Vec<Mark>,
    /// Guest offset of each instruction from `key.rip`, and of the end.
    pub insns: Vec<u16>,
    /// Instructions for helpers.
    // Boxed: generated code has their addresses.
    pub sites: Vec<Box<Site>>,
    /// Bytes that the return at its end takes off the stack; 0 for other ends.
    pub popped: u32,
    /// Still to be found and linked to.
    pub valid: bool,
}

impl Tb {
    /// The guest instruction that the code at executable address `pc` belongs to.
    pub fn mark_at(&self, pc: u64) -> Option<Mark> {
        let offset = pc.checked_sub(self.code)? as u32;
        let after = self.marks.partition_point(|mark| mark.host <= offset);
        self.marks.get(after.checked_sub(1)?).copied()
    }

    /// RIP of instruction `insn`; of the end for one past the last.
    pub fn rip_of(&self, insn: usize) -> u64 {
        self.key.rip.wrapping_add(u64::from(self.insns[insn]))
    }

    /// Whether the block can be reached by a patched jump: it does not run over into another page, which could be
    /// mapped elsewhere while the jump stays.
    pub fn chainable(&self) -> bool {
        self.key.second_page.is_none() && self.key.mode & mode::SINGLE == 0
    }
}
