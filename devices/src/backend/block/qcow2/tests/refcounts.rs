//! Images whose refcounts do not cover what is in use, and sound ones of every shape.

use super::*;
use crate::backend::block::tests::write;

const TABLE: u64 = 1;
const BLOCK: u64 = 2;
const L1: u64 = 3;
/// Where the first data and the L2 table are in an image that was written to by hand.
const L2: u64 = 4;
const DATA: u64 = 5;
const COPIED: u64 = 1 << 63;

/// An image as `qemu-img create` makes it (header, refcount table, its one block, L1 table: a cluster each).
struct Made {
    bytes: Vec<u8>,
    cluster_bits: u32,
    order: u32,
}

impl Made {
    fn new(cluster_bits: u32, order: u32, lazy: bool, size: u64) -> Self {
        let l1_entries = size.div_ceil(1 << (2 * cluster_bits - 3));
        let l1_clusters = (l1_entries * 8).div_ceil(1 << cluster_bits);
        let mut made =
            Self { bytes: vec![0; ((L1 + l1_clusters) << cluster_bits) as usize], cluster_bits, order };
        for (at, value) in [
            (0, 0x5146_49fb),
            (4, 3),
            (20, cluster_bits),
            (36, l1_entries as u32),
            (56, 1),
            (96, order),
            (100, 104),
        ] {
            made.u32(at, value);
        }
        for (at, value) in
            [(24, size), (40, L1 << cluster_bits), (48, TABLE << cluster_bits), (80, u64::from(lazy))]
        {
            made.u64(at, value);
        }
        made.u64(made.at(TABLE), BLOCK << cluster_bits);
        (0..L1 + l1_clusters).for_each(|cluster| made.count(cluster, 1));
        made
    }

    fn at(&self, cluster: u64) -> usize {
        (cluster << self.cluster_bits) as usize
    }

