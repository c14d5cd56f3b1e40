//! The device with programs of the host at its sockets, and a guest that is played by hand.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::connection::BUFFER_BYTES;
use super::spec::{HOST_CID, TYPE_STREAM, op, shutdown};
use super::*;
use crate::testing::Random;
use crate::virtio::testing::{DATA, Driver, readable, writable};

const CID: u32 = 42;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// A guest's buffer for one packet.
const ROOM: u32 = 4096;
const SOON: Duration = Duration::from_secs(20);

struct Guest {
    driver: Driver,
    path: PathBuf,
    /// Buffers given and packets taken.
    given: u16,
    taken: u16,
    sent: u16,
}

impl Guest {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bivisor-vsock-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let socket = Arc::new(HostSocket::new(path.clone()).unwrap());
        socket.bind().unwrap();
        let mut driver = Driver::new(|pace| Vsock::new(CID, socket, pace).unwrap());
        driver.start();
        Self { driver, path, given: 0, taken: 0, sent: 0 }
    }

    /// Puts a packet in the queue.
    fn send(&mut self, header: Header, payload: &[u8]) {
        let at = DATA + u64::from(self.sent % 8) * 0x8000;
        let packet = [&header.bytes(), payload].concat();
        self.driver.memory.write_slice(&packet, GuestAddress(at)).unwrap();
        let head = self.sent % 8 * 2;
        let cut = (packet.len() as u32).min(30);
        let buffers = [readable(at, cut), readable(at + u64::from(cut), packet.len() as u32 - cut)];
        self.driver.add(TRANSMIT, head, if buffers[1].len == 0 { &buffers[..1] } else { &buffers });
        self.sent = self.sent.wrapping_add(1);
        self.driver.notify(TRANSMIT);
    }

    /// The next packet for the guest, waited for as long as the host needs.
    fn take(&mut self) -> (Header, Vec<u8>) {
        let begun = Instant::now();
        while self.driver.used_index(RECEIVE) == self.taken {
            assert!(begun.elapsed() < SOON, "no packet has come");
            if self.given == self.taken {
                let head = self.given % 8 * 2;
                let at = DATA + 0x5_0000 + u64::from(head) * 0x2000;
                self.driver.add(RECEIVE, head, &[writable(at, 20), writable(at + 20, ROOM + 24)]);
                self.given = self.given.wrapping_add(1);
            }
            self.driver.notify(RECEIVE);
        }
        let (head, written) = self.driver.used(RECEIVE, self.taken);
        self.taken = self.taken.wrapping_add(1);
        let mut packet = vec![0; written as usize];
        let at = DATA + 0x5_0000 + u64::from(head) * 0x2000;
        self.driver.memory.read_slice(&mut packet, GuestAddress(at)).unwrap();
        let (head, payload) = packet.split_at(Header::BYTES);
        let header = Header::read(head.try_into().unwrap());
        assert_eq!((header.src_cid, header.dst_cid, header.len as usize), (2, 42, payload.len()));
        (header, payload.to_vec())
    }

    /// Lets the device work until the host's program has done its part.
    fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            assert!(begun.elapsed() < SOON, "it does not come to pass");
            self.driver.notify(TRANSMIT);
        }
    }

    /// A program of the host that serves `port`.
    fn serve(&self, port: u32) -> UnixListener {
        let path = self.path.with_extension("").to_str().unwrap().to_owned() + &format!("_{port}");
        let _ = std::fs::remove_file(&path);
        UnixListener::bind(path).unwrap()
    }

    /// A stream from the guest's port 7 to a program at the host's `port`.
    fn connect(&mut self, port: u32) -> UnixStream {
        let listener = self.serve(port);
        self.send(packet(op::REQUEST, port), &[]);
        let (header, _) = self.take();
        assert_eq!((header.op, header.src_port, header.dst_port), (op::RESPONSE, port, 7));
        assert_eq!((header.buf_alloc, header.fwd_cnt), (BUFFER_BYTES, 0));
        let stream = listener.accept().unwrap().0;
        std::fs::remove_file(listener.local_addr().unwrap().as_pathname().unwrap()).unwrap();
        stream
    }
}

