//! Numbers of virtio-net (Virtio 1.3, 5.1).

/// Device ID.
pub const DEVICE_ID: u32 = 1;

/// Queues.
pub mod queue {
    /// What the guest receives.
    pub const RECEIVE: usize = 0;
    /// What it sends.
    pub const TRANSMIT: usize = 1;
}

/// Feature bits.
pub mod feature {
    /// The device completes checksums.
    pub const CSUM: u64 = 1 << 0;
    /// The driver does.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The configuration space has the address.
    pub const MAC: u64 = 1 << 5;
    /// The driver takes TCP over IPv4 in large segments.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The same over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The device does.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The same over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// A frame may take several receive buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// The configuration space has the link's status.
    pub const STATUS: u64 = 1 << 16;
}

/// The configuration space.
pub mod config {
    /// The card's address.
    pub const MAC: usize = 0;
    /// The link's status.
    pub const STATUS: usize = 6;
    /// How many pairs of queues there are.
    pub const MAX_VIRTQUEUE_PAIRS: usize = 8;
    /// Bytes.
    pub const BYTES: usize = 10;
    /// In the status.
    pub const LINK_UP: u16 = 1;
}
