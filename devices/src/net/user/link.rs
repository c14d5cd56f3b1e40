//! The virtual cable: what stations are on it (ARP; IPv6's way is in `ndp.rs`), and how packets for the guest become frames.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr,
};

use super::config::Config;
use crate::net::{ETHERNET_HEADER_BYTES, FrameInfo, FrameSink, MTU_BYTES};

/// Frames that wait for room in the guest, beyond which what may be lost is lost.
const MAX_WAITING: usize = 256;
/// Packets that wait for the answer to an ARP request.
const MAX_UNRESOLVED: usize = 16;
/// Addresses of guests that are known.
const MAX_NEIGHBOURS: usize = 1024;
/// The lifetime of packets: nobody on the cable routes on.
const HOP_LIMIT: u8 = 64;
/// Of what is only for the cable, so that nothing from elsewhere can pass for it (RFC 4861, 3.1).
pub(super) const HOP_LIMIT_HERE: u8 = 255;
/// IPv6's fragment header (RFC 8200, 4.5).
const FRAGMENT_HEADER_BYTES: usize = 8;
/// Ethernet's and the longer of the IP headers.
pub(super) const MAX_IP_HEADERS_BYTES: usize = ETHERNET_HEADER_BYTES + IPV6_HEADER_LEN;

/// Ethernet's and IP's headers, of the family of `address`.
pub(super) fn ip_headers_bytes(address: IpAddr) -> usize {
    ETHERNET_HEADER_BYTES + if address.is_ipv4() { IPV4_HEADER_LEN } else { IPV6_HEADER_LEN }
}

pub(super) struct Link {
    pub(super) config: Config,
    neighbours: HashMap<IpAddr, EthernetAddress>,
    /// Frames for the guest that are not TCP's, which makes its own when there is room.
    outbox: VecDeque<Vec<u8>>,
    unresolved: VecDeque<(IpAddr, Vec<u8>)>,
    /// The identification of the next packet in fragments.
    ident: u32,
}

/// The address of one of the network's own stations, as QEMU makes it.
pub(super) fn station(address: impl Into<IpAddr>) -> EthernetAddress {
    match address.into() {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            EthernetAddress([0x52, 0x55, a, b, c, d])
        }
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            EthernetAddress([0x52, 0x56, a, b, c, d])
        }
    }
}

