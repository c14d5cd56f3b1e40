//! Whether the refcounts of a qcow2 image count every cluster that is in use.
//!
//! The allocator takes a cluster without a refcount for free. Where that is the header's or a table's, it is overwritten with
//! what the guest writes; and without a refcount block for the image's beginning the allocator makes one in place of the header,
//! does not find it there (an offset of zero is none), and recurses without end. So every reference to a cluster takes a count.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::layout::{bad, entries};

/// Bytes of a refcount table at most (the library's limit; QEMU's is 8 MiB).
const MAX_TABLE_BYTES: u64 = 32 << 20;
/// Refcounts have 64 bits at most.
const MAX_ORDER: u32 = 6;

/// The counts that no reference has taken yet.
pub struct Refcounts {
    cluster_bits: u32,
    /// log2 of how many clusters a block counts.
    block_bits: u32,
    /// Of the clusters of the file, one for each block; none: they are all zero.
    blocks: Vec<Option<Box<[u16]>>>,
}

impl Refcounts {
    /// Reads the counts of `2^order` bits from the table of so many `clusters` at `table`; what the header, the table and its
    /// blocks take is taken.
    pub fn read(file: &File, table: u64, clusters: u32, cluster_bits: u32, order: u32) -> io::Result<Self> {
        let (size, cluster) = (file.metadata()?.len(), 1 << cluster_bits);
        if order > MAX_ORDER {
            return Err(bad(format!("its refcounts have 2^{order} bits")));
        }
        let table_bytes = u64::from(clusters) << cluster_bits;
        if table_bytes > MAX_TABLE_BYTES {
            return Err(bad("its refcount table is too large"));
        }
        let whole = |offset: u64, bytes: u64, what: &str| {
            let end = offset.checked_add(bytes).filter(|&end| end <= size);
            end.ok_or_else(|| bad(format!("it is cut short: {what} lies behind its end")))
        };
        whole(table, table_bytes, "the refcount table")?;
        let block_bits = cluster_bits + 3 - order;
        let mut counts = Self { cluster_bits, block_bits, blocks: Vec::new() };
        let mut known = HashSet::new();
        let mut left = size.div_ceil(cluster);
        for block in entries(file, table, table_bytes)? {
            let here = left.min(1 << block_bits);
            left -= here;
            if block == 0 {
                counts.blocks.push(None);
                continue;
            }
            if block % cluster != 0 {
                return Err(bad("a refcount block does not begin with a cluster"));
            }
            whole(block, cluster, "a refcount block")?;
            if !known.insert(block) {
                return Err(miscounted("a refcount block"));
            }
            let mut bytes = vec![0; 1 << cluster_bits];
            file.read_exact_at(&mut bytes, block)?;
            let used = here > 0 && bytes.iter().any(|&byte| byte != 0);
            counts.blocks.push(used.then(|| decode(&bytes, order, here)));
        }
        counts.claim(0, cluster, "the header")?;
        counts.claim(table, table_bytes, "the refcount table")?;
        for block in known {
            counts.claim(block, cluster, "a refcount block")?;
        }
        Ok(counts)
    }

    /// Takes all counts of the clusters of these bytes, which nothing else of the active image has. (A snapshot may.)
    pub fn claim(&mut self, offset: u64, bytes: u64, what: &str) -> io::Result<()> {
        self.each(offset, bytes, what, |count| *count = 0)
    }

    /// Takes one count of each cluster of these bytes.
    pub fn share(&mut self, offset: u64, bytes: u64, what: &str) -> io::Result<()> {
        self.each(offset, bytes, what, |count| *count -= 1)
    }

    fn each(&mut self, offset: u64, bytes: u64, what: &str, take: impl Fn(&mut u16)) -> io::Result<()> {
        let end = offset.checked_add(bytes).ok_or_else(|| miscounted(what))?;
        for cluster in offset >> self.cluster_bits..end.div_ceil(1 << self.cluster_bits) {
            let count = usize::try_from(cluster >> self.block_bits)
                .ok()
                .and_then(|block| self.blocks.get_mut(block)?.as_mut())
                .and_then(|block| block.get_mut((cluster & ((1 << self.block_bits) - 1)) as usize));
            take(count.filter(|count| **count != 0).ok_or_else(|| miscounted(what))?);
        }
        Ok(())
    }
}

fn miscounted(what: &str) -> io::Error {
    bad(format!(
        "its refcounts do not count {what}: it may be read, and \"qemu-img check -r all\" may repair it for writing"
    ))
}

/// The first `len` of a block's counts, large ones cut to what 16 bits hold.
fn decode(block: &[u8], order: u32, len: u64) -> Box<[u16]> {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    match order {
        // From a byte's lowest bits up.
        0..3 => {
            let mask = (1 << (1 << order)) - 1;
            let of_byte = |&byte: &u8| (0..8 >> order).map(move |i| u16::from(byte) >> (i << order) & mask);
            block.iter().flat_map(of_byte).take(len).collect()
        }
        _ => {
            let value = |bytes: &[u8]| bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte));
            let counts = block.chunks_exact(1 << (order - 3)).map(value);
            counts.map(|count| u16::try_from(count).unwrap_or(u16::MAX)).take(len).collect()
        }
    }
}
