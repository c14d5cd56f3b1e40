//! The host's end of a network card: the contract between a card and a network, and the networks.
//!
//! A card owns its network and calls it, never the other way round: what the guest sends goes down with
//! [`NetBackend::send`], what there is for the guest is fetched with [`NetBackend::receive`] into the card's receive
//! queue, the [`FrameSink`]. So a network needs no lock, the card's own one is enough, and a receive queue without room
//! holds a network back without losing a frame. A card brings a batch of frames down and calls `receive` once behind
//! it: acknowledgements then come once per batch.

use std::os::fd::RawFd;

mod checksum;
pub mod dgram;
mod poller;
pub mod socket;
pub mod stream;
pub mod tap;
#[cfg(test)]
mod testing;
pub mod user;
pub mod vnet_header;

/// An Ethernet header without a VLAN tag.
pub const ETHERNET_HEADER_BYTES: usize = 14;
/// The largest payload of a frame that is not to be cut into segments.
pub const MTU_BYTES: usize = 1500;
/// The longest frame: a packet of the largest size, which segmentation cuts later.
pub const MAX_FRAME_BYTES: usize = ETHERNET_HEADER_BYTES + 65535;

/// What one side does for the other, so that it need not (Virtio 1.3, 5.1.3: `CSUM`, `TSO4`, `TSO6`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// It takes [`Checksum::Partial`].
    pub checksum: bool,
    /// It takes TCP over IPv4 in frames larger than the MTU, with [`FrameInfo::segments`] set.
    pub tcp4_segments: bool,
    /// The same over IPv6.
    pub tcp6_segments: bool,
}

impl Offloads {
    /// All of them.
    pub const ALL: Self = Self { checksum: true, tcp4_segments: true, tcp6_segments: true };
}

/// The state of a frame's TCP or UDP checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// It is there and covers the frame.
    #[default]
    Complete,
    /// Only the pseudo-header's sum is there. The frame has not crossed a wire, and need not be checked.
    Partial {
        /// Where the bytes begin that the checksum is over, from the frame's beginning.
        start: u16,
        /// Where the checksum is, from `start`.
        offset: u16,
    },
}

/// Which IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A frame that stands for several TCP segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// What TCP is over.
    pub version: IpVersion,
    /// The payload of each but the last.
    pub bytes: u16,
}

/// What goes with a frame (Virtio 1.3, 5.1.6: `struct virtio_net_hdr`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameInfo {
    /// The checksum of TCP or UDP.
    pub checksum: Checksum,
    /// Set in a frame that is to be cut.
    pub segments: Option<Segments>,
    /// In such a frame, the length of the headers, Ethernet's to TCP's.
    pub header_bytes: u16,
}

/// A card's receive queue.
pub trait FrameSink {
    /// What the guest does itself.
    fn offloads(&self) -> Offloads;

    /// Takes a frame, which `pieces` make up. False where there is no room: nothing was taken then, and
    /// [`NetBackend::receive`] is to be called when there is. A frame that can never fit is taken and dropped.
    fn push(&mut self, info: &FrameInfo, pieces: &[&[u8]]) -> bool;
}

/// A network, as a card sees it.
pub trait NetBackend: Send {
    /// What it does for the guest, and the guest may be asked to do for it.
    fn offloads(&self) -> Offloads;

    /// Takes a frame that the guest sent. Never waits. What the network will not have is dropped, as a wire would.
    fn send(&mut self, info: &FrameInfo, frame: &[u8]);

    /// Whether [`NetBackend::send`] should be called now. Otherwise frames are better left where they are, until
    /// [`NetBackend::wakeup_fd`] is readable.
    fn is_ready(&self) -> bool {
        true
    }

    /// Brings what there is for the guest to `sink`, until there is nothing or no room. To be called when
    /// [`NetBackend::wakeup_fd`] is readable (whether or not there is room), when the sink has room again, and behind
    /// a batch of frames sent. True: there is more and room for it, but it is the guest's turn; to be called again.
    fn receive(&mut self, sink: &mut dyn FrameSink) -> bool;

    /// Polls readable (`POLLIN`) when [`NetBackend::receive`] has something to do, which also makes it unreadable
    /// again, unless there is no room; nobody else reads it. To be watched edge-triggered.
    fn wakeup_fd(&self) -> RawFd;
}
