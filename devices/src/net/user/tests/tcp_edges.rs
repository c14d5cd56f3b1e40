//! How connections begin and end, segment by segment.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpListener};
use std::time::Duration;

use smoltcp::socket::tcp::State;
use smoltcp::wire::{IpProtocol, TcpControl};

use super::super::link;
use super::super::tcp::{Header, MAX_HEADER_BYTES, Segment};
use super::frames::IP_HEADERS_BYTES;
use super::guest::{Cable, GUEST, Guest, HOST, STATION, config};
use crate::net::ETHERNET_HEADER_BYTES;

fn listener() -> (TcpListener, SocketAddrV4) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!() };
    (listener, SocketAddrV4::new(HOST, address.port()))
}

/// A port on which nobody listens.
fn closed_port() -> SocketAddrV4 {
    listener().1
}

/// A frame with a segment from the guest's port 1000.
fn frame(to: SocketAddrV4, control: TcpControl, seq: u32, ack: Option<u32>, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        source: SocketAddr::from((GUEST, 1000)),
        target: to.into(),
        control,
        seq,
        ack,
        window: 8192,
        max_segment: None,
        window_scale: None,
    };
    let mut frame = vec![0; IP_HEADERS_BYTES + MAX_HEADER_BYTES];
    let count = header.write(&mut frame[IP_HEADERS_BYTES..], &[payload], false);
    frame.truncate(IP_HEADERS_BYTES + count);
    frame.extend(payload);
    let length = count + payload.len();
    link::write_headers(&mut frame, STATION, link::station(HOST), GUEST, *to.ip(), IpProtocol::Tcp, length);
    frame
}

/// The segment in a frame for the guest, its checksums checked.
fn parse(frame: &[u8], from: SocketAddrV4) -> Segment<'_> {
    let packet = smoltcp::wire::Ipv4Packet::new_checked(&frame[ETHERNET_HEADER_BYTES..]).unwrap();
    assert!(packet.verify_checksum());
    assert_eq!((packet.src_addr(), packet.dst_addr()), (*from.ip(), GUEST));
    let (source, target, segment) =
        Segment::parse(packet.payload(), HOST.into(), GUEST.into(), true).unwrap();
    assert_eq!((source, target), (from.port(), 1000));
    segment
}

#[test]
fn nobody_listens() {
    let mut guest = Guest::new(config());
    let socket = guest.connect(closed_port(), 4096);
    guest.until("refused", |guest| guest.tcp(socket).state() == State::Closed);
    guest.assert_no_leak();
}

#[test]
fn a_handshake_to_the_bit() {
    let (listener, address) = listener();
    let mut cable = Cable::new(config());
    cable.send(&frame(address, TcpControl::Syn, 0xffff_fffe, None, b""));
    let frames = cable.collect();
    let answer = parse(&frames[0], address);
    assert!(answer.syn && !answer.rst && answer.ack == Some(0xffff_ffff));
    assert_eq!((answer.max_segment, answer.window_scale), (Some(1460), None), "only what was asked for");
    // A SYN that comes again is answered again.
    cable.send(&frame(address, TcpControl::Syn, 0xffff_fffe, None, b""));
    let frames = cable.collect();
    assert_eq!(parse(&frames[0], address).seq, answer.seq);
    let (ack, none) = (Some(answer.seq.wrapping_add(1)), TcpControl::None);
    // Data with the ACK; then the second segment before the first, which is dropped and asked for.
    cable.send(&frame(address, TcpControl::Psh, 0xffff_ffff, ack, b"abc"));
    cable.send(&frame(address, none, 5, ack, b"ghi"));
    let frames = cable.collect();
    assert_eq!(parse(frames.last().unwrap(), address).ack, Some(2));
    // One that overlaps, then one that is old.
    cable.send(&frame(address, none, 0, ack, b"bcdef"));
    cable.send(&frame(address, none, 0xffff_ffff, ack, b"ab"));
    let frames = cable.collect();
    assert_eq!(parse(frames.last().unwrap(), address).ack, Some(5));
    let mut stream = listener.accept().unwrap().0;
    let mut got = [0; 6];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"abcdef");
    // An ACK of what was never sent is answered, and changes nothing.
    cable.send(&frame(address, none, 5, Some(answer.seq.wrapping_add(1000)), b"x"));
    let frames = cable.collect();
    assert_eq!(parse(&frames[0], address).ack, Some(5));
    stream.write_all(b"reply").unwrap();
    let frames = cable.collect();
    assert_eq!(parse(&frames[0], address).payload, b"reply");
    // The guest does not answer: the segment comes again, and in the end the connection breaks.
    let mut repeats = 0;
    loop {
        cable.network.poller.skipped += Duration::from_secs(61);
        let frames = cable.collect();
        let segment = parse(&frames[0], address);
        if segment.rst {
            break;
        }
        assert_eq!(segment.payload, b"reply");
        repeats += 1;
    }
    assert!((8..16).contains(&repeats), "{repeats} times again");
    assert_eq!(stream.read(&mut got).unwrap_err().kind(), ErrorKind::ConnectionReset);
    cable.assert_no_leak();
}

