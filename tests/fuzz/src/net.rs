//! A guest's network stack: frames with headers that agree with what is in them (lengths, checksums, sequence numbers), but
//! where the input says otherwise.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::input::Input;

/// The guest's and the network's addresses, QEMU's usual ones.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
pub const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0x15);
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2);
pub const DNS6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 3);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const DHCP_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;
const SYN: u8 = 2;

/// Ports of the guest's sockets.
const PORTS: [u16; 4] = [22, 1000, 1001, 1002];
/// Ports behind the addresses, beside those that the host has: DNS, DHCP, nobody.
const SERVICES: [u16; 4] = [53, 67, 547, 9];

/// What a socket of the guest's is to send and expects next.
#[derive(Clone, Copy, Default)]
struct Socket {
    sent: u32,
    received: u32,
    peer: u16,
}

/// A guest.
pub struct Guest {
    sockets: [Socket; PORTS.len()],
    is_restricted: bool,
    host_port: u16,
}

/// One's complement sum of 16-bit words.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn ethernet(kind: u16, packet: &[u8]) -> Vec<u8> {
    [&[0x52, 0x55, 10, 0, 2, 2][..], &MAC, &kind.to_be_bytes(), packet].concat()
}

impl Guest {
    /// A guest. If the network restricts it, its frames go where they like; else TCP and UDP to [`HOST`] go to one port only:
    /// other programs of this machine have the others.
    pub fn new(is_restricted: bool, host_port: u16) -> Self {
        Self { sockets: Default::default(), is_restricted, host_port }
    }

    /// The next frame.
    pub fn frame(&mut self, input: &mut Input) -> Vec<u8> {
        let what = input.u8();
        match what & 7 {
            0 if self.is_restricted => input.short().to_vec(),
            1 if self.is_restricted => ethernet(input.pick(&[0x800, 0x806, 0x86dd]), input.short()),
            2 => arp(input),
            _ if what & 0x80 == 0 => {
                let to = if self.is_restricted {
                    input.pick(&[
                        HOST,
                        DNS,
                        Ipv4Addr::BROADCAST,
                        Ipv4Addr::new(192, 0, 2, 1),
                        Ipv4Addr::LOCALHOST,
                    ])
                } else {
                    input.pick(&[HOST, HOST, DNS, Ipv4Addr::BROADCAST])
                };
                let from = if what & 0x40 == 0 { GUEST } else { Ipv4Addr::UNSPECIFIED };
                let protocol = input.pick(&[TCP, TCP, UDP, ICMP]);
                let (head, tail) = (from.octets(), to.octets());
                let payload = self.payload(input, protocol, to == HOST, &[head, tail].concat());
                self.ipv4(input, protocol, &[head, tail].concat(), &payload)
            }
            _ => {
                let to = if self.is_restricted {
                    input.pick(&[HOST6, DNS6, ALL_NODES, DHCP_SERVERS, Ipv6Addr::LOCALHOST])
                } else {
                    input.pick(&[HOST6, HOST6, DNS6, ALL_NODES, DHCP_SERVERS])
                };
                let protocol = input.pick(&[TCP, TCP, UDP, ICMP6]);
                let addresses = [GUEST6.octets(), to.octets()].concat();
                let payload = self.payload(input, protocol, to == HOST6, &addresses);
                self.ipv6(input, protocol, &addresses, &payload)
            }
        }
    }

    fn ipv4(&self, input: &mut Input, protocol: u8, addresses: &[u8], payload: &[u8]) -> Vec<u8> {
        let odd = input.u8();
        let len = 20 + payload.len() as u16;
        let mut head = vec![0x45, 0];
        head.extend(len.to_be_bytes());
        head.extend([0, odd & 3]);
        // Fragments could change the port.
        let offset = if odd & 0x70 == 0x70 && self.is_restricted { input.u16() } else { 0 };
        head.extend(offset.to_be_bytes());
        head.extend([64, protocol, 0, 0]);
        head.extend(addresses);
        if odd & 0x80 != 0 && self.is_restricted {
            let at = usize::from(input.u8()) % head.len();
            head[at] = input.u8();
        }
        let check = sum(&[&head]);
        head[10..12].copy_from_slice(&check.to_be_bytes());
        head.extend(payload);
        ethernet(0x800, &head)
    }

