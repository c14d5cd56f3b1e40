//! XSAVE images in the standard format (SDM vol. 1, *Managing State Using the XSAVE Feature Set*).

#![expect(unsafe_code, reason = "door: XGETBV")]

use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use crate::layout::{VECTOR_COMPONENTS, XSAVE_BYTES};
use crate::rng::Rng;

/// XCR0 of the host.
pub fn enabled_components() -> u64 {
    static XCR0: OnceLock<u64> = OnceLock::new();
    *XCR0.get_or_init(|| {
        // SAFETY: the tester needs XSAVE; `features` checks that OSXSAVE is there before anything runs.
        unsafe { std::arch::x86_64::_xgetbv(0) }
    })
}

static COMPARED: OnceLock<u64> = OnceLock::new();

/// Restricts what is compared to the components that the guest's CPUID shows. Once, before the first comparison.
pub fn compare_only(shown: u64) {
    let _ = COMPARED.set(shown & compared());
}

/// The components compared.
pub fn compared() -> u64 {
    COMPARED.get().copied().unwrap_or_else(|| enabled_components() & VECTOR_COMPONENTS)
}

/// Offset and size of component `index` in the standard format, on this host.
pub fn component(index: u32) -> (usize, usize) {
    let leaf = __cpuid_count(0xd, index);
    (leaf.ebx as usize, leaf.eax as usize)
}

/// Components 2 and up that are compared, with their places.
fn extended() -> &'static [(u32, usize, usize)] {
    static LIST: OnceLock<Vec<(u32, usize, usize)>> = OnceLock::new();
    LIST.get_or_init(|| {
        let enabled = enabled_components() & VECTOR_COMPONENTS;
        (2..64)
            .filter(|index| enabled >> index & 1 != 0)
            .map(|index| {
                let (at, size) = component(index);
                assert!(at + size <= XSAVE_BYTES, "component {index} lies inside the image");
                (index, at, size)
            })
            .collect()
    })
}

const HEADER: usize = 512;

