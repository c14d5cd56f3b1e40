//! The host's sockets of vsock devices: looked at before anything is created, made when nothing else can be refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::virtio::vsock::{HostSocket, SocketError};

use crate::disks::{AttachedPart, VirtioPart};

/// Why there cannot be a socket.
#[derive(Debug, thiserror::Error)]
#[error("-device virtio-vsock: {}", path.display())]
pub struct VsockError {
    path: PathBuf,
    source: SocketError,
}

/// A socket at `path` that can be made.
pub fn find(path: &Path) -> Result<Arc<HostSocket>, VsockError> {
    let error = |source| VsockError { path: path.into(), source };
    let socket = HostSocket::new(path.into()).map_err(error)?;
    // Its folder is there and can be written to.
    crate::writable::check(path).map_err(|source| error(SocketError::Bind(source)))?;
    Ok(Arc::new(socket))
}

/// The sockets of these devices, removed when the program ends.
pub struct Sockets(Vec<Arc<HostSocket>>);

impl Sockets {
    /// Those that are to be made.
    pub fn of(parts: &[AttachedPart]) -> Self {
        let socket = |attached: &AttachedPart| match &attached.part {
            VirtioPart::Vsock { socket, .. } => Some(Arc::clone(socket)),
            _ => None,
        };
        Self(parts.iter().filter_map(socket).collect())
    }

    /// Makes them.
    pub fn bind(&self) -> Result<(), VsockError> {
        let bind = |socket: &Arc<HostSocket>| {
            socket.bind().map_err(|source| VsockError { path: socket.path().into(), source })
        };
        self.0.iter().try_for_each(bind)
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        self.0.iter().for_each(|socket| socket.remove());
    }
}
