//! Frames by hand: the small protocols, fragments, and nonsense.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};

use smoltcp::socket::dhcpv4;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, IpProtocol, Ipv4Packet, checksum,
};

use super::super::link;
use super::super::udp::datagram;
use super::super::{Config, HostForward, Protocol};
use super::guest::{Cable, DNS, GUEST, Guest, HOST, Random, STATION, config};
use crate::net::{FrameInfo, NetBackend};

/// Ethernet's and IPv4's headers.
pub(super) const IP_HEADERS_BYTES: usize = 34;

fn packet(to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; IP_HEADERS_BYTES];
    frame.extend(payload);
    let protocol = IpProtocol::from(protocol);
    link::write_headers(&mut frame, STATION, link::station(HOST), GUEST, to, protocol, payload.len());
    frame
}

pub(super) fn send_ip(cable: &mut Cable, to: Ipv4Addr, protocol: u8, payload: &[u8]) {
    cable.send(&packet(to, protocol, payload));
}

fn echo_request(payload: &[u8]) -> Vec<u8> {
    let mut message = [&[8, 0, 0, 0, 0x12, 0x34, 0, 1], payload].concat();
    let sum = !checksum::data(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

#[test]
fn who_has() {
    let mut cable = Cable::new(config());
    for (address, known) in [(HOST, true), (DNS, true), (Ipv4Addr::new(10, 0, 2, 9), false)] {
        let request = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: STATION,
            source_protocol_addr: GUEST,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: address,
        };
        let mut frame = vec![0; 14 + request.buffer_len()];
        let mut ethernet = EthernetFrame::new_unchecked(&mut frame[..]);
        ethernet.set_src_addr(STATION);
        ethernet.set_dst_addr(EthernetAddress::BROADCAST);
        ethernet.set_ethertype(smoltcp::wire::EthernetProtocol::Arp);
        request.emit(&mut ArpPacket::new_unchecked(ethernet.payload_mut()));
        cable.send(&frame);
        cable.pump();
        let Some(frame) = cable.inbox.frames.pop_front() else {
            assert!(!known);
            continue;
        };
        let reply = ArpRepr::parse(&ArpPacket::new_checked(&frame[14..]).unwrap()).unwrap();
        let [a, b, c, d] = address.octets();
        let expected = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: EthernetAddress([0x52, 0x55, a, b, c, d]),
            source_protocol_addr: address,
            target_hardware_addr: STATION,
            target_protocol_addr: GUEST,
        };
        assert_eq!(reply, expected);
    }
}

#[test]
fn the_network_answers_pings() {
    for restrict in [false, true] {
        let mut cable = Cable::new(Config { restrict, ..config() });
        for address in [HOST, DNS] {
            // One that fills a frame, and one in fragments.
            for size in [56, 3000] {
                let request = echo_request(&vec![7; size]);
                let pieces: Vec<_> = request.chunks(1480).collect();
                for (index, piece) in pieces.iter().enumerate() {
                    let mut frame = packet(address, 1, piece);
                    let mut header = Ipv4Packet::new_unchecked(&mut frame[14..]);
                    header.set_dont_frag(false);
                    header.set_more_frags(index + 1 < pieces.len());
                    header.set_frag_offset(index as u16 * 1480);
                    header.fill_checksum();
                    cable.send(&frame);
                }
                let mut reply = Vec::new();
                for frame in cable.collect() {
                    assert!(frame.len() <= 1514);
                    let packet = Ipv4Packet::new_checked(&frame[14..]).unwrap();
                    assert!(packet.verify_checksum() && packet.src_addr() == address);
                    assert_eq!(usize::from(packet.frag_offset()), reply.len());
                    reply.extend(packet.payload());
                }
                assert_eq!((reply[0], checksum::data(&reply)), (0, 0xffff));
                assert_eq!(reply[4..], request[4..]);
            }
        }
    }
}

#[test]
fn pings_to_others_go_out_or_are_refused() {
    // To the host's own loopback there is no road.
    let mut cable = Cable::new(config());
    send_ip(&mut cable, Ipv4Addr::LOCALHOST, 1, &echo_request(b"x"));
    cable.pump();
    assert!(cable.inbox.frames.is_empty());
    send_ip(&mut cable, Ipv4Addr::new(192, 0, 2, 1), 1, &echo_request(b"x"));
    cable.pump();
    // No answer, if the host lends ping sockets; else the reason.
    if let Some(frame) = cable.inbox.frames.pop_front() {
        let packet = Ipv4Packet::new_checked(&frame[14..]).unwrap();
        assert_eq!(packet.payload()[..2], [3, 13]);
        assert_eq!(checksum::data(packet.payload()), 0xffff);
    }
}

#[test]
fn a_guest_gets_its_address() {
    let mut guest = Guest::new(config());
    guest.interface.update_ip_addrs(|addresses| addresses.clear());
    let socket = guest.sockets.add(dhcpv4::Socket::new());
    let mut got = None;
    guest.until("configured", |guest| {
        if let Some(dhcpv4::Event::Configured(config)) =
            guest.sockets.get_mut::<dhcpv4::Socket>(socket).poll()
        {
            got = Some((config.address, config.router, config.dns_servers.to_vec()));
        }
        got.is_some()
    });
    let (address, router, servers) = got.unwrap();
    assert_eq!((address.address(), address.prefix_len()), (GUEST, 24));
    assert_eq!((router, servers), (Some(HOST), vec![DNS]));
}

