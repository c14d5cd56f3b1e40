//! What a user network is asked to be (QEMU, *Invocation*, `-netdev user`).

mod ipv6;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

pub use self::ipv6::Ipv6Config;

/// The protocol of a forwarded port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host that leads into the guest: `hostfwd=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostForward {
    /// Of both ports.
    pub protocol: Protocol,
    /// Where the host listens.
    pub host: SocketAddr,
    /// Whom it reaches in the guest.
    pub guest: SocketAddr,
}

impl fmt::Display for HostForward {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "hostfwd={protocol}:{}-{}", self.host, self.guest)
    }
}

/// Where names are looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nameservers {
    /// The name servers of a file in the format of resolv.conf(5), as it is at the time of a query.
    File(PathBuf),
    /// This one.
    Fixed(SocketAddr),
}

/// A user network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// There is IPv4.
    pub ipv4: bool,
    /// The addresses of IPv6, if there is that.
    pub ipv6: Option<Ipv6Config>,
    /// The guest's network: its first address.
    pub network: Ipv4Addr,
    /// Its netmask.
    pub mask: Ipv4Addr,
    /// The host's address, which is also the gateway and the DHCP server.
    pub host: Ipv4Addr,
    /// The name server's address.
    pub dns: Ipv4Addr,
    /// The first address that DHCP gives away.
    pub dhcp_start: Ipv4Addr,
    /// The host name that DHCP tells.
    pub hostname: Option<String>,
    /// The domain that DHCP tells.
    pub domain: Option<String>,
    /// The guest reaches nobody: only what comes in through `forwards` gets through.
    pub restrict: bool,
    /// Ports of the host that lead into the guest.
    pub forwards: Vec<HostForward>,
    /// Where queries to `dns` go.
    pub nameservers: Nameservers,
}

/// What is wrong with a network's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Too small for a host, a name server and a guest, or no prefix.
    #[error("net= takes a network of 4 to 29 bits")]
    Mask,
    /// `host=` lies elsewhere.
    #[error("host= is not in the network")]
    Host,
    /// `dns=` lies elsewhere.
    #[error("dns= is not in the network")]
    Dns,
    /// One address, two duties.
    #[error("dns= and host= are the same address")]
    DnsIsHost,
    /// `dhcpstart=` lies elsewhere.
    #[error("dhcpstart= is not in the network")]
    DhcpStart,
    /// `dhcpstart=` is taken.
    #[error("dhcpstart= is the address of host= or dns=")]
    DhcpStartTaken,
    /// More than an option of DHCP holds.
    #[error("hostname= and domainname= take 1 to 64 characters")]
    Name,
    /// A guest's address that is not in the network.
    #[error("hostfwd= leads to an address that is not in the network")]
    Forward,
    /// Too large or too small for a host, a name server and a guest.
    #[error("ipv6-net= takes a prefix of 1 to 126 bits")]
    Prefix6,
    /// `ipv6-host=` lies elsewhere.
    #[error("ipv6-host= is not in the network")]
    Host6,
    /// `ipv6-dns=` lies elsewhere.
    #[error("ipv6-dns= is not in the network")]
    Dns6,
    /// One address, two duties.
    #[error("ipv6-dns= and ipv6-host= are the same address")]
    DnsIsHost6,
    /// Neither IPv4 nor IPv6.
    #[error("ipv4=off and ipv6=off leave no network")]
    Nothing,
}

impl Default for Config {
    fn default() -> Self {
        Self::on(Ipv4Addr::new(10, 0, 2, 0), Ipv4Addr::new(255, 255, 255, 0))
    }
}

impl Config {
    /// The network of `address` with QEMU's usual host numbers: 2.2 the host, 2.3 the name server, 2.15 the first guest, so
    /// far as the mask leaves room.
    pub fn on(address: Ipv4Addr, mask: Ipv4Addr) -> Self {
        let network = address & mask;
        let usual = |number: u32| network | (Ipv4Addr::from(number) & !mask);
        Self {
            ipv4: true,
            ipv6: Some(Ipv6Config::default()),
            network,
            mask,
            host: usual(0x202),
            dns: usual(0x203),
            dhcp_start: usual(0x20f),
            hostname: None,
            domain: None,
            restrict: false,
            forwards: Vec::new(),
            nameservers: Nameservers::File("/etc/resolv.conf".into()),
        }
    }

