//! Segment registers in KVM's form (`struct kvm_segment`) and ours.

use accel::arch_state::SegmentState;
use kvm_bindings::kvm_segment;

const TYPE: u16 = 0xf;
const S: u32 = 4;
const DPL: u32 = 5;
const P: u32 = 7;
const AVL: u32 = 12;
const L: u32 = 13;
const DB: u32 = 14;
const G: u32 = 15;

/// From KVM.
pub(super) fn from_kvm(segment: &kvm_segment) -> SegmentState {
    let bit = |value: u8, at: u32| u16::from(value & 1) << at;
    let access = (u16::from(segment.type_) & TYPE)
        | bit(segment.s, S)
        | u16::from(segment.dpl & 3) << DPL
        | bit(segment.present, P)
        | bit(segment.avl, AVL)
        | bit(segment.l, L)
        | bit(segment.db, DB)
        | bit(segment.g, G);
    SegmentState {
        selector: segment.selector,
        base: segment.base,
        limit: segment.limit,
        // A null segment keeps whatever type it had in some of the kernel's modules.
        access: if segment.unusable != 0 { 0 } else { access },
    }
}

/// To KVM.
pub(super) fn to_kvm(segment: &SegmentState) -> kvm_segment {
    let bit = |at: u32| (segment.access >> at & 1) as u8;
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: (segment.access & TYPE) as u8,
        s: bit(S),
        dpl: (segment.access >> DPL & 3) as u8,
        present: bit(P),
        avl: bit(AVL),
        l: bit(L),
        db: bit(DB),
        g: bit(G),
        unusable: u8::from(segment.access == 0),
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_access_word_survives() {
        for access in (0..=u16::MAX).filter(|access| access & 0x0f00 == 0) {
            let segment = SegmentState { selector: 0x10, base: 0x1234_5678_9abc, limit: 0xffff_f000, access };
            assert_eq!(from_kvm(&to_kvm(&segment)), segment, "{access:#x}");
        }
    }

    #[test]
    fn a_64_bit_code_segment_reads_as_in_the_manual() {
        let code = to_kvm(&SegmentState { selector: 8, base: 0, limit: u32::MAX, access: 0xa09b });
        assert_eq!((code.type_, code.s, code.dpl, code.present), (0xb, 1, 0, 1));
        assert_eq!((code.avl, code.l, code.db, code.g, code.unusable), (0, 1, 0, 1, 0));
    }
}
