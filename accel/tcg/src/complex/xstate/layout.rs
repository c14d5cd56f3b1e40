//! Where state components lie in the XSAVE area, as on this host (SDM vol. 1, *Enumeration of CPU Support for XSAVE
//! Instructions*).
//!
//! The guest's CPUID leaf 0DH shows the host's layout, and generated code saves and loads images natively, so there is
//! one layout. It is read once: CPUID leaves a virtual machine, which takes microseconds.

#![expect(unsafe_code, reason = "door: FXSAVE tells the host's MXCSR_MASK")]

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::LazyLock;

/// x87 state.
pub const X87: usize = 0;
/// XMM registers and, in places, MXCSR.
pub const SSE: usize = 1;
/// Upper halves of YMM0 to YMM15.
pub const AVX: usize = 2;
/// K0 to K7.
pub const OPMASK: usize = 5;
/// Upper halves of ZMM0 to ZMM15.
pub const ZMM_HI256: usize = 6;
/// ZMM16 to ZMM31.
pub const HI16_ZMM: usize = 7;
/// One more than the highest component that is known.
pub const COMPONENTS: usize = 20;

/// Bytes of the legacy region and the header.
pub const EXTENDED_REGION: usize = 576;

/// An extended state component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Component {
    /// Offset in the standard format.
    pub offset: usize,
    /// Bytes; 0: this host does not have it.
    pub size: usize,
    /// Aligned to 64 bytes in the compacted format.
    pub aligned: bool,
}

/// All components; the first two have fixed places and are empty here.
pub static LAYOUT: LazyLock<[Component; COMPONENTS]> = LazyLock::new(|| {
    let mut layout = [Component::default(); COMPONENTS];
    for (index, component) in layout.iter_mut().enumerate().skip(2) {
        let leaf = __cpuid_count(0xd, index as u32);
        // Supervisor components (ECX bit 0) have no place in the standard format.
        if leaf.eax != 0 && leaf.ecx & 1 == 0 {
            *component =
                Component { offset: leaf.ebx as usize, size: leaf.eax as usize, aligned: leaf.ecx & 2 != 0 };
        }
    }
    layout
});

/// The bits of MXCSR that this host has.
pub static MXCSR_MASK: LazyLock<u32> = LazyLock::new(|| {
    #[repr(align(16))]
    struct Area([u8; 512]);
    let mut area = Area([0; 512]);
    // SAFETY: FXSAVE writes the 512 aligned bytes of `area` and changes nothing else.
    unsafe { asm!("fxsave64 [{}]", in(reg) &mut area, options(nostack, preserves_flags)) };
    match u32::from_le_bytes([area.0[28], area.0[29], area.0[30], area.0[31]]) {
        0 => 0xffbf,
        mask => mask,
    }
});

/// Offset in the compacted format of each component of `xcomp_bv`, and the end of the last one.
pub fn compacted(xcomp_bv: u64) -> ([usize; COMPONENTS], usize) {
    let mut offsets = [0; COMPONENTS];
    let mut end = EXTENDED_REGION;
    let layout = &*LAYOUT;
    for index in extended(xcomp_bv) {
        if layout[index].aligned {
            end = end.next_multiple_of(64);
        }
        offsets[index] = end;
        end += layout[index].size;
    }
    (offsets, end)
}

/// The components of `bits` beyond the legacy region, ascending.
pub fn extended(bits: u64) -> impl Iterator<Item = usize> {
    let mut rest = bits & ((1 << COMPONENTS) - 1) & !3;
    std::iter::from_fn(move || {
        let index = rest.trailing_zeros() as usize;
        rest &= rest.wrapping_sub(1);
        (index < COMPONENTS).then_some(index)
    })
}

/// Bytes of `component` that instructions outside 64-bit mode see: eight registers of each kind.
pub fn visible(component: usize, size: usize, wide: bool) -> usize {
    match component {
        _ if wide => size,
        AVX => 128,
        ZMM_HI256 => 256,
        HI16_ZMM => 0,
        _ => size,
    }
}
