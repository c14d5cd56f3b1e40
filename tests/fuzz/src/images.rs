//! Small qcow2 images (QEMU, `docs/interop/qcow2.txt`): good ones, unless the input says otherwise.

use crate::input::Input;

/// log2 of a cluster's bytes: the smallest ones.
const CLUSTER_BITS: u32 = 9;
/// Bytes of one.
const CLUSTER: usize = 1 << CLUSTER_BITS;
/// Where things are, in clusters: the header, refcounts, the L1 table, as many L2 tables as it has entries, data.
const REFCOUNT_TABLE: usize = 1;
const REFCOUNT_BLOCK: usize = 2;
const L1: usize = 3;
const L2: usize = 4;
const L2_TABLES: usize = 2;
const DATA: usize = L2 + L2_TABLES;
/// Entries of an L2 table, and clusters of the largest disk.
const ENTRIES: usize = CLUSTER / 8;
/// An entry whose cluster nothing else refers to, and one of zeros.
const COPIED: u64 = 1 << 63;
const ZERO: u64 = 1;
/// Names that a header may have, in bytes.
const NAME_AT: usize = 0x100;
const NAME_ROOM: usize = CLUSTER - NAME_AT;

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// An image whose backing file is `backing`: its name, and its format, which may be left unsaid.
pub fn qcow2(input: &mut Input, backing: Option<(&[u8], &[u8])>) -> Vec<u8> {
    let what = input.u8();
    let disk = (usize::from(input.u8()) % (L2_TABLES * ENTRIES) + 1) * CLUSTER - usize::from(what & 3) * 128;
    let mut image = vec![0; DATA * CLUSTER];
    put(&mut image, 0, b"QFI\xfb\0\0\0\x03");
    put(&mut image, 20, &CLUSTER_BITS.to_be_bytes());
    put(&mut image, 24, &(disk as u64).to_be_bytes());
    put(&mut image, 36, &(L2_TABLES as u32).to_be_bytes());
    put(&mut image, 40, &((L1 * CLUSTER) as u64).to_be_bytes());
    put(&mut image, 48, &((REFCOUNT_TABLE * CLUSTER) as u64).to_be_bytes());
    put(&mut image, 56, &1u32.to_be_bytes());
    put(&mut image, 96, &4u32.to_be_bytes());
    put(&mut image, 100, &104u32.to_be_bytes());
    put(&mut image, REFCOUNT_TABLE * CLUSTER, &((REFCOUNT_BLOCK * CLUSTER) as u64).to_be_bytes());
    // What of the disk is here: nothing, data, zeros, and zeros in place of data.
    for index in 0..disk.div_ceil(CLUSTER) {
        let kind = input.u8() & 3;
        let entry = match kind {
            0 => 0,
            1 | 3 => {
                let at = image.len() as u64;
                image.extend([0x80 | index as u8].repeat(CLUSTER));
                at | COPIED | if kind == 3 { ZERO } else { 0 }
            }
            _ => ZERO,
        };
        let table = L2 + index / ENTRIES;
        put(&mut image, table * CLUSTER + index % ENTRIES * 8, &entry.to_be_bytes());
        put(
            &mut image,
            L1 * CLUSTER + index / ENTRIES * 8,
            &((table * CLUSTER) as u64 | COPIED).to_be_bytes(),
        );
    }
    for cluster in 0..image.len() / CLUSTER {
        put(&mut image, REFCOUNT_BLOCK * CLUSTER + cluster * 2, &1u16.to_be_bytes());
    }
    damage(&mut image, input);
    // The name last: which files are opened is not the input's business.
    put(&mut image, 8, &[0; 12]);
    if let Some((name, format)) = backing {
        let name = &name[..name.len().min(NAME_ROOM)];
        put(&mut image, 8, &(NAME_AT as u64).to_be_bytes());
        put(&mut image, 16, &(name.len() as u32).to_be_bytes());
        put(&mut image, NAME_AT, name);
        if !format.is_empty() {
            put(&mut image, 104, &0xe279_2acau32.to_be_bytes());
            put(&mut image, 108, &(format.len() as u32).to_be_bytes());
            put(&mut image, 112, format);
            put(&mut image, 112 + format.len().next_multiple_of(8), &[0; 8]);
        }
    }
    image
}

/// Up to three places that hold something else.
fn damage(image: &mut Vec<u8>, input: &mut Input) {
    for _ in 0..input.u8() & 3 {
        let what = input.u8();
        let value = match what >> 4 & 3 {
            // An offset of a cluster that there is, or nearly.
            0 => u64::from(input.u8()) << CLUSTER_BITS | u64::from(what >> 6) << 62,
            1 => u64::from(input.small()),
            _ => input.u64(),
        };
        let place = match what & 3 {
            0 => usize::from(input.u8()) % 14 * 8,
            1 => L1 * CLUSTER + usize::from(input.u8() & 1) * 8,
            2 => L2 * CLUSTER + usize::from(input.u8()) % (L2_TABLES * ENTRIES) * 8,
            _ => REFCOUNT_TABLE * CLUSTER + usize::from(input.u16()) % (2 * CLUSTER - 8),
        };
        put(image, place, &value.to_be_bytes()[..if what & 0x0c == 0x0c { 1 } else { 8 }]);
    }
    if input.u8() == 0xff {
        image.truncate(usize::from(input.u16()));
        image.resize(image.len().max(CLUSTER), 0);
    }
}