/// A packet of the guest's port 7 to the host's `port`.
fn packet(op: u16, port: u32) -> Header {
    Header {
        src_cid: CID.into(),
        dst_cid: HOST_CID,
        src_port: 7,
        dst_port: port,
        kind: TYPE_STREAM,
        op,
        buf_alloc: 1 << 20,
        ..Header::default()
    }
}

fn data(port: u32, payload: &[u8]) -> Header {
    Header { len: payload.len() as u32, ..packet(op::RW, port) }
}

fn noise(count: usize) -> Vec<u8> {
    let mut random = Random::new(count as u64);
    (0..count).map(|_| random.next() as u8).collect()
}

#[test]
fn what_the_device_shows() {
    let guest = Guest::new("shows");
    assert_eq!(guest.driver.transport.device().config(), 42u64.to_le_bytes());
    assert!(guest.path.exists());
    let path = guest.path.clone();
    drop(guest);
    assert!(!path.exists());
}

#[test]
fn the_guest_connects() {
    let mut guest = Guest::new("guest");
    let mut program = guest.connect(99);
    program.write_all(b"hello").unwrap();
    let (header, payload) = guest.take();
    assert_eq!((header.op, payload.as_slice()), (op::RW, &b"hello"[..]));
    guest.send(data(99, b"and back"), b"and back");
    let mut got = [0; 8];
    program.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"and back");
    // The guest asks, and is told how much has gone on.
    guest.send(packet(op::CREDIT_REQUEST, 99), &[]);
    let (header, _) = guest.take();
    assert_eq!((header.op, header.fwd_cnt), (op::CREDIT_UPDATE, 8));
    // Each half ends by itself.
    program.shutdown(Shutdown::Write).unwrap();
    let (header, _) = guest.take();
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, shutdown::SEND));
    guest.send(data(99, b"more"), b"more");
    guest.send(Header { flags: shutdown::SEND, ..packet(op::SHUTDOWN, 99) }, &[]);
    let mut got = Vec::new();
    program.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"more");
    guest.send(Header { flags: shutdown::BOTH, ..packet(op::SHUTDOWN, 99) }, &[]);
    loop {
        let (header, _) = guest.take();
        if header.op == op::RST {
            break;
        }
        assert_eq!((header.op, header.flags), (op::SHUTDOWN, shutdown::BOTH));
    }
}

#[test]
fn a_program_of_the_host_connects() {
    let mut guest = Guest::new("host");
    let mut program = UnixStream::connect(&guest.path).unwrap();
    program.write_all(b"CONN").unwrap();
    guest.driver.notify(TRANSMIT);
    // What comes behind the line is the guest's.
    program.write_all(b"ECT 7\nearly").unwrap();
    let (request, _) = guest.take();
    assert_eq!((request.op, request.dst_port), (op::REQUEST, 7));
    let port = request.src_port;
    guest.send(packet(op::RESPONSE, port), &[]);
    let (header, payload) = guest.take();
    assert_eq!((header.op, payload.as_slice()), (op::RW, &b"early"[..]));
    guest.send(data(port, b"answer"), b"answer");
    let mut got = vec![0; format!("OK {port}\nanswer").len()];
    program.read_exact(&mut got).unwrap();
    assert_eq!(got, format!("OK {port}\nanswer").into_bytes());
    // The line that says so is not of the guest's bytes.
    guest.send(packet(op::CREDIT_REQUEST, port), &[]);
    assert_eq!(guest.take().0.fwd_cnt, 6);
    // A second one at once, to the same port.
    let mut second = UnixStream::connect(&guest.path).unwrap();
    second.write_all(b"CONNECT 7\n").unwrap();
    let (request, _) = guest.take();
    assert_ne!(request.src_port, port);
    guest.send(packet(op::RST, request.src_port), &[]);
    assert_eq!(second.read(&mut [0; 10]).unwrap(), 0, "refused");
    // Gone without a word: the guest hears that nothing comes and nothing is taken.
    drop(program);
    let (header, _) = guest.take();
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, shutdown::BOTH));
    guest.send(packet(op::RST, port), &[]);
    assert_eq!(guest.driver.used_index(RECEIVE), guest.taken);
}

