//! The guest's vector and x87 state while helpers run: an XSAVE image in standard format
//! (SDM vol. 1, *XSAVE Area*).
//!
//! A component whose bit in XSTATE_BV is clear is in its initial state, whatever its bytes are. MXCSR has no such bit:
//! its bytes always count.

use crate::complex::xstate::layout::{
    AVX, EXTENDED_REGION, HI16_ZMM, LAYOUT, MXCSR_MASK, OPMASK, SSE, X87, ZMM_HI256,
};
use crate::env::{XSAVE_BYTES, XsaveArea};

/// FCW after FNINIT.
pub const FCW_INIT: u16 = 0x37f;
/// MXCSR after reset.
pub const MXCSR_INIT: u32 = 0x1f80;

const XSTATE_BV: usize = 512;
const XMM: usize = 160;
const ST: usize = 32;

/// Exception flags and masks, the same bits in FSW and FCW.
const X87_EXCEPTIONS: u16 = 0x3f;
/// FSW: an unmasked exception is pending, and its copy B.
const ES_AND_B: u16 = 0x8080;

/// FSW: the top of the register stack.
const TOP: u16 = 7 << 11;

/// Offset and length of the parts of component 0; between them lies MXCSR.
pub const X87_PIECES: [(usize, usize); 2] = [(0, 24), (ST, 128)];

