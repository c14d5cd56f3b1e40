//! Numbers and packets of virtio-vsock (Virtio 1.2, *Socket Device*).

/// Device ID.
pub const DEVICE_ID: u32 = 19;

/// Queues, by their numbers.
pub mod queue {
    /// Packets for the guest.
    pub const RECEIVE: usize = 0;
    /// Packets of the guest.
    pub const TRANSMIT: usize = 1;
}

/// `VIRTIO_VSOCK_F_STREAM`: there are streams.
pub const F_STREAM: u64 = 1;

/// `VIRTIO_VSOCK_F_SEQPACKET`: there are streams of messages.
pub const F_SEQPACKET: u64 = 2;

/// The host's address.
pub const HOST_CID: u64 = 2;

/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub const TYPE_STREAM: u16 = 1;

/// What a packet is.
pub mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flags of a shutdown.
pub mod shutdown {
    /// The sender receives no more.
    pub const RECEIVE: u32 = 1;
    /// The sender sends no more.
    pub const SEND: u32 = 2;
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// `struct virtio_vsock_hdr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    /// Bytes behind the header.
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    /// Bytes that the sender has room for.
    pub buf_alloc: u32,
    /// Bytes that it has received and made room for again, so far.
    pub fwd_cnt: u32,
}

impl Header {
    /// Its length in a packet.
    pub const BYTES: usize = 44;

    /// Reads one.
    pub fn read(bytes: &[u8; Self::BYTES]) -> Self {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        Self {
            src_cid: long(0),
            dst_cid: long(8),
            src_port: word(16),
            dst_port: word(20),
            len: word(24),
            kind: half(28),
            op: half(30),
            flags: word(32),
            buf_alloc: word(36),
            fwd_cnt: word(40),
        }
    }

    /// As it is in a packet.
    pub fn bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.src_cid.to_le_bytes());
        put(8, &self.dst_cid.to_le_bytes());
        for (at, value) in [(16, self.src_port), (20, self.dst_port), (24, self.len)] {
            put(at, &value.to_le_bytes());
        }
        put(28, &self.kind.to_le_bytes());
        put(30, &self.op.to_le_bytes());
        for (at, value) in [(32, self.flags), (36, self.buf_alloc), (40, self.fwd_cnt)] {
            put(at, &value.to_le_bytes());
        }
        bytes
    }
}
