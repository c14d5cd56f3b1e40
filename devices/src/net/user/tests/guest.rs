//! A cable, and a guest on it.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use smoltcp::iface::{self, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, IpCidr};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::super::{Config, Nameservers, UserNet};
use crate::net::checksum::Sum;
use crate::net::{Checksum, FrameInfo, FrameSink, IpVersion, NetBackend, Offloads, Segments};

pub(super) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub(super) const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
pub(super) const STATION: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

/// The guest's receive queue.
pub(super) struct Inbox {
    pub(super) frames: VecDeque<Vec<u8>>,
    /// How many frames fit.
    pub(super) room: usize,
    pub(super) offloads: Offloads,
    /// The largest frame that came.
    pub(super) largest: usize,
}

impl FrameSink for Inbox {
    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn push(&mut self, info: &FrameInfo, pieces: &[&[u8]]) -> bool {
        if self.frames.len() >= self.room {
            return false;
        }
        let frame = pieces.concat();
        self.largest = self.largest.max(frame.len());
        self.frames.extend(cut(info, frame));
        true
    }
}

/// Does what a frame leaves to its receiver: cuts it into segments and completes checksums.
fn cut(info: &FrameInfo, mut frame: Vec<u8>) -> Vec<Vec<u8>> {
    let Checksum::Partial { start, offset } = info.checksum else {
        assert!(info.segments.is_none(), "segments need a checksum that is to be done");
        return vec![frame];
    };
    let (start, at) = (usize::from(start), usize::from(start + offset));
    let Some(Segments { bytes, version }) = info.segments else {
        let mut sum = Sum::default();
        sum.add(&frame[start..]);
        frame[at..at + 2].copy_from_slice(&sum.finish());
        return vec![frame];
    };
    let (header, payload) = frame.split_at(info.header_bytes.into());
    let segments = payload.chunks(bytes.into()).enumerate();
    segments
        .map(|(index, piece)| {
            let mut segment = [header, piece].concat();
            let length = segment.len() - 14;
            let addresses = match version {
                IpVersion::V4 => {
                    segment[16..18].copy_from_slice(&(length as u16).to_be_bytes());
                    segment[24..26].fill(0);
                    let mut sum = Sum::default();
                    sum.add(&segment[14..34]);
                    segment[24..26].copy_from_slice(&sum.finish());
                    let address =
                        |at: usize| IpAddr::from(<[u8; 4]>::try_from(&segment[at..at + 4]).unwrap());
                    [address(26), address(30)]
                }
                IpVersion::V6 => {
                    segment[18..20].copy_from_slice(&((length - 40) as u16).to_be_bytes());
                    let address =
                        |at: usize| IpAddr::from(<[u8; 16]>::try_from(&segment[at..at + 16]).unwrap());
                    [address(22), address(38)]
                }
            };
            let place = start + 4..start + 8;
            let seq = u32::from_be_bytes(segment[place.clone()].try_into().unwrap());
            let seq = seq.wrapping_add((index * usize::from(bytes)) as u32);
            segment[place].copy_from_slice(&seq.to_be_bytes());
            if (index + 1) * usize::from(bytes) < payload.len() {
                // FIN and PSH are the last one's.
                segment[start + 13] &= !0b1001;
            }
            segment[at..at + 2].fill(0);
            let mut sum = Sum::pseudo(addresses[0], addresses[1], 6.into(), segment.len() - start);
            sum.add(&segment[start..]);
            segment[at..at + 2].copy_from_slice(&sum.finish());
            segment
        })
        .collect()
}

pub(super) struct Cable {
    pub(super) network: UserNet,
    pub(super) inbox: Inbox,
    /// Every so many frames, one is lost in the guest.
    pub(super) loss: Option<usize>,
    passed: usize,
    epoll: Epoll,
}

impl Cable {
    pub(super) fn new(config: Config) -> Self {
        let network = UserNet::open(config).unwrap();
        let epoll = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, network.wakeup_fd(), event).unwrap();
        let offloads = Offloads::default();
        let inbox = Inbox { frames: VecDeque::new(), room: 256, offloads, largest: 0 };
        Self { network, inbox, loss: None, passed: 0, epoll }
    }

    pub(super) fn pump(&mut self) {
        while self.network.receive(&mut self.inbox) {}
    }

    /// Waits until the network has something to do; whether it has.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let mut events = [EpollEvent::default()];
        self.epoll.wait(timeout.as_millis() as i32, &mut events).unwrap_or(0) > 0
    }

    pub(super) fn send(&mut self, frame: &[u8]) {
        self.network.send(&FrameInfo::default(), frame);
    }

    /// The frames that the network sends now, or soon.
    pub(super) fn collect(&mut self) -> Vec<Vec<u8>> {
        let begun = Instant::now();
        loop {
            self.pump();
            if !self.inbox.frames.is_empty() || begun.elapsed() > Duration::from_secs(5) {
                return self.inbox.frames.drain(..).collect();
            }
            self.wait(Duration::from_millis(20));
        }
    }
    /// Nothing of TCP is left, and no memory.
    #[track_caller]
    pub(super) fn assert_no_leak(&mut self) {
        self.network.poller.skipped += Duration::from_secs(5);
        self.pump();
        assert_eq!(self.network.tcp.count, 0, "connections are left");
        assert_eq!(self.network.tcp.budget.left_bytes, super::super::tcp::BUDGET_BYTES);
    }
}