    /// Whether the addresses go together.
    pub fn check(&self) -> Result<(), ConfigError> {
        let bits = u32::from(self.mask);
        if bits.leading_ones() + bits.trailing_zeros() != 32 || !(4..=29).contains(&bits.leading_ones()) {
            return Err(ConfigError::Mask);
        }
        let usable = |address: Ipv4Addr| {
            self.contains4(address) && address != self.network && address != self.broadcast()
        };
        if !self.ipv4 && self.ipv6.is_none() {
            return Err(ConfigError::Nothing);
        }
        self.ipv6.as_ref().map_or(Ok(()), Ipv6Config::check)?;
        let reachable = |address: IpAddr| match address {
            IpAddr::V4(address) => self.ipv4 && usable(address),
            IpAddr::V6(_) => self.is_guest(address),
        };
        let name_is_bad = |name: &String| name.is_empty() || name.len() > 64;
        let checks = [
            (usable(self.host), ConfigError::Host),
            (usable(self.dns), ConfigError::Dns),
            (self.dns != self.host, ConfigError::DnsIsHost),
            (usable(self.dhcp_start), ConfigError::DhcpStart),
            (!self.is_own(self.dhcp_start), ConfigError::DhcpStartTaken),
            (!self.hostname.iter().chain(&self.domain).any(name_is_bad), ConfigError::Name),
            (self.forwards.iter().all(|forward| reachable(forward.guest.ip())), ConfigError::Forward),
        ];
        checks.into_iter().find(|(good, _)| !good).map_or(Ok(()), |(_, error)| Err(error))
    }

    fn contains4(&self, address: Ipv4Addr) -> bool {
        address & self.mask == self.network
    }

    /// Whether `address` is in the guest's network.
    pub fn contains(&self, address: impl Into<IpAddr>) -> bool {
        match address.into() {
            IpAddr::V4(address) => self.contains4(address),
            IpAddr::V6(address) => self.ipv6.as_ref().is_some_and(|ipv6| ipv6.contains(address)),
        }
    }

    /// The network's broadcast address.
    pub fn broadcast(&self) -> Ipv4Addr {
        self.network | !self.mask
    }

    /// Whether `address` is the network's own: the host's or the name server's.
    pub fn is_own(&self, address: impl Into<IpAddr>) -> bool {
        match address.into() {
            IpAddr::V4(address) => self.ipv4 && (address == self.host || address == self.dns),
            IpAddr::V6(address) => self.ipv6.as_ref().is_some_and(|ipv6| ipv6.is_own(address)),
        }
    }