#[test]
fn strangers_are_reset() {
    let mut cable = Cable::new(config());
    let address = closed_port();
    cable.send(&frame(address, TcpControl::None, 5, Some(77), b"x"));
    let frames = cable.collect();
    let answer = parse(&frames[0], address);
    assert!(answer.rst && answer.seq == 77 && answer.ack.is_none());
    // A reset is not answered.
    cable.send(&frame(address, TcpControl::Rst, 5, Some(77), b""));
    cable.pump();
    assert!(cable.inbox.frames.is_empty());
}

#[test]
fn a_reset_of_the_guest_reaches_the_host() {
    let (listener, address) = listener();
    let mut guest = Guest::new(config());
    let socket = guest.connect(address, 4096);
    guest.until("connected", |guest| guest.tcp(socket).can_send());
    let mut stream = listener.accept().unwrap().0;
    guest.tcp(socket).abort();
    guest.until("forgotten", |guest| guest.cable.network.tcp.count == 0);
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    guest.assert_no_leak();
}

#[test]
fn a_reset_of_the_host_reaches_the_guest() {
    let (listener, address) = listener();
    let mut guest = Guest::new(config());
    let socket = guest.connect(address, 4096);
    guest.until("connected", |guest| guest.tcp(socket).can_send());
    let stream = listener.accept().unwrap().0;
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
    guest.until("reset", |guest| guest.tcp(socket).state() == State::Closed);
    guest.assert_no_leak();
}

#[test]
fn a_shut_window_is_tried() {
    let (listener, address) = listener();
    let mut cable = Cable::new(config());
    cable.send(&frame(address, TcpControl::Syn, 1, None, b""));
    let frames = cable.collect();
    let begin = parse(&frames[0], address).seq.wrapping_add(1);
    let shut = |mut frame: Vec<u8>| {
        // The window, and the checksum's part of it (RFC 1624).
        let at = IP_HEADERS_BYTES + 14;
        frame[at..at + 2].fill(0);
        let sum = u16::from_be_bytes([frame[at + 2], frame[at + 3]]);
        let (sum, carry) = sum.overflowing_add(8192);
        frame[at + 2..at + 4].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
        frame
    };
    cable.send(&shut(frame(address, TcpControl::None, 2, Some(begin), b"")));
    let mut stream = listener.accept().unwrap().0;
    stream.write_all(b"hello").unwrap();
    cable.wait(Duration::from_secs(1));
    cable.pump();
    assert!(cable.inbox.frames.is_empty());
    for _ in 0..3 {
        cable.network.poller.skipped += Duration::from_secs(61);
        let frames = cable.collect();
        assert_eq!(parse(&frames[0], address).payload, b"h");
        cable.send(&shut(frame(address, TcpControl::None, 2, Some(begin), b"")));
    }
    cable.send(&frame(address, TcpControl::None, 2, Some(begin), b""));
    let frames = cable.collect();
    assert_eq!(parse(&frames[0], address).payload, b"hello");
}

#[test]
fn ports_are_used_again_at_once() {
    let (listener, address) = listener();
    let mut cable = Cable::new(config());
    for round in 0..50u32 {
        let seq = round * 1000;
        cable.send(&frame(address, TcpControl::Syn, seq, None, b""));
        let frames = cable.collect();
        let answer = parse(&frames[0], address);
        assert!(answer.syn, "round {round}");
        let mut ack = answer.seq.wrapping_add(1);
        cable.send(&frame(address, TcpControl::None, seq + 1, Some(ack), b""));
        // The host ends first, so that the network waits.
        drop(listener.accept().unwrap().0);
        let frames = cable.collect();
        assert!(parse(&frames[0], address).fin);
        ack = ack.wrapping_add(1);
        cable.send(&frame(address, TcpControl::Fin, seq + 1, Some(ack), b""));
        let frames = cable.collect();
        assert_eq!(parse(&frames[0], address).ack, Some(seq + 2));
        // The FIN again: its ACK was lost.
        cable.send(&frame(address, TcpControl::Fin, seq + 1, Some(ack), b""));
        let frames = cable.collect();
        assert_eq!(parse(&frames[0], address).ack, Some(seq + 2));
    }
    cable.assert_no_leak();
}
