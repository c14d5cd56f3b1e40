//! Who is on the cable, and who leads away from it, in IPv6 (RFC 4861, RFC 4862, RFC 8106). It says what QEMU's says.

use std::net::Ipv6Addr;
use std::time::Duration;

use smoltcp::wire::{EthernetAddress, IpProtocol};

use super::config::Ipv6Config;
use super::flows::FlowId;
use super::icmp::{self, HEADER_BYTES};
use super::link::{HOP_LIMIT_HERE, Link, station};
use super::{Flow, Key, UserNet};

/// Types of messages.
mod kind {
    pub(super) const ROUTER_SOLICITATION: u8 = 133;
    pub(super) const ROUTER_ADVERTISEMENT: u8 = 134;
    pub(super) const NEIGHBOUR_SOLICITATION: u8 = 135;
    pub(super) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
}

/// Types of options.
mod option {
    pub(super) const SOURCE_STATION: u8 = 1;
    pub(super) const TARGET_STATION: u8 = 2;
    pub(super) const PREFIX: u8 = 3;
    pub(super) const NAME_SERVERS: u8 = 25;
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// How long a guest goes by an advertisement, in seconds (RFC 4861, 6.2.1), and how often there is one.
const ROUTER_LIFETIME: u16 = 1800;
const PREFIX_LIFETIME: u32 = 86400;
const PREFIX_PREFERRED: u32 = 14400;
const PERIOD: Duration = Duration::from_secs(400);

/// The station of a group of addresses (RFC 2464, 7).
fn group_station(group: Ipv6Addr) -> EthernetAddress {
    let [.., a, b, c, d] = group.octets();
    EthernetAddress([0x33, 0x33, a, b, c, d])
}

/// The group that who has `address` is in (RFC 4291, 2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// An option with a station's address.
fn station_option(kind: u8, station: EthernetAddress) -> Vec<u8> {
    [&[kind, 1][..], station.as_bytes()].concat()
}

/// A router advertisement, but for its checksum.
fn advertisement(config: &Ipv6Config, leads_out: bool) -> Vec<u8> {
    // Other things than addresses are had by DHCPv6.
    const OTHER: u8 = 0x40;
    const ON_LINK_AUTONOMOUS: u8 = 0xc0;
    let mut message = vec![kind::ROUTER_ADVERTISEMENT, 0, 0, 0, 64, OTHER];
    message.extend(if leads_out { ROUTER_LIFETIME } else { 0 }.to_be_bytes());
    // How long a neighbour is there, and when it is asked again: the guest knows best.
    message.extend([0; 8]);
    message.extend(station_option(option::SOURCE_STATION, station(config.host)));
    message.extend([option::PREFIX, 4, config.prefix_bits, ON_LINK_AUTONOMOUS]);
    message.extend(PREFIX_LIFETIME.to_be_bytes());
    message.extend(PREFIX_PREFERRED.to_be_bytes());
    message.extend([0; 4]);
    message.extend(config.prefix.octets());
    if leads_out {
        message.extend([option::NAME_SERVERS, 3, 0, 0]);
        message.extend(u32::from(ROUTER_LIFETIME).to_be_bytes());
        message.extend(config.dns.octets());
    }
    message
}

impl Link {
    /// Asks who has a guest's address.
    pub(super) fn solicit(&mut self, address: Ipv6Addr) {
        let Some(config) = &self.config.ipv6 else { return };
        let host = config.host;
        let mut message = vec![kind::NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        message.extend(address.octets());
        message.extend(station_option(option::SOURCE_STATION, station(host)));
        let group = solicited_node(address);
        self.ndp(host, group, group_station(group), message);
    }

    fn ndp(&mut self, from: Ipv6Addr, to: Ipv6Addr, station: EthernetAddress, mut message: Vec<u8>) {
        icmp::seal(&mut message, from.into(), to.into());
        self.ip_to(Some(station), from, to, IpProtocol::Icmpv6, &message);
    }

    /// Tells all guests of the router.
    fn advertise(&mut self) {
        let Some(config) = &self.config.ipv6 else { return };
        let (router, message) = (config.link_local(), advertisement(config, !self.config.restrict));
        self.ndp(router, ALL_NODES, group_station(ALL_NODES), message);
    }

    /// A guest asks who has `address`; `asker` is unspecified if it looks whether anybody has.
    fn answer_solicitation(&mut self, asker: Ipv6Addr, address: Ipv6Addr) {
        const ROUTER: u8 = 0x80;
        const SOLICITED: u8 = 0x40;
        const OVERRIDE: u8 = 0x20;
        let Some(config) = &self.config.ipv6 else { return };
        if !self.config.is_own(address) {
            return;
        }
        let router = if address == config.dns { 0 } else { ROUTER };
        let (to, there, solicited) = match self.known(asker.into()) {
            Some(there) => (asker, there, SOLICITED),
            None => (ALL_NODES, group_station(ALL_NODES), 0),
        };
        let mut message =
            vec![kind::NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, router | solicited | OVERRIDE, 0, 0, 0];
        message.extend(address.octets());
        // The link-local address is the host's, too.
        let own = if address == config.link_local() { config.host } else { address };
        message.extend(station_option(option::TARGET_STATION, station(own)));
        self.ndp(address, to, there, message);
    }
}

impl UserNet {
    /// A message from the guest.
    pub(super) fn icmpv6(&mut self, guest: Ipv6Addr, target: Ipv6Addr, hop_limit: u8, message: &[u8]) {
        if !icmp::is_whole(message, guest.into(), target.into()) {
            return;
        }
        let is_for_router = self.link.config.is_own(target);
        let is_near = hop_limit == HOP_LIMIT_HERE && message[1] == 0;
        let about = || {
            message
                .get(HEADER_BYTES..HEADER_BYTES + 16)?
                .try_into()
                .ok()
                .map(<Ipv6Addr as From<[u8; 16]>>::from)
        };
        match message[0] {
            kind::ROUTER_SOLICITATION if is_near && (target == ALL_ROUTERS || is_for_router) => {
                self.link.advertise();
                self.keep_advertising();
            }
            kind::NEIGHBOUR_SOLICITATION if is_near => {
                if let Some(address) = about() {
                    self.link.answer_solicitation(guest, address);
                }
            }
            // Who it is from has been learnt; and its own address is what it advertises.
            kind::NEIGHBOUR_ADVERTISEMENT => {}
            _ if !guest.is_unspecified() && !target.is_multicast() => {
                self.echo(guest.into(), target.into(), message);
            }
            _ => {}
        }
    }

    /// Advertisements come again before the guest forgets.
    fn keep_advertising(&mut self) {
        let id =
            self.flows.find(&Key::Router).unwrap_or_else(|| self.flows.insert(Key::Router, Flow::Router));
        let now = self.poller.now();
        self.flows.set_deadline(id, Some(now + PERIOD));
    }

    /// It is time for one.
    pub(super) fn expire_router(&mut self, id: FlowId) {
        self.link.advertise();
        let now = self.poller.now();
        self.flows.set_deadline(id, Some(now + PERIOD));
    }
}
