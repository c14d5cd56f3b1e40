//! A network in the process, for users without privileges (QEMU's `-netdev user`).
//!
//! The guest finds itself in a network of its own with a host that is gateway, DHCP server and name server. Nothing is
//! routed: whatever the guest sends ends here, and is said again by sockets of the host. So the guest can go where the user
//! who runs it can, and nobody comes in but through `hostfwd=`.

mod config;
mod dhcp;
mod dhcpv6;
mod dns;
mod flows;
mod forward;
mod icmp;
mod ipv6;
mod link;
mod ndp;
mod reassembly;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;

use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet};

pub use self::config::{Config, ConfigError, HostForward, Ipv6Config, Nameservers, Protocol};
use self::dhcp::DhcpServer;
use self::dns::Resolver;
use self::flows::{FlowId, Flows};
use self::link::Link;
use self::reassembly::{Fragment, Reassembly};
use self::tcp::Tcp;
use super::poller::{Poller, Readiness, Time};
use super::{FrameInfo, FrameSink, NetBackend, Offloads};

/// Turns that one call of [`NetBackend::receive`] gives.
const MAX_TURNS: usize = 4096;

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its addresses do not go together.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A port of the host cannot be had.
    #[error("{rule}")]
    Forward {
        /// Which.
        rule: HostForward,
        /// The host's answer.
        source: io::Error,
    },
    /// The host has no descriptors left.
    #[error("epoll")]
    Poller(#[source] io::Error),
}

/// What a flow is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// The guest's end, and the other as the guest calls it.
    Tcp(SocketAddr, SocketAddr),
    /// A socket of the guest's.
    Udp(SocketAddr),
    /// The same, for the name server.
    Query(SocketAddr),
    /// Who pings whom, with which identifier.
    Ping(IpAddr, IpAddr, u16),
    /// The index of a `hostfwd=`.
    Forward(usize),
    /// The router advertises itself.
    Router,
}

enum Flow {
    Tcp(Box<tcp::Connection>),
    Udp(udp::Mapping),
    Query(udp::Query),
    Ping(icmp::Ping),
    Listener(forward::Listener),
    Port(forward::Port),
    Router,
}

type FlowTable = Flows<Key, Flow>;

/// How a flow's turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// It has nothing more to do.
    Done,
    /// It has, but others have, too.
    Again,
    /// The guest has no room.
    NoRoom,
}

/// A user network.
pub struct UserNet {
    link: Link,
    poller: Poller,
    flows: FlowTable,
    tcp: Tcp,
    resolver: Resolver,
    dhcp: DhcpServer,
    reassembly: Reassembly,
    /// The forwarded UDP ports.
    ports: Vec<FlowId>,
    /// One datagram.
    scratch: Box<[u8]>,
}

impl UserNet {
    /// Makes a network, and opens the ports of the host that lead into it.
    pub fn open(config: Config) -> Result<Self, OpenError> {
        config.check()?;
        crate::descriptors::raise_limit();
        let poller = Poller::new().map_err(OpenError::Poller)?;
        let mut network = Self {
            resolver: Resolver::new(config.nameservers.clone()),
            link: Link::new(config),
            poller,
            flows: Flows::new(),
            tcp: Tcp::new(),
            dhcp: DhcpServer::default(),
            reassembly: Reassembly::default(),
            ports: Vec::new(),
            scratch: vec![0; 1 << 16].into_boxed_slice(),
        };
        match network.open_forwards() {
            Ok(()) => Ok(network),
            Err((rule, source)) => Err(OpenError::Forward { rule, source }),
        }
    }

    fn ipv4(&mut self, info: &FrameInfo, frame: &EthernetFrame<&[u8]>) {
        let Ok(packet) = Ipv4Packet::new_checked(frame.payload()) else { return };
        if packet.version() != 4 || !packet.verify_checksum() {
            return;
        }
        let source = packet.src_addr();
        let knows_its_address = self.link.config.is_guest(source);
        if knows_its_address {
            self.link.learn(source, frame.src_addr());
        } else if !source.is_unspecified() {
            return;
        }
        let (from, to) = (IpAddr::from(source), IpAddr::from(packet.dst_addr()));
        let whole;
        let payload = if packet.more_frags() || packet.frag_offset() != 0 {
            let now = self.poller.now();
            let (protocol, ident) = (packet.next_header(), packet.ident().into());
            let fragment = Fragment {
                key: reassembly::Key { source: from, target: to, protocol, ident },
                offset: packet.frag_offset().into(),
                more: packet.more_frags(),
                piece: packet.payload(),
            };
            let Some(payload) = self.reassembly.add(&fragment, now) else { return };
            whole = payload;
            &whole[..]
        } else {
            packet.payload()
        };
        match packet.next_header() {
            IpProtocol::Udp => self.udp(info, from, to, payload),
            IpProtocol::Tcp if knows_its_address => self.tcp(info, from, to, payload),
            IpProtocol::Icmp if knows_its_address => self.icmp(from, to, payload),
            _ => {}
        }
    }

