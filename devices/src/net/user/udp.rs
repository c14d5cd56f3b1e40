//! UDP (RFC 768): what the guest sends goes out through sockets of the host, one for each of the guest's own.
//!
//! A guest's socket is the same to everybody it talks to, and may be answered by any port of an address that it has sent to
//! (RFC 4787: endpoint-independent mapping, address-dependent filtering). Queries to the name server have sockets of their
//! own, which lead to the host's.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use smoltcp::wire::{IpProtocol, UdpPacket};

use super::flows::FlowId;
use super::icmp::Unreachable;
use super::link::Link;
use super::{Flow, Key, Turn, UserNet, dhcp, dhcpv6, dns};
use crate::net::checksum::Sum;
use crate::net::poller::Time;
use crate::net::{Checksum, FrameInfo, FrameSink};

pub(super) const HEADER_BYTES: usize = 8;
/// The largest payload.
pub(super) const MAX_BYTES: usize = 65535 - 20 - HEADER_BYTES;
/// When a guest's socket is forgotten (RFC 4787, REQ-5: no less than two minutes; QEMU's).
const IDLE: Duration = Duration::from_secs(240);
/// When a query is.
const QUERY_IDLE: Duration = Duration::from_secs(10);
/// Guests' sockets at once; the one that was silent longest makes room.
const MAX_SOCKETS: usize = 2048;
/// Addresses that may answer a guest's socket.
const MAX_REMOTES: usize = 64;
/// Datagrams before it is another's turn.
const TURN_DATAGRAMS: usize = 32;

/// A socket of the guest's.
pub(super) struct Mapping {
    guest: SocketAddr,
    socket: UdpSocket,
    /// Addresses that it has sent to, the latest last: the host's word for each, and the guest's.
    remotes: Vec<(IpAddr, IpAddr)>,
    pub(super) used: Time,
}

/// A socket of the guest's that asks the name server.
pub(super) struct Query {
    guest: SocketAddr,
    socket: UdpSocket,
    pub(super) used: Time,
}

impl Link {
    /// Sends a datagram to the guest.
    pub(super) fn udp(&mut self, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
        let datagram = datagram(from, to, payload);
        self.ip(from.ip(), to.ip(), IpProtocol::Udp, &datagram);
    }
}

/// `payload` behind a header; at most [`MAX_BYTES`].
pub(super) fn datagram(from: impl Into<SocketAddr>, to: impl Into<SocketAddr>, payload: &[u8]) -> Vec<u8> {
    let (from, to) = (from.into(), to.into());
    let length = HEADER_BYTES + payload.len();
    let mut bytes = Vec::with_capacity(length);
    for field in [from.port(), to.port(), length as u16, 0] {
        bytes.extend(field.to_be_bytes());
    }
    bytes.extend(payload);
    let mut sum = Sum::pseudo(from.ip(), to.ip(), IpProtocol::Udp, length);
    sum.add(&bytes);
    let checksum = match sum.finish() {
        // Nought means that there is none.
        [0, 0] => [0xff, 0xff],
        checksum => checksum,
    };
    bytes[6..8].copy_from_slice(&checksum);
    bytes
}

