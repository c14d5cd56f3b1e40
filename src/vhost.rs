//! The vhost devices of the host's kernel, opened before anything is created.

use std::io;
use std::os::fd::RawFd;

use devices::virtio::vhost::vsock::{self, VhostStreams};
use devices::virtio::vhost::{VhostError, VhostFile};

use crate::inherited;
use crate::options::vhost::{VhostSource, VhostVsockChoice};

/// Why the kernel cannot be had for a device.
#[derive(Debug, thiserror::Error)]
pub enum VhostOpenError {
    /// It has no such device, or lacks something.
    #[error(transparent)]
    Vhost(#[from] VhostError),
    /// A descriptor was not handed down.
    #[error("vhostfd={0} is not open")]
    Inherited(RawFd, #[source] io::Error),
}

/// A new device of the kernel's: `path`, unless it was opened already.
pub fn open(source: VhostSource, path: &'static str) -> Result<VhostFile, VhostOpenError> {
    match source {
        VhostSource::Device => Ok(VhostFile::open(path)?),
        VhostSource::Fd(number) => {
            let fd = inherited::claim(number);
            let fd = fd.map_err(|source| VhostOpenError::Inherited(number, source))?;
            Ok(VhostFile::inherited(fd, number)?)
        }
    }
}

/// The streams of a vsock device.
pub fn streams(choice: &VhostVsockChoice) -> Result<VhostStreams, VhostOpenError> {
    let file = open(choice.source, vsock::PATH)?;
    Ok(VhostStreams::new(file, choice.guest_cid, choice.seqpacket)?)
}
