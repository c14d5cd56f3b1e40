//! The host's end: a socket to which programs connect, and the names of those to which the guest does.
//!
//! As with Firecracker (its *vsock.md*): a program of the host connects to PATH, writes `CONNECT 1234` and a newline, and is answered
//! `OK` and a number when the guest's program has taken the connection. A guest that connects to the host's port 1234 gets to
//! the program that listens at `PATH_1234`.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// The longest name of a socket, and what a port may add to it.
const MAX_PATH_BYTES: usize = 107;
const MAX_SUFFIX_BYTES: usize = "_4294967295".len();

/// Why there cannot be a socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The host's limit.
    #[error("the name is too long for a socket: {most} bytes at most, and a port behind it")]
    TooLong {
        /// Bytes.
        most: usize,
    },
    /// Something else is there, or another program has it.
    #[error("there is {0} already")]
    Taken(&'static str),
    /// The host refused.
    #[error("cannot be made")]
    Bind(#[source] io::Error),
}

/// A socket at a path.
#[derive(Debug)]
pub struct HostSocket {
    path: PathBuf,
    /// Once it is there; and the file that it is.
    listener: OnceLock<(UnixListener, (u64, u64))>,
}

impl HostSocket {
    /// One that is not there yet.
    pub fn new(path: PathBuf) -> Result<Self, SocketError> {
        let most = MAX_PATH_BYTES - MAX_SUFFIX_BYTES;
        if path.as_os_str().len() > most {
            return Err(SocketError::TooLong { most });
        }
        let socket = Self { path, listener: OnceLock::new() };
        socket.is_stale()?;
        Ok(socket)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a socket to which nobody listens any more.
    fn is_stale(&self) -> Result<bool, SocketError> {
        match std::fs::symlink_metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(SocketError::Bind(error)),
            Ok(metadata) if !metadata.file_type().is_socket() => Err(SocketError::Taken("a file")),
            Ok(_) => match connect_to(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
                _ => Err(SocketError::Taken("a socket to which a program listens")),
            },
        }
    }

    /// Makes it. One that a program left behind is replaced.
    pub fn bind(&self) -> Result<(), SocketError> {
        if self.is_stale()? {
            std::fs::remove_file(&self.path).map_err(SocketError::Bind)?;
        }
        let bind = || {
            let listener = UnixListener::bind(&self.path)?;
            listener.set_nonblocking(true)?;
            let metadata = std::fs::symlink_metadata(&self.path)?;
            Ok((listener, (metadata.dev(), metadata.ino())))
        };
        let bound = bind().map_err(SocketError::Bind)?;
        self.listener.set(bound).map_err(|_| SocketError::Taken("this socket"))
    }

    /// Removes it, unless somebody has put another one there.
    pub fn remove(&self) {
        if let Some((_, identity)) = self.listener.get()
            && let Ok(metadata) = std::fs::symlink_metadata(&self.path)
            && (metadata.dev(), metadata.ino()) == *identity
        {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// The next program that has connected.
    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        let (listener, _) = self.listener.get().ok_or(io::ErrorKind::NotConnected)?;
        let (stream, _) = listener.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// To be watched for programs that connect.
    pub(super) fn fd(&self) -> io::Result<RawFd> {
        let listener = self.listener.get().ok_or(io::ErrorKind::NotConnected)?;
        Ok(listener.0.as_raw_fd())
    }

    /// A connection to the program that serves `port`. Never waits.
    pub(super) fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        connect_to(Path::new(&path))
    }
}

fn connect_to(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // One whose queue is full is as one that is not there.
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

impl Drop for HostSocket {
    fn drop(&mut self) {
        self.remove();
    }
}
