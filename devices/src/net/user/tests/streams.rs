//! Streams of bytes, many and long ones.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use smoltcp::socket::tcp::State;

use super::guest::{Guest, HOST, Random, config};
use crate::net::Offloads;

/// A server on the host's loopback that serves `count` connections, each on a thread.
fn serve<T: Send + 'static>(
    count: usize,
    serve: impl Fn(TcpStream) -> T + Clone + Send + 'static,
) -> (SocketAddrV4, JoinHandle<Vec<T>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!() };
    let thread = std::thread::spawn(move || {
        let threads: Vec<_> = (0..count)
            .map(|_| {
                let (stream, serve) = (listener.accept().unwrap().0, serve.clone());
                std::thread::spawn(move || serve(stream))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    (SocketAddrV4::new(HOST, address.port()), thread)
}

fn echo(mut stream: TcpStream) {
    std::io::copy(&mut stream.try_clone().unwrap(), &mut stream).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
}

/// A stream's bytes from their place, so that one that is lost, doubled or misplaced is seen.
fn pattern(seed: u64, place: usize) -> u8 {
    let x = (place as u64 / 8 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x >> (place % 8 * 8)) as u8
}

fn check(seed: u64, place: usize, bytes: &[u8]) {
    for (index, byte) in bytes.iter().enumerate() {
        assert_eq!(*byte, pattern(seed, place + index), "byte {} of the stream", place + index);
    }
}

#[test]
fn an_echo() {
    let (address, server) = serve(1, echo);
    let mut guest = Guest::new(config());
    let socket = guest.connect(address, 4096);
    guest.until("connected", |guest| guest.tcp(socket).can_send());
    guest.tcp(socket).send_slice(b"over the cable and back").unwrap();
    guest.tcp(socket).close();
    let mut got = Vec::new();
    guest.until("all echoed", |guest| {
        let socket = guest.tcp(socket);
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
        }
        !socket.may_recv()
    });
    assert_eq!(got, b"over the cable and back");
    server.join().unwrap();
    guest.until("closed", |guest| guest.tcp(socket).state() == State::TimeWait);
    guest.assert_no_leak();
}

const UP: u64 = 1;
const DOWN: u64 = 2;

/// `total` bytes each way at once, while both ends now and then stop reading.
fn exchange(total: usize, offloads: Offloads, loss: Option<usize>) -> Guest {
    let (address, server) = serve_on("127.0.0.1:0", HOST.into(), total);
    exchange_with(Guest::new(config()), address, server, total, offloads, loss)
}

/// The host's end of it, on a port of the loopback `local`, where the guest calls it `host`.
pub(super) fn serve_on(local: &str, host: IpAddr, total: usize) -> (SocketAddr, JoinHandle<usize>) {
    let listener = TcpListener::bind(local).unwrap();
    let address = SocketAddr::new(host, listener.local_addr().unwrap().port());
    let thread = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut reader = stream.try_clone().unwrap();
        let reading = std::thread::spawn(move || {
            let (mut buffer, mut place, mut random) = (vec![0; 100_000], 0, Random(3));
            loop {
                let size = 1 + random.below(buffer.len());
                let count = reader.read(&mut buffer[..size]).unwrap();
                check(UP, place, &buffer[..count]);
                place += count;
                if count == 0 {
                    return place;
                }
                if random.below(200) == 0 {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        });
        let mut place = 0;
        while place < total {
            let chunk: Vec<u8> = (place..total.min(place + 50_000)).map(|n| pattern(DOWN, n)).collect();
            stream.write_all(&chunk).unwrap();
            place += chunk.len();
        }
        stream.shutdown(Shutdown::Write).unwrap();
        reading.join().unwrap()
    });
    (address, thread)
}

/// The guest's end.
pub(super) fn exchange_with(
    mut guest: Guest,
    address: SocketAddr,
    server: JoinHandle<usize>,
    total: usize,
    offloads: Offloads,
    loss: Option<usize>,
) -> Guest {
    guest.cable.inbox.offloads = offloads;
    guest.cable.loss = loss;
    let socket = guest.connect(address, 300_000);
    let (mut sent, mut got, mut random, mut idle) = (0, 0, Random(5), 0);
    let mut stall = 0;
    guest.until("everything both ways", |guest| {
        let tcp = guest.tcp(socket);
        if sent < total && tcp.can_send() {
            let more = |buffer: &mut [u8]| {
                let count = buffer.len().min(total - sent);
                buffer[..count].iter_mut().zip(sent..).for_each(|(byte, place)| *byte = pattern(UP, place));
                (count, count)
            };
            sent += tcp.send(more).unwrap();
            if sent == total {
                tcp.close();
            }
        }
        if stall == 0 && random.below(50) == 0 {
            // Long enough for the window to shut.
            stall = random.below(60);
        }
        stall = usize::saturating_sub(stall, 1);
        let mut moved = 0;
        while stall == 0 && tcp.can_recv() && moved < 100_000 {
            moved += tcp
                .recv(|bytes| {
                    check(DOWN, got + moved, bytes);
                    (bytes.len(), bytes.len())
                })
                .unwrap();
        }
        got += moved;
        idle = if moved == 0 { idle + 1 } else { 0 };
        if loss.is_some() && idle > 20 {
            guest.skip(Duration::from_millis(200));
        }
        got == total && matches!(guest.tcp(socket).state(), State::TimeWait | State::Closed)
    });
    assert_eq!(server.join().unwrap(), total);
    guest
}

#[test]
fn long_streams_both_ways() {
    let mut guest = exchange(64 << 20, Offloads::default(), None);
    assert_eq!(guest.cable.inbox.largest, 1514);
    guest.assert_no_leak();
}

#[test]
fn long_streams_in_large_segments() {
    let mut guest = exchange(64 << 20, Offloads::ALL, None);
    assert!(guest.cable.inbox.largest > 60_000, "{}", guest.cable.inbox.largest);
    guest.assert_no_leak();
}

#[test]
fn what_gets_lost_in_the_guest_comes_again() {
    let offloads = Offloads { checksum: true, ..Offloads::default() };
    let mut guest = exchange(2 << 20, offloads, Some(37));
    guest.assert_no_leak();
}

#[test]
fn five_hundred_at_once() {
    const COUNT: usize = 500;
    let (address, server) = serve(COUNT, echo);
    let mut guest = Guest::new(config());
    let sockets: Vec<_> = (0..COUNT).map(|_| guest.connect(address, 8192)).collect();
    guest.until("all connected", |guest| sockets.iter().all(|&socket| guest.tcp(socket).can_send()));
    let total = 40_000;
    let mut places = vec![(0, 0); COUNT];
    guest.until("all echoed", |guest| {
        for (seed, (&socket, (sent, got))) in sockets.iter().zip(&mut places).enumerate() {
            let tcp = guest.tcp(socket);
            if *sent < total && tcp.can_send() {
                let chunk: Vec<u8> =
                    (*sent..total.min(*sent + 4000)).map(|place| pattern(seed as u64, place)).collect();
                *sent += tcp.send_slice(&chunk).unwrap();
                if *sent == total {
                    tcp.close();
                }
            }
            while tcp.can_recv() {
                *got += tcp
                    .recv(|bytes| {
                        check(seed as u64, *got, bytes);
                        (bytes.len(), bytes.len())
                    })
                    .unwrap();
            }
        }
        sockets.iter().all(|&socket| matches!(guest.tcp(socket).state(), State::TimeWait | State::Closed))
    });
    assert!(places.iter().all(|place| *place == (total, total)));
    server.join().unwrap();
    guest.assert_no_leak();
}

#[test]
fn the_host_may_end_first_and_still_be_sent_to() {
    let (address, server) = serve(1, |mut stream| {
        stream.write_all(b"that is all").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got
    });
    let mut guest = Guest::new(config());
    let socket = guest.connect(address, 4096);
    guest.until("the host's end", |guest| guest.tcp(socket).state() == State::CloseWait);
    let mut got = Vec::new();
    guest.tcp(socket).recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
    assert_eq!(got, b"that is all");
    for _ in 0..10 {
        guest.tcp(socket).send_slice(b"but not from here ").unwrap();
        (0..10).for_each(|_| _ = guest.step());
    }
    guest.tcp(socket).close();
    guest.until("closed", |guest| guest.tcp(socket).state() == State::Closed);
    assert_eq!(server.join().unwrap(), [b"but not from here ".repeat(10)]);
    // Ours was the first FIN: the connection waits, and goes.
    assert_eq!(guest.cable.network.tcp.count, 1);
    guest.assert_no_leak();
}

#[test]
fn a_host_that_does_not_read_stops_the_guest() {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Arc::new(std::sync::Mutex::new(released));
    let (address, server) = serve(1, move |mut stream| {
        released.lock().unwrap().recv().unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got.len()
    });
    let mut guest = Guest::new(config());
    let socket = guest.connect(address, 100_000);
    let chunk = vec![9; 50_000];
    let (mut sent, mut still) = (0, 0);
    guest.until("the guest is stopped", |guest| {
        let tcp = guest.tcp(socket);
        let count = if tcp.can_send() { tcp.send_slice(&chunk).unwrap() } else { 0 };
        sent += count;
        still = if count == 0 { still + 1 } else { 0 };
        still > 200 && sent > 0
    });
    let budget = &guest.cable.network.tcp.budget;
    let held = super::super::tcp::BUDGET_BYTES - budget.left_bytes;
    assert!(held <= 512 << 10, "{held} bytes are held");
    assert!(sent > 512 << 10 && sent < 64 << 20, "{sent} bytes were taken");
    release.send(()).unwrap();
    guest.tcp(socket).close();
    guest.until("closed", |guest| guest.tcp(socket).state() == State::TimeWait);
    assert_eq!(server.join().unwrap(), [sent]);
    guest.assert_no_leak();
}

#[test]
fn a_guest_without_room_loses_nothing_and_wakes_nobody() {
    let total = 3 << 20;
    let (address, server) = serve(1, move |mut stream| {
        let data: Vec<u8> = (0..total).map(|place| pattern(4, place)).collect();
        stream.write_all(&data).unwrap();
    });
    let mut guest = Guest::new(config());
    let socket = guest.connect(address, 1 << 20);
    guest.until("connected", |guest| guest.tcp(socket).may_recv());
    guest.cable.inbox.room = 0;
    // The server may be slow to make what it sends; from when nothing more comes, nobody is to be woken.
    let begun = Instant::now();
    while guest.cable.wait(Duration::from_millis(200)) {
        assert!(begun.elapsed() < Duration::from_secs(30), "woken with nothing to be done");
        guest.cable.pump();
    }
    guest.cable.inbox.room = 3;
    let mut got = 0;
    guest.until("everything", |guest| {
        let tcp = guest.tcp(socket);
        while tcp.can_recv() {
            got += tcp
                .recv(|bytes| {
                    check(4, got, bytes);
                    (bytes.len(), bytes.len())
                })
                .unwrap();
        }
        !guest.tcp(socket).may_recv()
    });
    assert_eq!(got, total);
    guest.tcp(socket).close();
    guest.until("closed", |guest| guest.tcp(socket).state() == State::Closed);
    server.join().unwrap();
    guest.assert_no_leak();
}
