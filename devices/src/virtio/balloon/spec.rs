//! Traditional memory balloon device (Virtio 1.2, *Traditional Memory Balloon Device*).

/// Device ID.
pub const DEVICE_ID: u32 = 5;

/// Shift of the page numbers, whatever pages the guest has.
pub const PFN_SHIFT: u32 = 12;

/// Feature bits.
pub mod feature {
    /// The driver tells how its memory is used.
    pub const STATS_VQ: u64 = 1 << 1;
    /// The driver takes pages back when it runs out of memory.
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    /// The driver reports pages that are free.
    pub const REPORTING: u64 = 1 << 5;
}

/// Configuration space: offsets, little-endian 32 bits each, in pages.
pub mod config {
    /// What the balloon should hold.
    pub const NUM_PAGES: usize = 0;
    /// What it holds; the driver writes it.
    pub const ACTUAL: usize = 4;
    /// Its length without what belongs to features that are not offered.
    pub const BYTES: usize = 8;
}

/// Queues. Behind these are as many as features were agreed on; drivers do not agree about their numbers.
pub mod queue {
    /// Pages that the driver gives away.
    pub const INFLATE: usize = 0;
    /// Pages that it takes back.
    pub const DEFLATE: usize = 1;
}

/// Entries of a statistics buffer: a tag (16 bits) and a value (64), little-endian.
pub mod statistic {
    /// Bytes of one.
    pub const BYTES: usize = 10;
    /// Free memory, in bytes.
    pub const MEMFREE: u16 = 4;
    /// All memory that the guest has, in bytes.
    pub const MEMTOT: u16 = 5;
}
