//! New files, by name in a directory, with the owner and the mode that the guest gives them.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, mkdirat, mknodat, openat, symlinkat, unlinkat};
use rustix::io::Errno;

use super::attributes::SecurityModel;
use super::node::Node;
use super::wire::Result;

/// Who makes a file.
#[derive(Clone, Copy)]
pub(super) struct Maker {
    pub(super) model: SecurityModel,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Maker {
    /// A plain file, open with `flags`. One that is there already is opened, unless they say `EXCL`.
    pub(super) fn file(
        self,
        parent: &Arc<Node>,
        name: &[u8],
        mode: u32,
        flags: OFlags,
    ) -> Result<(Arc<Node>, OwnedFd)> {
        let new = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let bits = match self.model {
            SecurityModel::MappedXattr { file_mode, .. } => file_mode,
            _ => mode & 0o777,
        };
        let fd = match openat(parent, name, flags | new, Mode::from_raw_mode(bits)) {
            Err(Errno::EXIST) if !flags.contains(OFlags::EXCL) => {
                let node = parent.child(name)?;
                let fd = node.open(flags)?;
                return Ok((node, fd));
            }
            fd => fd?,
        };
        let made = parent.child_of_open(name, &fd).and_then(|node| {
            let mode = FileType::RegularFile.as_raw_mode() | mode & 0o7777;
            self.model.set_new(&node, self.uid, self.gid, mode, None)?;
            Ok(node)
        });
        Ok((undo(parent, name, AtFlags::empty(), made)?, fd))
    }

    pub(super) fn directory(self, parent: &Arc<Node>, name: &[u8], mode: u32) -> Result<Arc<Node>> {
        let bits = match self.model {
            SecurityModel::MappedXattr { directory_mode, .. } => directory_mode,
            _ => mode & 0o777,
        };
        mkdirat(parent, name, Mode::from_raw_mode(bits))?;
        let mode = FileType::Directory.as_raw_mode() | mode & 0o7777;
        self.finish(parent, name, AtFlags::REMOVEDIR, mode, None)
    }

    pub(super) fn symlink(self, parent: &Arc<Node>, name: &[u8], target: &[u8]) -> Result<Arc<Node>> {
        let mode = FileType::Symlink.as_raw_mode() | 0o777;
        if !self.model.is_mapped() {
            symlinkat(target, parent, name)?;
            return self.finish(parent, name, AtFlags::empty(), mode, None);
        }
        if target.is_empty() || target.len() >= PATH_MAX {
            return Err(if target.is_empty() { Errno::NOENT } else { Errno::NAMETOOLONG });
        }
        let content = self.stand_in(parent, name)?;
        let whole = |count| if count == target.len() { Ok(()) } else { Err(Errno::NOSPC) };
        undo(parent, name, AtFlags::empty(), rustix::io::write(&content, target).and_then(whole))?;
        self.finish(parent, name, AtFlags::empty(), mode, None)
    }

    /// A device node, a pipe, a socket, or a plain file.
    pub(super) fn node(self, parent: &Arc<Node>, name: &[u8], mode: u32, rdev: u64) -> Result<Arc<Node>> {
        let kind = match FileType::from_raw_mode(mode) {
            FileType::Directory | FileType::Symlink => return Err(Errno::INVAL),
            // As mknod(2) takes it.
            FileType::Unknown if mode & !0o7777 == 0 => FileType::RegularFile,
            FileType::Unknown => return Err(Errno::INVAL),
            kind => kind,
        };
        if self.model.is_mapped() {
            self.stand_in(parent, name)?;
        } else {
            mknodat(parent, name, kind, Mode::from_raw_mode(mode & 0o777), rdev)?;
        }
        let mode = kind.as_raw_mode() | mode & 0o7777;
        self.finish(parent, name, AtFlags::empty(), mode, Some(rdev))
    }

    /// The plain file that stands for something else.
    fn stand_in(self, parent: &Arc<Node>, name: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let SecurityModel::MappedXattr { file_mode, .. } = self.model else { return Err(Errno::INVAL) };
        openat(parent, name, flags, Mode::from_raw_mode(file_mode))
    }

    /// Gives what was made its owner and mode; if it cannot have them, it goes away again.
    fn finish(
        self,
        parent: &Arc<Node>,
        name: &[u8],
        kind: AtFlags,
        mode: u32,
        rdev: Option<u64>,
    ) -> Result<Arc<Node>> {
        let made = parent.child(name).and_then(|node| {
            self.model.set_new(&node, self.uid, self.gid, mode, rdev)?;
            Ok(node)
        });
        undo(parent, name, kind, made)
    }
}

/// `PATH_MAX`: the longest target, with its end.
const PATH_MAX: usize = 4096;

fn undo<T>(parent: &Node, name: &[u8], kind: AtFlags, made: Result<T>) -> Result<T> {
    if made.is_err() {
        let _ = unlinkat(parent, name, kind);
    }
    made
}
