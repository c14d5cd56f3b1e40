//! Where the sockets of `-netdev stream` and `-netdev dgram` are (QEMU's `SocketAddress`).

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// A name for a socket's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A host by name or address, and a port.
    Inet {
        /// The host; empty where any of this machine's addresses will do.
        host: String,
        /// The port.
        port: u16,
    },
    /// A file.
    Unix(PathBuf),
    /// A socket that whoever started the process opened.
    Fd(RawFd),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Inet { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Inet { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Fd(fd) => write!(f, "descriptor {fd}"),
        }
    }
}

impl Address {
    /// As the kernel wants it: all that the name stands for. May ask a name server.
    pub(super) fn resolve(&self) -> io::Result<Vec<SocketAddrAny>> {
        match self {
            Self::Inet { host, port } => {
                let host = if host.is_empty() { "0.0.0.0" } else { host };
                Ok((host, *port).to_socket_addrs()?.map(SocketAddrAny::from).collect())
            }
            Self::Unix(path) => Ok(vec![SocketAddrUnix::new(path.as_path())?.into()]),
            Self::Fd(_) => Err(ErrorKind::InvalidInput.into()),
        }
    }
}

/// A socket of the address's family that never blocks.
pub(super) fn new(address: &SocketAddrAny, kind: SocketType) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(socket_with(address.address_family(), kind, flags, None)?)
}

/// A socket for the file `path`. A socket that is in the way and behind which nobody is makes room, as in QEMU; nothing else does.
pub(super) fn bind_unix(path: &Path, kind: SocketType) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let socket = new(&address.clone().into(), kind)?;
    let result = rustix::net::bind(&socket, &address);
    if result != Err(rustix::io::Errno::ADDRINUSE) {
        return result.map(|()| socket).map_err(Into::into);
    }
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let probe = new(&address.clone().into(), kind)?;
    if !is_socket || connect(&probe, &address) != Err(rustix::io::Errno::CONNREFUSED) {
        return Err(rustix::io::Errno::ADDRINUSE.into());
    }
    std::fs::remove_file(path)?;
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

/// The address that a socket was bound to, with the port that the kernel chose.
pub(super) fn local_inet(socket: &OwnedFd) -> Option<SocketAddr> {
    rustix::net::getsockname(socket).ok().and_then(|address| SocketAddr::try_from(address).ok())
}

/// Waits until something can be written to a socket, or its connecting has failed.
pub(super) fn wait_writable(socket: &OwnedFd, patience: Duration) -> io::Result<()> {
    let epoll = Epoll::new()?;
    let event = EpollEvent::new(EventSet::OUT, 0);
    epoll.ctl(ControlOperation::Add, socket.as_raw_fd(), event)?;
    let milliseconds = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    match epoll.wait(milliseconds, &mut [EpollEvent::default()])? {
        0 => Err(ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}
