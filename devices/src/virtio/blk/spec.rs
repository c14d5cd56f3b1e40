//! The block device's registers and requests (Virtio 1.2, *Block Device*).

/// Device ID.
pub const DEVICE_ID: u32 = 2;
/// Unit of the protocol, whatever the block size.
pub const SECTOR_BYTES: u64 = 512;
/// Bytes of the name that a driver may ask for.
pub const ID_BYTES: usize = 20;
/// Bytes before a request's data: type, reserved, sector.
pub const HEADER_BYTES: u64 = 16;
/// Bytes of one range to discard or to zero: sector, sectors, flags.
pub const RANGE_BYTES: u64 = 16;

/// Feature bits.
pub mod feature {
    /// `seg_max` is valid.
    pub const SEG_MAX: u64 = 1 << 2;
    /// Writing is refused.
    pub const RO: u64 = 1 << 5;
    /// `blk_size` is valid.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// There is a cache, and a request that empties it.
    pub const FLUSH: u64 = 1 << 9;
    /// `topology` is valid.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// There are several queues.
    pub const MQ: u64 = 1 << 12;
    /// Ranges can be discarded.
    pub const DISCARD: u64 = 1 << 13;
    /// Ranges can be zeroed.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Request types.
pub mod request {
    /// Reads sectors.
    pub const IN: u32 = 0;
    /// Writes sectors.
    pub const OUT: u32 = 1;
    /// Everything that was written before is on the disk when this is done.
    pub const FLUSH: u32 = 4;
    /// The device's name.
    pub const GET_ID: u32 = 8;
    /// Ranges whose content does not matter any more.
    pub const DISCARD: u32 = 11;
    /// Ranges that are to read as zero.
    pub const WRITE_ZEROES: u32 = 13;
}

/// Flag of a range to zero: it may be given back to the host.
pub const UNMAP: u32 = 1;

/// How a request ended.
pub mod status {
    /// Well.
    pub const OK: u8 = 0;
    /// The disk could not, or the request makes no sense.
    pub const IOERR: u8 = 1;
    /// The device has no such request.
    pub const UNSUPP: u8 = 2;
}

/// Offsets in the configuration space.
pub mod config {
    /// Sectors, 64 bits.
    pub const CAPACITY: usize = 0;
    /// 32 bits.
    pub const SEG_MAX: usize = 12;
    /// 32 bits.
    pub const BLK_SIZE: usize = 20;
    /// Blocks per physical block (log2), first aligned block: 8 bits each; minimal, optimal I/O size: 16, 32 bits.
    pub const TOPOLOGY: usize = 24;
    /// 16 bits.
    pub const NUM_QUEUES: usize = 34;
    /// Sectors, ranges, alignment: 32 bits each.
    pub const MAX_DISCARD_SECTORS: usize = 36;
    /// Sectors, ranges: 32 bits each; then 8 bits: may unmap.
    pub const MAX_WRITE_ZEROES_SECTORS: usize = 48;
    /// Bytes in all, as far as it is used.
    pub const BYTES: usize = 60;
}