#[test]
fn datagrams_larger_than_a_frame() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = SocketAddrV4::new(HOST, server.local_addr().unwrap().port());
    let from = SocketAddrV4::new(GUEST, 3000);
    let mut cable = Cable::new(config());
    let payload = Random(9).bytes(20_000);
    let bytes = datagram(from, to, &payload);
    let pieces: Vec<_> = bytes.chunks(1480).enumerate().collect();
    for (index, piece) in pieces.iter().rev() {
        let mut frame = packet(HOST, 17, piece);
        let mut header = Ipv4Packet::new_unchecked(&mut frame[14..]);
        header.set_more_frags(index + 1 < pieces.len());
        header.set_frag_offset(*index as u16 * 1480);
        header.fill_checksum();
        cable.send(&frame);
    }
    let mut got = vec![0; 30_000];
    let (count, peer) = server.recv_from(&mut got).unwrap();
    assert!(got[..count] == payload);
    server.send_to(&payload, peer).unwrap();
    let mut bytes: Vec<u8> = Vec::new();
    for frame in cable.collect() {
        let packet = Ipv4Packet::new_checked(&frame[14..]).unwrap();
        assert_eq!(usize::from(packet.frag_offset()), bytes.len());
        bytes.extend(packet.payload());
    }
    assert!(bytes == datagram(to, from, &payload));
}

#[test]
fn nonsense_is_dropped() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp_port = listener.local_addr().unwrap().port();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp_port = udp.local_addr().unwrap().port();
    let forward = HostForward {
        protocol: Protocol::Udp,
        host: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        guest: SocketAddr::from((GUEST, 53)),
    };
    let mut cable = Cable::new(Config { forwards: vec![forward], ..config() });
    let mut random = Random(0x1234_5678_9abc_def1);
    // Frames of every kind that is understood, to be spoilt.
    let mut seeds = vec![
        packet(HOST, 1, &echo_request(b"ping")),
        packet(HOST, 17, &datagram(SocketAddrV4::new(GUEST, 9), SocketAddrV4::new(HOST, udp_port), b"data")),
        packet(DNS, 17, &datagram(SocketAddrV4::new(GUEST, 9), SocketAddrV4::new(DNS, 53), b"data")),
    ];
    let mut dhcp = vec![0; 300];
    dhcp[..3].copy_from_slice(&[1, 1, 6]);
    dhcp[236..243].copy_from_slice(&[0x63, 0x82, 0x53, 0x63, 53, 1, 1]);
    dhcp[243..250].copy_from_slice(&[50, 4, 10, 0, 2, 16, 255]);
    seeds.push(packet(HOST, 17, &datagram(SocketAddrV4::new(GUEST, 68), SocketAddrV4::new(HOST, 67), &dhcp)));
    let mut arp = vec![0xff; 6];
    arp.extend(STATION.as_bytes());
    arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend(STATION.as_bytes());
    arp.extend([10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
    seeds.push(arp);
    // Segments whose checksum is left to the receiver, which then believes what is in them.
    let mut tcp = [0; 20];
    tcp[..2].copy_from_slice(&1000u16.to_be_bytes());
    tcp[2..4].copy_from_slice(&tcp_port.to_be_bytes());
    tcp[12] = 0x50;
    for flags in [2, 0x10, 0x11, 0x18, 4, 0x12] {
        tcp[13] = flags;
        seeds.push(packet(HOST, 6, &[&tcp[..], &vec![1; random.below(2000)]].concat()));
    }
    let unchecked = FrameInfo {
        checksum: crate::net::Checksum::Partial { start: 34, offset: 16 },
        ..FrameInfo::default()
    };
    for round in 0..60_000 {
        let mut frame = seeds[random.below(seeds.len())].clone();
        match random.below(4) {
            0 => {
                let size = random.below(200);
                frame = random.bytes(size);
            }
            1 => frame.truncate(random.below(frame.len())),
            _ => {}
        }
        for _ in 0..random.below(4) {
            if !frame.is_empty() {
                let at = random.below(frame.len().min(80));
                frame[at] = random.next() as u8;
            }
        }
        // Beyond the header's own checksum.
        if random.below(4) != 0 && frame.len() >= IP_HEADERS_BYTES {
            frame[14] = 0x45;
            // Nobody but the host's loopback is to be bothered.
            frame[26..30].copy_from_slice(&GUEST.octets());
            frame[30..34].copy_from_slice(&[HOST, DNS, Ipv4Addr::BROADCAST][random.below(3)].octets());
            Ipv4Packet::new_unchecked(&mut frame[14..]).fill_checksum();
        } else if frame.len() >= 34 && frame[30] != 10 {
            continue;
        }
        let info = if random.below(2) == 0 { unchecked } else { FrameInfo::default() };
        cable.network.send(&info, &frame);
        if round % 8 == 0 {
            cable.pump();
            cable.inbox.frames.clear();
        }
        if round % 500 == 0 {
            cable.network.poller.skipped += std::time::Duration::from_secs(7);
        }
    }
    assert!(cable.network.tcp.count <= 300, "{}", cable.network.tcp.count);
    // It still works.
    cable.pump();
    cable.inbox.frames.clear();
    send_ip(&mut cable, HOST, 1, &echo_request(b"alive"));
    assert!(cable.collect().iter().any(|frame| frame.ends_with(b"alive")));
}
