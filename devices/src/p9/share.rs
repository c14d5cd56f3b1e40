//! A folder of the host's that guests may use, and under which rules.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, getxattr};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::attributes::{PREFIX, SecurityModel};
use super::node::{Budget, Node};
use super::qids::{Multidevs, QidPaths};
use super::wire::{Qid, Result};
use crate::descriptors;

/// Files that all guests of a folder hold at most, open or not.
const MOST_FILES: u64 = 1 << 17;

/// The rules of a shared folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShareOptions {
    /// Owners and modes.
    pub security: SecurityModel,
    /// Guests change nothing.
    pub read_only: bool,
    /// Other file systems below it.
    pub multidevs: Multidevs,
}

/// Why a folder cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The host does not open it.
    #[error("cannot be opened")]
    Open(#[source] io::Error),
    /// A file, a pipe ...
    #[error("is not a folder")]
    NotAFolder,
    /// There is nowhere to keep guests' owners and modes.
    #[error(
        "its file system has no extended attributes, which security_model=mapped-xattr needs (none does not)"
    )]
    NoAttributes,
    /// Files are reopened by their descriptors' names there.
    #[error("/proc/self/fd is needed to share folders")]
    NoProc(#[source] io::Error),
}

/// A folder that is shared.
pub struct Share {
    pub(super) root: Arc<Node>,
    pub(super) options: ShareOptions,
    qids: QidPaths,
}

impl Share {
    /// Opens the folder `path`, which may be a link to it. Changes nothing on the host.
    pub fn open(path: &Path, options: ShareOptions) -> std::result::Result<Arc<Self>, ShareError> {
        descriptors::raise_limit();
        let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) / 2;
        let budget = Budget::new(usize::try_from(most.min(MOST_FILES)).expect("a 64-bit host"));
        let open = |error: Errno| match error {
            Errno::NOTDIR => ShareError::NotAFolder,
            error => ShareError::Open(error.into()),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(open)?;
        let root = budget.take().and_then(|held| Node::new(fd, None, held)).map_err(open)?;
        // Whether guests can use it at all is found out now, while there is somebody to tell.
        rustix::fs::stat(root.path()).map_err(|error| ShareError::NoProc(error.into()))?;
        root.open(OFlags::RDONLY).map_err(open)?;
        if options.security.is_mapped() {
            let name = [PREFIX, b"uid"].concat();
            if let Err(Errno::OPNOTSUPP) = getxattr(root.path(), name, &mut [0u8; 4]) {
                return Err(ShareError::NoAttributes);
            }
        }
        let qids = QidPaths::new(options.multidevs, root.identity.0);
        Ok(Arc::new(Self { root, options, qids }))
    }

    /// What a client knows `node` by.
    pub(super) fn qid(&self, node: &Node) -> Result<Qid> {
        let seen = self.options.security.attributes(node)?;
        let (seconds, size) = (seen.stat.st_mtime as u32, seen.stat.st_size as u32);
        // Differs where the content may differ.
        let version = seconds ^ (seen.stat.st_mtime_nsec as u32) ^ (size << 8);
        Ok(Qid { kind: Qid::kind_of(seen.kind()), version, path: self.qids.path(node.identity)? })
    }

    /// The number of the file that a directory on `device` calls `inode`.
    pub(super) fn qid_path(&self, device: u64, inode: u64) -> Result<u64> {
        self.qids.path((device, inode))
    }

    pub(super) fn check_writable(&self) -> Result<()> {
        if self.options.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }
}
