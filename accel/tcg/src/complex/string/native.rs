//! Bulk string operations over host memory, done by the host's own string instructions (SDM vol. 2, *REP*).
//!
//! The host executes exactly what the guest asked for, so overlapping operands, elements of every size and flags need
//! no code of ours. Addresses are of guest RAM, which other CPUs may change meanwhile: assembly may read such memory,
//! Rust references may not.

#![expect(unsafe_code, reason = "door: string instructions on guest memory")]

use std::arch::asm;

/// How many bytes an element has, and which way the operation goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stride {
    /// 1, 2, 4 or 8.
    pub size: u64,
    /// DF: from high addresses to low.
    pub backward: bool,
}

/// One asm block per element size, with DF set around it where the operation goes backward.
macro_rules! by_size {
    ($stride:expr, $prefix:literal, $b:literal, $w:literal, $d:literal, $q:literal, $tail:literal, $($operands:tt)*) => {
        match ($stride.size, $stride.backward) {
            (1, false) => asm!(concat!($prefix, $b), $tail, $($operands)*),
            (2, false) => asm!(concat!($prefix, $w), $tail, $($operands)*),
            (4, false) => asm!(concat!($prefix, $d), $tail, $($operands)*),
            (_, false) => asm!(concat!($prefix, $q), $tail, $($operands)*),
            (1, true) => asm!("std", concat!($prefix, $b), "cld", $tail, $($operands)*),
            (2, true) => asm!("std", concat!($prefix, $w), "cld", $tail, $($operands)*),
            (4, true) => asm!("std", concat!($prefix, $d), "cld", $tail, $($operands)*),
            (_, true) => asm!("std", concat!($prefix, $q), "cld", $tail, $($operands)*),
        }
    };
}

/// REP MOVS of `count` elements, the first at `from` and `to`.
///
/// All of both ranges lie in guest RAM that a live [`crate::ram::Ram`] maps (the soft TLB only holds such addresses).
pub fn movs(stride: Stride, to: u64, from: u64, count: u64) {
    // SAFETY: the caller's ranges are guest RAM, which overlaps no Rust object; DF is clear again at the end.
    unsafe {
        by_size!(stride, "rep movs", "b", "w", "d", "q", "",
            inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
}

/// REP STOS of `count` elements of `value`, the first at `to`; memory as in [`movs`].
pub fn stos(stride: Stride, to: u64, value: u64, count: u64) {
    // SAFETY: as in `movs`.
    unsafe {
        by_size!(stride, "rep stos", "b", "w", "d", "q", "",
            inout("rcx") count => _, inout("rdi") to => _, in("rax") value,
            options(nostack, preserves_flags));
    }
}

/// What a comparison ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compared {
    /// Elements looked at, the deciding one included.
    pub done: u64,
    /// CF PF AF ZF SF OF of the last comparison, at their places in RFLAGS.
    pub flags: u32,
}

/// LAHF and SETO results as bits of RFLAGS.
fn flags(rax: u64) -> u32 {
    (rax >> 8) as u32 & 0xd5 | (rax as u32 & 1) << 11
}

/// REPE (`while_equal`) or REPNE CMPS of at most `count` (at least 1) elements: `first - second`, the first elements
/// at these addresses; memory as in [`movs`].
pub fn cmps(stride: Stride, first: u64, second: u64, count: u64, while_equal: bool) -> Compared {
    let (left, rax): (u64, u64);
    // SAFETY: as in `movs`; nothing is written.
    unsafe {
        if while_equal {
            by_size!(stride, "repe cmps", "b", "w", "d", "q", "lahf; seto al",
                inout("rcx") count => left, inout("rsi") first => _, inout("rdi") second => _, out("rax") rax,
                options(nostack, readonly));
        } else {
            by_size!(stride, "repne cmps", "b", "w", "d", "q", "lahf; seto al",
                inout("rcx") count => left, inout("rsi") first => _, inout("rdi") second => _, out("rax") rax,
                options(nostack, readonly));
        }
    }
    Compared { done: count - left, flags: flags(rax) }
}

/// REPE (`while_equal`) or REPNE SCAS of at most `count` (at least 1) elements: `value - element`, the first element
/// at `at`; memory as in [`movs`].
pub fn scas(stride: Stride, value: u64, at: u64, count: u64, while_equal: bool) -> Compared {
    let (left, rax): (u64, u64);
    // SAFETY: as in `movs`; nothing is written.
    unsafe {
        if while_equal {
            by_size!(stride, "repe scas", "b", "w", "d", "q", "lahf; seto al",
                inout("rcx") count => left, inout("rdi") at => _, inout("rax") value => rax,
                options(nostack, readonly));
        } else {
            by_size!(stride, "repne scas", "b", "w", "d", "q", "lahf; seto al",
                inout("rcx") count => left, inout("rdi") at => _, inout("rax") value => rax,
                options(nostack, readonly));
        }
    }
    Compared { done: count - left, flags: flags(rax) }
}