    fn u32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    fn u64(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    /// The refcount of a cluster that the first block counts.
    fn count(&mut self, cluster: u64, count: u8) {
        let (block, bits) = (self.at(BLOCK), 1 << self.order);
        let at = cluster as usize * bits;
        if bits < 8 {
            let byte = &mut self.bytes[block + at / 8];
            *byte = *byte & !(((1 << bits) - 1) << (at % 8)) | count << (at % 8);
        } else {
            self.bytes[block + at / 8 + bits / 8 - 1] = count;
        }
    }

    /// With an L2 table, whose first entry is `entry`, and two clusters of data, all counted.
    fn with_data(mut self, entry: u64) -> Self {
        self.bytes.resize(self.at(DATA + 2), 0);
        (L2..DATA + 2).for_each(|cluster| self.count(cluster, 1));
        self.u64(self.at(L1), L2 << self.cluster_bits | COPIED);
        self.u64(self.at(L2), entry);
        self
    }
}

fn options(read_only: bool) -> RawOptions {
    RawOptions { read_only, ..RawOptions::default() }
}

/// With clusters of 2 MiB, the image is shorter than one.
#[test]
fn new_images_of_every_geometry_are_written_to() {
    let folder = TempDir::new().unwrap();
    let path = folder.as_path().join("image");
    let orders = |cluster_bits| if cluster_bits < 20 { vec![0, 1, 2, 3, 4, 5, 6] } else { vec![0, 4] };
    let all = [9, 12, 16, 21].into_iter();
    for (cluster_bits, order) in all.flat_map(|bits| orders(bits).into_iter().map(move |order| (bits, order)))
    {
        let made = Made::new(cluster_bits, order, order % 2 == 0, SIZE);
        std::fs::write(&path, &made.bytes).unwrap();
        let mut model = Vec::new();
        // What was written is an image that can be written to.
        for _ in 0..2 {
            let image = Qcow2Image::open(&path, options(false)).unwrap();
            model = behaves_like_memory(&image, model);
            image.flush().unwrap();
        }
        layout::check(&File::open(&path).unwrap(), true).unwrap();
        let image = Qcow2Image::open(&path, options(true)).unwrap();
        assert_eq!(read(&image, 0, model.len()), model, "2^{cluster_bits}, 2^{order}");
    }
}

/// 64 blocks of 64 counts are 2 MiB.
#[test]
fn a_refcount_table_grows() {
    let folder = TempDir::new().unwrap();
    let path = folder.as_path().join("image");
    std::fs::write(&path, Made::new(9, 6, false, 3 * SIZE).bytes).unwrap();
    let content = noise(3 * SIZE as usize);
    let image = Qcow2Image::open(&path, options(false)).unwrap();
    write(&image, 0, &content);
    image.flush().unwrap();
    drop(image);
    assert_ne!(std::fs::read(&path).unwrap()[48..60], Made::new(9, 6, false, 3 * SIZE).bytes[48..60]);
    let image = Qcow2Image::open(&path, options(false)).unwrap();
    assert_eq!(read(&image, 0, content.len()), content);
}

/// The allocator would overwrite what is in use, or look without end for a block that it puts in place of the header.
#[test]
fn refcounts_that_do_not_count_what_is_in_use_are_refused_for_writing() {
    type Break = fn(&mut Made);
    let cases: &[(Break, &str)] = &[
        (|made| made.u64(made.at(TABLE), 0), "do not count the header"),
        (|made| made.u32(56, 0), "do not count the header"),
        (|made| made.count(0, 0), "do not count the header"),
        (|made| made.count(TABLE, 0), "do not count the refcount table"),
        (|made| made.count(BLOCK, 0), "do not count a refcount block"),
        (|made| made.count(L1, 0), "do not count the L1 table"),
        (|made| made.count(L2, 0), "do not count an L2 table"),
        (|made| made.count(DATA, 0), "do not count data"),
        // The block of the beginning again, the L1 table, the header.
        (|made| made.u64(made.at(TABLE) + 8, BLOCK << made.cluster_bits), "do not count a refcount block"),
        (|made| made.u64(made.at(TABLE), L1 << made.cluster_bits), "do not count the "),
        (|made| made.u64(made.at(L1), (L1 << made.cluster_bits) | COPIED), "do not count an L2 table"),
        (|made| made.u64(made.at(L2), (L1 << made.cluster_bits) | COPIED), "do not count data"),
        (|made| made.u64(made.at(L2) + 8, (DATA << made.cluster_bits) | COPIED), "do not count data"),
        (|made| made.u64(made.at(L2), 1 << 62 | 200), "do not count compressed data"),
        (|made| made.u64(made.at(TABLE), 1 << 40), "a refcount block lies behind its end"),
        (|made| made.u64(made.at(TABLE), 520), "does not begin with a cluster"),
        (|made| made.u32(56, 100), "the refcount table lies behind its end"),
        (|made| made.u32(56, u32::MAX), "its refcount table is too large"),
    ];
    let folder = TempDir::new().unwrap();
    let path = folder.as_path().join("image");
    for (index, (break_it, why)) in cases.iter().enumerate() {
        for (cluster_bits, order) in [(16, 4), (9, 0), (12, 6)] {
            let mut made =
                Made::new(cluster_bits, order, false, SIZE).with_data(DATA << cluster_bits | COPIED);
            std::fs::write(&path, &made.bytes).unwrap();
            behaves_like_memory(&Qcow2Image::open(&path, options(false)).unwrap(), Vec::new());
            break_it(&mut made);
            std::fs::write(&path, &made.bytes).unwrap();
            let text = refused(&path, false);
            assert!(text.contains(why) && !text.contains('\n'), "{index}: {text}");
            assert_eq!(std::fs::read(&path).unwrap(), made.bytes, "{index}: as it was");
            if why.contains("not count") {
                let image = Qcow2Image::open(&path, options(true)).unwrap();
                let _ = image.read(0, &[VolatileSlice::from(&mut [0; 512][..])]);
            }
        }
    }
    for order in [7, 31, 32, u32::MAX] {
        let mut made = Made::new(16, 4, false, SIZE);
        made.u32(96, order);
        std::fs::write(&path, &made.bytes).unwrap();
        assert!(refused(&path, false).contains("its refcounts have 2^"));
    }
}

/// The tables of a small file would be read without end.
#[test]
fn an_l2_table_is_there_once() {
    let folder = TempDir::new().unwrap();
    let path = folder.as_path().join("image");
    for (entry, why) in [(0, "lead to one L2 table"), (512, "does not begin with a cluster")] {
        let mut made = Made::new(10, 4, false, SIZE).with_data(DATA << 10 | COPIED);
        made.u64(made.at(L1) + 8, (L2 << 10) + entry);
        std::fs::write(&path, &made.bytes).unwrap();
        for read_only in [false, true] {
            let text = refused(&path, read_only);
            assert!(text.contains(why), "{text}");
        }
    }
}

/// Compressed clusters share the cluster that they are in, as often as its refcount says.
#[test]
fn compressed_clusters_share_a_cluster() {
    let folder = TempDir::new().unwrap();
    let path = folder.as_path().join("image");
    let compressed = 1 << 62 | DATA << 16;
    let mut made = Made::new(16, 4, false, SIZE).with_data(compressed);
    made.u64(made.at(L2) + 8, compressed + 512);
    // From the end of one cluster to the beginning of the next one.
    made.u64(made.at(L2) + 16, 1 << 62 | 1 << 54 | (((DATA + 1) << 16) - 100));
    std::fs::write(&path, &made.bytes).unwrap();
    assert!(refused(&path, false).contains("do not count compressed data"));
    made.count(DATA, 3);
    std::fs::write(&path, &made.bytes).unwrap();
    Qcow2Image::open(&path, options(false)).unwrap();
    made.count(DATA + 1, 0);
    std::fs::write(&path, &made.bytes).unwrap();
    assert!(refused(&path, false).contains("do not count compressed data"));
}
