//! The virtual cable: what stations are on it (ARP), and how packets for the guest become frames.

use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    IPV4_HEADER_LEN, IpProtocol, Ipv4Packet, Ipv4Repr,
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
/// Ethernet's and IPv4's headers.
pub(super) const IP_HEADERS_BYTES: usize = ETHERNET_HEADER_BYTES + IPV4_HEADER_LEN;

pub(super) struct Link {
    pub(super) config: Config,
    neighbours: HashMap<Ipv4Addr, EthernetAddress>,
    /// Frames for the guest that are not TCP's, which makes its own when there is room.
    outbox: VecDeque<Vec<u8>>,
    unresolved: VecDeque<(Ipv4Addr, Vec<u8>)>,
    /// The identification of the next packet (RFC 791).
    ident: u16,
}

/// The address of one of the network's own stations, as QEMU makes it.
pub(super) fn station(address: Ipv4Addr) -> EthernetAddress {
    let [a, b, c, d] = address.octets();
    EthernetAddress([0x52, 0x55, a, b, c, d])
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
    pub(super) fn learn(&mut self, address: Ipv4Addr, station: EthernetAddress) {
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
    pub(super) fn neighbour(&mut self, address: Ipv4Addr) -> Option<EthernetAddress> {
        let known = self.neighbours.get(&address).copied();
        if known.is_none() {
            let request = ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Request,
                source_hardware_addr: station(self.config.host),
                source_protocol_addr: self.config.host,
                target_hardware_addr: EthernetAddress([0; 6]),
                target_protocol_addr: address,
            };
            self.post_arp(&request, EthernetAddress::BROADCAST);
        }
        known
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

    /// Sends a packet to a guest, in fragments where it is larger than the MTU (RFC 791, 3.2).
    pub(super) fn ip(&mut self, source: Ipv4Addr, target: Ipv4Addr, protocol: IpProtocol, payload: &[u8]) {
        let known = self.neighbour(target);
        self.ip_to(known, source, target, protocol, payload);
    }

    /// The same to a station whose address is known, or (`None`) asked for.
    pub(super) fn ip_to(
        &mut self,
        station: Option<EthernetAddress>,
        source: Ipv4Addr,
        target: Ipv4Addr,
        protocol: IpProtocol,
        payload: &[u8],
    ) {
        const PIECE: usize = (MTU_BYTES - IPV4_HEADER_LEN) / 8 * 8;
        self.ident = self.ident.wrapping_add(1);
        let pieces = payload.len().div_ceil(PIECE).max(1);
        for index in 0..pieces {
            let piece = &payload[index * PIECE..payload.len().min((index + 1) * PIECE)];
            let mut frame = vec![0; IP_HEADERS_BYTES + piece.len()];
            frame[IP_HEADERS_BYTES..].copy_from_slice(piece);
            let to = station.unwrap_or(EthernetAddress::BROADCAST);
            let (source_station, length) = (self.station(), piece.len());
            write_headers(&mut frame, source_station, to, source, target, protocol, length);
            if pieces > 1 {
                let mut packet = Ipv4Packet::new_unchecked(&mut frame[ETHERNET_HEADER_BYTES..]);
                packet.set_ident(self.ident);
                packet.set_dont_frag(false);
                packet.set_more_frags(index + 1 < pieces);
                packet.set_frag_offset(u16::try_from(index * PIECE).expect("a packet holds 64 KiB"));
                packet.fill_checksum();
            }
            if station.is_some() {
                self.post(frame);
            } else if self.unresolved.len() < MAX_UNRESOLVED {
                self.unresolved.push_back((target, frame));
            }
        }
    }

    /// The station that packets for the guest come from.
    pub(super) fn station(&self) -> EthernetAddress {
        station(self.config.host)
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

/// Writes Ethernet's and IPv4's headers for a payload of `length` bytes, which need not be in `frame`.
pub(super) fn write_headers(
    frame: &mut [u8],
    from: EthernetAddress,
    to: EthernetAddress,
    source: Ipv4Addr,
    target: Ipv4Addr,
    protocol: IpProtocol,
    length: usize,
) {
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
