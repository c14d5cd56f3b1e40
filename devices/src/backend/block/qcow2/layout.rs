//! Whether what a qcow2 image says it has is there: its tables and clusters lie within the file.
//!
//! An image that was cut short (a full disk, an interrupted copy) would otherwise be noticed when the guest comes to the
//! part that is missing, or not at all: as zeros. An image to be written to has its refcounts held against what is in use as
//! well: the allocator trusts them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::refcounts::Refcounts;

const MAGIC: u32 = 0x5146_49fb;
const HEADER_BYTES: usize = 72;
/// The same of version 3.
const HEADER_3_BYTES: usize = 104;
/// Bits 9 to 55 of an entry: where it leads.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// No file is longer.
const COMPRESSED_OFFSET: u64 = 0x00ff_ffff_ffff_ffff;
const COMPRESSED: u64 = 1 << 62;
const COMPRESSED_SECTOR_BYTES: u64 = 512;
/// Bytes of an L1 table at most (QEMU's limit).
const MAX_L1_BYTES: u64 = 32 << 20;

pub fn bad(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

pub fn entries(file: &File, offset: u64, bytes: u64) -> io::Result<Vec<u64>> {
    let mut table = vec![0; usize::try_from(bytes).map_err(|_| bad("a table is too large"))?];
    file.read_exact_at(&mut table, offset)?;
    Ok(table.chunks_exact(8).map(|entry| u64_at(entry, 0)).collect())
}

/// The bytes of a cluster. `Err`: the file is no qcow2 image, or not a whole one, or `writable` and its refcounts do not say what is in use.
pub fn check(file: &File, writable: bool) -> io::Result<u64> {
    let size = file.metadata()?.len();
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0).map_err(|_| bad("it is shorter than a header"))?;
    if u32_at(&header, 0) != MAGIC {
        return Err(bad("it does not begin as one"));
    }
    if !matches!(u32_at(&header, 4), 2 | 3) {
        return Err(bad(format!("it is of version {}", u32_at(&header, 4))));
    }
    if u32_at(&header, 32) != 0 {
        return Err(bad("it is encrypted, which is not built yet"));
    }
    let cluster_bits = u32_at(&header, 20);
    if !(9..=21).contains(&cluster_bits) {
        return Err(bad(format!("its clusters have 2^{cluster_bits} bytes")));
    }
    let cluster = 1 << cluster_bits;
    let (mut features, mut refcount_order) = (0, 4);
    if u32_at(&header, 4) == 3 {
        let mut more = [0; HEADER_3_BYTES - HEADER_BYTES];
        file.read_exact_at(&mut more, HEADER_BYTES as u64).map_err(|_| bad("it is shorter than a header"))?;
        (features, refcount_order) = (u64_at(&more, 0), u32_at(&more, 24));
    }
    // The last cluster may be short: a guest has not written to its end.
    let there = |offset: u64, what: &str| {
        if offset < size { Ok(()) } else { Err(bad(format!("it is cut short: {what} lies behind its end"))) }
    };
    there(u64_at(&header, 48), "the refcount table")?;
    let (l1_bytes, l1) = (u64::from(u32_at(&header, 36)) * 8, u64_at(&header, 40));
    if l1_bytes > MAX_L1_BYTES {
        return Err(bad("its L1 table is too large"));
    }
    let end = l1.checked_add(l1_bytes).filter(|&end| end <= size);
    end.ok_or_else(|| bad("it is cut short: the L1 table lies behind its end"))?;
    // Each entry leads to a table of as many clusters as its cluster holds entries. (QEMU has none with fewer, either.)
    let disk = u64_at(&header, 24);
    if disk.div_ceil(cluster).div_ceil(cluster / 8) > l1_bytes / 8 {
        return Err(bad("its L1 table is too small for the disk"));
    }
    let mut refcounts = None;
    // An image with any of the incompatible features is refused by name later; under some of them there are other counts.
    if writable && features == 0 {
        let (table, clusters) = (u64_at(&header, 48), u32_at(&header, 56));
        let mut counts = Refcounts::read(file, table, clusters, cluster_bits, refcount_order)?;
        counts.claim(l1, l1_bytes, "the L1 table")?;
        refcounts = Some(counts);
    }
    // Each table is read once, so that a small file takes no long time. (Two snapshots share tables, one does not.)
    let mut seen = BTreeSet::new();
    for l2 in entries(file, l1, l1_bytes)?.iter().map(|entry| entry & OFFSET).filter(|&l2| l2 != 0) {
        if !l2.is_multiple_of(cluster) {
            return Err(bad("an L2 table does not begin with a cluster"));
        }
        if !seen.insert(l2) {
            return Err(bad("two entries of its L1 table lead to one L2 table"));
        }
        let end = l2.checked_add(cluster).filter(|&end| end <= size);
        end.ok_or_else(|| bad("it is cut short: an L2 table lies behind its end"))?;
        if let Some(counts) = &mut refcounts {
            counts.claim(l2, cluster, "an L2 table")?;
        }
        for entry in entries(file, l2, cluster)? {
            if entry & COMPRESSED != 0 {
                // The offset takes the bits that the number of sectors leaves; the first of them does not count.
                let offset_bits = 62 - (cluster_bits - 8);
                let offset = entry & ((1 << offset_bits) - 1) & COMPRESSED_OFFSET;
                there(offset, "compressed data")?;
                if let Some(counts) = &mut refcounts {
                    let sectors = 1 + ((entry & (COMPRESSED - 1)) >> offset_bits);
                    let start = offset / COMPRESSED_SECTOR_BYTES * COMPRESSED_SECTOR_BYTES;
                    counts.share(start, sectors * COMPRESSED_SECTOR_BYTES, "compressed data")?;
                }
            } else if entry & OFFSET != 0 {
                there(entry & OFFSET, "data")?;
                if let Some(counts) = &mut refcounts {
                    counts.claim(entry & OFFSET, cluster, "data")?;
                }
            }
        }
    }
    Ok(cluster)
}
