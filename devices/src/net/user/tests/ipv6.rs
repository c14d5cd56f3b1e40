//! IPv6: who is on the cable, streams, datagrams, and nonsense.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use smoltcp::socket::tcp::State;
use smoltcp::wire::{IpCidr, IpProtocol, Ipv6Packet};

use super::super::udp::datagram;
use super::super::{Config, HostForward, Protocol, icmp, link};
use super::guest::{Cable, Guest, Random, STATION, config};
use super::streams::{exchange_with, serve_on};
use crate::net::{FrameInfo, NetBackend, Offloads};

const GUEST: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0x15);
const NEAR: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x15);
const HOST: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2);
const DNS: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 3);
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const HEADERS: usize = 54;

fn packet(from: Ipv6Addr, to: Ipv6Addr, protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; HEADERS];
    frame.extend(payload);
    link::write_headers(&mut frame, STATION, link::station(HOST), from, to, protocol, payload.len());
    frame
}

fn sealed(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    icmp::seal(&mut message, from.into(), to.into());
    packet(from, to, IpProtocol::Icmpv6, &message)
}

fn echo_request(to: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    sealed(GUEST, to, &[&[128, 0, 0, 0, 0x12, 0x34, 0, 1], payload].concat())
}

/// The ICMPv6 message in a frame, its checksum checked, with who it is from and to.
fn message(frame: &[u8]) -> (Ipv6Addr, Ipv6Addr, &[u8]) {
    let packet = Ipv6Packet::new_checked(&frame[14..]).unwrap();
    assert_eq!((packet.next_header(), packet.hop_limit()), (IpProtocol::Icmpv6, 255));
    let (from, to) = (packet.src_addr(), packet.dst_addr());
    let message = &frame[HEADERS..];
    assert!(icmp::is_whole(message, from.into(), to.into()));
    (from, to, message)
}

#[test]
fn a_router_says_where_the_guest_is() {
    for restrict in [false, true] {
        let mut cable = Cable::new(Config { restrict, ..config() });
        cable.send(&sealed(NEAR, ALL_ROUTERS, &[133, 0, 0, 0, 0, 0, 0, 0]));
        cable.pump();
        let frame = cable.inbox.frames.pop_front().unwrap();
        assert_eq!(frame[..12], [0x33, 0x33, 0, 0, 0, 1, 0x52, 0x56, 0, 0, 0, 2]);
        let (from, to, message) = message(&frame);
        assert_eq!((from, to), (ROUTER, ALL_NODES));
        let lifetime = if restrict { [0, 0] } else { [7, 8] };
        assert_eq!(message[..8], [&[134, 0, message[2], message[3], 64, 0x40][..], &lifetime].concat());
        assert_eq!(message[16..24], [1, 1, 0x52, 0x56, 0, 0, 0, 2]);
        assert_eq!(message[24..28], [3, 4, 64, 0xc0]);
        assert_eq!(message[40..56], Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0).octets());
        assert_eq!(message.len() > 56, !restrict);
        if !restrict {
            assert_eq!((message[56], &message[64..80]), (25, &DNS.octets()[..]));
        }
        // It comes again before it is forgotten.
        cable.network.poller.skipped += Duration::from_secs(401);
        assert_eq!(super::ipv6::message(&cable.collect()[0]).2[0], 134);
    }
    let mut cable = Cable::new(Config { ipv6: None, ..config() });
    cable.send(&sealed(NEAR, ALL_ROUTERS, &[133, 0, 0, 0, 0, 0, 0, 0]));
    cable.pump();
    assert!(cable.inbox.frames.is_empty());
}

#[test]
fn who_has() {
    let mut cable = Cable::new(config());
    let other = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 9);
    for (address, known) in [(HOST, true), (DNS, true), (ROUTER, true), (other, false)] {
        for asker in [GUEST, Ipv6Addr::UNSPECIFIED] {
            let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, address.segments()[7]);
            let request = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &address.octets()].concat();
            cable.send(&sealed(asker, group, &request));
            cable.pump();
            let Some(frame) = cable.inbox.frames.pop_front() else {
                assert!(!known, "{address}");
                continue;
            };
            let (from, to, reply) = message(&frame);
            let expected = if asker == GUEST { GUEST } else { ALL_NODES };
            assert_eq!((from, to, &reply[8..24]), (address, expected, &address.octets()[..]));
            let [.., last] = if address == ROUTER { HOST } else { address }.octets();
            assert_eq!((reply[0], &reply[24..]), (136, &[2, 1, 0x52, 0x56, 0, 0, 0, last][..]));
            assert_eq!(reply[4] & 0x40 != 0, asker == GUEST);
        }
    }
    // From beyond the cable nobody is asked.
    let mut frame = sealed(GUEST, HOST, &[&[135, 0, 0, 0, 0, 0, 0, 0][..], &HOST.octets()].concat());
    frame[21] = 254;
    cable.send(&frame);
    cable.pump();
    assert!(cable.inbox.frames.is_empty());
}

