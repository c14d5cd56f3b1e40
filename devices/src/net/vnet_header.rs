//! `struct virtio_net_hdr` in front of a frame (Virtio 1.3, 5.1.6), as a driver and the kernel's tap write it.

use super::{Checksum, FrameInfo, IpVersion, Segments};

/// Bytes, with the number of buffers.
pub const BYTES: usize = 12;

/// Where things are in it.
mod at {
    pub(super) const FLAGS: usize = 0;
    pub(super) const GSO_TYPE: usize = 1;
    pub(super) const HEADER_LENGTH: usize = 2;
    pub(super) const GSO_SIZE: usize = 4;
    pub(super) const CHECKSUM_START: usize = 6;
    pub(super) const CHECKSUM_OFFSET: usize = 8;
    pub(super) const NUM_BUFFERS: usize = 10;
}

/// In the flags: the checksum is to be completed.
const F_NEEDS_CSUM: u8 = 1;
/// Kinds of segmentation.
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
/// Goes with the kind; neither side offers it.
const GSO_ECN: u8 = 0x80;

/// What a header says; `None`: a kind of segmentation that nobody was offered.
pub fn decode(header: &[u8; BYTES]) -> Option<FrameInfo> {
    let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let version = match header[at::GSO_TYPE] & !GSO_ECN {
        0 => None,
        GSO_TCPV4 => Some(IpVersion::V4),
        GSO_TCPV6 => Some(IpVersion::V6),
        _ => return None,
    };
    let partial = Checksum::Partial { start: word(at::CHECKSUM_START), offset: word(at::CHECKSUM_OFFSET) };
    let is_partial = header[at::FLAGS] & F_NEEDS_CSUM != 0;
    Some(FrameInfo {
        checksum: if is_partial { partial } else { Checksum::Complete },
        segments: version.map(|version| Segments { version, bytes: word(at::GSO_SIZE) }),
        header_bytes: word(at::HEADER_LENGTH),
    })
}

/// The header of a frame that takes `buffers` receive buffers (0 towards the kernel).
pub fn encode(info: &FrameInfo, buffers: u16) -> [u8; BYTES] {
    let mut header = [0; BYTES];
    let mut put = |at: usize, value: u16| header[at..at + 2].copy_from_slice(&value.to_le_bytes());
    put(at::NUM_BUFFERS, buffers);
    if let Checksum::Partial { start, offset } = info.checksum {
        put(at::CHECKSUM_START, start);
        put(at::CHECKSUM_OFFSET, offset);
    }
    if let Some(segments) = info.segments {
        put(at::GSO_SIZE, segments.bytes);
        put(at::HEADER_LENGTH, info.header_bytes);
        header[at::GSO_TYPE] = match segments.version {
            IpVersion::V4 => GSO_TCPV4,
            IpVersion::V6 => GSO_TCPV6,
        };
    }
    if matches!(info.checksum, Checksum::Partial { .. }) {
        header[at::FLAGS] = F_NEEDS_CSUM;
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let partial = Checksum::Partial { start: 34, offset: 16 };
        for version in [IpVersion::V4, IpVersion::V6] {
            let segments = Some(Segments { version, bytes: 1440 });
            let info = FrameInfo { checksum: partial, segments, header_bytes: 74 };
            assert_eq!(decode(&encode(&info, 3)), Some(info));
        }
        let header = encode(&FrameInfo { checksum: partial, ..FrameInfo::default() }, 1);
        assert_eq!(header, [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 1, 0]);
        // UDP's kinds are not offered.
        for kind in [3, 5, 2] {
            assert_eq!(decode(&[0, kind, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]), None);
        }
    }
}
