//! ICMP (RFC 792, RFC 4443): echoes to the network's own stations are answered here, others go out through the host's ping sockets,
//! where it lends them to its users (`net.ipv4.ping_group_range`); and the messages that tell a guest what cannot be reached.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};
use smoltcp::wire::IpProtocol;

use super::flows::FlowId;
use super::link::Link;
use super::{Flow, Key, Turn, UserNet};
use crate::net::FrameSink;
use crate::net::checksum::Sum;
use crate::net::poller::Time;

pub(super) const HEADER_BYTES: usize = 8;
/// For how long an answer is waited for.
const IDLE: Duration = Duration::from_secs(10);
/// Senders of echoes at once.
const MAX_PINGS: usize = 256;
/// What an ICMPv6 error may take with its IPv6 header (RFC 4443, 2.4 c), and the header.
const MAX_ERROR_BYTES: usize = 1280;
const IPV6_BYTES: usize = 40;

/// Types of messages.
mod kind {
    use std::net::IpAddr;

    pub(super) fn echo_request(address: IpAddr) -> u8 {
        if address.is_ipv4() { 8 } else { 128 }
    }

    pub(super) fn echo_reply(address: IpAddr) -> u8 {
        if address.is_ipv4() { 0 } else { 129 }
    }

    pub(super) fn unreachable(address: IpAddr) -> u8 {
        if address.is_ipv4() { 3 } else { 1 }
    }
}

/// Why something cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreachable {
    Net,
    Host,
    Port,
    Prohibited,
}

impl Unreachable {
    /// The code of the message (RFC 792 and RFC 1812, 5.2.7.1; RFC 4443, 3.1).
    fn code(self, address: IpAddr) -> u8 {
        let (v4, v6) = match self {
            Self::Net => (0, 0),
            Self::Host => (1, 3),
            Self::Port => (3, 4),
            Self::Prohibited => (13, 1),
        };
        if address.is_ipv4() { v4 } else { v6 }
    }
}

/// A guest's program that sends echoes to somebody.
pub(super) struct Ping {
    guest: IpAddr,
    remote: IpAddr,
    /// The identifier that the guest uses; the host's socket has its own.
    ident: u16,
    socket: UdpSocket,
    pub(super) used: Time,
}

/// ICMP's number in the IP of `address`.
fn protocol(address: IpAddr) -> IpProtocol {
    if address.is_ipv4() { IpProtocol::Icmp } else { IpProtocol::Icmpv6 }
}

/// The sum of a message; IPv6's is over its addresses, too.
fn sum(message: &[u8], source: IpAddr, target: IpAddr) -> Sum {
    let mut sum = match source {
        IpAddr::V4(_) => Sum::default(),
        IpAddr::V6(_) => Sum::pseudo(source, target, IpProtocol::Icmpv6, message.len()),
    };
    sum.add(message);
    sum
}

/// Writes the checksum of a message.
pub(super) fn seal(message: &mut [u8], source: IpAddr, target: IpAddr) {
    message[2..4].fill(0);
    let checksum = sum(message, source, target).finish();
    message[2..4].copy_from_slice(&checksum);
}

/// Whether a message is one, and whole.
pub(super) fn is_whole(message: &[u8], source: IpAddr, target: IpAddr) -> bool {
    message.len() >= HEADER_BYTES && sum(message, source, target).is_whole()
}

/// The header of what a guest sent, for an error message that quotes it.
fn quoted_header(guest: IpAddr, remote: IpAddr, protocol: IpProtocol, length: usize) -> Vec<u8> {
    match (guest, remote) {
        (IpAddr::V6(guest), IpAddr::V6(remote)) => {
            let mut header = vec![0; 8];
            header[0] = 0x60;
            header[4..6].copy_from_slice(&(length as u16).to_be_bytes());
            (header[6], header[7]) = (protocol.into(), 64);
            header.extend(guest.octets());
            header.extend(remote.octets());
            header
        }
        (IpAddr::V4(guest), IpAddr::V4(remote)) => {
            let mut header = vec![0; 12];
            header[0] = 0x45;
            header[2..4].copy_from_slice(&((20 + length) as u16).to_be_bytes());
            (header[8], header[9]) = (64, protocol.into());
            header.extend(guest.octets());
            header.extend(remote.octets());
            let mut sum = Sum::default();
            sum.add(&header);
            header[10..12].copy_from_slice(&sum.finish());
            header
        }
        _ => unreachable!("no packet goes from {guest} to {remote}"),
    }
}

