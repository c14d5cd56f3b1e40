//! TCP: connections are made, found and ended here.
//!
//! Why not smoltcp's TCP socket: it answers a SYN before anybody could connect to where it leads, and for one address that it
//! was told of; copies every byte twice more, through two rings of fixed size that each connection has; and its polls go over
//! all sockets. A proxy's TCP has less to do: it never listens, loses and reorders nothing, and most of it is two windows.

mod connection;
mod output;
mod receiver;
mod ring;
mod segment;
mod sender;
mod timing;

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpStream};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use smoltcp::wire::{IpProtocol, TcpControl};

pub(super) use self::connection::{Break, Connection, Phase};
use self::output::Outlet;
pub(super) use self::ring::Budget;
#[cfg(test)]
pub(super) use self::segment::MAX_HEADER_BYTES;
pub(super) use self::segment::{Header, Segment};
use super::flows::FlowId;
use super::icmp::Unreachable;
use super::{Flow, Key, Turn, UserNet, dns};
use crate::net::poller::{Readiness, Time};
use crate::net::{Checksum, FrameInfo, FrameSink};

/// Connections at once.
pub(super) const MAX_CONNECTIONS: usize = 8192;
/// What their buffers may take together, beyond a page each.
pub(super) const BUDGET_BYTES: usize = 96 << 20;

/// What connections have in common.
pub(super) struct Tcp {
    pub(super) budget: Budget,
    pub(super) count: usize,
    /// Those in time-wait, the oldest first; some may be gone.
    time_wait: VecDeque<FlowId>,
    secret: RandomState,
}

impl Tcp {
    pub(super) fn new() -> Self {
        let budget = Budget { left_bytes: BUDGET_BYTES };
        Self { budget, count: 0, time_wait: VecDeque::new(), secret: RandomState::new() }
    }

    /// An initial sequence number that strangers cannot guess (RFC 6528).
    fn initial(&self, guest: SocketAddr, remote: SocketAddr, now: Time) -> u32 {
        let hash = self.secret.hash_one((guest, remote));
        (hash as u32).wrapping_add((now.as_micros() / 4) as u32)
    }
}

/// Begins to connect; whether that has succeeded already.
fn connect(target: SocketAddr) -> io::Result<(TcpStream, bool)> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    set_options(&socket);
    let connected = match rustix::net::connect(&socket, &target) {
        Ok(()) => true,
        Err(rustix::io::Errno::INPROGRESS) => false,
        Err(error) => return Err(error.into()),
    };
    Ok((socket.into(), connected))
}

/// What a byte pipe wants of its socket; each only makes it better.
pub(super) fn set_options(socket: &impl std::os::fd::AsFd) {
    let _ = sockopt::set_tcp_nodelay(socket, true);
    let _ = sockopt::set_socket_oobinline(socket, true);
    let _ = sockopt::set_socket_keepalive(socket, true);
}

impl UserNet {
    /// A TCP packet from the guest.
    pub(super) fn tcp(&mut self, info: &FrameInfo, source: IpAddr, target: IpAddr, bytes: &[u8]) {
        let checked = info.checksum == Checksum::Complete;
        let Some((from, to, segment)) = Segment::parse(bytes, source, target, checked) else { return };
        let (guest, remote) = (SocketAddr::new(source, from), SocketAddr::new(target, to));
        let key = Key::Tcp(guest, remote);
        let is_new = segment.syn && segment.ack.is_none() && !segment.rst;
        let mut found = self.flows.find(&key);
        if let Some(id) = found
            && is_new
            && let Some(Flow::Tcp(connection)) = self.flows.get_mut(id)
            && connection.phase == Phase::TimeWait
        {
            self.forget_connection(id);
            found = None;
        }
        match found {
            Some(id) => {
                let now = self.poller.now();
                let Some(Flow::Tcp(connection)) = self.flows.get_mut(id) else { return };
                let result = connection.segment(&segment, &mut self.tcp.budget, now);
                self.flows.enqueue(id);
                // Who sent RST needs none.
                self.settle(id, result, !segment.rst);
            }
            None if is_new => self.open_outbound(guest, remote, &segment),
            None if segment.rst => {}
            None => self.refuse(guest, remote, &segment),
        }
    }

