//! ICMP (RFC 792): echoes to the network's own stations are answered here, others go out through the host's ping sockets, where
//! it lends them to its users (`net.ipv4.ping_group_range`); and the messages that tell a guest what cannot be reached.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};
use smoltcp::wire::{IpProtocol, checksum};

use super::flows::FlowId;
use super::link::Link;
use super::{Flow, Key, Turn, UserNet};
use crate::net::FrameSink;
use crate::net::poller::Time;

/// Types of messages.
const ECHO_REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const ECHO_REQUEST: u8 = 8;

const HEADER_BYTES: usize = 8;
/// For how long an answer is waited for.
const IDLE: Duration = Duration::from_secs(10);
/// Senders of echoes at once.
const MAX_PINGS: usize = 256;

/// Why something cannot be reached: the code of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Unreachable {
    Net = 0,
    Host = 1,
    Port = 3,
    /// Communication administratively prohibited (RFC 1812, 5.2.7.1).
    Prohibited = 13,
}

/// A guest's program that sends echoes to somebody.
pub(super) struct Ping {
    guest: Ipv4Addr,
    remote: Ipv4Addr,
    /// The identifier that the guest uses; the host's socket has its own.
    ident: u16,
    socket: UdpSocket,
    pub(super) used: Time,
}

/// Writes the checksum of a message.
fn seal(message: &mut [u8]) {
    message[2..4].fill(0);
    let sum = !checksum::data(message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
}

impl Link {
    /// Tells a guest that what it sent to `remote` gets nowhere; `quote` are the first bytes behind its IPv4 header.
    pub(super) fn unreachable(
        &mut self,
        code: Unreachable,
        guest: Ipv4Addr,
        remote: Ipv4Addr,
        protocol: IpProtocol,
        quote: &[u8],
    ) {
        const IP: usize = 20;
        let quote = &quote[..quote.len().min(8)];
        let mut message = vec![0; HEADER_BYTES + IP];
        message[..2].copy_from_slice(&[UNREACHABLE, code as u8]);
        let header = &mut message[HEADER_BYTES..];
        header[0] = 0x45;
        header[2..4].copy_from_slice(&((IP + quote.len()) as u16).to_be_bytes());
        (header[8], header[9]) = (64, protocol.into());
        header[12..16].copy_from_slice(&guest.octets());
        header[16..20].copy_from_slice(&remote.octets());
        let sum = !checksum::data(header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        message.extend(quote);
        seal(&mut message);
        let host = self.config.host;
        self.ip(host, guest, IpProtocol::Icmp, &message);
    }
}

impl UserNet {
    /// A message from the guest.
    pub(super) fn icmp(&mut self, guest: Ipv4Addr, remote: Ipv4Addr, message: &[u8]) {
        let is_echo = message.len() >= HEADER_BYTES && message[..2] == [ECHO_REQUEST, 0];
        if !is_echo || checksum::data(message) != 0xffff {
            return;
        }
        if self.link.config.is_own(remote) {
            let mut reply = message.to_vec();
            reply[0] = ECHO_REPLY;
            seal(&mut reply);
            self.link.ip(remote, guest, IpProtocol::Icmp, &reply);
            return;
        }
        if self.link.config.restrict || self.link.config.outside(remote).is_none() {
            return;
        }
        let ident = u16::from_be_bytes([message[4], message[5]]);
        if self.send_ping(guest, remote, ident, message).is_err() {
            self.link.unreachable(Unreachable::Prohibited, guest, remote, IpProtocol::Icmp, message);
        }
    }

    fn send_ping(
        &mut self,
        guest: Ipv4Addr,
        remote: Ipv4Addr,
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
                let kind = (AddressFamily::INET, SocketType::DGRAM, Some(ipproto::ICMP));
                let socket = UdpSocket::from(rustix::net::socket_with(kind.0, kind.1, flags, kind.2)?);
                socket.connect(SocketAddrV4::new(remote, 0))?;
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
                Ok(count) if count >= HEADER_BYTES && self.scratch[0] == ECHO_REPLY => {
                    let reply = &mut self.scratch[..count];
                    reply[4..6].copy_from_slice(&ping.ident.to_be_bytes());
                    seal(reply);
                    self.link.ip(ping.remote, ping.guest, IpProtocol::Icmp, reply);
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