impl Link {
    /// Tells a guest that what it sent to `remote` gets nowhere; `quote` are the first bytes behind its IP header.
    pub(super) fn unreachable(
        &mut self,
        why: Unreachable,
        guest: IpAddr,
        remote: IpAddr,
        quoted: IpProtocol,
        quote: &[u8],
    ) {
        // RFC 792: eight bytes; RFC 4443: as many as there may be.
        let room = if guest.is_ipv4() { 8 } else { MAX_ERROR_BYTES - 2 * IPV6_BYTES - HEADER_BYTES };
        let quote = &quote[..quote.len().min(room)];
        let mut message = vec![0; HEADER_BYTES];
        message[..2].copy_from_slice(&[kind::unreachable(guest), why.code(guest)]);
        message.extend(quoted_header(guest, remote, quoted, quote.len()));
        message.extend(quote);
        let host = self.config.host_for(guest);
        seal(&mut message, host, guest);
        self.ip(host, guest, protocol(guest), &message);
    }
}

impl UserNet {
    /// A message from the guest.
    pub(super) fn icmp(&mut self, guest: IpAddr, remote: IpAddr, message: &[u8]) {
        if is_whole(message, guest, remote) {
            self.echo(guest, remote, message);
        }
    }

    /// A message that is whole, and perhaps an echo request.
    pub(super) fn echo(&mut self, guest: IpAddr, remote: IpAddr, message: &[u8]) {
        if message[..2] != [kind::echo_request(guest), 0] {
            return;
        }
        if self.link.config.is_own(remote) {
            let mut reply = message.to_vec();
            reply[0] = kind::echo_reply(guest);
            seal(&mut reply, remote, guest);
            self.link.ip(remote, guest, protocol(guest), &reply);
            return;
        }
        if self.link.config.restrict || self.link.config.outside(remote).is_none() {
            return;
        }
        let ident = u16::from_be_bytes([message[4], message[5]]);
        if self.send_ping(guest, remote, ident, message).is_err() {
            self.link.unreachable(Unreachable::Prohibited, guest, remote, protocol(guest), message);
        }
    }

    fn send_ping(
        &mut self,
        guest: IpAddr,
        remote: IpAddr,
        ident: u16,
        message: &[u8],
    ) -> std::io::Result<()> {
        let key = Key::Ping(guest, remote, ident);
        let now = self.poller.now();
        let id = match self.flows.find(&key) {
            Some(id) => id,
            None => {
                self.make_room(MAX_PINGS, |flow| match flow {
                    Flow::Ping(ping) => Some(ping.used),
                    _ => None,
                });
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                let (family, number) = match remote {
                    IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
                    IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
                };
                let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, Some(number))?;
                let socket = UdpSocket::from(socket);
                socket.connect(SocketAddr::new(remote, 0))?;
                self.poller.watch(&socket, self.flows.next_id().token())?;
                let id = self.flows.insert(key, Flow::Ping(Ping { guest, remote, ident, socket, used: now }));
                self.flows.set_deadline(id, Some(now + IDLE));
                id
            }
        };
        let Some(Flow::Ping(ping)) = self.flows.get_mut(id) else { return Ok(()) };
        ping.used = now;
        ping.socket.send(message).map(|_| ())
    }

    /// Answers have come.
    pub(super) fn work_ping(&mut self, id: FlowId, sink: &mut dyn FrameSink) -> Turn {
        loop {
            if !self.link.flush(sink) {
                return Turn::NoRoom;
            }
            let Some(Flow::Ping(ping)) = self.flows.get_mut(id) else { return Turn::Done };
            match ping.socket.recv(&mut self.scratch) {
                Ok(count) if count >= HEADER_BYTES && self.scratch[0] == kind::echo_reply(ping.guest) => {
                    let reply = &mut self.scratch[..count];
                    reply[4..6].copy_from_slice(&ping.ident.to_be_bytes());
                    seal(reply, ping.remote, ping.guest);
                    self.link.ip(ping.remote, ping.guest, protocol(ping.guest), reply);
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return Turn::Done,
            }
        }
    }

    /// Nobody may have pinged for long.
    pub(super) fn expire_ping(&mut self, id: FlowId, now: Time) {
        let Some(Flow::Ping(ping)) = self.flows.get_mut(id) else { return };
        let end = ping.used + IDLE;
        if end <= now {
            self.flows.remove(id);
        } else {
            self.flows.set_deadline(id, Some(end));
        }
    }
}
