//! IPv6 packets from the guest: what is between their headers and their payload (RFC 8200, 4).

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::wire::{EthernetAddress, IpProtocol, Ipv6Packet};

use super::UserNet;
use super::reassembly::{Fragment, Key};
use crate::net::FrameInfo;

/// Extension headers in a row, beyond which a packet makes no sense.
const MAX_EXTENSIONS: usize = 8;

/// What comes behind the extension headers.
#[derive(Debug, PartialEq, Eq)]
enum Payload<'a> {
    Whole(IpProtocol, &'a [u8]),
    Piece { protocol: IpProtocol, ident: u32, offset: usize, more: bool, piece: &'a [u8] },
}

/// Goes over extension headers, of which the first is a `next`; `None`: they make no sense, or lead further than the cable.
fn payload(mut next: IpProtocol, mut bytes: &[u8]) -> Option<Payload<'_>> {
    for _ in 0..MAX_EXTENSIONS {
        match next {
            IpProtocol::HopByHop | IpProtocol::Ipv6Opts | IpProtocol::Ipv6Route => {
                let length = 8 * (usize::from(*bytes.get(1)?) + 1);
                let (header, rest) = bytes.split_at_checked(length)?;
                // A route that has stations left is not for us.
                if next == IpProtocol::Ipv6Route && header[3] != 0 {
                    return None;
                }
                (next, bytes) = (header[0].into(), rest);
            }
            IpProtocol::Ipv6Frag => {
                let (header, piece) = bytes.split_first_chunk::<8>()?;
                let field = u16::from_be_bytes([header[2], header[3]]);
                let (offset, more) = (usize::from(field & !7), field & 1 != 0);
                let ident = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                let protocol = header[0].into();
                if offset == 0 && !more {
                    // A packet in one piece (RFC 6946).
                    (next, bytes) = (protocol, piece);
                    continue;
                }
                return Some(Payload::Piece { protocol, ident, offset, more, piece });
            }
            _ => return Some(Payload::Whole(next, bytes)),
        }
    }
    None
}

impl UserNet {
    /// A packet from the guest.
    pub(super) fn ipv6(&mut self, info: &FrameInfo, station: EthernetAddress, bytes: &[u8]) {
        if self.link.config.ipv6.is_none() {
            return;
        }
        let Ok(packet) = Ipv6Packet::new_checked(bytes) else { return };
        if packet.version() != 6 {
            return;
        }
        let (source, target) = (packet.src_addr(), packet.dst_addr());
        // Who is looking whether an address is free has none.
        let knows_its_address = self.link.config.is_guest(source);
        if !knows_its_address && !source.is_unspecified() {
            return;
        }
        if knows_its_address {
            self.link.learn(source, station);
        }
        if self.link.config.is_guest(target) {
            return;
        }
        match payload(packet.next_header(), packet.payload()) {
            Some(Payload::Whole(protocol, bytes)) => {
                self.ipv6_payload(info, (source, target), packet.hop_limit(), protocol, bytes);
            }
            Some(Payload::Piece { protocol, ident, offset, more, piece }) => {
                let key = Key { source: source.into(), target: target.into(), protocol, ident };
                let now = self.poller.now();
                let fragment = Fragment { key, offset, more, piece };
                let Some(bytes) = self.reassembly.add(&fragment, now) else { return };
                // A fragment's payload may begin with further headers; but nothing is in pieces twice.
                if let Some(Payload::Whole(protocol, bytes)) = payload(protocol, &bytes) {
                    // Who is around is not asked in pieces (RFC 6980).
                    self.ipv6_payload(info, (source, target), 0, protocol, bytes);
                }
            }
            None => {}
        }
    }

    fn ipv6_payload(
        &mut self,
        info: &FrameInfo,
        (source, target): (Ipv6Addr, Ipv6Addr),
        hop_limit: u8,
        protocol: IpProtocol,
        bytes: &[u8],
    ) {
        let (from, to) = (IpAddr::from(source), IpAddr::from(target));
        let has_address = !source.is_unspecified();
        match protocol {
            IpProtocol::Icmpv6 => self.icmpv6(source, target, hop_limit, bytes),
            IpProtocol::Udp if has_address => self.udp(info, from, to, bytes),
            IpProtocol::Tcp if has_address && !target.is_multicast() => self.tcp(info, from, to, bytes),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UDP: u8 = 17;

    fn go(next: u8, bytes: &[u8]) -> Option<Payload<'_>> {
        payload(next.into(), bytes)
    }

    #[test]
    fn headers_in_a_row() {
        let options = [60, 0, 1, 4, 0, 0, 0, 0];
        let longer = [UDP, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let bytes = [&options[..], &longer, b"data"].concat();
        assert_eq!(go(0, &bytes), Some(Payload::Whole(IpProtocol::Udp, b"data")));
        let fragment = [UDP, 0, 0x05, 0xa9, 0, 0, 0, 7, 1, 2, 3];
        let piece = Payload::Piece {
            protocol: IpProtocol::Udp,
            ident: 7,
            offset: 0x5a8,
            more: true,
            piece: &[1, 2, 3],
        };
        assert_eq!(go(44, &fragment), Some(piece));
        // In one piece.
        assert_eq!(go(44, &[UDP, 0, 0, 0, 0, 0, 0, 7, 9]), Some(Payload::Whole(IpProtocol::Udp, &[9])));
    }

    #[test]
    fn headers_that_make_no_sense() {
        // Cut short, longer than the packet, a route that goes on, no end.
        assert_eq!(go(0, &[UDP]), None);
        assert_eq!(go(0, &[]), None);
        assert_eq!(go(60, &[UDP, 200, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(go(44, &[UDP, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(go(43, &[UDP, 0, 0, 1, 0, 0, 0, 0]), None);
        assert_eq!(go(43, &[UDP, 0, 0, 0, 0, 0, 0, 0]), Some(Payload::Whole(IpProtocol::Udp, &[])));
        assert_eq!(go(0, &[0, 0, 0, 0, 0, 0, 0, 0].repeat(1000)), None);
    }
}
