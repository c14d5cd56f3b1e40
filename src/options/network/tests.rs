use std::net::Ipv4Addr;
use std::time::Duration;

use devices::net::socket::Address;

use super::*;
use crate::options::vhost::VhostSource;

fn read(value: &str) -> Result<Network, OptionError> {
    netdev(Context { option: "-netdev", value })
}

fn user(network: &Network) -> &user_net::Config {
    let NetworkKind::User(config) = &network.kind else { panic!("{network:?} is no user network") };
    config
}

#[track_caller]
fn refused(value: &str, named: &str) {
    let text = read(value).unwrap_err().to_string();
    assert!(text.starts_with(&format!("-netdev {value}: ")) && text.contains(named), "{text}");
    assert!(!text.contains('\n'));
}

#[test]
fn the_usual() {
    let network = read("user,id=n0,hostfwd=tcp::2222-:22,hostfwd=udp:127.0.0.1:53-10.0.2.9:5353").unwrap();
    assert_eq!(network.id, "n0");
    let rules: Vec<String> = user(&network).forwards.iter().map(ToString::to_string).collect();
    assert_eq!(rules, ["hostfwd=tcp:0.0.0.0:2222-10.0.2.15:22", "hostfwd=udp:127.0.0.1:53-10.0.2.9:5353"]);
}

