//! Sockets: an address, who listens on it, who connects to it (unix(7), tcp(7)).

use std::fmt::{self, Display};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
    sockopt,
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

/// Where a socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket in the file system.
    Unix(PathBuf),
    /// One in Linux's abstract name space.
    Abstract(String),
    /// TCP.
    Tcp(SocketAddr),
}

impl Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract(name) => write!(f, "unix:{name},abstract=on"),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// Why a socket cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("{address}")]
pub struct ConnectError {
    address: Address,
    source: io::Error,
}

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

impl Address {
    fn socket(&self) -> io::Result<OwnedFd> {
        let family = match self {
            Self::Unix(_) | Self::Abstract(_) => AddressFamily::UNIX,
            Self::Tcp(SocketAddr::V4(_)) => AddressFamily::INET,
            Self::Tcp(SocketAddr::V6(_)) => AddressFamily::INET6,
        };
        Ok(socket_with(family, SocketType::STREAM, FLAGS, None)?)
    }

    fn unix(&self) -> io::Result<Option<SocketAddrUnix>> {
        Ok(match self {
            Self::Unix(path) => Some(SocketAddrUnix::new(path)?),
            Self::Abstract(name) => Some(SocketAddrUnix::new_abstract_name(name.as_bytes())?),
            Self::Tcp(_) => None,
        })
    }

    fn bind(&self, socket: &OwnedFd) -> io::Result<()> {
        match (self, self.unix()?) {
            (Self::Tcp(address), _) => {
                sockopt::set_socket_reuseaddr(socket, true)?;
                bind(socket, address)?;
            }
            (_, Some(address)) => bind(socket, &address)?,
            (_, None) => unreachable!("all others are Unix's"),
        }
        Ok(())
    }

    /// Begins to connect. `false`: it goes on; the socket is writable when it has ended.
    fn connect(&self, socket: &OwnedFd) -> io::Result<bool> {
        let connected = match (self, self.unix()?) {
            (Self::Tcp(address), _) => connect(socket, address),
            (_, Some(address)) => connect(socket, &address),
            (_, None) => unreachable!("all others are Unix's"),
        };
        match connected {
            Ok(()) => Ok(true),
            Err(Errno::INPROGRESS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn error(&self, source: io::Error) -> ConnectError {
        ConnectError { address: self.clone(), source }
    }

    fn set_nodelay(&self, socket: &OwnedFd, nodelay: bool) {
        if nodelay && let Self::Tcp(_) = self {
            // A matter of speed only.
            let _ = sockopt::set_tcp_nodelay(socket, true);
        }
    }
}

/// Listens, for one client at a time.
#[derive(Debug)]
pub struct Server {
    socket: OwnedFd,
    address: Address,
    nodelay: bool,
}

impl Server {
    /// Binds `address`. A socket that an earlier run has left in the file system is replaced.
    pub fn new(address: Address, nodelay: bool) -> Result<Self, ConnectError> {
        let make = || {
            let socket = address.socket()?;
            if let Address::Unix(path) = &address
                && fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
            {
                fs::remove_file(path)?;
            }
            address.bind(&socket)?;
            listen(&socket, 1)?;
            Ok(socket)
        };
        let socket = make().map_err(|source| address.error(source))?;
        Ok(Self { socket, address, nodelay })
    }

    /// Where it listens: the port that the host chose, too.
    pub fn address(&self) -> Address {
        match &self.address {
            Address::Tcp(address) => {
                let bound = rustix::net::getsockname(&self.socket).ok();
                let bound = bound.and_then(|bound| SocketAddr::try_from(bound).ok());
                Address::Tcp(bound.unwrap_or(*address))
            }
            other => other.clone(),
        }
    }

    /// Waits for the first client. `None`: the descriptor `interrupted` became readable before.
    pub fn wait_for_client(&self, interrupted: RawFd) -> io::Result<Option<File>> {
        let epoll = Epoll::new()?;
        for fd in [self.fd(), interrupted] {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, fd as u64))?;
        }
        let mut events = [EpollEvent::default(); 2];
        loop {
            let count = match epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => 0,
                Err(error) => return Err(error),
            };
            if events[..count].iter().any(|event| event.data() == interrupted as u64) {
                return Ok(None);
            }
            if let Some(client) = self.accept()? {
                return Ok(Some(client));
            }
        }
    }

