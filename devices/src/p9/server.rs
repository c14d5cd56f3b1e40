//! One client's session: its messages, one after the other.

mod attributes;
mod files;
mod tree;

use std::sync::Arc;

use rustix::io::Errno;

use super::fids::{Fid, Fids, State};
use super::locks::Locks;
use super::share::Share;
use super::spec::{
    ERROR_BYTES, HEADER_BYTES, MAX_MSIZE, MAX_WALK, MIN_MSIZE, VERSION, VERSION_UNKNOWN, message,
};
use super::wire::{Reader, Result, Writer};

/// Bytes of attributes that a session holds at most, over all of its fids.
const MOST_ATTRIBUTE_BYTES: usize = 4 << 20;

/// A server of one client. Requests are answered in their order, so that there is never one to be cancelled.
pub struct Server {
    share: Arc<Share>,
    /// Bytes of a message at most.
    msize: u32,
    pub(super) fids: Fids,
    locks: Locks,
    pub(super) attribute_bytes: usize,
}

impl Server {
    /// A server whose client has said nothing yet.
    pub fn new(share: Arc<Share>) -> Self {
        Self { share, msize: MAX_MSIZE, fids: Fids::default(), locks: Locks::default(), attribute_bytes: 0 }
    }

    /// The largest message, as it was agreed on. In bytes.
    pub fn msize(&self) -> u32 {
        self.msize
    }

    /// Answers `request`, a whole message, in `reply`, in `room` bytes at most: [`ERROR_BYTES`] at least.
    pub fn answer(&mut self, request: &[u8], reply: &mut Vec<u8>, room: usize) {
        let mut reader = Reader::new(request);
        let head = (|| Ok((reader.u32()?, reader.u8()?, reader.u16()?)))();
        reply.clear();
        let Ok((size, kind, tag)): Result<(u32, u8, u16)> = head else {
            finish(reply, message::R_LERROR, u16::MAX, Some(Errno::PROTO));
            return;
        };
        reply.resize(HEADER_BYTES, 0);
        let mut writer = Writer::new(reply, room.min(self.msize as usize));
        let result = if size as usize != request.len() || size > self.msize {
            Err(Errno::MSGSIZE)
        } else {
            self.dispatch(kind, &mut reader, &mut writer)
        };
        tracing::trace!(target: "p9", kind, tag, ?result, "answered");
        match result {
            Ok(()) => finish(reply, kind + 1, tag, None),
            Err(error) => finish(reply, message::R_LERROR, tag, Some(error)),
        }
    }