    /// There is no such connection (RFC 9293, 3.10.7.1).
    fn refuse(&mut self, guest: SocketAddr, remote: SocketAddr, segment: &Segment) {
        let (seq, ack) = match segment.ack {
            Some(ack) => (ack, None),
            None => (0, Some(segment.seq.wrapping_add(segment.len()))),
        };
        let header = Header {
            source: remote,
            target: guest,
            control: TcpControl::Rst,
            seq,
            ack,
            window: 0,
            max_segment: None,
            window_scale: None,
        };
        output::reset(&mut self.link, header);
    }

    /// The guest connects.
    fn open_outbound(&mut self, guest: SocketAddr, remote: SocketAddr, syn: &Segment) {
        let config = &self.link.config;
        let now = self.poller.now();
        let target = if config.restrict {
            None
        } else if config.is_dns(remote.ip()) {
            (remote.port() == dns::PORT).then(|| self.resolver.server(now)).flatten()
        } else {
            match config.outside(remote.ip()) {
                Some(address) => Some(SocketAddr::from((address, remote.port()))),
                // Nobody is there to refuse.
                None => return,
            }
        };
        let Some(target) = target.filter(|_| self.has_room()) else {
            return self.refuse(guest, remote, syn);
        };
        let (socket, connected) = match connect(target) {
            Ok(connecting) => connecting,
            Err(error) => return self.refuse_for(guest, remote, syn.seq, &error),
        };
        let initial = self.tcp.initial(guest, remote, now);
        if let Err(error) = self.poller.watch(&socket, self.flows.next_id().token()) {
            tracing::warn!(target: "net", %error, "a socket cannot be polled");
            return self.refuse(guest, remote, syn);
        }
        let mut connection = Connection::outbound(guest, remote, socket, initial, syn);
        if connected {
            connection.connected();
        }
        let id = self.flows.insert(Key::Tcp(guest, remote), Flow::Tcp(Box::new(connection)));
        self.tcp.count += 1;
        self.flows.enqueue(id);
    }

    /// A connection that the host accepted for the guest; `None` if there are too many.
    pub(super) fn open_inbound(
        &mut self,
        guest: SocketAddr,
        peer: SocketAddr,
        socket: TcpStream,
    ) -> Option<()> {
        let mut remote = SocketAddr::new(self.link.config.inside(peer.ip(), guest.ip()), peer.port());
        let is_free = |flows: &super::FlowTable, remote| flows.find(&Key::Tcp(guest, remote)).is_none();
        if !is_free(&self.flows, remote) {
            // Two peers are one to the guest: the second gets another port.
            let ports = (49152..=u16::MAX).map(|port| SocketAddr::new(remote.ip(), port));
            remote = ports.into_iter().find(|candidate| is_free(&self.flows, *candidate))?;
        }
        if !self.has_room() {
            return None;
        }
        let initial = self.tcp.initial(guest, remote, self.poller.now());
        self.poller.watch(&socket, self.flows.next_id().token()).ok()?;
        let connection = Connection::inbound(guest, remote, socket, initial);
        let id = self.flows.insert(Key::Tcp(guest, remote), Flow::Tcp(Box::new(connection)));
        self.tcp.count += 1;
        self.flows.enqueue(id);
        Some(())
    }

    /// Whether there may be one more connection; one in time-wait makes room.
    fn has_room(&mut self) -> bool {
        while self.tcp.count >= MAX_CONNECTIONS {
            let Some(id) = self.tcp.time_wait.pop_front() else { return false };
            self.forget_connection(id);
        }
        true
    }