    /// Takes in what has happened on the host.
    fn poll(&mut self) {
        let mut reports = std::mem::take(&mut self.poller.reports);
        self.poller.poll(&mut reports);
        for (token, readiness) in reports.drain(..) {
            self.report(FlowId::of_token(token), readiness);
        }
        self.poller.reports = reports;
        let now = self.poller.now();
        while let Some(id) = self.flows.next_expired(now) {
            self.expire(id, now);
        }
    }

    fn report(&mut self, id: FlowId, readiness: Readiness) {
        match self.flows.get_mut(id) {
            Some(Flow::Tcp(_)) => self.report_connection(id, readiness),
            Some(_) if readiness.readable => self.flows.enqueue(id),
            _ => {}
        }
    }

    fn expire(&mut self, id: FlowId, now: Time) {
        match self.flows.get_mut(id) {
            Some(Flow::Tcp(_)) => self.expire_connection(id),
            Some(Flow::Udp(_) | Flow::Query(_)) => self.expire_udp(id, now),
            Some(Flow::Ping(_)) => self.expire_ping(id, now),
            Some(Flow::Listener(_)) => self.flows.enqueue(id),
            Some(Flow::Router) => self.expire_router(id),
            Some(Flow::Port(_)) | None => {}
        }
    }

    fn work(&mut self, id: FlowId, sink: &mut dyn FrameSink) -> Turn {
        match self.flows.get_mut(id) {
            Some(Flow::Tcp(_)) => self.work_connection(id, sink),
            Some(Flow::Udp(_)) => self.work_mapping(id, sink),
            Some(Flow::Query(_)) => self.work_query(id, sink),
            Some(Flow::Ping(_)) => self.work_ping(id, sink),
            Some(Flow::Listener(_)) => self.work_listener(id),
            Some(Flow::Port(_)) => self.work_port(id, sink),
            Some(Flow::Router) | None => Turn::Done,
        }
    }

    /// Forgets the flow that was silent longest, if there are `limit` of those that `used` knows.
    fn make_room(&mut self, limit: usize, used: impl Fn(&Flow) -> Option<Time>) {
        if self.flows.len() < limit {
            return;
        }
        let times = self.flows.iter().filter_map(|(id, flow)| Some((used(flow)?, id)));
        let (count, oldest) =
            times.fold((0, None), |(count, oldest): (usize, Option<(Time, FlowId)>), next| {
                (count + 1, Some(oldest.map_or(next, |oldest| oldest.min(next))))
            });
        if let Some((_, id)) = oldest.filter(|_| count >= limit) {
            self.flows.remove(id);
        }
    }
}

impl NetBackend for UserNet {
    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn send(&mut self, info: &FrameInfo, frame: &[u8]) {
        let Ok(frame) = EthernetFrame::new_checked(frame) else { return };
        match frame.ethertype() {
            EthernetProtocol::Ipv4 if self.link.config.ipv4 => self.ipv4(info, &frame),
            EthernetProtocol::Arp if self.link.config.ipv4 => self.link.arp(frame.payload()),
            EthernetProtocol::Ipv6 => self.ipv6(info, frame.src_addr(), frame.payload()),
            _ => {}
        }
    }

    fn receive(&mut self, sink: &mut dyn FrameSink) -> bool {
        self.poll();
        let mut turns = 0;
        while self.link.flush(sink) && turns < MAX_TURNS {
            turns += 1;
            let Some(id) = self.flows.next_ready() else { break };
            match self.work(id, sink) {
                Turn::Done => {}
                Turn::Again => self.flows.enqueue(id),
                Turn::NoRoom => {
                    self.flows.return_turn(id);
                    break;
                }
            }
        }
        self.poller.wake_at(self.flows.next_alarm());
        // Work that is left though there is room.
        turns == MAX_TURNS && self.link.is_clear() && self.flows.has_ready()
    }

    fn wakeup_fd(&self) -> RawFd {
        self.poller.fd()
    }
}
