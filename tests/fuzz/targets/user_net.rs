//! The user network: what a guest sends, frame by frame, and programs of the host's behind it. Nothing leaves the machine: the
//! network restricts the guest, or the guest goes to one port of the loopback, which is this program's.
#![no_main]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{LazyLock, Mutex};

use devices::net::user::{Config, HostForward, Nameservers, Protocol, UserNet};
use devices::net::{
    Checksum, FrameInfo, FrameSink, IpVersion, MAX_FRAME_BYTES, NetBackend, Offloads, Segments,
};
use fuzz::input::Input;
use fuzz::net::Guest;
use libfuzzer_sys::fuzz_target;

/// Programs of the host at once.
const MOST_STREAMS: usize = 8;

/// The host's side: who serves TCP and UDP at one port, the name server, and a port that leads to the guest.
struct Host {
    listener: TcpListener,
    datagrams: UdpSocket,
    nameserver: UdpSocket,
    forward: SocketAddr,
}

fn host() -> std::io::Result<Host> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = TcpListener::bind(any)?;
    let datagrams = UdpSocket::bind(listener.local_addr()?)?;
    let nameserver = UdpSocket::bind(any)?;
    // Free again, and nobody's who did not ask for it.
    let forward = TcpListener::bind(any)?.local_addr()?;
    listener.set_nonblocking(true)?;
    datagrams.set_nonblocking(true)?;
    nameserver.set_nonblocking(true)?;
    Ok(Host { listener, datagrams, nameserver, forward })
}

static HOST: LazyLock<Mutex<Host>> = LazyLock::new(|| Mutex::new(host().expect("ports of the loopback")));

/// Takes so many frames.
struct Room<'a> {
    frames: usize,
    offloads: Offloads,
    guest: &'a mut Guest,
}

impl FrameSink for Room<'_> {
    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn push(&mut self, info: &FrameInfo, pieces: &[&[u8]]) -> bool {
        let frame = pieces.concat();
        assert!((14..=MAX_FRAME_BYTES).contains(&frame.len()));
        assert!(info.segments.is_none() || self.offloads.tcp4_segments, "nobody cuts it");
        assert!(info.checksum == Checksum::Complete || self.offloads.checksum, "nobody sums it up");
        if self.frames == 0 {
            return false;
        }
        self.frames -= 1;
        self.guest.hear(&frame);
        true
    }
}

fn work_of_host(host: &Host, streams: &mut Vec<TcpStream>, input: &mut Input) {
    let what = input.u8();
    let accepted = match what & 7 {
        0 => host.listener.accept().map(|(stream, _)| stream).ok(),
        1 => TcpStream::connect(host.forward).ok(),
        _ => None,
    };
    if let Some(stream) = accepted
        && stream.set_nonblocking(true).is_ok()
    {
        streams.truncate(MOST_STREAMS - 1);
        streams.push(stream);
        return;
    }
    let mut buffer = [0; 2048];
    match what & 7 {
        2 => {
            if let Ok((count, peer)) = host.datagrams.recv_from(&mut buffer) {
                let _ = host.datagrams.send_to(&buffer[..count], peer);
            }
        }
        3 => {
            if let Ok((count, peer)) = host.nameserver.recv_from(&mut buffer) {
                buffer[2] = 0x81;
                let answer = [&buffer[..count.min(2 + usize::from(what >> 3))], input.short()].concat();
                let _ = host.nameserver.send_to(&answer, peer);
            }
        }
        _ if streams.is_empty() => {}
        4 | 5 => _ = streams[0].write(&input.short().repeat(usize::from(what) * 4)),
        6 => _ = streams[0].read(&mut buffer),
        _ => drop(streams.remove(0)),
    }
}

fn info(input: &mut Input, frame: &[u8]) -> FrameInfo {
    let is_v6 = frame.get(12) == Some(&0x86);
    match input.u8() {
        0xfc => FrameInfo {
            checksum: Checksum::Partial { start: if is_v6 { 54 } else { 34 }, offset: 16 },
            segments: Some(Segments {
                version: if is_v6 { IpVersion::V6 } else { IpVersion::V4 },
                bytes: input.u16(),
            }),
            header_bytes: if is_v6 { 74 } else { 54 },
        },
        0xfd => FrameInfo {
            checksum: Checksum::Partial { start: input.u16(), offset: input.u16() },
            ..FrameInfo::default()
        },
        _ => FrameInfo::default(),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let kind = input.u8();
    let host = HOST.lock().expect("one thread");
    let address = |socket: &UdpSocket| socket.local_addr().expect("a bound socket");
    let forward = |protocol| HostForward {
        protocol,
        host: host.forward,
        guest: SocketAddr::from((fuzz::net::GUEST, 22)),
    };
    let mut config = Config {
        restrict: kind & 1 == 0,
        nameservers: Nameservers::Fixed(address(&host.nameserver)),
        ..Config::default()
    };
    if kind & 0x0e == 0 {
        config.forwards = vec![forward(Protocol::Tcp), forward(Protocol::Udp)];
    }
    assert_eq!(IpAddr::from(config.host), IpAddr::from(fuzz::net::HOST));
    let mut guest = Guest::new(config.restrict, address(&host.datagrams).port());
    // The forwarded port may be somebody's in the meantime.
    let Ok(mut network) = UserNet::open(config) else { return };
    let mut streams = Vec::new();
    while !input.is_empty() {
        let what = input.u8();
        if what & 3 == 0 {
            work_of_host(&host, &mut streams, &mut input);
        } else {
            let frame = guest.frame(&mut input);
            network.send(&info(&mut input, &frame), &frame);
        }
        let frames = usize::from(what >> 4);
        let whole = what & 0x0c == 0;
        let offloads = if whole { Offloads::ALL } else { Offloads::default() };
        network.receive(&mut Room { frames, offloads, guest: &mut guest });
    }
    while network.receive(&mut Room { frames: 1 << 16, offloads: Offloads::ALL, guest: &mut guest }) {}
});