#[test]
fn programs_that_say_nothing_that_makes_sense() {
    let mut guest = Guest::new("nonsense");
    for line in ["HELLO 7\n", "CONNECT x\n", "CONNECT 99999999999\n", "\n", &"C".repeat(40)] {
        let mut program = UnixStream::connect(&guest.path).unwrap();
        program.write_all(line.as_bytes()).unwrap();
        program.set_nonblocking(true).unwrap();
        // The rest of a line that is too long was not read.
        guest.until(|_| !matches!(program.read(&mut [0; 10]), Err(error) if error.kind() == io::ErrorKind::WouldBlock));
    }
    assert_eq!(guest.driver.used_index(RECEIVE), 0);
}

#[test]
fn streams_with_credit_each_way() {
    let mut guest = Guest::new("credit");
    let mut program = guest.connect(5);
    // Up: more than the guest has room for is not sent.
    let up = noise(300_000);
    let sender = {
        let (mut program, up) = (program.try_clone().unwrap(), up.clone());
        std::thread::spawn(move || program.write_all(&up))
    };
    let (mut got, mut room) = (Vec::new(), 10_000u32);
    guest.send(Header { buf_alloc: room, ..packet(op::CREDIT_UPDATE, 5) }, &[]);
    while got.len() < up.len() {
        let (header, payload) = guest.take();
        match header.op {
            op::RW => got.extend(payload),
            op::CREDIT_REQUEST => {
                assert_eq!(got.len(), room as usize);
                room += 50_000;
                let fwd_cnt = got.len() as u32;
                let buf_alloc = room - fwd_cnt;
                guest.send(Header { buf_alloc, fwd_cnt, ..packet(op::CREDIT_UPDATE, 5) }, &[]);
            }
            _ => panic!("{header:?}"),
        }
        assert!(got.len() <= room as usize);
    }
    sender.join().unwrap().unwrap();
    assert!(got == up);
    // Down: what the program does not read waits, as much as was promised; then the guest is told of room.
    let down = noise(BUFFER_BYTES as usize + 400_000);
    let fwd_cnt = got.len() as u32;
    let mut sent = 0;
    let credit = |sent: usize, forwarded: u32| BUFFER_BYTES as usize - (sent - forwarded as usize);
    let mut forwarded = 0;
    loop {
        let count = credit(sent, forwarded).min(4000);
        if count == 0 {
            guest.send(Header { fwd_cnt, ..packet(op::CREDIT_REQUEST, 5) }, &[]);
            let told = guest.take().0.fwd_cnt;
            if told == forwarded {
                break;
            }
            forwarded = told;
            continue;
        }
        guest.send(Header { fwd_cnt, ..data(5, &down[sent..sent + count]) }, &down[sent..sent + count]);
        sent += count;
    }
    let mut read = vec![0; sent];
    let reader = std::thread::spawn(move || program.read_exact(&mut read).map(|()| (read, program)));
    guest.until(|guest| {
        if guest.given == guest.taken || guest.driver.used_index(RECEIVE) != guest.taken {
            let (header, _) = guest.take();
            assert_eq!(header.op, op::CREDIT_UPDATE);
            forwarded = header.fwd_cnt;
        }
        forwarded as usize + BUFFER_BYTES as usize / 4 > sent
    });
    let (read, _program) = reader.join().unwrap().unwrap();
    assert!(read == down[..sent]);
}