/// Any address and port of the family of `other`.
fn any(other: &SocketAddr) -> SocketAddr {
    match other {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

impl UserNet {
    /// A datagram from the guest.
    pub(super) fn udp(&mut self, info: &FrameInfo, source: IpAddr, target: IpAddr, bytes: &[u8]) {
        let Ok(packet) = UdpPacket::new_checked(bytes) else { return };
        let bytes = &bytes[..usize::from(packet.len())];
        if packet.checksum() == 0 && source.is_ipv6() {
            // RFC 8200, 8.1: there it must be.
            return;
        }
        if info.checksum == Checksum::Complete && packet.checksum() != 0 {
            let mut sum = Sum::pseudo(source, target, IpProtocol::Udp, bytes.len());
            sum.add(bytes);
            if !sum.is_whole() {
                return;
            }
        }
        let guest = SocketAddr::new(source, packet.src_port());
        let remote = SocketAddr::new(target, packet.dst_port());
        let payload = &bytes[HEADER_BYTES..];
        if remote.port() == dhcp::SERVER_PORT && guest.port() == dhcp::CLIENT_PORT {
            let config = &self.link.config;
            if [Ipv4Addr::BROADCAST, config.host, config.broadcast()].iter().any(|own| target == *own) {
                self.dhcp_message(payload);
                return;
            }
        }
        if remote.port() == dhcpv6::SERVER_PORT && guest.port() == dhcpv6::CLIENT_PORT {
            return self.dhcpv6_message(guest, target, payload);
        }
        if !self.link.config.is_guest(source) || self.reply_through_forward(guest, remote, payload) {
            return;
        }
        if self.link.config.restrict {
            return;
        }
        let result = if self.link.config.is_dns(target) {
            match remote.port() {
                dns::PORT => self.send_query(guest, payload),
                _ => Err(ErrorKind::ConnectionRefused.into()),
            }
        } else if let Some(address) = self.link.config.outside(target) {
            self.send_datagram(guest, remote, address, payload)
        } else {
            return;
        };
        let Err(error) = result else { return };
        let code = match error.kind() {
            // Lost.
            ErrorKind::WouldBlock | ErrorKind::Interrupted => return,
            ErrorKind::ConnectionRefused => Unreachable::Port,
            ErrorKind::NetworkUnreachable => Unreachable::Net,
            ErrorKind::PermissionDenied => Unreachable::Prohibited,
            _ => Unreachable::Host,
        };
        self.link.unreachable(code, source, target, IpProtocol::Udp, bytes);
    }

    fn dhcp_message(&mut self, message: &[u8]) {
        let Some(reply) = self.dhcp.answer(&self.link.config, message) else { return };
        let from = (self.link.config.host, dhcp::SERVER_PORT);
        let to = (Ipv4Addr::BROADCAST, dhcp::CLIENT_PORT);
        let datagram = datagram(from, to, &reply.message);
        self.link.ip_to(Some(reply.to), from.0, to.0, IpProtocol::Udp, &datagram);
    }

    fn send_datagram(
        &mut self,
        guest: SocketAddr,
        remote: SocketAddr,
        address: IpAddr,
        payload: &[u8],
    ) -> io::Result<()> {
        let now = self.poller.now();
        let id = match self.flows.find(&Key::Udp(guest)) {
            Some(id) => id,
            None => {
                let socket = self.new_socket(any(&guest))?;
                let mapping = Mapping { guest, socket, remotes: Vec::new(), used: now };
                let id = self.flows.insert(Key::Udp(guest), Flow::Udp(mapping));
                self.flows.set_deadline(id, Some(now + IDLE));
                id
            }
        };
        let Some(Flow::Udp(mapping)) = self.flows.get_mut(id) else { return Ok(()) };
        mapping.used = now;
        let pair = (address, remote.ip());
        if mapping.remotes.last() != Some(&pair) {
            mapping.remotes.retain(|(known, _)| *known != address);
            if mapping.remotes.len() == MAX_REMOTES {
                mapping.remotes.remove(0);
            }
            mapping.remotes.push(pair);
        }
        mapping.socket.send_to(payload, SocketAddr::new(address, remote.port())).map(|_| ())
    }

    fn send_query(&mut self, guest: SocketAddr, payload: &[u8]) -> io::Result<()> {
        let now = self.poller.now();
        let id = match self.flows.find(&Key::Query(guest)) {
            Some(id) => id,
            None => {
                let server = self.resolver.server(now).ok_or(ErrorKind::ConnectionRefused)?;
                let socket = self.new_socket(any(&server))?;
                socket.connect(server)?;
                let id =
                    self.flows.insert(Key::Query(guest), Flow::Query(Query { guest, socket, used: now }));
                self.flows.set_deadline(id, Some(now + QUERY_IDLE));
                id
            }
        };
        let Some(Flow::Query(query)) = self.flows.get_mut(id) else { return Ok(()) };
        query.used = now;
        query.socket.send(payload).map(|_| ())
    }

    /// A socket that is watched for the next flow.
    fn new_socket(&mut self, local: SocketAddr) -> io::Result<UdpSocket> {
        self.make_room(MAX_SOCKETS, |flow| match flow {
            Flow::Udp(Mapping { used, .. }) | Flow::Query(Query { used, .. }) => Some(*used),
            _ => None,
        });
        let socket = UdpSocket::bind(local)?;
        socket.set_nonblocking(true)?;
        self.poller.watch(&socket, self.flows.next_id().token())?;
        Ok(socket)
    }

    /// Datagrams have come for a socket of the guest's.
    pub(super) fn work_mapping(&mut self, id: FlowId, sink: &mut dyn FrameSink) -> Turn {
        for _ in 0..TURN_DATAGRAMS {
            if !self.link.flush(sink) {
                return Turn::NoRoom;
            }
            let now = self.poller.now();
            let Some(Flow::Udp(mapping)) = self.flows.get_mut(id) else { return Turn::Done };
            match mapping.socket.recv_from(&mut self.scratch) {
                Ok((count, from)) if count <= MAX_BYTES => {
                    // From somebody whom it never sent to: not for it.
                    let known = mapping.remotes.iter().rfind(|(known, _)| *known == from.ip());
                    if let Some((_, inside)) = known {
                        mapping.used = now;
                        let from = SocketAddr::new(*inside, from.port());
                        self.link.udp(from, mapping.guest, &self.scratch[..count]);
                    }
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Turn::Done,
                // What a datagram that was sent before came to.
                Err(_) => {}
            }
        }
        Turn::Again
    }

    /// The name server answers.
    pub(super) fn work_query(&mut self, id: FlowId, sink: &mut dyn FrameSink) -> Turn {
        for _ in 0..TURN_DATAGRAMS {
            if !self.link.flush(sink) {
                return Turn::NoRoom;
            }
            let Some(Flow::Query(query)) = self.flows.get_mut(id) else { return Turn::Done };
            match query.socket.recv(&mut self.scratch) {
                Ok(count) if count <= MAX_BYTES => {
                    let server = SocketAddr::new(self.link.config.dns_for(query.guest.ip()), dns::PORT);
                    self.link.udp(server, query.guest, &self.scratch[..count]);
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Turn::Done,
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    // The guest asks again, and reaches the next server.
                    self.resolver.failed();
                    self.flows.remove(id);
                    return Turn::Done;
                }
                Err(_) => {}
            }
        }
        Turn::Again
    }

    /// Nothing may have been sent for long.
    pub(super) fn expire_udp(&mut self, id: FlowId, now: Time) {
        let end = match self.flows.get_mut(id) {
            Some(Flow::Udp(mapping)) => mapping.used + IDLE,
            Some(Flow::Query(query)) => query.used + QUERY_IDLE,
            _ => return,
        };
        if end <= now {
            self.flows.remove(id);
        } else {
            self.flows.set_deadline(id, Some(end));
        }
    }
}
