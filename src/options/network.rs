//! `-netdev` and `-nic` (QEMU, *Invocation*).

use std::net::{Ipv4Addr, SocketAddrV4};

use devices::net::user::{Config, HostForward, Protocol};

use super::devices::{DeviceChoice, mac};
use super::error::{Context, OptionError};
use super::syntax::{self, Pair};

/// A network that a card can be put on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// What cards call it.
    pub id: String,
    /// A user network: there is no other kind yet.
    pub user: Config,
}

/// The properties of `user` that are built.
const BUILT: &[&str] = &[
    "id",
    "net",
    "host",
    "dns",
    "dhcpstart",
    "hostname",
    "domainname",
    "restrict",
    "ipv4",
    "ipv6",
    "hostfwd",
];

/// Those that QEMU has besides.
const NOT_BUILT: &[&str] = &[
    "bootfile",
    "dnssearch",
    "guestfwd",
    "ip",
    "ipv6-dns",
    "ipv6-host",
    "ipv6-net",
    "ipv6-prefix",
    "ipv6-prefixlen",
    "smb",
    "smbserver",
    "tftp",
    "tftp-server-name",
];

/// The kinds of network that QEMU has besides.
const OTHER_KINDS: &[&str] = &[
    "af-xdp",
    "bridge",
    "dgram",
    "hubport",
    "l2tpv3",
    "netmap",
    "passt",
    "socket",
    "stream",
    "tap",
    "vde",
    "vhost-user",
    "vhost-vdpa",
];

/// Reads the argument of `-netdev`.
pub fn netdev(context: Context) -> Result<Network, OptionError> {
    let mut pairs = syntax::pairs(context.value, "type").into_iter();
    kind(context, pairs.next())?;
    let mut id = None;
    let mut user = Vec::new();
    for pair in pairs {
        if pair.key == "id" { id = Some(pair.value) } else { user.push(pair) }
    }
    let id = id.ok_or_else(|| context.bad("needs id=, which names it for a card"))?;
    let is_letter = |c: char| c.is_ascii_alphabetic();
    let is_well_formed = id.starts_with(is_letter)
        && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
    if !is_well_formed {
        return Err(context.bad("id= takes a letter, then letters, digits, '-', '.' and '_'"));
    }
    Ok(Network { id, user: config(context, user)? })
}

/// Reads the argument of `-nic`: a network, and a card on it. `index` is the network's number.
pub fn nic(context: Context, index: usize) -> Result<Option<(Network, DeviceChoice)>, OptionError> {
    if context.value == "none" {
        return Ok(None);
    }
    let mut pairs = syntax::pairs(context.value, "type").into_iter();
    kind(context, pairs.next())?;
    let (mut address, mut user) = (None, Vec::new());
    for pair in pairs {
        match pair.key.as_str() {
            "mac" => address = Some(mac(context, &pair.value)?),
            "model" => match pair.value.as_str() {
                "virtio" | "virtio-net" | "virtio-net-device" | "virtio-net-pci" => {}
                other => return Err(context.not_built(&format!("model={other}"))),
            },
            "id" => {}
            _ => user.push(pair),
        }
    }
    // A name that no -netdev can have.
    let id = format!("#nic{index}");
    let card = DeviceChoice::VirtioNet { netdev: id.clone(), mac: address };
    Ok(Some((Network { id, user: config(context, user)? }, card)))
}

fn kind(context: Context, first: Option<Pair>) -> Result<(), OptionError> {
    match first {
        Some(pair) if pair.key == "type" => match pair.value.as_str() {
            "user" => Ok(()),
            other if OTHER_KINDS.contains(&other) => Err(context.not_built(other)),
            other => Err(context.bad(format!("no kind of network '{other}' (see {} help)", context.option))),
        },
        _ => Err(context.bad("the kind of network comes first")),
    }
}

fn config(context: Context, pairs: Vec<Pair>) -> Result<Config, OptionError> {
    let last = |key: &str| pairs.iter().rev().find(|pair| pair.key == key).map(|pair| pair.value.as_str());
    let address = |key: &str| {
        let bad = || context.bad(format!("{key}= takes an IPv4 address"));
        last(key).map(|text| text.parse::<Ipv4Addr>().map_err(|_| bad())).transpose()
    };
    let switch = |key: &str, default| match last(key) {
        None => Ok(default),
        Some(text) => syntax::on_off(text).ok_or_else(|| context.bad(format!("{key}= takes on or off"))),
    };
    for pair in &pairs {
        if NOT_BUILT.contains(&pair.key.as_str()) {
            return Err(context.not_built(&pair.key));
        }
        if !BUILT.contains(&pair.key.as_str()) {
            return Err(context.unknown_of(&pair.key, BUILT.iter().chain(NOT_BUILT).copied()));
        }
    }
    if switch("ipv6", false)? {
        return Err(context.not_built("ipv6=on"));
    }
    if !switch("ipv4", true)? {
        return Err(context.not_built("ipv4=off"));
    }
    let mut config = match last("net") {
        None => Config::default(),
        Some(text) => {
            let bad = || context.bad("net= takes an IPv4 address and perhaps /BITS or /MASK");
            let (network, mask) = network(text).ok_or_else(bad)?;
            Config::on(network, mask)
        }
    };
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
    if rest.contains('[') {
        // IPv6.
        return Err(Problem::NotBuilt);
    }
    let (host, inside) = rest.split_once('-').ok_or(Problem::Bad)?;
    let end = |text: &str, default: Ipv4Addr| {
        let (address, port) = text.split_once(':')?;
        let address = if address.is_empty() { default } else { address.parse().ok()? };
        Some(SocketAddrV4::new(address, port.parse().ok()?))
    };
    let host = end(host, Ipv4Addr::UNSPECIFIED).ok_or(Problem::Bad)?;
    let guest = end(inside, guest).filter(|guest| guest.port() != 0).ok_or(Problem::Bad)?;
    Ok(HostForward { protocol, host, guest })
}

