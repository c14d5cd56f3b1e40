//! Ports of the host that lead into the guest (`hostfwd=`).

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use super::config::{HostForward, Protocol};
use super::flows::FlowId;
use super::udp::MAX_BYTES;
use super::{Flow, Key, Turn, UserNet, tcp};
use crate::net::FrameSink;
use crate::net::poller::Time;

/// Peers of a UDP port at once; the one that was silent longest makes room.
const MAX_PEERS: usize = 1024;
/// How long a host without descriptors is left alone.
const PAUSE: Duration = Duration::from_millis(100);
/// Before it is another's turn.
const TURN_DATAGRAMS: usize = 32;
const TURN_ACCEPTS: usize = 64;

/// A TCP port.
pub(super) struct Listener {
    socket: TcpListener,
    guest: SocketAddr,
}

/// A UDP port.
pub(super) struct Port {
    socket: UdpSocket,
    guest: SocketAddr,
    /// Peers, by what the guest calls them.
    peers: HashMap<SocketAddr, (SocketAddr, Time)>,
}

impl UserNet {
    /// Opens the ports of the host.
    pub(super) fn open_forwards(&mut self) -> Result<(), (HostForward, io::Error)> {
        for (index, rule) in self.link.config.forwards.clone().into_iter().enumerate() {
            self.open_forward(index, &rule).map_err(|error| (rule, error))?;
        }
        Ok(())
    }

    fn open_forward(&mut self, index: usize, rule: &HostForward) -> io::Result<()> {
        let guest = rule.guest;
        let token = self.flows.next_id().token();
        let flow = match rule.protocol {
            Protocol::Tcp => {
                let socket = TcpListener::bind(rule.host)?;
                socket.set_nonblocking(true)?;
                self.poller.watch(&socket, token)?;
                Flow::Listener(Listener { socket, guest })
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind(rule.host)?;
                socket.set_nonblocking(true)?;
                self.poller.watch(&socket, token)?;
                Flow::Port(Port { socket, guest, peers: HashMap::new() })
            }
        };
        let id = self.flows.insert(Key::Forward(index), flow);
        if rule.protocol == Protocol::Udp {
            self.ports.push(id);
        }
        Ok(())
    }

    /// Somebody connects.
    pub(super) fn work_listener(&mut self, id: FlowId) -> Turn {
        for _ in 0..TURN_ACCEPTS {
            let Some(Flow::Listener(listener)) = self.flows.get_mut(id) else { return Turn::Done };
            let guest = listener.guest;
            match listener.socket.accept() {
                Ok((socket, peer)) => {
                    if socket.set_nonblocking(true).is_ok() {
                        tcp::set_options(&socket);
                        // Closed at once if there are too many.
                        let _ = self.open_inbound(guest, peer, socket);
                    }
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return Turn::Done,
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                    _ => {
                        // No descriptor is free: who waits is not announced again.
                        let now = self.poller.now();
                        self.flows.set_deadline(id, Some(now + PAUSE));
                        return Turn::Done;
                    }
                },
            }
        }
        Turn::Again
    }

    /// Datagrams have come.
    pub(super) fn work_port(&mut self, id: FlowId, sink: &mut dyn FrameSink) -> Turn {
        for _ in 0..TURN_DATAGRAMS {
            if !self.link.flush(sink) {
                return Turn::NoRoom;
            }
            let now = self.poller.now();
            let Some(Flow::Port(port)) = self.flows.get_mut(id) else { return Turn::Done };
            match port.socket.recv_from(&mut self.scratch) {
                Ok((count, peer)) if count <= MAX_BYTES => {
                    let inside = self.link.config.inside(peer.ip(), port.guest.ip());
                    let inside = SocketAddr::new(inside, peer.port());
                    port.note(inside, peer, now);
                    self.link.udp(inside, port.guest, &self.scratch[..count]);
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Turn::Done,
                // What an answer that was sent before came to.
                Err(_) => {}
            }
        }
        Turn::Again
    }

    /// Sends what the guest sends from a forwarded port to one who sent to it; whether that is what it is.
    pub(super) fn reply_through_forward(
        &mut self,
        guest: SocketAddr,
        remote: SocketAddr,
        payload: &[u8],
    ) -> bool {
        let now = self.poller.now();
        for index in 0..self.ports.len() {
            let Some(Flow::Port(port)) = self.flows.get_mut(self.ports[index]) else { continue };
            if port.guest != guest {
                continue;
            }
            if let Some((peer, used)) = port.peers.get_mut(&remote) {
                *used = now;
                // Lost if the host has no room.
                let _ = port.socket.send_to(payload, *peer);
                return true;
            }
        }
        false
    }
}

impl Port {
    fn note(&mut self, inside: SocketAddr, peer: SocketAddr, now: Time) {
        if self.peers.len() >= MAX_PEERS && !self.peers.contains_key(&inside) {
            let oldest = self.peers.iter().min_by_key(|(_, (_, used))| *used).map(|(inside, _)| *inside);
            oldest.map(|oldest| self.peers.remove(&oldest));
        }
        self.peers.insert(inside, (peer, now));
    }
}
