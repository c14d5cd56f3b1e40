//! Guest paging: the walker, the soft TLB, and memory access for helpers.

pub mod access;
pub mod jumps;
pub mod sets;
pub mod soft_tlb;
#[cfg(test)]
mod tests;
pub mod walk;
pub mod windowed;

pub use access::Access;
pub use soft_tlb::Mmu;