#[test]
fn the_network_answers_pings() {
    let mut cable = Cable::new(config());
    for address in [HOST, DNS, ROUTER] {
        let request = echo_request(address, &[7; 1000]);
        cable.send(&request);
        let frame = &cable.collect()[0];
        let (from, to, reply) = message(frame);
        assert_eq!((from, to, reply[0]), (address, GUEST, 129));
        assert_eq!(reply[4..], request[HEADERS + 4..]);
    }
    // To another guest, to the host's loopback: no road.
    for nowhere in [Ipv6Addr::LOCALHOST, Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 99), ALL_NODES] {
        cable.send(&echo_request(nowhere, b"x"));
        cable.pump();
        assert!(cable.inbox.frames.is_empty(), "{nowhere}");
    }
}

#[test]
fn datagrams_each_way_whole_and_in_pieces() {
    let server = UdpSocket::bind("[::1]:0").unwrap();
    server.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let to = SocketAddr::from((HOST, server.local_addr().unwrap().port()));
    let from = SocketAddr::from((GUEST, 3000));
    let mut cable = Cable::new(config());
    for size in [100, 20_000] {
        let payload = Random(9).bytes(size);
        let bytes = datagram(from, to, &payload);
        if size == 100 {
            cable.send(&packet(GUEST, HOST, IpProtocol::Udp, &bytes));
        } else {
            let pieces: Vec<_> = bytes.chunks(1448).enumerate().collect();
            for (index, piece) in pieces.iter().rev() {
                let more = u16::from(index + 1 < pieces.len());
                let mut fragment = vec![17, 0];
                fragment.extend(((*index as u16 * 1448) | more).to_be_bytes());
                fragment.extend([0, 0, 0, 5]);
                fragment.extend(*piece);
                cable.send(&packet(GUEST, HOST, IpProtocol::Ipv6Frag, &fragment));
            }
        }
        let mut got = vec![0; 30_000];
        let (count, peer) = server.recv_from(&mut got).unwrap();
        assert!(got[..count] == payload);
        server.send_to(&payload, peer).unwrap();
        let mut answer: Vec<u8> = Vec::new();
        while answer.len() < 8 + size {
            for frame in cable.collect() {
                assert!(frame.len() <= 1514);
                let packet = Ipv6Packet::new_checked(&frame[14..]).unwrap();
                if packet.next_header() == IpProtocol::Ipv6Frag {
                    let header = &packet.payload()[..8];
                    assert_eq!(usize::from(u16::from_be_bytes([header[2], header[3]]) & !7), answer.len());
                    answer.extend(&packet.payload()[8..]);
                } else {
                    answer.extend(packet.payload());
                }
            }
        }
        assert!(answer == datagram(to, from, &payload));
    }
    // Without a checksum it is none.
    let mut bytes = datagram(from, to, b"unchecked");
    bytes[6..8].fill(0);
    cable.send(&packet(GUEST, HOST, IpProtocol::Udp, &bytes));
    server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(server.recv_from(&mut [0; 100]).is_err());
}

#[test]
fn where_nobody_listens_the_guest_is_told() {
    let closed = UdpSocket::bind("[::1]:0").unwrap().local_addr().unwrap().port();
    let (from, to) = (SocketAddr::from((GUEST, 3000)), SocketAddr::from((DNS, closed)));
    let mut cable = Cable::new(config());
    let bytes = datagram(from, to, b"data");
    cable.send(&packet(GUEST, DNS, IpProtocol::Udp, &bytes));
    let frame = &cable.collect()[0];
    let (source, target, error) = message(frame);
    // Port unreachable, with the packet's header and as much as there is.
    assert_eq!((source, target, &error[..2]), (HOST, GUEST, &[1, 4][..]));
    assert_eq!(error[48..], bytes);
    assert_eq!((&error[16..32], &error[32..48]), (&GUEST.octets()[..], &DNS.octets()[..]));
}

fn guest(config: Config) -> Guest {
    let mut guest = Guest::new(config);
    guest.interface.update_ip_addrs(|addresses| {
        addresses.push(IpCidr::new(GUEST.into(), 64)).unwrap();
    });
    guest.interface.routes_mut().add_default_ipv6_route(HOST).unwrap();
    guest
}

#[test]
fn streams_both_ways() {
    for offloads in [Offloads::default(), Offloads::ALL] {
        let (address, server) = serve_on("[::1]:0", HOST.into(), 4 << 20);
        let mut guest = exchange_with(guest(config()), address, server, 4 << 20, offloads, None);
        if offloads == Offloads::ALL {
            assert!(guest.cable.inbox.largest > 60_000, "{}", guest.cable.inbox.largest);
        } else {
            assert_eq!(guest.cable.inbox.largest, 1514);
        }
        guest.assert_no_leak();
    }
}

