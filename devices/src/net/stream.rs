//! A network that is a program at the other end of a stream socket (QEMU's `-netdev stream`): passt, a switch, another guest.
//!
//! A frame goes as its length, four bytes in network order, and its bytes. The stream may be cut anywhere. While the other end takes
//! nothing, frames stay in the guest's queue ([`NetBackend::is_ready`]).

mod connection;

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::time::Duration;

use rustix::net::{SocketAddrAny, SocketFlags, SocketType, accept_with, sockopt};

use self::connection::Connection;
use super::poller::{Poller, Time};
use super::socket::{self, Address};
use super::{FrameInfo, FrameSink, NetBackend, Offloads};

/// A stream network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the other end is, or this one.
    pub address: Address,
    /// This end waits for the other one to connect, and for the next one when that is gone.
    pub server: bool,
    /// How long after a failure, or the other end's departure, to connect again; `None`: not at all.
    pub reconnect: Option<Duration>,
}

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nobody listens there.
    #[error("cannot connect to {address}")]
    Connect {
        /// Where.
        address: Address,
        /// The host's answer.
        source: io::Error,
    },
    /// It cannot be listened there.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: Address,
        /// The host's answer.
        source: io::Error,
    },
    /// The host has no descriptors left.
    #[error("epoll")]
    Poller(#[source] io::Error),
    /// A descriptor that was handed down is something else.
    #[error("descriptor {0} is not a stream socket")]
    NotSocket(RawFd),
}

/// How long connecting may take at the start.
const PATIENCE: Duration = Duration::from_secs(20);
/// Tokens of the poller.
const PEER: u64 = 0;
const LISTENER: u64 = 1;

enum Peer {
    /// Nobody is there; frames are lost.
    Absent,
    Connecting(OwnedFd),
    Present(Box<Connection>),
}

/// The network.
pub struct Stream {
    poller: Poller,
    listener: Option<OwnedFd>,
    /// Where to connect to, again and again.
    targets: Vec<SocketAddrAny>,
    reconnect: Option<Duration>,
    peer: Peer,
    /// When to try next.
    retry_at: Option<Time>,
    attempts: usize,
    name: String,
}

impl Stream {
    /// Connects or listens. `inherited` is the socket of [`Address::Fd`].
    pub fn open(config: &Config, inherited: Option<OwnedFd>) -> Result<Self, OpenError> {
        let poller = Poller::new().map_err(OpenError::Poller)?;
        let address = &config.address;
        let connect = |source| OpenError::Connect { address: address.clone(), source };
        let listen = |source| OpenError::Listen { address: address.clone(), source };
        let mut stream = Self {
            poller,
            listener: None,
            targets: Vec::new(),
            reconnect: config.reconnect,
            peer: Peer::Absent,
            retry_at: None,
            attempts: 0,
            name: address.to_string(),
        };
        match (address, inherited) {
            (Address::Fd(number), inherited) => {
                let socket = inherited.filter(is_stream).ok_or(OpenError::NotSocket(*number))?;
                rustix::io::ioctl_fionbio(&socket, true).map_err(|error| connect(error.into()))?;
                if config.server {
                    stream.listen(socket).map_err(listen)?;
                } else {
                    stream.meet(socket).map_err(connect)?;
                }
            }
            _ if config.server => {
                let socket = bind(address).map_err(listen)?;
                stream.listen(socket).map_err(listen)?;
            }
            _ => {
                stream.targets = address.resolve().map_err(connect)?;
                if config.reconnect.is_some() {
                    stream.retry_at = Some(Time::ZERO);
                    stream.poller.wake_at(stream.retry_at);
                } else {
                    let socket = connect_now(&stream.targets).map_err(connect)?;
                    stream.meet(socket).map_err(connect)?;
                }
            }
        }
        Ok(stream)
    }

    fn listen(&mut self, socket: OwnedFd) -> io::Result<()> {
        rustix::net::listen(&socket, 1)?;
        self.poller.watch(&socket, LISTENER)?;
        self.listener = Some(socket);
        Ok(())
    }

    /// The other end is there.
    fn meet(&mut self, socket: OwnedFd) -> io::Result<()> {
        // Only TCP has it.
        let _ = sockopt::set_tcp_nodelay(&socket, true);
        self.poller.watch(&socket, PEER)?;
        self.peer = Peer::Present(Box::new(Connection::new(socket)));
        Ok(())
    }