#[test]
fn a_guest_that_closes_with_bytes_under_way() {
    let mut guest = Guest::new("drain");
    let mut program = guest.connect(5);
    let bytes = noise(BUFFER_BYTES as usize);
    let mut sent = 0;
    // More than the host's socket takes at once, so that some of it waits in the device.
    for piece in bytes.chunks(4000).cycle().take(bytes.len() / 4000 + 60) {
        guest.send(packet(op::CREDIT_REQUEST, 5), &[]);
        let forwarded = guest.take().0.fwd_cnt as usize;
        if sent - forwarded + piece.len() > BUFFER_BYTES as usize {
            break;
        }
        guest.send(data(5, piece), piece);
        sent += piece.len();
    }
    guest.send(Header { flags: shutdown::BOTH, ..packet(op::SHUTDOWN, 5) }, &[]);
    assert_eq!(guest.take().0.op, op::RST);
    // Its ports are free at once.
    let _second = guest.connect(5);
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        program.read_to_end(&mut got).map(|_| got)
    });
    guest.until(|_| reader.is_finished());
    assert_eq!(reader.join().unwrap().unwrap().len(), sent);
}

#[test]
fn packets_that_make_no_sense_are_refused() {
    let mut guest = Guest::new("refused");
    let refused = |guest: &mut Guest, header: Header, payload: &[u8]| {
        guest.send(header, payload);
        let (answer, _) = guest.take();
        assert_eq!(
            (answer.op, answer.src_port, answer.dst_port),
            (op::RST, header.dst_port, header.src_port)
        );
    };
    // Nobody serves the port; there is no such stream.
    for op in [op::REQUEST, op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 0, 99]
    {
        refused(&mut guest, packet(op, 1), &[]);
    }
    refused(&mut guest, Header { kind: 2, ..packet(op::REQUEST, 1) }, &[]);
    // Less or more than it says, on a stream that there is; more than there was room for; a second request.
    let too_long = Header { len: u32::MAX, ..packet(op::RW, 5) };
    let after_end = data(5, b"x");
    for (header, payload) in [
        (Header { len: 9, ..packet(op::RW, 5) }, &b"less"[..]),
        (too_long, b"less"),
        (packet(op::REQUEST, 5), b""),
        (packet(op::RESPONSE, 5), b""),
        (packet(77, 5), b""),
        (after_end, b"x"),
    ] {
        let mut program = guest.connect(5);
        if header == after_end {
            guest.send(Header { flags: shutdown::SEND, ..packet(op::SHUTDOWN, 5) }, &[]);
        }
        refused(&mut guest, header, payload);
        assert_eq!(program.read(&mut [0; 10]).unwrap(), 0, "the stream has ended");
    }
    // What is of or for somebody else is nobody's, and a reset is not answered.
    guest.send(Header { src_cid: 5, ..packet(op::REQUEST, 1) }, &[]);
    guest.send(Header { dst_cid: 5, ..packet(op::REQUEST, 1) }, &[]);
    guest.send(packet(op::RST, 1), &[]);
    refused(&mut guest, packet(op::REQUEST, 3), &[]);
    assert!(!guest.driver.needs_reset());
}

#[test]
fn a_guest_that_sends_more_than_there_is_room_for() {
    let mut guest = Guest::new("overrun");
    let _program = guest.connect(5);
    // Nobody reads: sooner or later it is too much.
    let piece = [1; 4000];
    for _ in 0..2000 {
        guest.send(data(5, &piece), &piece);
        if guest.given != guest.taken && guest.driver.used_index(RECEIVE) != guest.taken {
            break;
        }
    }
    loop {
        let (header, _) = guest.take();
        if header.op == op::RST {
            break;
        }
        assert_eq!(header.op, op::CREDIT_UPDATE);
    }
}