impl XsaveArea {
    fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn set_u16_at(&mut self, at: usize, value: u16) {
        self.0[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    /// XSTATE_BV: the components that are not in their initial state.
    pub fn in_use(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[XSTATE_BV..XSTATE_BV + 8]);
        u64::from_le_bytes(bytes)
    }

    /// Replaces XSTATE_BV.
    pub fn set_in_use(&mut self, bits: u64) {
        self.0[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&bits.to_le_bytes());
    }

    fn uses(&self, component: usize) -> bool {
        self.in_use() >> component & 1 != 0
    }

    /// Place and size of component `index`; x87 state is in pieces and not for this.
    pub fn place(index: usize) -> (usize, usize) {
        if index == SSE {
            return (XMM, 256);
        }
        let component = LAYOUT[index];
        // What does not fit the image is a component that XCR0 never shows the guest.
        if component.offset + component.size > XSAVE_BYTES {
            (EXTENDED_REGION, 0)
        } else {
            (component.offset, component.size)
        }
    }

    /// Makes the bytes of a component in its initial state say so.
    pub fn settle(&mut self, component: usize) {
        if self.uses(component) {
            return;
        }
        if component == X87 {
            for (at, len) in X87_PIECES {
                self.0[at..at + len].fill(0);
            }
            self.set_u16_at(0, FCW_INIT);
        } else {
            let (at, len) = Self::place(component);
            self.0[at..at + len].fill(0);
        }
    }

    /// Makes the bytes of a component valid and counts it as in use.
    pub fn touch(&mut self, component: usize) {
        self.settle(component);
        self.set_in_use(self.in_use() | 1 << component);
    }

    /// Puts the first `len` bytes of a component into their initial state.
    pub fn initialise(&mut self, component: usize, len: usize) {
        if !self.uses(component) {
            return;
        }
        if component == X87 || len == Self::place(component).1 {
            self.set_in_use(self.in_use() & !(1 << component));
        } else {
            let (at, _) = Self::place(component);
            self.0[at..at + len].fill(0);
        }
    }

    /// MXCSR.
    pub fn mxcsr(&self) -> u32 {
        u32::from(self.u16_at(24)) | u32::from(self.u16_at(26)) << 16
    }

    /// Replaces MXCSR.
    pub fn set_mxcsr(&mut self, value: u32) {
        self.0[24..28].copy_from_slice(&value.to_le_bytes());
    }

    /// Makes MXCSR_MASK that of the host.
    pub fn settle_mxcsr_mask(&mut self) {
        self.0[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    }

    /// FCW.
    pub fn fcw(&self) -> u16 {
        if self.uses(X87) { self.u16_at(0) } else { FCW_INIT }
    }

    /// FSW, TOP included.
    pub fn fsw(&self) -> u16 {
        if self.uses(X87) { self.u16_at(2) } else { 0 }
    }

    /// The abridged tag word: bit n set, physical register n is not empty.
    pub fn ftw(&self) -> u8 {
        if self.uses(X87) { self.0[4] } else { 0 }
    }

    /// Replaces the x87 control, status (its summary bits follow from the others) and abridged tag words, and forgets
    /// the pointers.
    pub fn set_x87_environment(&mut self, fcw: u16, fsw: u16, ftw: u8) {
        self.touch(X87);
        self.turn(fsw);
        let pending = fsw & !fcw & X87_EXCEPTIONS != 0;
        // Bit 6 is reserved and reads as one.
        self.set_u16_at(0, fcw & 0x1f3f | 0x40);
        self.set_u16_at(2, fsw & !ES_AND_B | if pending { ES_AND_B } else { 0 });
        self.0[4] = ftw;
        self.0[5] = 0;
        self.forget_x87_pointers();
    }

    /// Reorders the registers for the TOP in `fsw`: the image has them in the order of the stack, ST(i) being physical
    /// register TOP + i, and it is the physical ones that stay.
    fn turn(&mut self, fsw: u16) {
        let by = (fsw & TOP).wrapping_sub(self.fsw() & TOP) >> 11 & 7;
        self.0[ST..ST + 128].rotate_left(16 * usize::from(by));
    }

    /// FIP and FDP are addresses of generated code and of guest memory in this process, and FOP belongs to them: the
    /// guest sees zero, as it does on processors that keep them for unmasked exceptions only.
    pub fn forget_x87_pointers(&mut self) {
        self.0[6..24].fill(0);
    }

    /// ST(`index`), 80 bits.
    pub fn st(&self, index: usize) -> [u8; 10] {
        let mut value = [0; 10];
        if self.uses(X87) {
            value.copy_from_slice(&self.0[ST + 16 * index..][..10]);
        }
        value
    }

    /// Replaces ST(`index`).
    pub fn set_st(&mut self, index: usize, value: &[u8]) {
        self.touch(X87);
        self.0[ST + 16 * index..][..10].copy_from_slice(&value[..10]);
        self.0[ST + 16 * index + 10..][..6].fill(0);
    }

    /// Copies the legacy region's x87 state in from `from`, laid out as FXSAVE does.
    pub fn load_x87(&mut self, from: &[u8]) {
        let word = |at: usize| u16::from_le_bytes([from[at], from[at + 1]]);
        self.set_x87_environment(word(0), word(2), from[4]);
        self.0[ST..ST + 128].copy_from_slice(&from[ST..ST + 128]);
        for register in self.0[ST..ST + 128].chunks_exact_mut(16) {
            register[10..].fill(0);
        }
    }

    /// MM register `index`: the low 64 bits of a physical x87 register.
    pub fn mm(&self, index: usize) -> u64 {
        let top = usize::from(self.fsw() >> 11 & 7);
        let st = self.st((index + 8 - top) & 7);
        let mut low = [0; 8];
        low.copy_from_slice(&st[..8]);
        u64::from_le_bytes(low)
    }

    /// What every MMX instruction does besides its work: TOP becomes 0 and no register is empty.
    pub fn enter_mmx(&mut self) {
        let fsw = self.fsw() & !TOP;
        self.touch(X87);
        self.turn(fsw);
        self.set_u16_at(2, fsw);
        self.0[4] = 0xff;
    }

    /// K register `index`.
    pub fn opmask(&self, index: usize) -> u64 {
        let mut bytes = [0; 8];
        if self.uses(OPMASK) {
            bytes.copy_from_slice(&self.0[Self::place(OPMASK).0 + 8 * index..][..8]);
        }
        u64::from_le_bytes(bytes)
    }

    /// Replaces K register `index`.
    pub fn set_opmask(&mut self, index: usize, value: u64) {
        self.touch(OPMASK);
        let at = Self::place(OPMASK).0 + 8 * index;
        self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// The places of vector register `index`: component, offset in it, offset in the register, bytes.
    fn vector_pieces(index: usize) -> [(usize, usize, usize, usize); 3] {
        if index >= 16 {
            return [(HI16_ZMM, 64 * (index - 16), 0, 64), (AVX, 0, 0, 0), (AVX, 0, 0, 0)];
        }
        [(SSE, 16 * index, 0, 16), (AVX, 16 * index, 16, 16), (ZMM_HI256, 32 * index, 32, 32)]
    }

    /// ZMM register `index`, 0 to 31; parts that this host does not have are zero.
    pub fn vector(&self, index: usize) -> [u8; 64] {
        let mut value = [0; 64];
        for (component, at, from, len) in Self::vector_pieces(index) {
            let (place, size) = Self::place(component);
            if len != 0 && size != 0 && self.uses(component) {
                value[from..from + len].copy_from_slice(&self.0[place + at..][..len]);
            }
        }
        value
    }

    /// Replaces the low `len` bytes (16, 32, 64) of ZMM register `index` and clears the rest, as VEX and EVEX do.
    pub fn set_vector(&mut self, index: usize, value: &[u8; 64], len: usize) {
        for (component, at, from, piece) in Self::vector_pieces(index) {
            let (place, size) = Self::place(component);
            if piece == 0 || size == 0 {
                continue;
            }
            if from >= len {
                if self.uses(component) {
                    self.0[place + at..][..piece].fill(0);
                }
                continue;
            }
            self.touch(component);
            let kept = piece.min(len - from);
            self.0[place + at..][..kept].copy_from_slice(&value[from..from + kept]);
            self.0[place + at + kept..][..piece - kept].fill(0);
        }
    }
}