    /// Whether `address` is the name server's.
    pub fn is_dns(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.ipv4 && address == self.dns,
            IpAddr::V6(address) => self.ipv6.as_ref().is_some_and(|ipv6| ipv6.dns == address),
        }
    }

    /// Whether a guest can have `address`.
    pub fn is_guest(&self, address: impl Into<IpAddr>) -> bool {
        match address.into() {
            IpAddr::V4(address) => {
                self.ipv4
                    && self.contains4(address)
                    && !self.is_own(address)
                    && address != self.network
                    && address != self.broadcast()
            }
            IpAddr::V6(address) => self.ipv6.as_ref().is_some_and(|ipv6| ipv6.is_guest(address)),
        }
    }

    /// The host's address in the family of `other`.
    pub fn host_for(&self, other: IpAddr) -> IpAddr {
        match (other, &self.ipv6) {
            (IpAddr::V6(_), Some(ipv6)) => ipv6.host.into(),
            _ => self.host.into(),
        }
    }

    /// The name server's address in the family of `other`.
    pub fn dns_for(&self, other: IpAddr) -> IpAddr {
        match (other, &self.ipv6) {
            (IpAddr::V6(_), Some(ipv6)) => ipv6.dns.into(),
            _ => self.dns.into(),
        }
    }

    /// Where the host's own stack finds what the guest calls `address`; `None` for what is on no road out: the guest's own
    /// network, broadcast and multicast, the guest's own loopback.
    pub fn outside(&self, address: impl Into<IpAddr>) -> Option<IpAddr> {
        let address = match address.into() {
            IpAddr::V4(address) => address,
            IpAddr::V6(address) => {
                return self.ipv6.as_ref().and_then(|ipv6| ipv6.outside(address)).map(Into::into);
            }
        };
        if address == self.host {
            return Some(Ipv4Addr::LOCALHOST.into());
        }
        let reserved = address.octets()[0] >= 240 || address.octets()[0] == 0;
        let nowhere = self.contains4(address) || address.is_multicast() || address.is_loopback() || reserved;
        (!nowhere).then_some(address.into())
    }

    /// What `guest` calls the host's peer `address`: one on the host itself, or one with an address of the other family, is
    /// the gateway.
    pub fn inside(&self, address: impl Into<IpAddr>, guest: IpAddr) -> IpAddr {
        let address = address.into().to_canonical();
        // One in the guest's own network could not be answered.
        let hidden = address.is_loopback()
            || address.is_unspecified()
            || address.is_ipv4() != guest.is_ipv4()
            || matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
            || self.contains(address);
        if hidden { self.host_for(guest) } else { address }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_must_go_together() {
        let good = Config::default();
        assert_eq!(good.check(), Ok(()));
        assert_eq!((good.host, good.dns), (Ipv4Addr::new(10, 0, 2, 2), Ipv4Addr::new(10, 0, 2, 3)));
        let check = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.check().unwrap_err()
        };
        let elsewhere = |last| Ipv4Addr::new(10, 0, 3, last);
        assert_eq!(check(|c| c.host = Ipv4Addr::new(10, 0, 3, 2)), ConfigError::Host);
        assert_eq!(check(|c| c.dns = Ipv4Addr::new(10, 0, 3, 3)), ConfigError::Dns);
        assert_eq!(check(|c| c.dns = c.host), ConfigError::DnsIsHost);
        assert_eq!(check(|c| c.dhcp_start = c.broadcast()), ConfigError::DhcpStart);
        assert_eq!(check(|c| c.dhcp_start = c.dns), ConfigError::DhcpStartTaken);
        assert_eq!(check(|c| c.mask = Ipv4Addr::new(255, 0, 255, 0)), ConfigError::Mask);
        assert_eq!(check(|c| c.hostname = Some(String::new())), ConfigError::Name);
        assert!(!good.contains(elsewhere(1)));
    }

    #[test]
    fn networks_of_other_sizes() {
        let wide = Config::on(Ipv4Addr::new(192, 168, 7, 9), Ipv4Addr::new(255, 255, 0, 0));
        assert_eq!((wide.network, wide.host), (Ipv4Addr::new(192, 168, 0, 0), Ipv4Addr::new(192, 168, 2, 2)));
        let narrow = Config::on(Ipv4Addr::new(192, 168, 7, 9), Ipv4Addr::new(255, 255, 255, 224));
        assert_eq!(narrow.dhcp_start, Ipv4Addr::new(192, 168, 7, 15));
        assert_eq!((wide.check(), narrow.check()), (Ok(()), Ok(())));
    }

    #[test]
    fn what_is_on_no_road_out() {
        let config = Config::default();
        assert_eq!(config.outside(config.host), Some(Ipv4Addr::LOCALHOST.into()));
        let far = Ipv4Addr::new(192, 0, 2, 1);
        assert_eq!(config.outside(far), Some(far.into()));
        let nowhere = [[127, 0, 0, 1], [10, 0, 2, 77], [224, 0, 0, 251], [255; 4], [0; 4], [10, 0, 2, 3]];
        for address in nowhere {
            assert_eq!(config.outside(Ipv4Addr::from(address)), None, "{address:?}");
        }
        let guest = config.dhcp_start.into();
        assert_eq!(config.inside(Ipv4Addr::LOCALHOST, guest), config.host);
        assert_eq!(config.inside(far, guest), far);
        // Of a socket that takes both families.
        assert_eq!(config.inside(far.to_ipv6_mapped(), guest), far);
    }
}
