//! The DHCP server (RFC 2131, 2132). It says what QEMU's says.

use std::net::Ipv4Addr;

use smoltcp::wire::{
    DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress,
};

use super::config::Config;

/// Where clients send to.
pub(super) const SERVER_PORT: u16 = DHCP_SERVER_PORT;
/// Where they listen.
pub(super) const CLIENT_PORT: u16 = DHCP_CLIENT_PORT;
/// How many clients get an address.
const MAX_LEASES: u32 = 16;
const LEASE_SECONDS: u32 = 24 * 60 * 60;
/// BOOTP's smallest message (RFC 951): some clients and relays take no shorter ones.
const MIN_MESSAGE_BYTES: usize = 300;

/// RFC 2132's numbers of the options that smoltcp does not name.
mod option {
    pub(super) const HOSTNAME: u8 = 12;
    pub(super) const DOMAIN_NAME: u8 = 15;
    pub(super) const MESSAGE: u8 = 56;
}

/// Who has which address: the first of `dhcpstart=` on, by index.
#[derive(Default)]
pub(super) struct DhcpServer {
    leases: [Option<EthernetAddress>; MAX_LEASES as usize],
}

/// An answer, and the station it goes to.
pub(super) struct Reply {
    pub(super) to: EthernetAddress,
    pub(super) message: Vec<u8>,
}

impl DhcpServer {
    /// The answer to a client's message, if it gets one.
    pub(super) fn answer(&mut self, config: &Config, message: &[u8]) -> Option<Reply> {
        let packet = DhcpPacket::new_checked(message).ok()?;
        let request = DhcpRepr::parse(&packet).ok()?;
        let client = request.client_hardware_address;
        let asked =
            request.requested_ip.or((!request.client_ip.is_unspecified()).then_some(request.client_ip));
        let (kind, given) = match request.message_type {
            DhcpMessageType::Discover => {
                let wished = asked.and_then(|address| self.take(config, client, address));
                let given = wished.or_else(|| self.find(config, client))?;
                (DhcpMessageType::Offer, Some(given))
            }
            DhcpMessageType::Request => {
                // Another server was chosen.
                if request.server_identifier.is_some_and(|server| server != config.host) {
                    return None;
                }
                let given = match asked {
                    Some(address) => self.take(config, client, address),
                    None => self.find(config, client),
                };
                let kind = if given.is_some() { DhcpMessageType::Ack } else { DhcpMessageType::Nak };
                (kind, given)
            }
            DhcpMessageType::Inform => (DhcpMessageType::Ack, None),
            DhcpMessageType::Release | DhcpMessageType::Decline => {
                // A declined address is in use by somebody whom we do not know: the next client is tried with it again,
                // as QEMU does.
                self.leases
                    .iter_mut()
                    .filter(|lease| **lease == Some(client))
                    .for_each(|lease| *lease = None);
                return None;
            }
            _ => return None,
        };
        Some(Reply { to: client, message: write(config, &request, kind, given) })
    }

    fn address(config: &Config, index: u32) -> Option<Ipv4Addr> {
        let address = Ipv4Addr::from(u32::from(config.dhcp_start).checked_add(index)?);
        config.is_guest(address).then_some(address)
    }

    /// `wished`, if the client can have it.
    fn take(&mut self, config: &Config, client: EthernetAddress, wished: Ipv4Addr) -> Option<Ipv4Addr> {
        let index =
            u32::from(wished).checked_sub(config.dhcp_start.into()).filter(|index| *index < MAX_LEASES)?;
        let address = Self::address(config, index)?;
        let lease = &mut self.leases[index as usize];
        if lease.is_some_and(|owner| owner != client) {
            return None;
        }
        *lease = Some(client);
        Some(address)
    }

    /// The client's address, or else the first that is free.
    fn find(&mut self, config: &Config, client: EthernetAddress) -> Option<Ipv4Addr> {
        let own = self.leases.iter().position(|lease| *lease == Some(client));
        let index = own.or_else(|| {
            let free = |index: &usize| {
                self.leases[*index].is_none() && Self::address(config, *index as u32).is_some()
            };
            (0..self.leases.len()).find(free)
        })?;
        self.leases[index] = Some(client);
        Self::address(config, index as u32)
    }
}