/// Refusals wait until the guest has room for them, and its packets with them.
#[test]
fn a_guest_without_room() {
    let mut guest = Guest::new("room");
    for _ in 0..16 {
        guest.driver.add(TRANSMIT, 0, &[readable(DATA, Header::BYTES as u32)]);
    }
    guest.driver.memory.write_slice(&packet(op::RW, 1).bytes(), GuestAddress(DATA)).unwrap();
    for round in 0..100u16 {
        guest.driver.notify(TRANSMIT);
        let used = guest.driver.used_index(TRANSMIT);
        assert_eq!(used, (round + 1) * 16);
        for _ in 0..16 {
            guest.driver.add(TRANSMIT, 0, &[readable(DATA, Header::BYTES as u32)]);
        }
        if used == 256 {
            break;
        }
    }
    guest.driver.notify(TRANSMIT);
    assert_eq!(guest.driver.used_index(TRANSMIT), 256, "the rest waits");
    assert_eq!(guest.take().0.op, op::RST);
    guest.sent = 272;
    guest.until(|guest| guest.driver.used_index(TRANSMIT) > 256);
}

#[test]
fn a_reset_ends_all_streams() {
    let mut guest = Guest::new("reset");
    let mut program = guest.connect(5);
    guest.driver.set(crate::virtio::mmio::spec::register::STATUS, 0);
    guest.driver.run();
    assert_eq!(program.read(&mut [0; 10]).unwrap(), 0);
    // A program that connects meanwhile waits for the next driver.
    let mut waiting = UnixStream::connect(&guest.path).unwrap();
    waiting.write_all(b"CONNECT 7\n").unwrap();
    guest.driver.start();
    (guest.given, guest.taken, guest.sent) = (0, 0, 0);
    assert_eq!(guest.take().0.op, op::REQUEST);
}

#[test]
fn buffers_that_make_no_sense() {
    for (queue, buffers) in [
        (TRANSMIT, &[readable(DATA, 43)][..]),
        (TRANSMIT, &[readable(0xffff_0000, 44)]),
        (RECEIVE, &[writable(DATA, 43)]),
        (RECEIVE, &[writable(0xffff_0000, 100)]),
    ] {
        let mut guest = Guest::new("buffers");
        let program = guest.connect(5);
        drop(program);
        guest.driver.add(queue, 12, buffers);
        guest.until(|guest| guest.driver.needs_reset());
    }
}

#[test]
fn there_is_an_end_of_streams() {
    let path = std::env::temp_dir().join(format!("bivisor-vsock-{}-many", std::process::id()));
    let socket = Arc::new(HostSocket::new(path).unwrap());
    socket.bind().unwrap();
    crate::descriptors::raise_limit();
    let mut mux = Mux::new(CID.into(), Arc::clone(&socket)).unwrap();
    let (mut programs, begun) = (Vec::new(), Instant::now());
    while programs.len() < mux::MAX_CONNECTIONS {
        match UnixStream::connect(socket.path()) {
            Ok(program) => programs.push(program),
            // The test's own limit, not the device's.
            Err(_) if programs.len() > 100 => return,
            Err(error) => panic!("{error}"),
        }
        if programs.len() % 32 == 0 {
            mux.poll();
        }
        assert!(begun.elapsed() < SOON * 5);
    }
    mux.poll();
    assert_eq!(mux.count(), mux::MAX_CONNECTIONS);
    let mut refused = UnixStream::connect(socket.path()).unwrap();
    mux.poll();
    assert_eq!((mux.count(), refused.read(&mut [0; 10]).unwrap()), (mux::MAX_CONNECTIONS, 0));
    mux.receive(&packet(op::REQUEST, 1), Some(&[]));
    assert_eq!(mux.next(100, &mut Vec::new()).unwrap().op, op::RST);
    programs.truncate(10);
    mux.poll();
    mux.poll();
    assert_eq!(mux.count(), 10);
}