#[test]
fn a_forwarded_stream_from_either_family() {
    let port = |address: &str| TcpListener::bind(address).unwrap().local_addr().unwrap();
    for (host, to) in [
        (port("[::1]:0"), GUEST.into()),
        (port("127.0.0.1:0"), GUEST.into()),
        (port("[::1]:0"), IpAddr::from(super::guest::GUEST)),
    ] {
        let rule = HostForward { protocol: Protocol::Tcp, host, guest: SocketAddr::new(to, 22) };
        let mut guest = guest(Config { forwards: vec![rule], ..config() });
        let socket = guest.listen(22);
        let client = std::thread::spawn(move || {
            use std::io::{Read, Write};
            let mut stream = TcpStream::connect(host).unwrap();
            stream.write_all(b"hello").unwrap();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            got
        });
        guest.until("the stream", |guest| guest.tcp(socket).recv_queue() == 5);
        let remote = guest.tcp(socket).remote_endpoint().unwrap();
        let expected = if to.is_ipv6() { IpAddr::V6(HOST) } else { super::guest::HOST.into() };
        assert_eq!(IpAddr::from(remote.addr), expected);
        guest.tcp(socket).send_slice(b"from the guest").unwrap();
        guest.tcp(socket).close();
        guest.until("its end", |_| client.is_finished());
        assert_eq!(client.join().unwrap(), b"from the guest");
        let closed = |state| matches!(state, State::Closed | State::TimeWait);
        guest.until("closed", |guest| closed(guest.tcp(socket).state()));
    }
}

#[test]
fn nonsense_is_dropped() {
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut cable = Cable::new(config());
    let mut random = Random(0x9876_5432_1fed_cba1);
    let end = |port| SocketAddr::V6(SocketAddrV6::new(GUEST, port, 0, 0));
    let mut tcp = [0; 20];
    tcp[..2].copy_from_slice(&1000u16.to_be_bytes());
    tcp[2..4].copy_from_slice(&port.to_be_bytes());
    (tcp[12], tcp[13]) = (0x50, 2);
    let udp = datagram(end(9), SocketAddr::from((HOST, port)), b"data");
    let dhcp = datagram(end(546), SocketAddr::from((HOST, 547)), &[11, 0, 0, 1, 0, 6, 0, 2, 0, 23]);
    let options = [&[17, 0, 1, 4, 0, 0, 0, 0][..], &udp].concat();
    let route = [&[6, 0, 0, 0, 0, 0, 0, 0][..], &tcp].concat();
    let piece = [&[17, 0, 0, 1, 0, 0, 0, 7][..], &udp].concat();
    let last = [&[17, 0, 0, 16, 0, 0, 0, 7][..], &udp].concat();
    let seeds = [
        echo_request(HOST, b"ping"),
        sealed(GUEST, ALL_ROUTERS, &[133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2]),
        sealed(GUEST, HOST, &[&[135, 0, 0, 0, 0, 0, 0, 0][..], &HOST.octets()].concat()),
        packet(GUEST, HOST, IpProtocol::Tcp, &tcp),
        packet(GUEST, HOST, IpProtocol::Udp, &udp),
        packet(GUEST, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2), IpProtocol::Udp, &dhcp),
        packet(GUEST, HOST, IpProtocol::HopByHop, &options),
        packet(GUEST, HOST, IpProtocol::Ipv6Route, &route),
        packet(GUEST, HOST, IpProtocol::Ipv6Frag, &piece),
        packet(GUEST, HOST, IpProtocol::Ipv6Frag, &last),
    ];
    let unchecked = crate::net::Checksum::Partial { start: 54, offset: 16 };
    let unchecked = FrameInfo { checksum: unchecked, ..FrameInfo::default() };
    for round in 0..60_000 {
        let mut frame = seeds[random.below(seeds.len())].clone();
        if random.below(4) == 0 {
            frame.truncate(14 + random.below(frame.len() - 14));
        }
        for _ in 0..random.below(4) {
            let at = 14 + random.below(frame.len().min(100).saturating_sub(14).max(1));
            if let Some(byte) = frame.get_mut(at) {
                *byte = random.next() as u8;
            }
        }
        if frame.len() >= HEADERS {
            // Nobody but the host's loopback is to be bothered.
            if random.below(8) != 0 {
                let length = (frame.len() - HEADERS) as u16;
                frame[18..20].copy_from_slice(&length.to_be_bytes());
            }
            if frame[38..40] != [0xff, 0x02] {
                frame[38..54].copy_from_slice(&HOST.octets());
            }
            let protocol = frame[20];
            if protocol == 58 && random.below(2) == 0 && frame.len() > HEADERS + 4 {
                let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).unwrap());
                let (from, to) = (address(22), address(38));
                icmp::seal(&mut frame[HEADERS..], from, to);
            }
        }
        let info = if random.below(2) == 0 { unchecked } else { FrameInfo::default() };
        cable.network.send(&info, &frame);
        if round % 8 == 0 {
            cable.pump();
            cable.inbox.frames.clear();
        }
        if round % 500 == 0 {
            cable.network.poller.skipped += Duration::from_secs(7);
        }
    }
    assert!(cable.network.tcp.count <= 2000, "{}", cable.network.tcp.count);
    cable.pump();
    cable.inbox.frames.clear();
    cable.send(&echo_request(HOST, b"alive"));
    assert!(cable.collect().iter().any(|frame| frame.ends_with(b"alive")));
}