pub(super) struct Received(Vec<u8>);
pub(super) struct Transmit<'a>(&'a mut UserNet);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        self.0.send(&FrameInfo::default(), &frame);
        result
    }
}

impl phy::Device for Cable {
    type RxToken<'a> = Received;
    type TxToken<'a> = Transmit<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Transmit<'_>)> {
        loop {
            let frame = self.inbox.frames.pop_front()?;
            self.passed += 1;
            if self.loss.is_none_or(|every| !self.passed.is_multiple_of(every)) {
                return Some((Received(frame), Transmit(&mut self.network)));
            }
        }
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Transmit<'_>> {
        Some(Transmit(&mut self.network))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

pub(super) struct Guest {
    pub(super) cable: Cable,
    pub(super) interface: Interface,
    pub(super) sockets: SocketSet<'static>,
    begun: Instant,
    skipped: Duration,
    next_port: u16,
}

impl Guest {
    pub(super) fn new(config: Config) -> Self {
        let mut cable = Cable::new(config);
        let mut settings = iface::Config::new(STATION.into());
        settings.random_seed = 7;
        let mut interface = Interface::new(settings, &mut cable, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(GUEST.into(), 24)).unwrap();
        });
        interface.routes_mut().add_default_ipv4_route(HOST).unwrap();
        let (begun, skipped) = (Instant::now(), Duration::ZERO);
        Self { cable, interface, sockets: SocketSet::new(vec![]), begun, skipped, next_port: 40000 }
    }

    fn now(&self) -> smoltcp::time::Instant {
        let elapsed = self.begun.elapsed() + self.skipped;
        smoltcp::time::Instant::from_micros(elapsed.as_micros() as i64)
    }

    /// One round; whether anything moved.
    pub(super) fn step(&mut self) -> bool {
        self.cable.pump();
        let now = self.now();
        let had = !self.cable.inbox.frames.is_empty();
        let result = self.interface.poll(now, &mut self.cable, &mut self.sockets);
        self.cable.pump();
        had || result == iface::PollResult::SocketStateChanged || !self.cable.inbox.frames.is_empty()
    }

    /// Steps until `done`; fails after a while.
    #[track_caller]
    pub(super) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            assert!(begun.elapsed() < Duration::from_secs(120), "waited for: {what}");
            if !self.step() {
                self.cable.wait(Duration::from_millis(2));
            }
        }
    }

    /// Time passes, for both.
    pub(super) fn skip(&mut self, time: Duration) {
        self.skipped += time;
        self.cable.network.poller.skipped += time;
    }

    /// Nothing of TCP is left in the network, once what is on its way has arrived.
    #[track_caller]
    pub(super) fn assert_no_leak(&mut self) {
        self.until("connections are forgotten", |guest| {
            guest.skip(Duration::from_millis(100));
            guest.cable.network.tcp.count == 0
        });
        self.cable.assert_no_leak();
    }

    pub(super) fn connect(&mut self, target: impl Into<SocketAddr>, buffer: usize) -> SocketHandle {
        let target = target.into();
        let ring = || tcp::SocketBuffer::new(vec![0; buffer]);
        let mut socket = tcp::Socket::new(ring(), ring());
        self.next_port += 1;
        socket.connect(self.interface.context(), (target.ip(), target.port()), self.next_port).unwrap();
        self.sockets.add(socket)
    }

    pub(super) fn listen(&mut self, port: u16) -> SocketHandle {
        let ring = || tcp::SocketBuffer::new(vec![0; 65536]);
        let mut socket = tcp::Socket::new(ring(), ring());
        socket.listen(port).unwrap();
        self.sockets.add(socket)
    }

    pub(super) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }
}

/// A network whose name server is nobody's.
pub(super) fn config() -> Config {
    Config { nameservers: Nameservers::Fixed("127.0.0.1:9".parse().unwrap()), ..Config::default() }
}

/// A generator of test data (xorshift).
#[derive(Clone)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub(super) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}
