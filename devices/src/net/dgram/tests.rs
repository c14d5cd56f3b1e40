//! Frames as datagrams.

use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;

use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::net::testing::Card;

#[test]
fn unix_sockets_each_way() {
    let folder = TempDir::new().unwrap();
    let [ours, theirs] = ["ours", "theirs"].map(|name| folder.as_path().join(name));
    let config = Config { local: Address::Unix(ours.clone()), remote: Some(Address::Unix(theirs.clone())) };
    let mut card = Card::new(Dgram::open(&config, None).unwrap());
    // Nobody is there yet.
    card.send(b"lost");
    let peer = UnixDatagram::bind(&theirs).unwrap();
    // The largest frame fits.
    for size in [14, 1514, MAX_FRAME_BYTES] {
        let frame: Vec<u8> = (0..size).map(|n| (n * 5) as u8).collect();
        card.send(&frame);
        let mut got = vec![0; MAX_FRAME_BYTES + 1];
        let count = peer.recv(&mut got).unwrap();
        assert!(got[..count] == frame, "{size}");
        peer.send_to(&frame, &ours).unwrap();
        assert!(card.next() == frame, "{size}");
    }
    // What is larger is no frame; none is nothing.
    peer.send_to(&vec![1; MAX_FRAME_BYTES + 1], &ours).unwrap();
    peer.send_to(&[], &ours).unwrap();
    card.inbox.room = 1;
    for frame in [b"one", b"two"] {
        peer.send_to(frame, &ours).unwrap();
    }
    assert_eq!(card.next(), b"one");
    card.pump();
    assert!(card.inbox.frames.is_empty());
    card.inbox.room = 1;
    assert_eq!(card.next(), b"two");
    let taken = Dgram::open(&config, None).err().unwrap();
    assert_eq!(taken.to_string(), format!("no socket on {}", ours.display()));
}

#[test]
fn udp_each_way_but_not_from_strangers() {
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let inet = |port| Address::Inet { host: "127.0.0.1".into(), port };
    let config = Config { local: inet(0), remote: Some(inet(peer.local_addr().unwrap().port())) };
    let mut card = Card::new(Dgram::open(&config, None).unwrap());
    let ours = card.network.local_address().unwrap();
    card.send(b"hello");
    let mut got = [0; 100];
    assert_eq!(peer.recv_from(&mut got).unwrap(), (5, ours));
    stranger.send_to(b"who?", ours).unwrap();
    peer.send_to(b"answer", ours).unwrap();
    assert_eq!(card.next(), b"answer");
    // One that has gone is told of, and forgotten.
    drop(peer);
    (0..3).for_each(|_| card.send(b"lost"));
    card.pump();
    assert!(card.inbox.frames.is_empty());
}

#[test]
fn a_descriptor_that_was_handed_down() {
    let config = Config { local: Address::Fd(7), remote: None };
    let (ours, peer) = UnixDatagram::pair().unwrap();
    let mut card = Card::new(Dgram::open(&config, Some(ours.into())).unwrap());
    peer.send(b"frame").unwrap();
    assert_eq!(card.next(), b"frame");
    let stream = std::os::unix::net::UnixStream::pair().unwrap().0;
    let error = Dgram::open(&config, Some(stream.into())).err().unwrap();
    assert_eq!(error.to_string(), "descriptor 7 is not a datagram socket");
}