    fn dispatch(&mut self, kind: u8, r: &mut Reader, w: &mut Writer) -> Result<()> {
        match kind {
            message::T_VERSION => self.version(r, w),
            message::T_ATTACH => self.attach(r, w),
            message::T_WALK => self.walk(r, w),
            message::T_CLUNK => self.clunk(r),
            // What was asked for before has been answered before.
            message::T_FLUSH => r.u16().map(|_| ()),
            message::T_STATFS => self.statfs(r, w),
            message::T_LOPEN => self.lopen(r, w),
            message::T_LCREATE => self.lcreate(r, w),
            message::T_READ => self.read(r, w),
            message::T_WRITE => self.write(r, w),
            message::T_READDIR => self.readdir(r, w),
            message::T_FSYNC => self.fsync(r),
            message::T_LOCK => self.lock(r, w),
            message::T_GETLOCK => self.getlock(r, w),
            message::T_GETATTR => self.getattr(r, w),
            message::T_SETATTR => self.setattr(r),
            message::T_XATTRWALK => self.xattrwalk(r, w),
            message::T_XATTRCREATE => self.xattrcreate(r),
            message::T_READLINK => self.readlink(r, w),
            message::T_SYMLINK => self.symlink(r, w),
            message::T_MKNOD => self.mknod(r, w),
            message::T_MKDIR => self.mkdir(r, w),
            message::T_LINK => self.link(r),
            message::T_RENAME => self.rename(r),
            message::T_RENAMEAT => self.renameat(r),
            message::T_UNLINKAT => self.unlinkat(r),
            message::T_REMOVE => self.remove(r),
            // Among them authentication, which 9P2000.L clients on virtio do not ask for.
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    /// Begins the session anew.
    fn version(&mut self, r: &mut Reader, w: &mut Writer) -> Result<()> {
        let (msize, version) = (r.u32()?, r.string()?);
        self.fids.clear();
        self.locks = Locks::default();
        self.attribute_bytes = 0;
        self.msize = MAX_MSIZE;
        if msize < MIN_MSIZE {
            return Err(Errno::MSGSIZE);
        }
        let msize = msize.min(MAX_MSIZE);
        w.u32(msize)?;
        if version != VERSION {
            return w.string(VERSION_UNKNOWN);
        }
        self.msize = msize;
        w.string(VERSION)
    }

    /// The folder itself, for one user.
    fn attach(&mut self, r: &mut Reader, w: &mut Writer) -> Result<()> {
        let (fid, _no_authentication, _user, _tree) = (r.u32()?, r.u32()?, r.string()?, r.string()?);
        let uid = r.u32()?;
        self.fids.check_new(fid)?;
        let root = Arc::clone(&self.share.root);
        w.qid(self.share.qid(&root)?)?;
        self.fids.insert(fid, Fid::new(root, uid))
    }

    /// From a file by names to another.
    fn walk(&mut self, r: &mut Reader, w: &mut Writer) -> Result<()> {
        let (from, to, count) = (r.u32()?, r.u32()?, r.u16()?);
        if count > MAX_WALK {
            return Err(Errno::INVAL);
        }
        let start = self.fids.get(from)?;
        if from == to {
            start.closed()?;
        } else {
            self.fids.check_new(to)?;
        }
        let (mut node, uid) = (Arc::clone(&start.node), start.uid);
        let names = (0..count).map(|_| r.name()).collect::<Result<Vec<_>>>()?;
        let mut qids = Vec::new();
        for name in names {
            let step = node.child(name).and_then(|child| Ok((self.share.qid(&child)?, child)));
            match step {
                Ok((qid, child)) => {
                    qids.push(qid);
                    node = child;
                }
                Err(error) if qids.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        w.u16(u16::try_from(qids.len()).expect("16 at most"))?;
        qids.iter().try_for_each(|qid| w.qid(*qid))?;
        if qids.len() == usize::from(count) {
            if from == to {
                self.fids.remove(from)?;
            }
            self.fids.insert(to, Fid::new(node, uid))?;
        }
        Ok(())
    }

    fn clunk(&mut self, r: &mut Reader) -> Result<()> {
        let fid = self.fids.remove(r.u32()?)?;
        self.put_away(fid)
    }

    /// A fid that is no more: what it was to do at the end is done.
    fn put_away(&mut self, fid: Fid) -> Result<()> {
        let identity = fid.node.identity;
        match fid.state {
            State::Closed | State::Directory(_) => Ok(()),
            State::File { .. } => {
                let is_same = |other: &Fid| {
                    other.node.identity == identity && matches!(other.state, State::File { .. })
                };
                if !self.locks.is_empty() && !self.fids.iter().any(is_same) {
                    self.locks.forget(identity);
                }
                Ok(())
            }
            State::Attribute(value) => {
                self.attribute_bytes -= value.len();
                Ok(())
            }
            State::NewAttribute { name, value, size, flags } => {
                self.attribute_bytes -= size;
                self.set_attribute(&fid.node, &name, &value, size, flags)
            }
        }
    }
}

/// Sets the header of `reply`; an error has nothing but its number.
fn finish(reply: &mut Vec<u8>, kind: u8, tag: u16, error: Option<Errno>) {
    if let Some(error) = error {
        reply.resize(HEADER_BYTES, 0);
        reply.extend_from_slice(&error.raw_os_error().to_le_bytes());
        debug_assert_eq!(reply.len(), ERROR_BYTES);
    }
    let size = u32::try_from(reply.len()).expect("not more than msize");
    reply[..4].copy_from_slice(&size.to_le_bytes());
    reply[4] = kind;
    reply[5..7].copy_from_slice(&tag.to_le_bytes());
}
