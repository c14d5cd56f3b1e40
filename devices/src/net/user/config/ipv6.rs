//! The addresses of IPv6 in a user network.

use std::net::Ipv6Addr;

use super::ConfigError;

/// The part of an address that an interface chooses itself.
const INTERFACE_BITS: u128 = (1 << 64) - 1;

/// The guest's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipv6Config {
    /// Its first address.
    pub prefix: Ipv6Addr,
    /// The bits of it that all its addresses have.
    pub prefix_bits: u8,
    /// The host's address, which is also the router.
    pub host: Ipv6Addr,
    /// The name server's address.
    pub dns: Ipv6Addr,
}

impl Default for Ipv6Config {
    fn default() -> Self {
        Self::on(Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 64)
    }
}

impl Ipv6Config {
    /// The network of `address` with QEMU's usual host numbers: 2 the host, 3 the name server.
    pub fn on(address: Ipv6Addr, prefix_bits: u8) -> Self {
        let prefix = address & mask(prefix_bits);
        let usual = |number: u128| Ipv6Addr::from(u128::from(prefix) | number);
        Self { prefix, prefix_bits, host: usual(2), dns: usual(3) }
    }

    /// Whether the addresses go together.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let checks = [
            ((1..=126).contains(&self.prefix_bits), ConfigError::Prefix6),
            (self.contains(self.host) && self.host != self.prefix, ConfigError::Host6),
            (self.contains(self.dns) && self.dns != self.prefix, ConfigError::Dns6),
            (self.dns != self.host, ConfigError::DnsIsHost6),
        ];
        checks.into_iter().find(|(good, _)| !good).map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Whether `address` is in the guest's network.
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        address & mask(self.prefix_bits) == self.prefix
    }

    /// The router's address on the cable.
    pub fn link_local(&self) -> Ipv6Addr {
        Ipv6Addr::from(0xfe80 << 112 | u128::from(self.host) & INTERFACE_BITS)
    }

    pub(super) fn is_own(&self, address: Ipv6Addr) -> bool {
        address == self.host || address == self.dns || address == self.link_local()
    }

    pub(super) fn is_guest(&self, address: Ipv6Addr) -> bool {
        let is_here = self.contains(address) && address != self.prefix || address.is_unicast_link_local();
        is_here && !address.is_multicast() && !address.is_unspecified() && !self.is_own(address)
    }

    pub(super) fn outside(&self, address: Ipv6Addr) -> Option<Ipv6Addr> {
        if address == self.host || address == self.link_local() {
            return Some(Ipv6Addr::LOCALHOST);
        }
        let nowhere = self.contains(address)
            || address.is_multicast()
            || address.is_loopback()
            || address.is_unspecified()
            || address.is_unicast_link_local()
            // IPv4 in disguise: the host would take it for that.
            || address.to_ipv4().is_some();
        (!nowhere).then_some(address)
    }
}

fn mask(bits: u8) -> Ipv6Addr {
    Ipv6Addr::from(u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    #[test]
    fn the_usual_network() {
        let usual = Ipv6Config::default();
        assert_eq!((usual.host, usual.dns), (address("fec0::2"), address("fec0::3")));
        assert_eq!(usual.link_local(), address("fe80::2"));
        assert_eq!(usual.check(), Ok(()));
        for guest in ["fec0::5054:ff:fe12:3456", "fe80::1"] {
            assert!(usual.is_guest(address(guest)), "{guest}");
        }
        for other in
            ["fec0::2", "fec0::3", "fe80::2", "fec0::", "fec0:0:0:1::1", "::", "ff02::1", "2001:db8::1"]
        {
            assert!(!usual.is_guest(address(other)), "{other}");
        }
    }

    #[test]
    fn roads_out() {
        let usual = Ipv6Config::default();
        for here in ["fec0::2", "fe80::2"] {
            assert_eq!(usual.outside(address(here)), Some(Ipv6Addr::LOCALHOST));
        }
        assert_eq!(usual.outside(address("2001:db8::1")), Some(address("2001:db8::1")));
        for nowhere in ["::1", "::", "fec0::9", "fe80::9", "ff02::1", "::ffff:127.0.0.1", "::127.0.0.1"] {
            assert_eq!(usual.outside(address(nowhere)), None, "{nowhere}");
        }
    }

    #[test]
    fn networks_that_cannot_be() {
        let other = Ipv6Config::on(address("2001:db8:7::99"), 48);
        assert_eq!((other.host, other.check()), (address("2001:db8:7::2"), Ok(())));
        assert_eq!(Ipv6Config::on(address("2001:db8::"), 127).check(), Err(ConfigError::Prefix6));
        let elsewhere = address("2001:db8::5");
        assert_eq!(Ipv6Config { host: elsewhere, ..Ipv6Config::default() }.check(), Err(ConfigError::Host6));
        assert_eq!(Ipv6Config { dns: elsewhere, ..Ipv6Config::default() }.check(), Err(ConfigError::Dns6));
        let usual = Ipv6Config::default();
        assert_eq!(Ipv6Config { dns: usual.host, ..usual }.check(), Err(ConfigError::DnsIsHost6));
    }
}
