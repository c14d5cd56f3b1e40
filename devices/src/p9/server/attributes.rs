//! Attributes of files, and extended ones.

use rustix::fs::{
    FileType, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags, ftruncate, getxattr,
    listxattr, removexattr, setxattr,
};
use rustix::io::Errno;

use super::{MOST_ATTRIBUTE_BYTES, Server};
use crate::p9::attributes::PREFIX;
use crate::p9::fids::{Fid, State};
use crate::p9::node::Node;
use crate::p9::spec::{GET_BASIC, set};
use crate::p9::wire::{Reader, Result, Writer};

/// `XATTR_SIZE_MAX` and `XATTR_LIST_MAX` of Linux.
const MAX_ATTRIBUTE: usize = 64 << 10;

impl Server {
    pub(super) fn getattr(&mut self, r: &mut Reader, w: &mut Writer) -> Result<()> {
        let (fid, mask) = (self.fids.get(r.u32()?)?, r.u64()?);
        let seen = self.share.options.security.attributes(&fid.node)?;
        let stat = &seen.stat;
        w.u64(mask & GET_BASIC)?;
        w.qid(self.share.qid(&fid.node)?)?;
        w.u32(seen.mode)?;
        w.u32(seen.uid)?;
        w.u32(seen.gid)?;
        w.u64(stat.st_nlink)?;
        w.u64(seen.rdev)?;
        for count in [stat.st_size, stat.st_blksize, stat.st_blocks] {
            w.u64(u64::try_from(count).unwrap_or(0))?;
        }
        let times = [
            (stat.st_atime, stat.st_atime_nsec),
            (stat.st_mtime, stat.st_mtime_nsec),
            (stat.st_ctime, stat.st_ctime_nsec),
        ];
        for (seconds, nanoseconds) in times {
            // Two's complement, before 1970.
            w.u64(seconds as u64)?;
            w.u64(nanoseconds)?;
        }
        // A birth time, a generation and a data version, which are not valid.
        [0; 4].into_iter().try_for_each(|zero| w.u64(zero))
    }

    pub(super) fn setattr(&mut self, r: &mut Reader) -> Result<()> {
        let (fid, valid) = (self.fids.get(r.u32()?)?, r.u32()?);
        let (mode, uid, gid, size) = (r.u32()?, r.u32()?, r.u32()?, r.u64()?);
        let (atime, mtime) = ((r.u64()?, r.u64()?), (r.u64()?, r.u64()?));
        self.share.check_writable()?;
        let (security, node) = (self.share.options.security, &fid.node);
        let has = |bit| valid & bit != 0;
        if has(set::MODE) {
            security.set_mode(node, mode)?;
        }
        if has(set::ATIME | set::MTIME) {
            let time = |bit, given, (seconds, nanoseconds): (u64, u64)| match (has(bit), has(given)) {
                (false, _) => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
                (true, false) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
                // Numbers of nanoseconds that mean something else are not a time.
                (true, true) => {
                    Timespec { tv_sec: seconds as i64, tv_nsec: nanoseconds.min(999_999_999) as _ }
                }
            };
            node.set_times(&Timestamps {
                last_access: time(set::ATIME, set::ATIME_SET, atime),
                last_modification: time(set::MTIME, set::MTIME_SET, mtime),
            })?;
        }
        if has(set::UID | set::GID) {
            let id = |bit, id| if has(bit) { id } else { u32::MAX };
            security.set_owner(node, id(set::UID, uid), id(set::GID, gid))?;
        } else if valid == set::CTIME && node.kind != FileType::Symlink {
            // Nothing is changed, now.
            node.chown(u32::MAX, u32::MAX)?;
        }
        if has(set::SIZE) { set_size(fid, size) } else { Ok(()) }
    }