impl Link {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            neighbours: HashMap::new(),
            outbox: VecDeque::new(),
            unresolved: VecDeque::new(),
            ident: 0,
        }
    }

    /// Notes who has a guest's address, and sends what waited for it.
    pub(super) fn learn(&mut self, address: impl Into<IpAddr>, station: EthernetAddress) {
        let address = address.into();
        let room = self.neighbours.len() < MAX_NEIGHBOURS || self.neighbours.contains_key(&address);
        if !station.is_unicast() || !self.config.is_guest(address) || !room {
            return;
        }
        self.neighbours.insert(address, station);
        if self.unresolved.is_empty() {
            return;
        }
        for (target, mut frame) in std::mem::take(&mut self.unresolved) {
            if target == address {
                EthernetFrame::new_unchecked(&mut frame[..]).set_dst_addr(station);
                self.post(frame);
            } else {
                self.unresolved.push_back((target, frame));
            }
        }
    }

    /// Who has a guest's address. `None` asks for it.
    pub(super) fn neighbour(&mut self, address: IpAddr) -> Option<EthernetAddress> {
        let known = self.known(address);
        if known.is_some() {
            return known;
        }
        match address {
            IpAddr::V4(address) => self.ask(address),
            IpAddr::V6(address) => self.solicit(address),
        }
        None
    }

    /// Who has a guest's address, if that is known.
    pub(super) fn known(&self, address: IpAddr) -> Option<EthernetAddress> {
        self.neighbours.get(&address).copied()
    }

    fn ask(&mut self, address: Ipv4Addr) {
        let request = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: station(self.config.host),
            source_protocol_addr: self.config.host,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: address,
        };
        self.post_arp(&request, EthernetAddress::BROADCAST);
    }

    /// An ARP packet from the guest (RFC 826).
    pub(super) fn arp(&mut self, packet: &[u8]) {
        let Ok(packet) = ArpPacket::new_checked(packet) else { return };
        let Ok(ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        }) = ArpRepr::parse(&packet)
        else {
            return;
        };
        self.learn(source_protocol_addr, source_hardware_addr);
        if operation == ArpOperation::Request && self.config.is_own(target_protocol_addr) {
            let reply = ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Reply,
                source_hardware_addr: station(target_protocol_addr),
                source_protocol_addr: target_protocol_addr,
                target_hardware_addr: source_hardware_addr,
                target_protocol_addr: source_protocol_addr,
            };
            self.post_arp(&reply, source_hardware_addr);
        }
    }

    fn post_arp(&mut self, repr: &ArpRepr, to: EthernetAddress) {
        let mut frame = vec![0; ETHERNET_HEADER_BYTES + repr.buffer_len()];
        let ArpRepr::EthernetIpv4 { source_hardware_addr, .. } = repr else { return };
        write_ethernet(&mut frame, *source_hardware_addr, to, EthernetProtocol::Arp);
        repr.emit(&mut ArpPacket::new_unchecked(&mut frame[ETHERNET_HEADER_BYTES..]));
        self.post(frame);
    }

    /// Sends a packet to a guest, in fragments where it is larger than the MTU (RFC 791, 3.2; RFC 8200, 4.5).
    pub(super) fn ip(
        &mut self,
        source: impl Into<IpAddr>,
        target: impl Into<IpAddr>,
        protocol: IpProtocol,
        payload: &[u8],
    ) {
        let target = target.into();
        let known = self.neighbour(target);
        self.ip_to(known, source, target, protocol, payload);
    }

    /// The same to a station whose address is known, or (`None`) asked for.
    pub(super) fn ip_to(
        &mut self,
        station: Option<EthernetAddress>,
        source: impl Into<IpAddr>,
        target: impl Into<IpAddr>,
        protocol: IpProtocol,
        payload: &[u8],
    ) {
        let (source, target) = (source.into(), target.into());
        let headers = ip_headers_bytes(target);
        let room = MTU_BYTES + ETHERNET_HEADER_BYTES - headers;
        let to = station.unwrap_or(EthernetAddress::BROADCAST);
        let from = self.station(target);
        if payload.len() <= room {
            let mut frame = vec![0; headers];
            frame.extend(payload);
            write_headers(&mut frame, from, to, source, target, protocol, payload.len());
            return self.dispatch(station, target, frame);
        }
        self.ident = self.ident.wrapping_add(1);
        let extra = if target.is_ipv4() { 0 } else { FRAGMENT_HEADER_BYTES };
        let size = (room - extra) / 8 * 8;
        let pieces = payload.len().div_ceil(size);
        for (index, piece) in payload.chunks(size).enumerate() {
            let (offset, more) = (index * size, index + 1 < pieces);
            let offset = u16::try_from(offset).expect("a packet holds 64 KiB");
            let mut frame = vec![0; headers + extra];
            frame.extend(piece);
            let length = extra + piece.len();
            if target.is_ipv4() {
                write_headers(&mut frame, from, to, source, target, protocol, length);
                let mut packet = Ipv4Packet::new_unchecked(&mut frame[ETHERNET_HEADER_BYTES..]);
                packet.set_ident(self.ident as u16);
                packet.set_dont_frag(false);
                packet.set_more_frags(more);
                packet.set_frag_offset(offset);
                packet.fill_checksum();
            } else {
                write_headers(&mut frame, from, to, source, target, IpProtocol::Ipv6Frag, length);
                let header = &mut frame[headers..headers + extra];
                header[0] = protocol.into();
                header[2..4].copy_from_slice(&(offset | u16::from(more)).to_be_bytes());
                header[4..].copy_from_slice(&self.ident.to_be_bytes());
            }
            self.dispatch(station, target, frame);
        }
    }

    /// Sends a frame whose station is known, or keeps it until it is.
    fn dispatch(&mut self, station: Option<EthernetAddress>, target: IpAddr, frame: Vec<u8>) {
        if station.is_some() {
            self.post(frame);
        } else if self.unresolved.len() < MAX_UNRESOLVED {
            self.unresolved.push_back((target, frame));
        }
    }

    /// The station that packets for the guest come from, of the family of `target`.
    pub(super) fn station(&self, target: IpAddr) -> EthernetAddress {
        station(self.config.host_for(target))
    }

    fn post(&mut self, frame: Vec<u8>) {
        if self.outbox.len() < MAX_WAITING {
            self.outbox.push_back(frame);
        }
    }

    /// Whether nothing waits for room.
    pub(super) fn is_clear(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Gives the guest what waits; false if there is not enough room.
    pub(super) fn flush(&mut self, sink: &mut dyn FrameSink) -> bool {
        while let Some(frame) = self.outbox.front() {
            if !sink.push(&FrameInfo::default(), &[frame]) {
                return false;
            }
            self.outbox.pop_front();
        }
        true
    }
}

fn write_ethernet(frame: &mut [u8], from: EthernetAddress, to: EthernetAddress, protocol: EthernetProtocol) {
    let repr = EthernetRepr { src_addr: from, dst_addr: to, ethertype: protocol };
    repr.emit(&mut EthernetFrame::new_unchecked(frame));
}

/// Writes Ethernet's and IP's headers for a payload of `length` bytes, which need not be in `frame`. Both addresses are of one
/// family.
pub(super) fn write_headers(
    frame: &mut [u8],
    from: EthernetAddress,
    to: EthernetAddress,
    source: impl Into<IpAddr>,
    target: impl Into<IpAddr>,
    protocol: IpProtocol,
    length: usize,
) {
    match (source.into(), target.into()) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            write_ethernet(frame, from, to, EthernetProtocol::Ipv4);
            let repr = Ipv4Repr {
                src_addr: source,
                dst_addr: target,
                next_header: protocol,
                payload_len: length,
                hop_limit: HOP_LIMIT,
            };
            repr.emit(
                &mut Ipv4Packet::new_unchecked(&mut frame[ETHERNET_HEADER_BYTES..]),
                &ChecksumCapabilities::default(),
            );
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            write_ethernet(frame, from, to, EthernetProtocol::Ipv6);
            let is_here = protocol == IpProtocol::Icmpv6;
            let repr = Ipv6Repr {
                src_addr: source,
                dst_addr: target,
                next_header: protocol,
                payload_len: length,
                hop_limit: if is_here { HOP_LIMIT_HERE } else { HOP_LIMIT },
            };
            repr.emit(&mut Ipv6Packet::new_unchecked(&mut frame[ETHERNET_HEADER_BYTES..]));
        }
        (source, target) => unreachable!("no packet goes from {source} to {target}"),
    }
}