fn write(config: &Config, request: &DhcpRepr, kind: DhcpMessageType, given: Option<Ipv4Addr>) -> Vec<u8> {
    let is_good = kind != DhcpMessageType::Nak;
    let leads_out = is_good && !config.restrict;
    let mut options = Vec::new();
    if is_good {
        let names = [(option::HOSTNAME, &config.hostname), (option::DOMAIN_NAME, &config.domain)];
        for (kind, name) in names {
            options.extend(name.as_ref().map(|name| DhcpOption { kind, data: name.as_bytes() }));
        }
    } else {
        options.push(DhcpOption { kind: option::MESSAGE, data: b"requested address not available" });
    }
    let reply = DhcpRepr {
        message_type: kind,
        transaction_id: request.transaction_id,
        secs: 0,
        client_hardware_address: request.client_hardware_address,
        client_ip: if given.is_none() && is_good { request.client_ip } else { Ipv4Addr::UNSPECIFIED },
        your_ip: given.unwrap_or(Ipv4Addr::UNSPECIFIED),
        server_ip: config.host,
        router: leads_out.then_some(config.host),
        subnet_mask: is_good.then_some(config.mask),
        relay_agent_ip: request.relay_agent_ip,
        broadcast: request.broadcast,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(config.host),
        parameter_request_list: None,
        dns_servers: leads_out.then(|| [config.dns].into_iter().collect()),
        max_size: None,
        lease_duration: given.map(|_| LEASE_SECONDS),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &options,
    };
    let mut message = vec![0; reply.buffer_len().max(MIN_MESSAGE_BYTES)];
    reply
        .emit(&mut DhcpPacket::new_unchecked(&mut message[..]))
        .expect("the buffer has the length that was asked for, and names are short");
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

    fn ask(
        server: &mut DhcpServer,
        config: &Config,
        kind: DhcpMessageType,
        client: u8,
        wish: Option<Ipv4Addr>,
    ) -> Option<(DhcpMessageType, Ipv4Addr, Vec<u8>)> {
        let request = DhcpRepr {
            message_type: kind,
            transaction_id: 7,
            secs: 0,
            client_hardware_address: EthernetAddress([2, 0, 0, 0, 0, client]),
            client_ip: ANY,
            your_ip: ANY,
            server_ip: ANY,
            router: None,
            subnet_mask: None,
            relay_agent_ip: ANY,
            broadcast: true,
            requested_ip: wish,
            client_identifier: None,
            server_identifier: None,
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        };
        let mut message = vec![0; request.buffer_len()];
        request.emit(&mut DhcpPacket::new_unchecked(&mut message[..])).unwrap();
        let reply = server.answer(config, &message)?;
        assert_eq!(reply.to, request.client_hardware_address);
        let packet = DhcpPacket::new_checked(&reply.message[..]).unwrap();
        let repr = DhcpRepr::parse(&packet).unwrap();
        assert_eq!((repr.transaction_id, repr.server_identifier), (7, Some(config.host)));
        Some((repr.message_type, repr.your_ip, reply.message.clone()))
    }

    #[test]
    fn a_lease_with_all_that_goes_with_it() {
        let config = Config { hostname: Some("guest".into()), ..Config::default() };
        let mut server = DhcpServer::default();
        let (kind, address, _) = ask(&mut server, &config, DhcpMessageType::Discover, 1, None).unwrap();
        assert_eq!((kind, address), (DhcpMessageType::Offer, config.dhcp_start));
        let (kind, _, message) =
            ask(&mut server, &config, DhcpMessageType::Request, 1, Some(address)).unwrap();
        assert_eq!(kind, DhcpMessageType::Ack);
        assert!(message.len() >= MIN_MESSAGE_BYTES);
        let packet = DhcpPacket::new_checked(&message[..]).unwrap();
        let repr = DhcpRepr::parse(&packet).unwrap();
        assert_eq!((repr.router, repr.subnet_mask), (Some(config.host), Some(config.mask)));
        assert_eq!((repr.dns_servers.unwrap()[0], repr.lease_duration), (config.dns, Some(86400)));
        assert!(packet.options().any(|option| option.kind == 12 && option.data == b"guest"));
    }

    #[test]
    fn an_address_each_while_there_are_some() {
        let (config, mut server) = (Config::default(), DhcpServer::default());
        for client in 0..16 {
            let (_, address, _) = ask(&mut server, &config, DhcpMessageType::Discover, client, None).unwrap();
            assert_eq!(address, Ipv4Addr::new(10, 0, 2, 15 + client));
        }
        assert!(ask(&mut server, &config, DhcpMessageType::Discover, 99, None).is_none());
        ask(&mut server, &config, DhcpMessageType::Release, 3, None);
        let (_, address, _) = ask(&mut server, &config, DhcpMessageType::Discover, 99, None).unwrap();
        assert_eq!(address, Ipv4Addr::new(10, 0, 2, 18));
    }

    #[test]
    fn wishes() {
        let (config, mut server) = (Config::default(), DhcpServer::default());
        let wish = Ipv4Addr::new(10, 0, 2, 20);
        let (kind, address, _) = ask(&mut server, &config, DhcpMessageType::Request, 1, Some(wish)).unwrap();
        assert_eq!((kind, address), (DhcpMessageType::Ack, wish));
        for taken in [wish, Ipv4Addr::new(10, 0, 2, 2), Ipv4Addr::new(192, 168, 0, 9)] {
            let (kind, address, _) =
                ask(&mut server, &config, DhcpMessageType::Request, 2, Some(taken)).unwrap();
            assert_eq!((kind, address), (DhcpMessageType::Nak, ANY));
        }
    }

    #[test]
    fn a_guest_that_gets_nowhere_is_told_no_way() {
        let config = Config { restrict: true, ..Config::default() };
        let (_, _, message) =
            ask(&mut DhcpServer::default(), &config, DhcpMessageType::Discover, 1, None).unwrap();
        let packet = DhcpPacket::new_checked(&message[..]).unwrap();
        let repr = DhcpRepr::parse(&packet).unwrap();
        assert_eq!((repr.router, repr.dns_servers, repr.subnet_mask), (None, None, Some(config.mask)));
    }
}
