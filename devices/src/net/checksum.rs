//! The Internet checksum (RFC 1071), over data in pieces.

use std::net::IpAddr;

use smoltcp::wire::IpProtocol;

/// A sum in the making. The bytes' order is the host's own, which the sum does not mind (RFC 1071, 2 B).
#[derive(Clone, Copy, Default)]
pub(in crate::net) struct Sum {
    total: u64,
    /// An odd number of bytes has been added.
    is_odd: bool,
}

impl Sum {
    /// The pseudo-header of TCP and UDP.
    pub(in crate::net) fn pseudo(
        source: impl Into<IpAddr>,
        target: impl Into<IpAddr>,
        protocol: IpProtocol,
        length: usize,
    ) -> Self {
        // IPv6's has more noughts in it (RFC 8200, 8.1).
        let length = u16::try_from(length).expect("an IP packet holds 64 KiB").to_be_bytes();
        let mut sum = Self::default();
        for address in [source.into(), target.into()] {
            match address {
                IpAddr::V4(address) => sum.add(&address.octets()),
                IpAddr::V6(address) => sum.add(&address.octets()),
            }
        }
        sum.add(&[0, protocol.into(), length[0], length[1]]);
        sum
    }

    pub(in crate::net) fn add(&mut self, data: &[u8]) {
        let words = data.chunks_exact(4);
        let rest = words.remainder();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        let words = words.map(|word| u64::from(u32::from_ne_bytes(word.try_into().expect("four bytes"))));
        let part = fold(words.sum::<u64>() + u64::from(u32::from_ne_bytes(last)));
        self.total += u64::from(if self.is_odd { part.swap_bytes() } else { part });
        self.is_odd ^= data.len() % 2 == 1;
    }

    /// The sum as [`super::Checksum::Partial`] wants it in the checksum's place, for the guest to go on with.
    pub(in crate::net) fn partial(self) -> [u8; 2] {
        fold(self.total).to_ne_bytes()
    }

    /// The checksum.
    pub(in crate::net) fn finish(self) -> [u8; 2] {
        (!fold(self.total)).to_ne_bytes()
    }

    /// Whether what was added, its checksum included, is whole.
    pub(in crate::net) fn is_whole(self) -> bool {
        fold(self.total) == 0xffff
    }
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_pieces_as_in_one() {
        let data: Vec<u8> = (0..1001u32).map(|n| (n * 7 + 3) as u8).collect();
        let expected = !smoltcp::wire::checksum::data(&data);
        for cut in [0, 1, 2, 7, 500, 1001] {
            let mut sum = Sum::default();
            sum.add(&data[..cut]);
            sum.add(&data[cut..]);
            assert_eq!(sum.finish(), expected.to_be_bytes(), "cut at {cut}");
        }
        let mut sum = Sum::default();
        sum.add(&data[..1000]);
        let mut whole = sum;
        whole.add(&sum.finish());
        assert!(whole.is_whole() && !sum.is_whole());
    }
}