/// The text of `-netdev help`.
pub const HELP: &str = "\
Networks:
  user   in the process, without privileges: DHCP, DNS, TCP, UDP and ping through the host's sockets;
         the host is 10.0.2.2, its name server 10.0.2.3, the guest 10.0.2.15
";

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Result<Network, OptionError> {
        netdev(Context { option: "-netdev", value })
    }

    #[track_caller]
    fn refused(value: &str, named: &str) {
        let text = read(value).unwrap_err().to_string();
        assert!(text.starts_with(&format!("-netdev {value}: ")) && text.contains(named), "{text}");
        assert!(!text.contains('\n'));
    }

    #[test]
    fn the_usual() {
        let network =
            read("user,id=n0,hostfwd=tcp::2222-:22,hostfwd=udp:127.0.0.1:53-10.0.2.9:5353").unwrap();
        assert_eq!(network.id, "n0");
        let rules: Vec<String> = network.user.forwards.iter().map(ToString::to_string).collect();
        assert_eq!(
            rules,
            ["hostfwd=tcp:0.0.0.0:2222-10.0.2.15:22", "hostfwd=udp:127.0.0.1:53-10.0.2.9:5353"]
        );
    }

    #[test]
    fn all_of_it() {
        let text = "user,id=a.b-c_1,net=192.168.76.0/24,host=192.168.76.1,dns=192.168.76.5,\
            dhcpstart=192.168.76.9,hostname=vm,domainname=example.org,restrict=on,ipv6=off,hostfwd=:127.0.0.1:0-:80";
        let config = read(text).unwrap().user;
        assert_eq!(config.host, Ipv4Addr::new(192, 168, 76, 1));
        assert_eq!(config.dns, Ipv4Addr::new(192, 168, 76, 5));
        assert_eq!((config.hostname.as_deref(), config.domain.as_deref()), (Some("vm"), Some("example.org")));
        assert!(config.restrict);
        assert_eq!(config.forwards[0].guest.to_string(), "192.168.76.9:80");
        let masks = [
            ("10.0.2.0", [255, 0, 0, 0]),
            ("172.20.0.0", [255, 240, 0, 0]),
            ("192.168.5.0", [255, 255, 0, 0]),
            ("203.0.113.0", [255, 255, 255, 0]),
            ("10.0.2.0/255.255.0.0", [255, 255, 0, 0]),
        ];
        for (net, mask) in masks {
            let config = read(&format!("user,id=n,net={net}")).unwrap().user;
            assert_eq!(config.mask.octets(), mask, "{net}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        refused("user", "needs id=");
        refused("user,id=1", "id= takes a letter");
        refused("id=n0,user", "comes first");
        refused("frob,id=n0", "'frob'");
        refused("user,id=n0,hostfw=tcp::1-:1", "'hostfw' (did you mean 'hostfwd'?)");
        refused("user,id=n0,net=10.0.2.0/33", "net= takes");
        refused("user,id=n0,net=10.0.2.0/30", "net= takes a network of 4 to 29 bits");
        refused("user,id=n0,host=10.0.3.2", "host= is not in the network");
        refused("user,id=n0,dns=x", "dns= takes an IPv4 address");
        refused("user,id=n0,restrict=maybe", "restrict= takes on or off");
        for rule in ["2222-:22", "tcp::2222", "tcp::2222-:0", "tcp::70000-:22", "sctp::1-:1", "tcp:a:1-:1"] {
            refused(&format!("user,id=n0,hostfwd={rule}"), &format!("hostfwd={rule} is not"));
        }
        refused("user,id=n0,hostfwd=tcp::1-10.9.9.9:1", "hostfwd= leads to an address");
    }

    #[test]
    fn what_qemu_has_besides() {
        for text in ["tap,id=n0", "user,id=n0,ipv6=on", "user,id=n0,smb=/srv", "user,id=n0,ipv4=off"] {
            assert!(matches!(read(text), Err(OptionError::NotBuilt(_))), "{text}");
        }
        assert!(matches!(read("user,id=n,hostfwd=tcp:[::1]:1-:1"), Err(OptionError::NotBuilt(_))));
    }

    #[test]
    fn a_network_with_its_card() {
        let nic = |value: &str| nic(Context { option: "-nic", value }, 3).map_err(|error| error.to_string());
        assert_eq!(nic("none"), Ok(None));
        let (network, card) = nic("user,model=virtio,mac=52:54:0:1:2:3,hostfwd=tcp::1-:1").unwrap().unwrap();
        assert_eq!(network.user.forwards.len(), 1);
        let mac = Some([0x52, 0x54, 0, 1, 2, 3]);
        assert_eq!(card, DeviceChoice::VirtioNet { netdev: network.id, mac });
        assert!(nic("user,model=e1000").unwrap_err().contains("model=e1000: not built yet"));
        assert!(nic("user,hostfw=x").unwrap_err().contains("'hostfwd'"));
        for mac in ["52:54:0:1:2", "53:54:0:1:2:3", "52:54:0:1:2:333", "x"] {
            assert!(nic(&format!("user,mac={mac}")).unwrap_err().contains("mac= takes"), "{mac}");
        }
    }
}
