//! A network that is a program at the other end of a datagram socket (QEMU's `-netdev dgram`): each datagram is a frame.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::net::{RecvFlags, SendFlags, SocketAddrAny, SocketType, recv, send, sendto, sockopt};

use super::socket::{self, Address};
use super::{FrameInfo, FrameSink, MAX_FRAME_BYTES, NetBackend, Offloads};

/// Frames before it is the guest's turn.
const TURN_FRAMES: usize = 256;
/// What a socket should hold: more than the largest frame, which the usual limits of Unix sockets are not.
const BUFFER_BYTES: usize = 1 << 20;

/// A datagram network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This end.
    pub local: Address,
    /// The other end; `None` with a descriptor, which is connected.
    pub remote: Option<Address>,
}

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// This end cannot be had.
    #[error("no socket on {address}")]
    Local {
        /// Where.
        address: Address,
        /// The host's answer.
        source: io::Error,
    },
    /// The other end cannot be.
    #[error("no way to {address}")]
    Remote {
        /// Where.
        address: Address,
        /// The host's answer.
        source: io::Error,
    },
    /// A descriptor that was handed down is something else.
    #[error("descriptor {0} is not a datagram socket")]
    NotSocket(RawFd),
}

/// The network.
pub struct Dgram {
    socket: OwnedFd,
    /// Where frames go, if the socket is not connected.
    remote: Option<SocketAddrAny>,
    buffer: Box<[u8]>,
    /// Bytes of a frame that the guest had no room for.
    pending: usize,
}

impl Dgram {
    /// Opens the socket. `inherited` is that of [`Address::Fd`]. A Unix socket's other end may come later.
    pub fn open(config: &Config, inherited: Option<OwnedFd>) -> Result<Self, OpenError> {
        let local = |source| OpenError::Local { address: config.local.clone(), source };
        let remote = |source| OpenError::Remote {
            address: config.remote.clone().unwrap_or_else(|| config.local.clone()),
            source,
        };
        let socket = match (&config.local, inherited) {
            (Address::Fd(number), inherited) => {
                let is_dgram = |socket: &OwnedFd| sockopt::socket_type(socket) == Ok(SocketType::DGRAM);
                let socket = inherited.filter(is_dgram).ok_or(OpenError::NotSocket(*number))?;
                rustix::io::ioctl_fionbio(&socket, true).map_err(|error| local(error.into()))?;
                socket
            }
            (Address::Unix(path), _) => socket::bind_unix(path, SocketType::DGRAM).map_err(local)?,
            (Address::Inet { .. }, _) => bind_inet(&config.local).map_err(local)?,
        };
        // As far as the host allows.
        let _ = sockopt::set_socket_send_buffer_size(&socket, BUFFER_BYTES);
        let _ = sockopt::set_socket_recv_buffer_size(&socket, BUFFER_BYTES);
        let mut target = None;
        if let Some(address) = &config.remote {
            let first = address.resolve().map_err(remote)?.into_iter().next();
            let first = first.ok_or_else(|| remote(io::ErrorKind::AddrNotAvailable.into()))?;
            if matches!(address, Address::Inet { .. }) {
                // From then on strangers' datagrams are not taken.
                rustix::net::connect(&socket, &first).map_err(|error| remote(error.into()))?;
            } else {
                target = Some(first);
            }
        }
        let buffer = vec![0; MAX_FRAME_BYTES].into_boxed_slice();
        Ok(Self { socket, remote: target, buffer, pending: 0 })
    }

    /// Where the socket is, if it has a port.
    pub fn local_address(&self) -> Option<SocketAddr> {
        socket::local_inet(&self.socket)
    }
}

fn bind_inet(address: &Address) -> io::Result<OwnedFd> {
    let addresses = address.resolve()?;
    let first = addresses.first().ok_or(io::ErrorKind::AddrNotAvailable)?;
    let socket = socket::new(first, SocketType::DGRAM)?;
    rustix::net::bind(&socket, first)?;
    Ok(socket)
}

impl NetBackend for Dgram {
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn send(&mut self, _: &FrameInfo, frame: &[u8]) {
        // Lost where nobody is or there is no room, as on a wire.
        let result = match &self.remote {
            Some(remote) => sendto(&self.socket, frame, SendFlags::NOSIGNAL, remote),
            None => send(&self.socket, frame, SendFlags::NOSIGNAL),
        };
        if let Err(error) = result {
            tracing::trace!(target: "net", %error, "a frame is lost");
        }
    }

    fn receive(&mut self, sink: &mut dyn FrameSink) -> bool {
        let mut got = false;
        for _ in 0..TURN_FRAMES {
            if self.pending == 0 {
                // A longer datagram is no frame, and is told by its true length.
                match recv(&self.socket, &mut self.buffer[..], RecvFlags::TRUNC) {
                    Ok((_, count)) if count <= self.buffer.len() => self.pending = count,
                    Ok(_) => continue,
                    Err(rustix::io::Errno::AGAIN) => return false,
                    // Interrupted, or what became of a frame that was sent.
                    Err(_) => continue,
                }
            }
            if self.pending > 0 && !sink.push(&FrameInfo::default(), &[&self.buffer[..self.pending]]) {
                return false;
            }
            self.pending = 0;
            got = true;
        }
        got
    }

    fn wakeup_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests;
