//! DHCPv6 for guests that have their addresses from the router and ask for the rest (RFC 8415, 18.3.6; RFC 3646): the name server.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::UserNet;
use super::link::station;

/// Where clients send to.
pub(super) const SERVER_PORT: u16 = 547;
/// Where they listen.
pub(super) const CLIENT_PORT: u16 = 546;
const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// Types of messages.
mod kind {
    pub(super) const REPLY: u8 = 7;
    pub(super) const INFORMATION_REQUEST: u8 = 11;
}

/// Numbers of options.
mod option {
    pub(super) const CLIENT_ID: u16 = 1;
    pub(super) const SERVER_ID: u16 = 2;
    pub(super) const REQUEST: u16 = 6;
    pub(super) const NAME_SERVERS: u16 = 23;
}

/// The longest identifier of a client (RFC 8415, 11.1).
const MAX_ID_BYTES: usize = 130;

/// The first option `wanted` of a message.
fn find(mut options: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (head, rest) = options.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let (value, rest) = rest.split_at_checked(length)?;
        if u16::from_be_bytes([head[0], head[1]]) == wanted {
            return Some(value);
        }
        options = rest;
    }
}

fn put(message: &mut Vec<u8>, option: u16, value: &[u8]) {
    message.extend(option.to_be_bytes());
    message.extend((value.len() as u16).to_be_bytes());
    message.extend(value);
}

/// The answer to a client's message, if it gets one. `server` is this server's identifier.
fn answer(request: &[u8], server: &[u8], dns: Option<Ipv6Addr>) -> Option<Vec<u8>> {
    let (head, options) = request.split_first_chunk::<4>()?;
    if head[0] != kind::INFORMATION_REQUEST || find(options, option::SERVER_ID).is_some_and(|id| id != server)
    {
        return None;
    }
    let mut reply = vec![kind::REPLY, head[1], head[2], head[3]];
    if let Some(client) = find(options, option::CLIENT_ID) {
        if client.len() > MAX_ID_BYTES {
            return None;
        }
        put(&mut reply, option::CLIENT_ID, client);
    }
    put(&mut reply, option::SERVER_ID, server);
    let wants = |number: u16| {
        find(options, option::REQUEST)
            .is_some_and(|list| list.chunks(2).any(|item| item == number.to_be_bytes()))
    };
    if let Some(dns) = dns.filter(|_| wants(option::NAME_SERVERS)) {
        put(&mut reply, option::NAME_SERVERS, &dns.octets());
    }
    Some(reply)
}

impl UserNet {
    /// A message to a DHCPv6 server, perhaps this one.
    pub(super) fn dhcpv6_message(&mut self, client: SocketAddr, target: IpAddr, message: &[u8]) {
        let Some(config) = &self.link.config.ipv6 else { return };
        let router = config.link_local();
        if target != ALL_SERVERS && target != router {
            return;
        }
        // By the address of its card, on Ethernet (RFC 8415, 11.4).
        let server = [&[0, 3, 0, 1][..], station(config.host).as_bytes()].concat();
        let dns = (!self.link.config.restrict).then_some(config.dns);
        if let Some(reply) = answer(message, &server, dns) {
            self.link.udp(SocketAddr::from((router, SERVER_PORT)), client, &reply);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: &[u8] = &[0, 3, 0, 1, 2, 3, 4, 5, 6, 7];

    fn dns() -> Option<Ipv6Addr> {
        Some("fec0::3".parse().unwrap())
    }

    #[test]
    fn the_name_server_for_who_asks() {
        let request = [11, 1, 2, 3, 0, 1, 0, 2, 8, 9, 0, 6, 0, 4, 0, 24, 0, 23];
        let reply = answer(&request, SERVER, dns()).unwrap();
        assert_eq!(reply[..10], [7, 1, 2, 3, 0, 1, 0, 2, 8, 9]);
        assert_eq!(find(&reply[4..], option::SERVER_ID), Some(SERVER));
        assert_eq!(find(&reply[4..], option::NAME_SERVERS), Some(&dns().unwrap().octets()[..]));
        // Who does not ask, and who may not know.
        let plain = answer(&request[..10], SERVER, dns()).unwrap();
        assert_eq!(find(&plain[4..], option::NAME_SERVERS), None);
        assert_eq!(find(&answer(&request, SERVER, None).unwrap()[4..], option::NAME_SERVERS), None);
    }

    #[test]
    fn what_gets_no_answer() {
        // A solicitation of an address, another server's, none at all.
        assert_eq!(answer(&[1, 0, 0, 0], SERVER, dns()), None);
        assert_eq!(answer(&[11, 0, 0, 0, 0, 2, 0, 1, 9], SERVER, dns()), None);
        assert_eq!(answer(&[11, 0], SERVER, dns()), None);
        let long = [&[11, 0, 0, 0, 0, 1, 0, 200][..], &[0; 200]].concat();
        assert_eq!(answer(&long, SERVER, dns()), None);
        // Lengths that lead out of the message end the search.
        assert_eq!(find(&[0, 9, 0, 200, 1], 1), None);
        assert_eq!(find(&[0, 9, 0], 9), None);
    }
}