    fn ipv6(&self, input: &mut Input, protocol: u8, addresses: &[u8], payload: &[u8]) -> Vec<u8> {
        let odd = input.u8();
        let mut extension = Vec::new();
        let mut first = protocol;
        if odd & 0x70 == 0x70 && self.is_restricted {
            // A fragment header, or another one.
            first = input.pick(&[44, 0, 60, 43, 51]);
            extension = [&[protocol, 0][..], &input.u16().to_be_bytes(), &[0, 0, 0, odd & 3]].concat();
        }
        let len = (extension.len() + payload.len()) as u16;
        let mut head = vec![0x60, 0, 0, 0];
        head.extend(len.to_be_bytes());
        head.extend([first, 255]);
        head.extend(addresses);
        if odd & 0x80 != 0 && self.is_restricted {
            let at = usize::from(input.u8()) % head.len();
            head[at] = input.u8();
        }
        head.extend(extension);
        head.extend(payload);
        ethernet(0x86dd, &head)
    }

    /// What an IP packet holds, with its checksum.
    fn payload(&mut self, input: &mut Input, protocol: u8, to_host: bool, addresses: &[u8]) -> Vec<u8> {
        let (mut bytes, check_at) = match protocol {
            TCP => (self.tcp(input, to_host), 16),
            UDP => (self.udp(input, to_host), 6),
            _ => (icmp(input), 2),
        };
        if input.u8() != 0xff && bytes.len() >= check_at + 2 {
            let pseudo = [&(bytes.len() as u32).to_be_bytes()[..], &[0, 0, 0, protocol]].concat();
            let check = match protocol {
                ICMP => sum(&[&bytes]),
                _ => sum(&[addresses, &pseudo, &bytes]),
            };
            bytes[check_at..check_at + 2].copy_from_slice(&check.to_be_bytes());
        }
        bytes
    }

    /// Where it goes: a port of the host's is the only one of it.
    fn port(&self, input: &mut Input, to_host: bool) -> u16 {
        let any = input.pick(&SERVICES);
        if to_host && !self.is_restricted { self.host_port } else { any }
    }