    /// Makes a fid from which an attribute's value is read, or the list of their names.
    pub(super) fn xattrwalk(&mut self, r: &mut Reader, w: &mut Writer) -> Result<()> {
        let (fid, new, name) = (self.fids.get(r.u32()?)?, r.u32()?, r.string()?);
        self.fids.check_new(new)?;
        let (node, uid) = (fid.node.clone(), fid.uid);
        let mut value = vec![0; MAX_ATTRIBUTE];
        if name.is_empty() {
            let count = if node.kind == FileType::Symlink { 0 } else { listxattr(node.path(), &mut value)? };
            let names = value[..count].split_inclusive(|byte| *byte == 0);
            let shown = names.filter_map(|name| self.guest_attribute(name)).collect::<Vec<_>>();
            value = shown.concat();
        } else {
            let name = self.host_attribute(name)?;
            if node.kind == FileType::Symlink {
                return Err(Errno::NODATA);
            }
            let count = getxattr(node.path(), name, &mut value)?;
            value.truncate(count);
        }
        self.check_attribute_room(value.len())?;
        w.u64(value.len() as u64)?;
        self.attribute_bytes += value.len();
        value.shrink_to_fit();
        self.fids.insert(new, Fid { node, uid, state: State::Attribute(value) })
    }

    /// The fid becomes one to which an attribute's value is written.
    pub(super) fn xattrcreate(&mut self, r: &mut Reader) -> Result<()> {
        let (number, name, size, flags) = (r.u32()?, r.string()?, r.u64()?, r.u32()?);
        self.share.check_writable()?;
        let name = self.host_attribute(name)?;
        self.fids.get(number)?.closed()?;
        let size = usize::try_from(size).ok().filter(|size| *size <= MAX_ATTRIBUTE).ok_or(Errno::TOOBIG)?;
        if XattrFlags::from_bits_retain(flags) - (XattrFlags::CREATE | XattrFlags::REPLACE)
            != XattrFlags::empty()
        {
            return Err(Errno::INVAL);
        }
        self.check_attribute_room(size)?;
        self.attribute_bytes += size;
        let state = State::NewAttribute { name, value: Vec::new(), size, flags };
        self.fids.get_mut(number)?.state = state;
        Ok(())
    }

    /// The end of that. Nothing at all removes the attribute.
    pub(super) fn set_attribute(
        &self,
        node: &Node,
        name: &[u8],
        value: &[u8],
        size: usize,
        flags: u32,
    ) -> Result<()> {
        if value.len() != size {
            return Err(Errno::IO);
        }
        if node.kind == FileType::Symlink {
            return Err(Errno::OPNOTSUPP);
        }
        if size == 0 {
            return removexattr(node.path(), name);
        }
        setxattr(node.path(), name, value, XattrFlags::from_bits_retain(flags))
    }

    fn check_attribute_room(&self, bytes: usize) -> Result<()> {
        let room = MOST_ATTRIBUTE_BYTES - self.attribute_bytes;
        if bytes > room { Err(Errno::NOMEM) } else { Ok(()) }
    }

    /// The host's name for a guest's attribute. Only users' own and access lists are the guest's, not what means something to
    /// the host.
    fn host_attribute(&self, name: &[u8]) -> Result<Vec<u8>> {
        let is_mapped = self.share.options.security.is_mapped();
        if name.starts_with(PREFIX) {
            return Err(Errno::ACCESS);
        }
        match name {
            _ if name.starts_with(b"user.") => Ok(name.to_vec()),
            b"system.posix_acl_access" | b"system.posix_acl_default" if is_mapped => {
                Ok([PREFIX, name].concat())
            }
            b"system.posix_acl_access" | b"system.posix_acl_default" => match self.share.options.security {
                crate::p9::SecurityModel::Passthrough => Ok(name.to_vec()),
                _ => Err(Errno::OPNOTSUPP),
            },
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    /// The guest's name for an attribute of the host's, if it sees it. Both end with a zero.
    fn guest_attribute<'a>(&self, name: &'a [u8]) -> Option<&'a [u8]> {
        if let Some(rest) = name.strip_prefix(PREFIX) {
            let is_list = self.share.options.security.is_mapped() && rest.starts_with(b"system.posix_acl_");
            return is_list.then_some(rest);
        }
        let bare = name.strip_suffix(b"\0")?;
        self.host_attribute(bare).is_ok_and(|host| host == bare).then_some(name)
    }
}

/// By the descriptor where the fid is open for writing: its mode may have changed since.
fn set_size(fid: &Fid, size: u64) -> Result<()> {
    match &fid.state {
        State::File { fd, is_writable: true } => ftruncate(fd, size),
        _ if fid.node.kind == FileType::Directory => Err(Errno::ISDIR),
        _ => ftruncate(fid.node.open(OFlags::WRONLY)?, size),
    }
}
