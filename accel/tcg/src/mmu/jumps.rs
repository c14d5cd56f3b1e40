//! What the jump caches of an address space ([`crate::mmu::soft_tlb`]) are made of.

/// Entries of a jump cache.
pub const JUMP_ENTRIES: usize = 2048;
/// Entries of the larger jump cache that the thunks ask where the first does not have an address.
pub const FAR_ENTRIES: usize = 16384;

/// A jump cache entry as generated code reads it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct JumpEntry {
    /// Linear address of the block. An empty entry has an address with another index.
    pub tag: u64,
    /// Host address of its code. In a larger jump cache [`TAKES_FLAGS`] may be set, too.
    pub code: u64,
}

/// Set in [`JumpEntry::code`]: the block may read the flags that it is entered with.
pub const TAKES_FLAGS: u64 = 1 << 63;

/// An empty jump cache.
pub static NO_JUMPS: [JumpEntry; JUMP_ENTRIES] = {
    let mut entries = [JumpEntry { tag: 0, code: 0 }; JUMP_ENTRIES];
    entries[0].tag = 1;
    entries
};

/// The empty entry `index` of a larger one.
pub const fn no_far_jump(index: usize) -> JumpEntry {
    JumpEntry { tag: (index == 0) as u64, code: 0 }
}

/// What the low half of an address is multiplied by: the high bits of the product depend on all of it (Knuth, *The Art of Computer
/// Programming*, vol. 3, 6.4, multiplicative hashing).
pub const JUMP_FACTOR: u32 = 0x9e37_79b1;

/// Index of a block at `pc` in a jump cache.
pub fn jump_index(pc: u64) -> usize {
    ((pc as u32).wrapping_mul(JUMP_FACTOR) >> (u32::BITS - JUMP_ENTRIES.ilog2())) as usize
}

/// Index of a block at `pc` in a larger jump cache.
pub fn far_jump_index(pc: u64) -> usize {
    (pc ^ pc >> 14) as usize & (FAR_ENTRIES - 1)
}
