//! A tap interface of this machine's kernel, where one may be had.

use std::net::UdpSocket;
use std::process::Command;

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol};

use super::*;
use crate::net::testing::Card;
use crate::net::{ETHERNET_HEADER_BYTES, IpVersion, Segments};

const STATION: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
/// The guest and the host, on the net for documentation (RFC 5737).
const GUEST: [u8; 4] = [198, 51, 100, 2];
const HOST: [u8; 4] = [198, 51, 100, 1];

/// An interface; `None`: this machine lends none, and the test has said so.
fn tap(test: &str, header: bool) -> Option<Tap> {
    Tap::open(Some("bivtest%d"), header)
        .map_err(|error| eprintln!("SKIPPED {test}: {error}: no tap interface to be had"))
        .ok()
}

/// One that is up with the host's address.
fn card(test: &str, header: bool) -> Option<Card<Tap>> {
    let tap = tap(test, header)?;
    let ip = |words: &[&str]| Command::new("ip").args(words).status().is_ok_and(|status| status.success());
    let name = tap.name().to_owned();
    if !ip(&["address", "add", "198.51.100.1/24", "dev", &name]) || !ip(&["link", "set", &name, "up"]) {
        eprintln!("SKIPPED {test}: ip(8) cannot bring {name} up");
        return None;
    }
    Some(Card::new(tap))
}

fn arp(operation: ArpOperation, to: EthernetAddress) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: STATION,
        source_protocol_addr: GUEST.into(),
        target_hardware_addr: to,
        target_protocol_addr: HOST.into(),
    };
    let mut frame = vec![0; ETHERNET_HEADER_BYTES + repr.buffer_len()];
    let mut ethernet = EthernetFrame::new_unchecked(&mut frame[..]);
    ethernet.set_src_addr(STATION);
    ethernet.set_dst_addr(if to == EthernetAddress([0; 6]) { EthernetAddress::BROADCAST } else { to });
    ethernet.set_ethertype(EthernetProtocol::Arp);
    repr.emit(&mut ArpPacket::new_unchecked(&mut frame[ETHERNET_HEADER_BYTES..]));
    frame
}

/// A UDP datagram from the guest's port 9, whose checksum is only that of the pseudo-header.
fn datagram(host: EthernetAddress, port: u16, payload: &[u8]) -> (FrameInfo, Vec<u8>) {
    let length = (8 + payload.len()) as u16;
    let mut frame = [host.as_bytes(), STATION.as_bytes(), &[8, 0]].concat();
    let mut ip = [&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0][..], &GUEST, &HOST].concat();
    ip[2..4].copy_from_slice(&(20 + length).to_be_bytes());
    let mut sum = Sum::default();
    sum.add(&ip);
    ip[10..12].copy_from_slice(&sum.finish());
    frame.extend(ip);
    let mut sum = Sum::pseudo(GUEST, HOST, 17.into(), length.into());
    frame.extend([9u16.to_be_bytes(), port.to_be_bytes(), length.to_be_bytes(), sum.partial()].concat());
    sum.add(payload);
    frame.extend(payload);
    (FrameInfo { checksum: Checksum::Partial { start: 34, offset: 6 }, ..FrameInfo::default() }, frame)
}

#[test]
fn arp_and_udp_with_the_kernel() {
    for header in [true, false] {
        let Some(mut card) = card("arp_and_udp_with_the_kernel", header) else { return };
        let offloads = if header { Offloads::ALL } else { Offloads::default() };
        assert_eq!(card.network.offloads(), offloads);
        card.inbox.offloads = Offloads { checksum: header, ..Offloads::default() };
        card.send(&arp(ArpOperation::Request, EthernetAddress([0; 6])));
        let host = loop {
            let frame = card.next();
            let ethernet = EthernetFrame::new_checked(&frame[..]).unwrap();
            if ethernet.ethertype() == EthernetProtocol::Arp {
                let packet = ArpPacket::new_checked(ethernet.payload()).unwrap();
                if packet.operation() == ArpOperation::Reply {
                    break ethernet.src_addr();
                }
            }
        };
        let socket = UdpSocket::bind("198.51.100.1:0").unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
        let (info, mut frame) = datagram(host, socket.local_addr().unwrap().port(), b"to the host");
        let info = if header { info } else { settle(info, &mut frame, Offloads::default()).unwrap() };
        card.network.send(&info, &frame);
        let mut got = [0; 100];
        let (count, from) = socket.recv_from(&mut got).unwrap();
        assert_eq!((&got[..count], from.to_string().as_str()), (&b"to the host"[..], "198.51.100.2:9"));
        socket.send_to(b"to the guest", from).unwrap();
        let mut answer = None;
        card.until("the answer", |card| {
            // It may ask for our address first.
            if card.inbox.frames.iter().any(|(_, frame)| frame[12..14] == [8, 6]) {
                card.inbox.frames.retain(|(_, frame)| frame[12..14] != [8, 6]);
                card.send(&arp(ArpOperation::Reply, host));
            }
            answer = card.inbox.frames.iter().find(|(_, frame)| frame.ends_with(b"to the guest")).cloned();
            answer.is_some()
        });
        let (info, frame) = answer.unwrap();
        if info.checksum == Checksum::Complete {
            let mut sum = Sum::pseudo(HOST, GUEST, 17.into(), frame.len() - 34);
            sum.add(&frame[34..]);
            assert!(sum.is_whole());
        } else {
            assert!(header && card.inbox.offloads.checksum);
        }
    }
}

#[test]
fn a_descriptor_that_was_handed_down() {
    let Some(first) = tap("a_descriptor_that_was_handed_down", true) else { return };
    let fd = OwnedFd::from(first.file.try_clone().unwrap());
    let tap = Tap::inherited(fd, 5).unwrap();
    assert_eq!((tap.name(), tap.has_header), (first.name(), true));
    // The kernel's answer to a second one.
    let Err(error) = Tap::open(Some(first.name()), true) else { panic!("an interface for two") };
    assert_eq!(error.to_string(), format!("interface '{}'", tap.name()));
}

#[test]
fn what_is_no_tap() {
    let file = File::open("/dev/null").unwrap();
    let Err(error) = Tap::inherited(file.into(), 5) else { panic!("/dev/null is a tap") };
    assert_eq!(error.to_string(), "descriptor 5 is not a tap interface");
}

#[test]
fn frames_for_a_guest_that_does_less() {
    let (partial, frame) = datagram(STATION, 7, b"odd");
    let mut spoilt = frame.clone();
    assert_eq!(settle(partial, &mut spoilt, Offloads::ALL), Some(partial));
    assert_eq!(spoilt, frame);
    assert_eq!(settle(partial, &mut spoilt, Offloads::default()), Some(FrameInfo::default()));
    let mut sum = Sum::pseudo(GUEST, HOST, 17.into(), spoilt.len() - 34);
    sum.add(&spoilt[34..]);
    assert!(sum.is_whole());
    let large = FrameInfo { segments: Some(Segments { version: IpVersion::V4, bytes: 100 }), ..partial };
    assert_eq!(settle(large, &mut spoilt, Offloads::default()), None);
    // Places beyond the frame's end.
    for (start, offset) in [(60, 0), (34, 100), (44, 0), (u16::MAX, u16::MAX)] {
        let info = FrameInfo { checksum: Checksum::Partial { start, offset }, ..FrameInfo::default() };
        assert_eq!(settle(info, &mut spoilt[..45], Offloads::default()), None);
    }
}