    fn tcp(&mut self, input: &mut Input, to_host: bool) -> Vec<u8> {
        let (index, odd, flags) =
            (usize::from(input.u8() & 3), input.u8(), input.pick(&[0x10, 0x18, SYN, 0x11, 4, 0x12, 0x14, 0]));
        // One that came in is answered.
        let peer = match self.sockets[index].peer {
            0 => self.port(input, to_host),
            peer if to_host || self.is_restricted => peer,
            _ => self.port(input, to_host),
        };
        let socket = &mut self.sockets[index];
        let mut sequence = socket.sent;
        let mut acknowledged = socket.received;
        if odd & 3 == 3 {
            sequence = sequence.wrapping_add(input.u32());
            acknowledged = acknowledged.wrapping_add(input.small().wrapping_sub(100));
        }
        let data = if odd & 4 == 0 { &[][..] } else { input.short() }.repeat(usize::from(odd >> 5) + 1);
        let options = if odd & 8 == 0 { &[][..] } else { input.bytes(usize::from(odd >> 3 & 0x1c)) };
        let mut options = options.to_vec();
        options.resize(options.len().next_multiple_of(4), 0);
        let window = input.pick(&[65535u16, 0, 1, 1460, 100]);
        let mut bytes = PORTS[index].to_be_bytes().to_vec();
        bytes.extend(peer.to_be_bytes());
        bytes.extend(sequence.to_be_bytes());
        bytes.extend(acknowledged.to_be_bytes());
        bytes.extend([((5 + options.len() / 4) << 4) as u8, flags]);
        bytes.extend(window.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(options);
        bytes.extend(&data);
        if odd & 0x10 == 0 {
            let ends = u32::from(flags & SYN != 0) + u32::from(flags & 1);
            socket.sent = sequence.wrapping_add(data.len() as u32 + ends);
        }
        bytes
    }

    fn udp(&mut self, input: &mut Input, to_host: bool) -> Vec<u8> {
        let (what, from) = (input.u8(), input.pick(&PORTS));
        let mut to = self.port(input, to_host);
        let mut from = from;
        let data = match what & 3 {
            0 if !to_host || self.is_restricted => {
                (from, to) = (68, 67);
                dhcp(input)
            }
            1 => dns(input),
            2 if !to_host || self.is_restricted => {
                (from, to) = (546, 547);
                // A message of DHCPv6: its kind, a transaction, options.
                [&[input.u8() % 14, 0, 0, 1][..], input.short()].concat()
            }
            _ => input.short().repeat(usize::from(what >> 4) + 1),
        };
        let len = if what & 8 == 0 { 8 + data.len() as u16 } else { input.u16() };
        let mut bytes = [from.to_be_bytes(), to.to_be_bytes(), len.to_be_bytes(), [0; 2]].concat();
        bytes.extend(data);
        bytes
    }

    /// Takes notice of what the network sent: the sequence numbers that go on from it.
    pub fn hear(&mut self, frame: &[u8]) {
        let Some(start) = (match frame.get(12..14) {
            Some([8, 0]) if frame.get(23) == Some(&TCP) => Some(34),
            Some([0x86, 0xdd]) if frame.get(20) == Some(&TCP) => Some(54),
            _ => None,
        }) else {
            return;
        };
        let Some(head) = frame.get(start..start + 20) else { return };
        let port = u16::from_be_bytes([head[2], head[3]]);
        let Some(index) = PORTS.iter().position(|&own| own == port) else { return };
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("4 bytes"));
        let data = frame.len().saturating_sub(start + usize::from(head[12] >> 4) * 4) as u32;
        let socket = &mut self.sockets[index];
        socket.received =
            word(4).wrapping_add(data + u32::from(head[13] & SYN != 0) + u32::from(head[13] & 1));
        if head[13] & 4 != 0 {
            *socket = Socket::default();
        } else if head[13] & (SYN | 0x10) == SYN {
            socket.peer = u16::from_be_bytes([head[0], head[1]]);
        } else if socket.sent == 0 {
            socket.sent = word(8);
        }
    }
}

fn arp(input: &mut Input) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, input.u8() & 3];
    packet.extend(MAC);
    packet.extend(input.pick(&[GUEST, Ipv4Addr::UNSPECIFIED, HOST]).octets());
    packet.extend([0; 6]);
    packet.extend(input.pick(&[HOST, DNS, GUEST, Ipv4Addr::new(10, 0, 2, 99)]).octets());
    let more = input.u8() & 3;
    packet.extend(input.bytes(more.into()));
    ethernet(0x806, &packet)
}

/// Echo requests, and those of neighbour discovery.
fn icmp(input: &mut Input) -> Vec<u8> {
    let kind = input.pick(&[8u8, 128, 133, 135, 136, 3, 0, 129, 255]);
    let mut bytes = vec![kind, input.u8() & 1, 0, 0];
    bytes.extend(input.u8().to_be_bytes().repeat(4));
    if matches!(kind, 135 | 136) {
        bytes.extend(input.pick(&[HOST6, DNS6, GUEST6]).octets());
        bytes.extend([1, 1]);
        bytes.extend(MAC);
    }
    bytes.extend(input.short());
    bytes
}

fn dhcp(input: &mut Input) -> Vec<u8> {
    let mut bytes = vec![1, 1, 6, 0];
    bytes.extend([1; 4]);
    bytes.extend([0; 4]);
    bytes.extend(if input.u8() & 1 == 0 { [0; 4] } else { GUEST.octets() });
    bytes.extend([0; 12]);
    bytes.extend(MAC);
    bytes.extend([0; 10 + 192]);
    bytes.extend([0x63, 0x82, 0x53, 0x63, 53, 1, input.u8() % 9]);
    bytes.extend(input.short());
    if input.u8() != 0xff {
        bytes.push(255);
    }
    bytes
}

fn dns(input: &mut Input) -> Vec<u8> {
    let mut bytes = input.u16().to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    bytes.extend([4]);
    bytes.extend(b"fuzz");
    bytes.extend(input.short());
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}