    /// The host cannot connect: the guest is told why.
    fn refuse_for(&mut self, guest: SocketAddr, remote: SocketAddr, seq: u32, error: &io::Error) {
        let code = match error.kind() {
            ErrorKind::NetworkUnreachable => Unreachable::Net,
            ErrorKind::HostUnreachable | ErrorKind::TimedOut => Unreachable::Host,
            ErrorKind::PermissionDenied => Unreachable::Prohibited,
            _ => {
                let header = Header {
                    source: remote,
                    target: guest,
                    control: TcpControl::Rst,
                    seq: 0,
                    ack: Some(seq.wrapping_add(1)),
                    window: 0,
                    max_segment: None,
                    window_scale: None,
                };
                return output::reset(&mut self.link, header);
            }
        };
        let [high, low] = [guest.port(), remote.port()].map(u16::to_be_bytes);
        let quote = [&high[..], &low, &seq.to_be_bytes()].concat();
        self.link.unreachable(code, guest.ip(), remote.ip(), IpProtocol::Tcp, &quote);
    }

    /// A connection's socket has something to say.
    pub(super) fn report_connection(&mut self, id: FlowId, readiness: Readiness) {
        let Some(Flow::Tcp(connection)) = self.flows.get_mut(id) else { return };
        let result = connection.report(readiness);
        self.flows.enqueue(id);
        self.settle(id, result, true);
    }

    /// A connection's time has come.
    pub(super) fn expire_connection(&mut self, id: FlowId) {
        let Some(Flow::Tcp(connection)) = self.flows.get_mut(id) else { return };
        let result = connection.expire();
        self.flows.enqueue(id);
        self.settle(id, result, true);
    }

    /// It is a connection's turn.
    pub(super) fn work_connection(&mut self, id: FlowId, sink: &mut dyn FrameSink) -> Turn {
        let now = self.poller.now();
        let Some(Flow::Tcp(connection)) = self.flows.get_mut(id) else { return Turn::Done };
        let was_open = connection.phase == Phase::Open;
        let offloads = sink.offloads();
        let (link, budget) = (&mut self.link, &mut self.tcp.budget);
        let result = connection.work(&mut Outlet { link, sink, offloads, budget, now });
        if was_open && connection.phase == Phase::TimeWait {
            self.tcp.time_wait.push_back(id);
            if self.tcp.time_wait.len() > 2 * MAX_CONNECTIONS {
                let Self { tcp, flows, .. } = self;
                tcp.time_wait.retain(|id| flows.get_mut(*id).is_some());
            }
        }
        match result {
            Ok(turn) => {
                self.settle(id, Ok(()), true);
                turn
            }
            Err(error) => {
                self.settle(id, Err(error), true);
                Turn::Done
            }
        }
    }

    /// What follows from a step of a connection.
    fn settle(&mut self, id: FlowId, result: Result<(), Break>, tell_guest: bool) {
        let Some(Flow::Tcp(connection)) = self.flows.get_mut(id) else { return };
        match result {
            Ok(()) => {}
            Err(Break::Reset) => connection.abort(&mut self.link, tell_guest),
            Err(Break::Refused(error)) => {
                let (guest, remote, seq) = (connection.guest, connection.remote, connection.syn_seq());
                connection.phase = Phase::Closed;
                if self.link.config.is_dns(remote.ip()) {
                    self.resolver.failed();
                }
                self.refuse_for(guest, remote, seq, &error);
                return self.forget_connection(id);
            }
        }
        if connection.phase == Phase::Closed {
            self.forget_connection(id);
        } else {
            let deadline = connection.deadline();
            self.flows.set_deadline(id, deadline);
        }
    }

    fn forget_connection(&mut self, id: FlowId) {
        if let Some(Flow::Tcp(mut connection)) = self.flows.remove(id) {
            connection.release(&mut self.tcp.budget);
            self.tcp.count -= 1;
        }
    }
}
