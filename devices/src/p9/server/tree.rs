//! Names: making, linking, renaming and removing files.

use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, OFlags, linkat, readlinkat, renameat, unlinkat};
use rustix::io::{Errno, pread};

use super::Server;
use crate::p9::create::Maker;
use crate::p9::node::{Node, Place};
use crate::p9::spec::UNLINK_DIRECTORY;
use crate::p9::wire::{Reader, Result, Writer};

/// The longest target of a link.
const MAX_TARGET: usize = 4096;

impl Server {
    /// A directory to make something in, and on whose behalf; `gid` is in the message.
    fn maker(&self, fid: u32, gid: u32) -> Result<(Arc<Node>, Maker)> {
        self.share.check_writable()?;
        let fid = self.fids.get(fid)?;
        Ok((Arc::clone(&fid.node), Maker { model: self.share.options.security, uid: fid.uid, gid }))
    }

    pub(super) fn mkdir(&mut self, r: &mut Reader, w: &mut Writer) -> Result<()> {
        let (fid, name, mode, gid) = (r.u32()?, r.new_name()?, r.u32()?, r.u32()?);
        let (parent, maker) = self.maker(fid, gid)?;
        let node = maker.directory(&parent, name, mode)?;
        w.qid(self.share.qid(&node)?)
    }

    pub(super) fn symlink(&mut self, r: &mut Reader, w: &mut Writer) -> Result<()> {
        let (fid, name, target, gid) = (r.u32()?, r.new_name()?, r.string()?, r.u32()?);
        let (parent, maker) = self.maker(fid, gid)?;
        let node = maker.symlink(&parent, name, target)?;
        w.qid(self.share.qid(&node)?)
    }

    pub(super) fn mknod(&mut self, r: &mut Reader, w: &mut Writer) -> Result<()> {
        let (fid, name, mode) = (r.u32()?, r.new_name()?, r.u32()?);
        let (major, minor, gid) = (r.u32()?, r.u32()?, r.u32()?);
        let (parent, maker) = self.maker(fid, gid)?;
        let node = maker.node(&parent, name, mode, rustix::fs::makedev(major, minor))?;
        w.qid(self.share.qid(&node)?)
    }

    /// Where a link leads is for the client to find out: here nothing follows it.
    pub(super) fn readlink(&mut self, r: &mut Reader, w: &mut Writer) -> Result<()> {
        let node = &self.fids.get(r.u32()?)?.node;
        if node.kind == FileType::Symlink {
            return w.string(readlinkat(&**node, c"", Vec::new())?.as_bytes());
        }
        if self.share.options.security.attributes(node)?.kind() != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        let mut target = [0; MAX_TARGET];
        let count = pread(node.open(OFlags::RDONLY)?, &mut target, 0)?;
        w.string(&target[..count])
    }

    pub(super) fn link(&mut self, r: &mut Reader) -> Result<()> {
        let (parent, fid, name) = (self.fids.get(r.u32()?)?, self.fids.get(r.u32()?)?, r.new_name()?);
        self.share.check_writable()?;
        // The path is one to the very file, even if that is a symbolic link.
        linkat(rustix::fs::CWD, fid.node.path(), &*parent.node, name, AtFlags::SYMLINK_FOLLOW)
    }

    pub(super) fn rename(&mut self, r: &mut Reader) -> Result<()> {
        let (fid, parent, name) = (self.fids.get(r.u32()?)?, self.fids.get(r.u32()?)?, r.new_name()?);
        self.share.check_writable()?;
        let from = fid.node.present_place()?;
        self.move_file(&from, Place { parent: Arc::clone(&parent.node), name: name.to_vec() })
    }

    pub(super) fn renameat(&mut self, r: &mut Reader) -> Result<()> {
        let (from, old, to, new) = (r.u32()?, r.old_name()?, r.u32()?, r.new_name()?);
        self.share.check_writable()?;
        let place = |fid: u32, name: &[u8]| {
            Ok(Place { parent: Arc::clone(&self.fids.get(fid)?.node), name: name.to_vec() })
        };
        self.move_file(&place(from, old)?, place(to, new)?)
    }

    fn move_file(&self, from: &Place, to: Place) -> Result<()> {
        renameat(&*from.parent, &from.name, &*to.parent, &to.name)?;
        for fid in self.fids.iter() {
            let is_moved =
                |place: &Place| place.parent.identity == from.parent.identity && place.name == from.name;
            // Not what was there under the new name, which is gone.
            if fid.node.place().as_ref().is_some_and(is_moved) {
                fid.node.set_place(to.clone());
            }
        }
        Ok(())
    }

    pub(super) fn unlinkat(&mut self, r: &mut Reader) -> Result<()> {
        let (parent, name, flags) = (self.fids.get(r.u32()?)?, r.old_name()?, r.u32()?);
        self.share.check_writable()?;
        let flags = match flags {
            0 => AtFlags::empty(),
            UNLINK_DIRECTORY => AtFlags::REMOVEDIR,
            _ => return Err(Errno::INVAL),
        };
        unlinkat(&*parent.node, name, flags)
    }

    /// Removes the file of a fid, which is given back in any case.
    pub(super) fn remove(&mut self, r: &mut Reader) -> Result<()> {
        let fid = self.fids.remove(r.u32()?)?;
        let node = Arc::clone(&fid.node);
        self.put_away(fid)?;
        self.share.check_writable()?;
        let place = node.present_place()?;
        let is_directory = node.kind == FileType::Directory;
        let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        unlinkat(&*place.parent, &place.name, flags)
    }
}