    /// Whoever waits to be the other end becomes it.
    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        while matches!(self.peer, Peer::Absent) {
            match accept_with(listener, flags) {
                Ok(socket) => {
                    if let Err(error) = self.meet(socket) {
                        return tracing::warn!(target: "net", %error, "a socket cannot be polled");
                    }
                    return;
                }
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                Err(_) => return,
            }
        }
    }

    /// Begins to connect anew.
    fn try_again(&mut self) {
        self.retry_at = None;
        let Some(target) = self.targets.get(self.attempts % self.targets.len().max(1)) else { return };
        self.attempts += 1;
        let result = socket::new(target, SocketType::STREAM).and_then(|socket| {
            self.poller.watch(&socket, PEER)?;
            match rustix::net::connect(&socket, target) {
                Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
                Err(error) => Err(error.into()),
            }
        });
        match result {
            Ok(socket) => self.peer = Peer::Connecting(socket),
            Err(error) => self.lost(&error),
        }
    }

    /// The other end is gone, or was never there.
    fn lost(&mut self, why: &dyn std::fmt::Display) {
        let was_there = matches!(self.peer, Peer::Present(_));
        self.peer = Peer::Absent;
        if was_there || self.attempts == 1 {
            tracing::warn!(target: "net", peer = self.name, %why, "the other end of a network is not there");
        }
        if !self.targets.is_empty() {
            self.retry_at = self.reconnect.map(|delay| self.poller.now() + delay);
        }
    }

    /// Takes in what has happened on the host.
    fn poll(&mut self) {
        let mut reports = std::mem::take(&mut self.poller.reports);
        self.poller.poll(&mut reports);
        let happened = reports.iter().filter(|(token, _)| *token == PEER);
        let peer = happened.fold(Default::default(), |sum: super::poller::Readiness, (_, now)| sum.and(*now));
        reports.clear();
        self.poller.reports = reports;
        match &mut self.peer {
            Peer::Present(connection) => connection.report(peer),
            Peer::Connecting(socket) if peer.writable || peer.hung_up => {
                match sockopt::socket_error(&*socket) {
                    Ok(Ok(())) => {
                        let Peer::Connecting(socket) = std::mem::replace(&mut self.peer, Peer::Absent) else {
                            unreachable!("it was just looked at")
                        };
                        let _ = sockopt::set_tcp_nodelay(&socket, true);
                        self.peer = Peer::Present(Box::new(Connection::new(socket)));
                    }
                    Ok(Err(error)) | Err(error) => self.lost(&error),
                }
            }
            Peer::Connecting(_) | Peer::Absent => {}
        }
        if self.retry_at.is_some_and(|time| time <= self.poller.now()) {
            self.try_again();
        }
        self.accept();
    }
}

fn is_stream(socket: &OwnedFd) -> bool {
    sockopt::socket_type(socket) == Ok(SocketType::STREAM)
}

/// A socket bound to the first of the addresses that can be had.
fn bind(address: &Address) -> io::Result<OwnedFd> {
    if let Address::Unix(path) = address {
        return socket::bind_unix(path, SocketType::STREAM);
    }
    let bind = |address: &SocketAddrAny| {
        let socket = socket::new(address, SocketType::STREAM)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, address)?;
        Ok(socket)
    };
    first(&address.resolve()?, bind)
}

/// A connection to the first of the addresses where somebody is.
fn connect_now(targets: &[SocketAddrAny]) -> io::Result<OwnedFd> {
    first(targets, |target| {
        let socket = socket::new(target, SocketType::STREAM)?;
        match rustix::net::connect(&socket, target) {
            Ok(()) => return Ok(socket),
            Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        socket::wait_writable(&socket, PATIENCE)?;
        sockopt::socket_error(&socket)??;
        Ok(socket)
    })
}

fn first<T>(addresses: &[SocketAddrAny], each: impl Fn(&SocketAddrAny) -> io::Result<T>) -> io::Result<T> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match each(address) {
            Ok(done) => return Ok(done),
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl NetBackend for Stream {
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn send(&mut self, _: &FrameInfo, frame: &[u8]) {
        if let Peer::Present(connection) = &mut self.peer
            && let Err(error) = connection.send(frame)
        {
            self.lost(&error);
        }
    }

    fn is_ready(&self) -> bool {
        match &self.peer {
            Peer::Present(connection) => connection.is_ready(),
            Peer::Connecting(_) | Peer::Absent => true,
        }
    }

    fn receive(&mut self, sink: &mut dyn FrameSink) -> bool {
        self.poll();
        let mut more = false;
        if let Peer::Present(connection) = &mut self.peer {
            match connection.flush().and_then(|()| connection.receive(sink)) {
                Ok(unfinished) => more = unfinished,
                Err(error) => {
                    self.lost(&error);
                    self.accept();
                    more = matches!(self.peer, Peer::Present(_));
                }
            }
        }
        self.poller.wake_at(self.retry_at);
        more
    }

    fn wakeup_fd(&self) -> RawFd {
        self.poller.fd()
    }
}

#[cfg(test)]
mod tests;
