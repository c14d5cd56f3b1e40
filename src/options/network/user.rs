//! `-netdev user`: the network in the process.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use devices::net::user::{Config, HostForward, Ipv6Config, Protocol};

use crate::options::error::{Context, OptionError};
use crate::options::syntax::Pair;

/// The properties that are built.
const BUILT: &[&str] = &[
    "net",
    "host",
    "dns",
    "dhcpstart",
    "hostname",
    "domainname",
    "restrict",
    "ipv4",
    "ipv6",
    "ipv6-net",
    "ipv6-host",
    "ipv6-dns",
    "hostfwd",
];

/// Those that QEMU has besides.
const NOT_BUILT: &[&str] = &[
    "bootfile",
    "dnssearch",
    "guestfwd",
    "ip",
    "ipv6-prefix",
    "ipv6-prefixlen",
    "smb",
    "smbserver",
    "tftp",
    "tftp-server-name",
];

/// The network that `pairs` describe.
pub(super) fn config(context: Context, pairs: &[Pair]) -> Result<Config, OptionError> {
    let last = |key: &str| pairs.iter().rev().find(|pair| pair.key == key).map(|pair| pair.value.as_str());
    let address = |key: &str| {
        let bad = || context.bad(format!("{key}= takes an IPv4 address"));
        last(key).map(|text| text.parse::<Ipv4Addr>().map_err(|_| bad())).transpose()
    };
    let switch = |key: &str, default| super::switch(context, pairs, key, default);
    super::check_names(context, pairs, BUILT, NOT_BUILT)?;
    let mut config = match last("net") {
        None => Config::default(),
        Some(text) => {
            let bad = || context.bad("net= takes an IPv4 address and perhaps /BITS or /MASK");
            let (network, mask) = network(text).ok_or_else(bad)?;
            Config::on(network, mask)
        }
    };
    // As in QEMU: one that is asked for alone is alone.
    let (ipv4, ipv6) = (last("ipv4").is_some(), last("ipv6").is_some());
    config.ipv4 = switch("ipv4", !ipv6 || !switch("ipv6", true)?)?;
    config.ipv6 =
        switch("ipv6", !ipv4 || !switch("ipv4", true)?)?.then(|| ipv6_network(context, last)).transpose()?;
    config.host = address("host")?.unwrap_or(config.host);
    config.dns = address("dns")?.unwrap_or(config.dns);
    config.dhcp_start = address("dhcpstart")?.unwrap_or(config.dhcp_start);
    config.hostname = last("hostname").map(Into::into);
    config.domain = last("domainname").map(Into::into);
    config.restrict = switch("restrict", false)?;
    for pair in pairs.iter().filter(|pair| pair.key == "hostfwd") {
        let rule = forward(&pair.value, config.dhcp_start).map_err(|problem| match problem {
            Problem::NotBuilt => context.not_built(&format!("hostfwd={}", pair.value)),
            Problem::Bad => {
                context.bad(format!("hostfwd={} is not tcp|udp:[ADDR]:PORT-[ADDR]:PORT", pair.value))
            }
        })?;
        config.forwards.push(rule);
    }
    config.check().map_err(|error| context.bad(error.to_string()))?;
    Ok(config)
}

/// `ADDR`, `ADDR/BITS` or `ADDR/MASK`. Without a mask it is that of the address's class, as in QEMU.
fn network(text: &str) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let (address, mask) = text.split_once('/').map_or((text, None), |(address, mask)| (address, Some(mask)));
    let address: Ipv4Addr = address.parse().ok()?;
    let of_bits = |bits: u32| Some(Ipv4Addr::from(u32::MAX.checked_shl(32u32.checked_sub(bits)?)?));
    let mask = match mask {
        Some(mask) => match mask.parse::<u32>() {
            Ok(bits) => of_bits(bits)?,
            Err(_) => mask.parse().ok()?,
        },
        None => of_bits(match address.octets() {
            [172, 16..=31, ..] => 12,
            [192, 168, ..] => 16,
            [198, 18..=19, ..] => 15,
            [0..=127, ..] => 8,
            [128..=191, ..] => 16,
            [192..=223, ..] => 24,
            _ => return None,
        })?,
    };
    Some((address, mask))
}

enum Problem {
    Bad,
    NotBuilt,
}

/// `tcp|udp:[ADDR]:PORT-[ADDR]:PORT`; nothing for `tcp` is tcp.
fn forward(text: &str, guest: Ipv4Addr) -> Result<HostForward, Problem> {
    let (protocol, rest) = text.split_once(':').ok_or(Problem::Bad)?;
    let protocol = match protocol {
        "tcp" | "" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "unix" => return Err(Problem::NotBuilt),
        _ => return Err(Problem::Bad),
    };
    // An IPv6 address, in brackets, may hold a '-' in no place.
    let (host, inside) = rest.split_once('-').ok_or(Problem::Bad)?;
    let host = end(host, Ipv4Addr::UNSPECIFIED).ok_or(Problem::Bad)?;
    let guest = end(inside, guest).filter(|guest| guest.port() != 0).ok_or(Problem::Bad)?;
    Ok(HostForward { protocol, host, guest })
}

/// `[ADDR]:PORT`, where the brackets belong to an IPv6 address; an IPv4 address has none, and may be left out.
fn end(text: &str, default: Ipv4Addr) -> Option<SocketAddr> {
    let (address, port) = text.rsplit_once(':')?;
    let address: IpAddr = match address.strip_prefix('[') {
        Some(address) => address.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?.into(),
        None if address.is_empty() => default.into(),
        None => address.parse::<Ipv4Addr>().ok()?.into(),
    };
    Some(SocketAddr::new(address, port.parse().ok()?))
}

/// The network of `ipv6-net=` and its like.
fn ipv6_network<'a>(
    context: Context,
    last: impl Fn(&str) -> Option<&'a str>,
) -> Result<Ipv6Config, OptionError> {
    let address = |key: &str| {
        let bad = || context.bad(format!("{key}= takes an IPv6 address"));
        last(key).map(|text| text.parse::<Ipv6Addr>().map_err(|_| bad())).transpose()
    };
    let mut config = match last("ipv6-net") {
        None => Ipv6Config::default(),
        Some(text) => {
            let bad = || context.bad("ipv6-net= takes an IPv6 address and perhaps /BITS");
            let (prefix, bits) = text.split_once('/').unwrap_or((text, "64"));
            Ipv6Config::on(prefix.parse().map_err(|_| bad())?, bits.parse().map_err(|_| bad())?)
        }
    };
    config.host = address("ipv6-host")?.unwrap_or(config.host);
    config.dns = address("ipv6-dns")?.unwrap_or(config.dns);
    Ok(config)
}
