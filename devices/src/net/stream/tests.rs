//! The stream network against a program that speaks the framing by hand.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::net::MAX_FRAME_BYTES;
use crate::net::testing::Card;

fn unix(path: PathBuf, server: bool, reconnect: Option<Duration>) -> Config {
    Config { address: Address::Unix(path), server, reconnect }
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}

fn read_frame(stream: &mut impl Read) -> Vec<u8> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut frame).unwrap();
    frame
}

fn folder() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.as_path().join("socket");
    (folder, path)
}

#[test]
fn frames_in_pieces_and_together() {
    let (_folder, path) = folder();
    let listener = UnixListener::bind(&path).unwrap();
    let mut card = Card::new(Stream::open(&unix(path, false, None), None).unwrap());
    let mut peer = listener.accept().unwrap().0;
    let frames: Vec<Vec<u8>> = [60, 1514, 1, 0, MAX_FRAME_BYTES, 700]
        .iter()
        .map(|&n| (0..n).map(|x| (x * 7 + n) as u8).collect())
        .collect();
    let bytes: Vec<u8> = frames.iter().flat_map(|frame| framed(frame)).collect();
    // The frame without a byte is none.
    let expected: Vec<_> = frames.iter().filter(|frame| !frame.is_empty()).cloned().collect();
    for size in [1, 300, bytes.len()] {
        // The first frames byte by byte.
        let (head, rest) = bytes.split_at(if size == 1 { 1600 } else { 0 });
        let pieces = head.chunks(1).chain(rest.chunks(size.max(500)));
        let (pieces, mut writer): (Vec<_>, _) =
            (pieces.map(<[u8]>::to_vec).collect(), peer.try_clone().unwrap());
        let writing =
            std::thread::spawn(move || pieces.iter().for_each(|piece| writer.write_all(piece).unwrap()));
        let got: Vec<_> = expected.iter().map(|_| card.next()).collect();
        writing.join().unwrap();
        assert!(got == expected, "pieces of {size}");
    }
    for frame in &expected {
        card.send(frame);
    }
    card.pump();
    let reading = std::thread::spawn(move || expected.iter().all(|frame| read_frame(&mut peer) == *frame));
    card.until("everything read", |card| {
        card.pump();
        reading.is_finished()
    });
    assert!(reading.join().unwrap());
}

#[test]
fn a_server_takes_one_after_the_other() {
    let (_folder, path) = folder();
    // What a server that died left behind.
    drop(UnixListener::bind(&path).unwrap());
    let mut card = Card::new(Stream::open(&unix(path.clone(), true, None), None).unwrap());
    card.send(b"to nobody");
    for name in ["first", "second"] {
        let mut peer = UnixStream::connect(&path).unwrap();
        // Waits its turn.
        let mut other = UnixStream::connect(&path).unwrap();
        other.write_all(&framed(b"other")).unwrap();
        peer.write_all(&framed(name.as_bytes())).unwrap();
        assert_eq!(card.next(), name.as_bytes());
        card.send(b"answer");
        card.pump();
        assert_eq!(read_frame(&mut peer), b"answer");
        drop(peer);
        assert_eq!(card.next(), b"other");
        drop(other);
    }
    let error = Stream::open(&unix(path, true, None), None).err().unwrap();
    assert!(matches!(error, OpenError::Listen { .. }), "{error}");
}

#[test]
fn a_peer_that_was_not_there_or_went_is_found_again() {
    let (_folder, path) = folder();
    let delay = Some(Duration::from_millis(20));
    let refused = Stream::open(&unix(path.clone(), false, None), None).err().unwrap();
    assert_eq!(refused.to_string(), format!("cannot connect to {}", path.display()));
    let mut card = Card::new(Stream::open(&unix(path.clone(), false, delay), None).unwrap());
    card.pump();
    card.send(b"to nobody");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    for round in 0..3u8 {
        let mut peer = None;
        card.until("a connection", |_| {
            peer = listener.accept().ok();
            peer.is_some()
        });
        let mut peer = peer.unwrap().0;
        peer.set_nonblocking(false).unwrap();
        peer.write_all(&framed(&[round; 20])).unwrap();
        assert_eq!(card.next(), [round; 20]);
    }
    // Nonsense ends a connection, too.
    let mut peer = None;
    card.until("a connection", |_| {
        peer = listener.accept().ok();
        peer.is_some()
    });
    peer.unwrap().0.write_all(&[0xff; 100]).unwrap();
    card.until("another connection", |_| listener.accept().is_ok());
    assert!(card.inbox.frames.is_empty());
}

#[test]
fn tcp_each_way() {
    let inet = |port| Address::Inet { host: "127.0.0.1".into(), port };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = Config { address: inet(port), server: false, reconnect: Some(Duration::from_millis(10)) };
    let mut card = Card::new(Stream::open(&config, None).unwrap());
    let accepting = std::thread::spawn(move || listener.accept().unwrap().0);
    card.until("a connection", |_| accepting.is_finished());
    let mut peer = accepting.join().unwrap();
    peer.write_all(&framed(b"over tcp")).unwrap();
    assert_eq!(card.next(), b"over tcp");
    // A port that is the kernel's choice cannot be asked for on the command line, but can be found.
    let server = Config { address: inet(0), server: true, reconnect: None };
    let stream = Stream::open(&server, None).unwrap();
    let at = socket::local_inet(stream.listener.as_ref().unwrap()).unwrap();
    let mut card = Card::new(stream);
    let mut peer = TcpStream::connect(at).unwrap();
    card.until("the peer", |card| matches!(card.network.peer, Peer::Present(_)));
    card.send(b"frame");
    card.pump();
    assert_eq!(read_frame(&mut peer), b"frame");
}

#[test]
fn who_does_not_read_holds_the_guest_back() {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let config = Config { address: Address::Fd(9), server: false, reconnect: None };
    let mut card = Card::new(Stream::open(&config, Some(ours.into())).unwrap());
    let mut sent = 0;
    while card.network.is_ready() {
        card.send(&[sent as u8; 1000]);
        sent += 1;
        assert!(sent < 100_000, "it takes everything");
    }
    let reading = std::thread::spawn(move || {
        for number in 0..sent {
            assert_eq!(read_frame(&mut peer), [number as u8; 1000]);
        }
        peer
    });
    // The card is woken when there is room again.
    card.until("room", |card| card.network.is_ready());
    card.until("everything read", |card| {
        card.pump();
        reading.is_finished()
    });
    reading.join().unwrap();
}

#[test]
fn a_guest_without_room_keeps_the_peer_waiting() {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let config = Config { address: Address::Fd(9), server: false, reconnect: None };
    let mut card = Card::new(Stream::open(&config, Some(ours.into())).unwrap());
    card.inbox.room = 2;
    let writing = std::thread::spawn(move || {
        (0..4000u32).for_each(|n| peer.write_all(&framed(&[n as u8; 500])).unwrap());
        peer
    });
    card.until("two frames", |card| card.inbox.frames.len() == 2);
    card.inbox.room = usize::MAX;
    card.until("all frames", |card| card.inbox.frames.len() == 4000);
    assert!(card.inbox.frames.iter().zip(0u32..).all(|(frame, n)| frame.1 == [n as u8; 500]));
    writing.join().unwrap();
}

#[test]
fn no_socket_at_all() {
    let config = Config { address: Address::Fd(9), server: false, reconnect: None };
    let file = std::fs::File::open("/dev/null").unwrap();
    for fd in [None, Some(file.into())] {
        assert_eq!(
            Stream::open(&config, fd).err().unwrap().to_string(),
            "descriptor 9 is not a stream socket"
        );
    }
}
