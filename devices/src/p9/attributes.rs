//! Owners, modes and device numbers: the host's own, or in the `mapped-xattr` model what attributes of the file say.
//!
//! The attributes are QEMU's (`user.virtfs.uid`, `.gid`, `.mode`, `.rdev`; little-endian), so that a folder that one program has
//! filled is the same to the other. Links, pipes and device nodes are plain files there, whose mode says what they are to guests.

use rustix::fs::{FileType, Stat, XattrFlags, getxattr, setxattr};
use rustix::io::Errno;

use super::node::Node;
use super::wire::Result;

/// Whose attributes these are; guests do not see them.
pub(super) const PREFIX: &[u8] = b"user.virtfs.";

const UID: &str = "user.virtfs.uid";
const GID: &str = "user.virtfs.gid";
const MODE: &str = "user.virtfs.mode";
const RDEV: &str = "user.virtfs.rdev";

/// How the guest's owners and modes become the host's (QEMU, `-fsdev`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecurityModel {
    /// They are the host's: the program must be privileged.
    Passthrough,
    /// The same, but owners that cannot be set are not.
    None,
    /// They are in extended attributes; on the host all is the program's own.
    MappedXattr {
        /// The host's permission bits of new files.
        file_mode: u32,
        /// And of new directories.
        directory_mode: u32,
    },
}

impl SecurityModel {
    /// `mapped-xattr` with QEMU's modes.
    pub const MAPPED: Self = Self::MappedXattr { file_mode: 0o600, directory_mode: 0o700 };

    pub(super) fn is_mapped(self) -> bool {
        matches!(self, Self::MappedXattr { .. })
    }
}

/// A file's `stat` as the guest sees it.
pub(super) struct Attributes {
    pub(super) stat: Stat,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) rdev: u64,
}

impl Attributes {
    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }
}

/// The `N` bytes of an attribute, if it is there and has as many.
fn stored<const N: usize>(path: &str, name: &str) -> Option<[u8; N]> {
    let mut value = [0; N];
    // One that cannot be read, because the file cannot, is as good as none.
    matches!(getxattr(path, name, &mut value), Ok(count) if count == N).then_some(value)
}

impl SecurityModel {
    /// What the guest sees of `node`.
    pub(super) fn attributes(self, node: &Node) -> Result<Attributes> {
        let stat = node.stat()?;
        let (mode, uid, gid, rdev) = (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev);
        let mut seen = Attributes { stat, mode, uid, gid, rdev };
        if self.is_mapped() && node.kind != FileType::Symlink {
            let path = node.path();
            seen.uid = stored(&path, UID).map_or(uid, u32::from_le_bytes);
            seen.gid = stored(&path, GID).map_or(gid, u32::from_le_bytes);
            if let Some(mode) = stored(&path, MODE).map(u32::from_le_bytes) {
                seen.mode = mapped_mode(node.kind, mode);
            }
            if matches!(seen.kind(), FileType::CharacterDevice | FileType::BlockDevice) {
                seen.rdev = stored(&path, RDEV).map_or(rdev, u64::from_le_bytes);
            }
        }
        Ok(seen)
    }

    /// Its owner; `u32::MAX`: it stays.
    pub(super) fn set_owner(self, node: &Node, uid: u32, gid: u32) -> Result<()> {
        if !self.is_mapped() {
            return node.chown(uid, gid);
        }
        for (name, id) in [(UID, uid), (GID, gid)] {
            if id != u32::MAX {
                set(node, name, &id.to_le_bytes())?;
            }
        }
        Ok(())
    }

    /// Its permission bits.
    pub(super) fn set_mode(self, node: &Node, mode: u32) -> Result<()> {
        if !self.is_mapped() {
            return node.chmod(mode);
        }
        let kind = self.attributes(node)?.kind();
        set(node, MODE, &(kind.as_raw_mode() | mode & 0o7777).to_le_bytes())
    }

    /// What a file gets that was made for `uid` and `gid`, to be of the kind and with the bits of `mode`.
    pub(super) fn set_new(self, node: &Node, uid: u32, gid: u32, mode: u32, rdev: Option<u64>) -> Result<()> {
        match self {
            Self::MappedXattr { .. } => {
                self.set_owner(node, uid, gid)?;
                set(node, MODE, &mode.to_le_bytes())?;
                rdev.map_or(Ok(()), |rdev| set(node, RDEV, &rdev.to_le_bytes()))
            }
            Self::None | Self::Passthrough => {
                match node.chown(uid, gid) {
                    Err(error) if self == Self::Passthrough => return Err(error),
                    // Not privileged: it is the program's own.
                    _ => {}
                }
                if node.kind == FileType::Symlink { Ok(()) } else { node.chmod(mode) }
            }
        }
    }
}

fn set(node: &Node, name: &str, value: &[u8]) -> Result<()> {
    if node.kind == FileType::Symlink {
        // The host's own link, which cannot have attributes.
        return Err(Errno::OPNOTSUPP);
    }
    setxattr(node.path(), name, value, XattrFlags::empty())
}

/// Only a plain file can stand for something else.
fn mapped_mode(host: FileType, mode: u32) -> u32 {
    let kind = match (host, FileType::from_raw_mode(mode)) {
        (FileType::RegularFile, FileType::Directory | FileType::Unknown) => FileType::RegularFile,
        (FileType::RegularFile, kind) => kind,
        (host, _) => host,
    };
    kind.as_raw_mode() | mode & 0o7777
}