/// Headers at random, mostly of streams that there are.
/// What the device keeps of them does not grow with them, though the guest has no room to hear of any.
#[test]
fn streams_that_come_and_go() {
    let guest = Guest::new("gone");
    let socket = Arc::new(HostSocket::new(guest.path.with_extension("other")).unwrap());
    socket.bind().unwrap();
    // The program that serves port 9.
    let path = guest.path.with_extension("other_9");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let mut mux = mux::Mux::new(CID.into(), socket).unwrap();
    for _ in 0..3 * mux::MAX_CONNECTIONS {
        mux.receive(&packet(op::REQUEST, 9), Some(&[]));
        assert_eq!(mux.count(), 1);
        mux.receive(&packet(op::RST, 9), Some(&[]));
        listener.accept().unwrap();
        assert!(mux.queued() <= 2 * mux::MAX_CONNECTIONS);
    }
    std::fs::remove_file(path).unwrap();
    assert_eq!(mux.count(), 0);
    assert!(mux.next(100, &mut Vec::new()).is_none());
}

#[test]
fn random_packets() {
    let mut guest = Guest::new("random");
    let mut random = Random::new(0x50c4);
    let listeners: Vec<_> = (0..3).map(|port| guest.serve(port)).collect();
    listeners.iter().for_each(|listener| listener.set_nonblocking(true).unwrap());
    let mut programs = Vec::new();
    for round in 0..5000u32 {
        let payload = noise(random.below(200) as usize);
        let mut header = Header {
            src_port: random.below(3) as u32,
            dst_port: random.below(4) as u32,
            op: random.below(9) as u16,
            len: payload.len() as u32,
            flags: random.below(4) as u32,
            buf_alloc: random.below_bits(32) as u32,
            fwd_cnt: random.below_bits(32) as u32,
            ..packet(0, 0)
        };
        match random.below(30) {
            0 => header.len = random.next() as u32,
            1 => header.kind = random.next() as u16,
            2 => header.src_cid = random.next(),
            _ => {}
        }
        guest.send(header, &payload);
        for listener in &listeners {
            programs.extend(listener.accept().map(|(stream, _)| stream));
        }
        if random.below(4) == 0 && !programs.is_empty() {
            let mut program = programs.swap_remove(random.below(programs.len() as u64) as usize);
            let _ = program.write(&payload);
            if random.below(2) == 0 {
                programs.push(program);
            }
        }
        if round % 3 == 0 || guest.driver.used_index(TRANSMIT) != guest.sent {
            while guest.driver.used_index(RECEIVE) != guest.taken || guest.given == guest.taken {
                if guest.given == guest.taken {
                    let head = guest.given % 16;
                    let at = DATA + 0x5_0000 + u64::from(head) * 0x2000;
                    guest.driver.add(RECEIVE, head, &[writable(at, ROOM)]);
                    guest.given = guest.given.wrapping_add(1);
                    guest.driver.notify(RECEIVE);
                }
                if guest.driver.used_index(RECEIVE) == guest.taken {
                    break;
                }
                guest.taken = guest.taken.wrapping_add(1);
            }
        }
        assert!(!guest.driver.needs_reset());
    }
    for port in 0..3 {
        let _ = std::fs::remove_file(format!("{}_{port}", guest.path.display()));
    }
}

#[test]
fn sockets_that_cannot_be() {
    let folder = std::env::temp_dir();
    let path = folder.join(format!("bivisor-vsock-{}-taken", std::process::id()));
    std::fs::write(&path, "").unwrap();
    assert!(matches!(HostSocket::new(path.clone()), Err(SocketError::Taken(_))));
    std::fs::remove_file(&path).unwrap();
    let first = HostSocket::new(path.clone()).unwrap();
    assert!(!path.exists());
    first.bind().unwrap();
    assert!(matches!(HostSocket::new(path.clone()), Err(SocketError::Taken(_))));
    drop(first);
    // One that was left behind is replaced, and somebody else's is not removed.
    drop(UnixListener::bind(&path).unwrap());
    let second = HostSocket::new(path.clone()).unwrap();
    second.bind().unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    drop(second);
    assert!(path.exists());
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(HostSocket::new("x".repeat(97).into()), Err(SocketError::TooLong { .. })));
    let nowhere = HostSocket::new("/nowhere/at/all".into()).unwrap();
    assert!(matches!(nowhere.bind(), Err(SocketError::Bind(_))));
}