#[test]
fn all_of_it() {
    let text = "user,id=a.b-c_1,net=192.168.76.0/24,host=192.168.76.1,dns=192.168.76.5,\
        dhcpstart=192.168.76.9,hostname=vm,domainname=example.org,restrict=on,ipv6=off,hostfwd=:127.0.0.1:0-:80";
    let config = user(&read(text).unwrap()).clone();
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
        let config = user(&read(&format!("user,id=n,net={net}")).unwrap()).clone();
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
fn both_families_or_one() {
    for (text, ipv4, ipv6) in [
        ("user,id=n", true, true),
        ("user,id=n,ipv6=off", true, false),
        ("user,id=n,ipv4=off", false, true),
        ("user,id=n,ipv6=on", false, true),
        ("user,id=n,ipv4=on", true, false),
        ("user,id=n,ipv4=on,ipv6=on", true, true),
    ] {
        let config = user(&read(text).unwrap()).clone();
        assert_eq!((config.ipv4, config.ipv6.is_some()), (ipv4, ipv6), "{text}");
    }
    refused("user,id=n,ipv4=off,ipv6=off", "leave no network");
    let network = read("user,id=n,ipv6-net=2001:db8:5::/48,ipv6-host=2001:db8:5::1").unwrap();
    let ipv6 = user(&network).ipv6.clone().unwrap();
    assert_eq!((ipv6.prefix_bits, ipv6.host.to_string().as_str()), (48, "2001:db8:5::1"));
    assert_eq!(ipv6.dns.to_string(), "2001:db8:5::3");
    let network = read("user,id=n,hostfwd=tcp:[::1]:80-[fec0::99]:8080,hostfwd=tcp:[::]:81-:81").unwrap();
    let rules: Vec<String> = user(&network).forwards.iter().map(ToString::to_string).collect();
    assert_eq!(rules, ["hostfwd=tcp:[::1]:80-[fec0::99]:8080", "hostfwd=tcp:[::]:81-10.0.2.15:81"]);
    refused("user,id=n,ipv6-net=fec0::/127", "ipv6-net= takes a prefix of 1 to 126 bits");
    refused("user,id=n,ipv6-net=10.0.0.0", "ipv6-net= takes an IPv6 address");
    refused("user,id=n,ipv6-host=fec0:1::2", "ipv6-host= is not in the network");
    refused("user,id=n,hostfwd=tcp::1-[2001:db8::1]:1", "hostfwd= leads to an address");
    for rule in ["tcp:[::1:80-:80", "tcp:::1:80-:80", "tcp::80-[10.0.2.15]:80"] {
        refused(&format!("user,id=n,hostfwd={rule}"), &format!("hostfwd={rule} is not"));
    }
}

#[test]
fn what_qemu_has_besides() {
    for text in ["passt,id=n0", "user,id=n0,smb=/srv"] {
        assert!(matches!(read(text), Err(OptionError::NotBuilt(_))), "{text}");
    }
    assert!(matches!(read("user,id=n,hostfwd=unix:/a-:1"), Err(OptionError::NotBuilt(_))));
}

#[test]
fn a_network_with_its_card() {
    let nic = |value: &str| nic(Context { option: "-nic", value }, 3).map_err(|error| error.to_string());
    assert_eq!(nic("none"), Ok(None));
    let (network, card) = nic("user,model=virtio,mac=52:54:0:1:2:3,hostfwd=tcp::1-:1").unwrap().unwrap();
    assert_eq!(user(&network).forwards.len(), 1);
    let mac = Some([0x52, 0x54, 0, 1, 2, 3]);
    assert_eq!(card, DeviceChoice::VirtioNet { netdev: network.id, mac });
    assert!(nic("user,model=e1000").unwrap_err().contains("model=e1000: not built yet"));
    assert!(nic("user,hostfw=x").unwrap_err().contains("'hostfwd'"));
    for mac in ["52:54:0:1:2", "53:54:0:1:2:3", "52:54:0:1:2:333", "x"] {
        assert!(nic(&format!("user,mac={mac}")).unwrap_err().contains("mac= takes"), "{mac}");
    }
}

#[test]
fn interfaces_of_the_kernel() {
    let tap = |value: &str| match read(value).unwrap().kind {
        NetworkKind::Tap(choice) => choice,
        other => panic!("{other:?}"),
    };
    let plain = tap("tap,id=n0");
    assert_eq!((plain.source, plain.vnet_header), (TapSource::Named(None), true));
    assert!(plain.script.unwrap().is_default && plain.down_script.unwrap().is_default);
    let named = tap("tap,id=n0,ifname=tap3,script=no,downscript=/bin/down,vhost=off,vnet_hdr=off,queues=1");
    assert_eq!((named.source, named.vnet_header), (TapSource::Named(Some("tap3".into())), false));
    assert_eq!(named.down_script, Some(Script { path: "/bin/down".into(), is_default: false }));
    assert_eq!(named.script, None);
    for text in ["tap,id=n0,fd=7", "tap,id=n0,fds=7"] {
        let fd = tap(text);
        assert_eq!((fd.source, fd.script, fd.down_script), (TapSource::Fd(7), None, None));
    }
    for (text, vhost) in [
        ("vhost=off", None),
        ("vhost=off,vhostforce=on", None),
        ("vhost=on", Some(VhostSource::Device)),
        ("vhostforce=on", Some(VhostSource::Device)),
        ("vhost=on,vhostfd=9", Some(VhostSource::Fd(9))),
        ("vhost=on,vhostfds=9", Some(VhostSource::Fd(9))),
    ] {
        assert_eq!(tap(&format!("tap,id=n0,{text}")).vhost, vhost, "{text}");
    }
    refused("tap,id=n0,vhostfd=9", "vhostfd= is for vhost=on");
    refused("tap,id=n0,vhost=maybe", "vhost= takes on or off");
    refused("tap,id=n0,vhost=on,vhostfd=x", "vhostfd= takes the number");
    refused("tap,id=n0,vhost=on,vhostfds=9:10", "vhostfds= of more than one, several queues: not built yet");
    refused("tap,id=n0,fds=7:8", "fds= of more than one, several queues: not built yet");
    refused("tap,id=n0,queues=2", "queues= of more than 1: not built yet");
    refused("tap,id=n0,queues=0", "queues= takes a number");
    refused("tap,id=n0,ifname=a,fd=7", "exclude each other");
    refused("tap,id=n0,fd=7,script=x", "script= and fd= exclude each other");
    refused("tap,id=n0,ifname=sixteen-letters-", "ifname= takes 1 to 15 bytes");
    refused("tap,id=n0,fd=2", "fd= takes the number");
    refused("tap,id=n0,ifnam=x", "unknown property 'ifnam' (did you mean 'ifname'?)");
    refused("tap,id=n0,br=br0", "br: not built yet");
}

#[test]
fn programs_at_the_other_end() {
    let stream = |value: &str| match read(value).unwrap().kind {
        NetworkKind::Stream(config) => config,
        other => panic!("{other:?}"),
    };
    let unix = stream("stream,id=n0,server=off,addr.type=unix,addr.path=/run/passt,reconnect=2");
    let expected = stream::Config {
        address: Address::Unix("/run/passt".into()),
        server: false,
        reconnect: Some(Duration::from_secs(2)),
    };
    assert_eq!(unix, expected);
    let inet = stream("stream,id=n0,server=on,addr.type=inet,addr.host=::1,addr.port=1234");
    assert_eq!(inet.address.to_string(), "[::1]:1234");
    assert!(inet.server && inet.reconnect.is_none());
    assert_eq!(stream("stream,id=n0,addr.type=fd,addr.str=5,reconnect=0").address, Address::Fd(5));
    let Ok(Network { kind: NetworkKind::Dgram(dgram), .. }) =
        read("dgram,id=n0,local.type=unix,local.path=/a,remote.type=unix,remote.path=/b")
    else {
        panic!()
    };
    assert_eq!(dgram.remote, Some(Address::Unix("/b".into())));
    assert!(read("dgram,id=n0,local.type=fd,local.str=3").is_ok());
    refused("stream,id=n0", "needs addr.type=");
    refused("stream,id=n0,addr.type=unix", "needs addr.path= with this addr.type=");
    refused(
        "stream,id=n0,addr.type=unix,addr.path=/a,addr.port=1",
        "addr.port= does not go with addr.type=unix",
    );
    refused("stream,id=n0,addr.type=inet,addr.port=0", "addr.port= takes a port");
    refused("stream,id=n0,addr.type=pipe", "addr.type= takes inet, unix or fd");
    refused("stream,id=n0,addr.type=fd,addr.str=name", "names are not built yet");
    refused("stream,id=n0,addr.type=unix,addr.pth=/a", "did you mean 'addr.path'?");
    refused("stream,id=n0,server=on,addr.type=unix,addr.path=/a,reconnect=1", "reconnect= is for the end");
    refused("stream,id=n0,addr.type=unix,addr.path=/a,reconnect=1,reconnect-ms=5", "exclude each other");
    refused("dgram,id=n0,local.type=unix,local.path=/a", "needs remote.type=");
    refused("dgram,id=n0,local.type=unix,local.path=/a,remote.type=inet,remote.port=1", "must be the same");
    refused(
        "dgram,id=n0,remote.type=inet,remote.host=230.0.0.1,remote.port=1234",
        "multicast group: not built yet",
    );
    refused("dgram,id=n0,local.type=fd,local.str=3,remote.type=unix,remote.path=/b", "takes no remote");
    refused("socket,id=n0,listen=:1234", "socket (stream and dgram do the same): not built yet");
}

#[test]
fn cards_on_any_network() {
    let nic = |value: &str| nic(Context { option: "-nic", value }, 0);
    let (network, _) = nic("stream,model=virtio,addr.type=unix,addr.path=/a").unwrap().unwrap();
    assert!(matches!(network.kind, NetworkKind::Stream(_)));
    let (network, _) = nic("tap,ifname=tap0,script=no,mac=52:54:0:1:2:3").unwrap().unwrap();
    assert!(matches!(network.kind, NetworkKind::Tap(_)));
}