/// Brings an image into one form: components in their initial state as that state's bytes, nothing where the CPU may write what
/// it likes (FOP, FIP, FDP, reserved fields, header). An empty image is the initial state.
pub fn canonical(image: &[u8]) -> Box<[u8; XSAVE_BYTES]> {
    let mut out = Box::new([0; XSAVE_BYTES]);
    let present = if image.len() >= HEADER + 8 {
        u64::from_le_bytes(image[HEADER..HEADER + 8].try_into().expect("eight bytes"))
    } else {
        0
    };
    out[0..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    out[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    if present & 1 != 0 {
        // FCW, FSW, FTW.
        out[0..5].copy_from_slice(&image[0..5]);
        for register in 0..8 {
            let at = 32 + 16 * register;
            out[at..at + 10].copy_from_slice(&image[at..at + 10]);
        }
    }
    if image.len() >= HEADER {
        // MXCSR is in the image whatever the header says.
        out[24..28].copy_from_slice(&image[24..28]);
    }
    if present & 2 != 0 {
        out[160..416].copy_from_slice(&image[160..416]);
    }
    for &(index, at, size) in extended() {
        if (present & compared()) >> index & 1 != 0 && image.len() >= at + size {
            out[at..at + size].copy_from_slice(&image[at..at + size]);
        }
    }
    out
}

/// Name of what lies at `offset` of a canonical image.
pub fn field(offset: usize) -> String {
    match offset {
        0..2 => "FCW".into(),
        2..4 => "FSW".into(),
        4..6 => "FTW".into(),
        24..28 => "MXCSR".into(),
        32..160 => format!("ST/MM{}", (offset - 32) / 16),
        160..416 => format!("XMM{} byte {}", (offset - 160) / 16, (offset - 160) % 16),
        _ => {
            for &(index, at, size) in extended() {
                if (at..at + size).contains(&offset) {
                    return match index {
                        2 => format!("YMM{} byte {}", (offset - at) / 16, 16 + (offset - at) % 16),
                        5 => format!("K{}", (offset - at) / 8),
                        6 => format!("ZMM{} byte {}", (offset - at) / 32, 32 + (offset - at) % 32),
                        7 => format!("ZMM{} byte {}", 16 + (offset - at) / 64, (offset - at) % 64),
                        _ => format!("component {index} byte {}", offset - at),
                    };
                }
            }
            format!("byte {offset}")
        }
    }
}

/// Kinds of vector register contents.
fn fill(bytes: &mut [u8], rng: &mut Rng, kind: usize) {
    const FLOATS: [f64; 12] = [
        0.0,
        -0.0,
        1.0,
        -1.5,
        3.25e10,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        f64::MIN_POSITIVE,
        4e-320,
        1e308,
        0.1,
    ];
    for chunk in bytes.chunks_mut(8) {
        let value = match kind {
            0 => rng.next(),
            1 => rng.pick(&FLOATS).to_bits(),
            2 => {
                let (low, high) = (rng.pick(&FLOATS) as f32, rng.pick(&FLOATS) as f32);
                u64::from(low.to_bits()) | u64::from(high.to_bits()) << 32
            }
            3 => rng.interesting(),
            // Signalling NaNs and denormals of both widths.
            4 => {
                rng.pick(&[0x7ff0_0000_0000_0001, 0x7f80_0001_ff80_0001, 0x000f_ffff_0000_0001, 0x0000_0001])
            }
            // Small: what a gather can use as an index.
            _ => rng.below(256) as u64,
        };
        let length = chunk.len();
        chunk.copy_from_slice(&value.to_le_bytes()[..length]);
    }
}

/// Templates from this index on have small numbers in registers 0 to 7 and 16 to 23: gather indices.
pub const FIRST_INDEX_TEMPLATE: usize = 48;

/// Fills a template. Most have all floating-point exceptions masked; a few let one through.
pub fn template(out: &mut [u8; XSAVE_BYTES], number: usize, rng: &mut Rng) {
    let enabled = enabled_components() & VECTOR_COMPONENTS;
    let indices = number >= FIRST_INDEX_TEMPLATE;
    out.fill(0);
    let rounding = (rng.below(4) as u16) << 10;
    let fcw = match number % 8 {
        0 => 0x37f,
        1 => 0x27f | rounding,
        2 => 0x07f | rounding,
        7 => 0x300 | rng.below(64) as u16,
        _ => 0x37f | rounding,
    };
    // Bit 6 is always set.
    out[0..2].copy_from_slice(&(fcw | 0x40).to_le_bytes());
    // Top of stack and condition codes; no pending exception, or the first waiting instruction would take it.
    let top = rng.below(8) as u16;
    let fsw = top << 11 | rng.pick(&[0_u16, 0x100, 0x4500, 0x4000]);
    out[2..4].copy_from_slice(&fsw.to_le_bytes());
    out[4] = if number.is_multiple_of(3) { rng.next() as u8 } else { 0xff };
    let mxcsr: u32 = match number % 8 {
        0..4 => 0x1f80,
        4 => 0x1f80 | (rng.below(4) as u32) << 13,
        5 => 0x9fc0 | (rng.below(4) as u32) << 13,
        6 => 0x1fc0,
        _ => rng.below(64) as u32 * 0x80,
    };
    out[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    for register in 0..8 {
        let at = 32 + 16 * register;
        let value: u64 = 0x8000_0000_0000_0000 | rng.next();
        let exponent: u16 = match rng.below(8) {
            0 => 0,
            1 => 0x7fff,
            2 => 0xffff,
            3 => rng.next() as u16,
            _ => 0x3fff - 8 + rng.below(24) as u16 + (rng.below(2) as u16) * 0x8000,
        };
        let value = match rng.below(8) {
            0 => 0,
            1 => value & !(1 << 63),
            2 => 0x8000_0000_0000_0000,
            _ => value,
        };
        out[at..at + 8].copy_from_slice(&value.to_le_bytes());
        out[at + 8..at + 10].copy_from_slice(&exponent.to_le_bytes());
    }
    for register in 0..32 {
        let kind = if indices && register % 16 < 8 { 9 } else { rng.below(5) };
        if register < 16 {
            fill(&mut out[160 + 16 * register..176 + 16 * register], rng, kind);
        }
        for &(index, at, _) in extended() {
            match index {
                2 if register < 16 => fill(&mut out[at + 16 * register..at + 16 * register + 16], rng, kind),
                6 if register < 16 => fill(&mut out[at + 32 * register..at + 32 * register + 32], rng, kind),
                7 if register >= 16 => {
                    fill(&mut out[at + 64 * (register - 16)..at + 64 * (register - 15)], rng, kind);
                }
                5 if register < 8 => {
                    let kind = 3 * rng.below(2);
                    fill(&mut out[at + 8 * register..at + 8 * register + 8], rng, kind);
                }
                _ => {}
            }
        }
    }
    out[HEADER..HEADER + 8].copy_from_slice(&enabled.to_le_bytes());
}

/// Bytes of the standard-format image of the components compared.
pub fn image_bytes() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| extended().iter().map(|&(_, at, size)| at + size).max().unwrap_or(576).max(576))
}
