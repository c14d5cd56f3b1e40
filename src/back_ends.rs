//! The programs that do the work of vhost-user devices: connected, and asked what they can do, before anything is created.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use devices::virtio::vhost_user::{BackEnd, BackEndError};
use vm_memory::GuestMemoryMmap;

use crate::chardevs::Bound;
use crate::disks::{AttachedPart, VirtioPart};

/// Why a back end cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("-device vhost-user-fs,chardev={chardev}")]
pub struct ConnectError {
    chardev: String,
    source: BackEndError,
}

/// Makes the connections of `bound` that lead to back ends of `parts` theirs.
pub fn connect(parts: &mut [AttachedPart], bound: &mut BTreeMap<String, Bound>) -> Result<(), ConnectError> {
    for attached in parts {
        let VirtioPart::VhostUserFs { choice, back_end } = &mut attached.part else { continue };
        let Some(Bound::Client(_, Some(file))) = bound.remove(&choice.chardev) else {
            unreachable!("the options are consistent")
        };
        let socket = UnixStream::from(OwnedFd::from(file));
        let error = |source| ConnectError { chardev: choice.chardev.clone(), source };
        // A character device's need not wait.
        socket.set_nonblocking(false).map_err(|source| error(source.into()))?;
        let name = format!("vhost-user-fs '{}'", choice.options.tag);
        *back_end = Some(BackEnd::greet(name, socket, choice.options.queues()).map_err(error)?);
    }
    Ok(())
}

/// Lets the back ends of `parts` at guest memory.
pub fn share(parts: &[AttachedPart], memory: &GuestMemoryMmap) -> Result<(), ConnectError> {
    for attached in parts {
        if let VirtioPart::VhostUserFs { choice, back_end: Some(back_end) } = &attached.part {
            let error = |source| ConnectError { chardev: choice.chardev.clone(), source };
            back_end.set_memory(memory).map_err(error)?;
        }
    }
    Ok(())
}

/// What is behind a device that was connected.
pub fn connected(back_end: &Option<Arc<BackEnd>>) -> Arc<BackEnd> {
    Arc::clone(back_end.as_ref().expect("connected before the machine is equipped"))
}