    /// A client that has come, if there is one.
    pub(super) fn accept(&self) -> io::Result<Option<File>> {
        match accept_with(&self.socket, FLAGS) {
            Ok(client) => {
                self.address.set_nodelay(&client, self.nodelay);
                Ok(Some(File::from(client)))
            }
            Err(error) => match io::Error::from(error) {
                error if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) => {
                    Ok(None)
                }
                error if error.kind() == ErrorKind::Interrupted => Ok(None),
                error => Err(error),
            },
        }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address {
            let _ = fs::remove_file(path);
        }
    }
}

/// Connects, and perhaps again.
pub struct Client {
    address: Address,
    nodelay: bool,
    reconnect: Option<Duration>,
    timer: TimerFd,
    pending: Option<OwnedFd>,
}

impl Client {
    /// One that has not connected. `reconnect`: how long after a connection was lost, or refused, it tries again.
    pub fn new(address: Address, nodelay: bool, reconnect: Option<Duration>) -> io::Result<Self> {
        Ok(Self { address, nodelay, reconnect, timer: TimerFd::new()?, pending: None })
    }

    /// Connects, and waits until that has succeeded or failed.
    pub fn connect_now(&self) -> Result<File, ConnectError> {
        let make = || {
            let socket = self.address.socket()?;
            if !self.address.connect(&socket)? {
                let mut fds = [PollFd::new(&socket, PollFlags::OUT)];
                while let Err(error) = poll(&mut fds, None) {
                    if error != Errno::INTR {
                        return Err(error.into());
                    }
                }
                sockopt::socket_error(&socket)??;
            }
            self.address.set_nodelay(&socket, self.nodelay);
            Ok(File::from(socket))
        };
        make().map_err(|source| self.address.error(source))
    }

    /// The timer's descriptor.
    pub(super) fn timer_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Writable when the connection is there, or is not to be had.
    pub(super) fn pending_fd(&self) -> Option<RawFd> {
        self.pending.as_ref().map(|socket| socket.as_fd().as_raw_fd())
    }

    /// Tries again after a while, if it is meant to.
    pub(super) fn try_later(&mut self) {
        if let Some(delay) = self.reconnect
            && let Err(error) = self.timer.reset(delay.max(Duration::from_millis(1)), None)
        {
            tracing::warn!(target: "chardev", %error, "no connection to {} is tried any more", self.address);
        }
    }

    /// Begins to connect; the connection if that is done at once. Otherwise it is pending, or tried later.
    pub(super) fn try_now(&mut self) -> Option<File> {
        // One-shot: reading makes it unreadable; it may not have expired.
        let attempt = self.address.socket().and_then(|socket| Ok((self.address.connect(&socket)?, socket)));
        match attempt {
            Ok((true, socket)) => Some(self.connected(socket)),
            Ok((false, socket)) => {
                self.pending = Some(socket);
                None
            }
            Err(error) => {
                tracing::debug!(target: "chardev", %error, "{} refuses", self.address);
                self.try_later();
                None
            }
        }
    }

    /// The timer has expired.
    pub(super) fn timer_expired(&mut self) {
        let _ = self.timer.wait();
    }

    /// What has become of the pending connection.
    pub(super) fn pending_ended(&mut self) -> Option<File> {
        let socket = self.pending.take()?;
        match sockopt::socket_error(&socket) {
            Ok(Ok(())) => Some(self.connected(socket)),
            Ok(Err(error)) | Err(error) => {
                tracing::debug!(target: "chardev", %error, "{} refuses", self.address);
                self.try_later();
                None
            }
        }
    }

    fn connected(&self, socket: OwnedFd) -> File {
        self.address.set_nodelay(&socket, self.nodelay);
        File::from(socket)
    }
}
