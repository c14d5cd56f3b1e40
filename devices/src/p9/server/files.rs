//! Open files and directories: reading, writing, locks.

use std::mem::MaybeUninit;
use std::sync::Arc;

use rustix::fs::{FileType, OFlags, RawDir, SeekFrom, fdatasync, fstatfs, fsync, seek};
use rustix::io::{Errno, pread, pwrite};

use super::Server;
use crate::p9::create::Maker;
use crate::p9::fids::{Fid, State};
use crate::p9::locks::Lock;
use crate::p9::spec::{IO_OVERHEAD, READ_OVERHEAD, lock, open};
use crate::p9::wire::{Qid, Reader, Result, Writer};

/// Reads and writes of whole pages are the fastest.
const PAGE_BYTES: u32 = 4096;
/// Bytes of a directory that are fetched from the host at once.
const DIRECTORY_BYTES: usize = 32 << 10;

impl Server {
    pub(super) fn lopen(&mut self, r: &mut Reader, w: &mut Writer) -> Result<()> {
        let (number, flags) = (r.u32()?, r.u32()?);
        let fid = self.fids.get(number)?.closed()?;
        let host_flags = self.open_flags(flags)?;
        if self.share.options.security.attributes(&fid.node)?.kind() != fid.node.kind {
            // A plain file of the host's that stands for a pipe, a device or a link.
            return Err(Errno::NXIO);
        }
        let fd = match fid.node.open(host_flags) {
            // Only the owner may leave no trace of reading.
            Err(Errno::PERM) if host_flags.contains(OFlags::NOATIME) => {
                fid.node.open(host_flags - OFlags::NOATIME)?
            }
            fd => fd?,
        };
        w.qid(self.share.qid(&fid.node)?)?;
        w.u32(self.iounit())?;
        let is_directory = fid.node.kind == FileType::Directory;
        self.fids.get_mut(number)?.state = if is_directory {
            State::Directory(fd)
        } else {
            State::File { fd, is_writable: flags & open::ACCESS_MODE != 0 }
        };
        Ok(())
    }

    /// Makes a file in the directory of a fid, which becomes that file's.
    pub(super) fn lcreate(&mut self, r: &mut Reader, w: &mut Writer) -> Result<()> {
        let (number, name, flags, mode) = (r.u32()?, r.new_name()?, r.u32()?, r.u32()?);
        let gid = r.u32()?;
        self.share.check_writable()?;
        let fid = self.fids.get(number)?.closed()?;
        let maker = Maker { model: self.share.options.security, uid: fid.uid, gid };
        let host_flags = self.open_flags(flags)?;
        let (node, fd) = maker.file(&fid.node, name, mode, host_flags)?;
        if node.kind != FileType::RegularFile {
            return Err(Errno::ISDIR);
        }
        w.qid(self.share.qid(&node)?)?;
        w.u32(self.iounit())?;
        let fid = self.fids.get_mut(number)?;
        fid.node = node;
        fid.state = State::File { fd, is_writable: flags & open::ACCESS_MODE != 0 };
        Ok(())
    }

    /// A client's flags as the host's. Those that say how the client itself goes about it are not handed on.
    fn open_flags(&self, flags: u32) -> Result<OFlags> {
        let access = match flags & open::ACCESS_MODE {
            0 => OFlags::RDONLY,
            open::WRITE_ONLY => OFlags::WRONLY,
            open::READ_WRITE => OFlags::RDWR,
            _ => return Err(Errno::INVAL),
        };
        if flags & (open::ACCESS_MODE | open::TRUNCATE) != 0 {
            self.share.check_writable()?;
        }
        let handed_on = [
            (open::TRUNCATE, OFlags::TRUNC),
            (open::EXCLUSIVE, OFlags::EXCL),
            (open::APPEND, OFlags::APPEND),
            (open::DATA_SYNC, OFlags::DSYNC),
            (open::DIRECTORY, OFlags::DIRECTORY),
            (open::SYNC, OFlags::SYNC),
        ];
        let has = |(theirs, _): &&(u32, OFlags)| flags & theirs == *theirs;
        let trace = if self.share.options.read_only { OFlags::NOATIME } else { OFlags::empty() };
        Ok(handed_on.iter().filter(has).fold(access | trace, |all, (_, ours)| all | *ours))
    }

    /// The most that one message can read or write; 0, which leaves it to the client, where that is less than a page.
    fn iounit(&self) -> u32 {
        (self.msize - IO_OVERHEAD) / PAGE_BYTES * PAGE_BYTES
    }

    pub(super) fn read(&mut self, r: &mut Reader, w: &mut Writer) -> Result<()> {
        let (fid, offset, count) = (self.fids.get(r.u32()?)?, r.u64()?, r.u32()?);
        let count = count.min(self.msize - READ_OVERHEAD) as usize;
        match &fid.state {
            State::File { fd, .. } => {
                let offset = host_offset(offset)?;
                w.counted(count, |room| pread(fd, room, offset))
            }
            State::Attribute(value) => {
                let rest = usize::try_from(offset).ok().and_then(|offset| value.get(offset..)).unwrap_or(&[]);
                w.counted(count.min(rest.len()), |room| {
                    room.copy_from_slice(&rest[..room.len()]);
                    Ok(room.len())
                })
            }
            State::Directory(_) => Err(Errno::ISDIR),
            State::Closed | State::NewAttribute { .. } => Err(Errno::BADF),
        }
    }

    pub(super) fn write(&mut self, r: &mut Reader, w: &mut Writer) -> Result<()> {
        let (number, offset, count) = (r.u32()?, r.u64()?, r.u32()?);
        let data = r.bytes(count as usize)?;
        let written = match &mut self.fids.get_mut(number)?.state {
            State::File { fd, .. } => pwrite(fd, data, host_offset(offset)?)?,
            State::NewAttribute { value, size, .. } => {
                // One after the other, up to what was announced.
                if offset != value.len() as u64 || data.len() > *size - value.len() {
                    return Err(Errno::NOSPC);
                }
                value.extend_from_slice(data);
                data.len()
            }
            _ => return Err(Errno::BADF),
        };
        w.u32(u32::try_from(written).expect("not more than a message"))
    }

    pub(super) fn readdir(&mut self, r: &mut Reader, w: &mut Writer) -> Result<()> {
        let (fid, offset, count) = (self.fids.get(r.u32()?)?, r.u64()?, r.u32()?);
        let State::Directory(fd) = &fid.state else { return Err(Errno::NOTDIR) };
        let room = w.room().saturating_sub(4).min(count as usize);
        let entries = self.entries(fid, fd, offset, room)?;
        w.u32(u32::try_from(entries.len()).expect("not more than a message"))?;
        w.bytes(&entries)
    }

    /// The entries behind `offset`, as many as there is room for, as a message has them.
    fn entries(&self, fid: &Fid, fd: &std::os::fd::OwnedFd, offset: u64, room: usize) -> Result<Vec<u8>> {
        seek(fd, SeekFrom::Start(host_offset(offset)?))?;
        let mut buffer = [const { MaybeUninit::uninit() }; DIRECTORY_BYTES];
        let mut directory = RawDir::new(fd, &mut buffer);
        let mut entries = Vec::new();
        while let Some(entry) = directory.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            // What a plain file is to the guest would take another look at it.
            let (file_type, qid_type) = match entry.file_type() {
                FileType::RegularFile if self.share.options.security.is_mapped() => (0, 0),
                kind => ((kind.as_raw_mode() >> 12) as u8 & 0xf, Qid::kind_of(kind)),
            };
            let file_type = if entry.file_type() == FileType::Unknown { 0 } else { file_type };
            let (device, mut inode) = (fid.node.identity.0, entry.ino());
            if name == b".." && Arc::ptr_eq(&fid.node, &self.share.root) {
                // What is above is nobody's business.
                inode = fid.node.identity.1;
            }
            let mut writer = Writer::new(&mut entries, room);
            if writer.room() < Qid::BYTES + 8 + 1 + 2 + name.len() {
                // Not one fits.
                return if entries.is_empty() { Err(Errno::INVAL) } else { Ok(entries) };
            }
            writer.qid(Qid { kind: qid_type, version: 0, path: self.share.qid_path(device, inode)? })?;
            writer.u64(entry.next_entry_cookie())?;
            writer.u8(file_type)?;
            writer.string(name)?;
        }
        Ok(entries)
    }

    pub(super) fn fsync(&mut self, r: &mut Reader) -> Result<()> {
        let fid = self.fids.get(r.u32()?)?;
        let data_only = !r.is_empty() && r.u32()? != 0;
        let fd = fid.open_fd()?;
        if data_only { fdatasync(fd) } else { fsync(fd) }
    }

    pub(super) fn statfs(&mut self, r: &mut Reader, w: &mut Writer) -> Result<()> {
        let fid = self.fids.get(r.u32()?)?;
        let host = fstatfs(&*fid.node)?;
        // A medium that cannot be written to has no free space.
        let free = |count: u64| if self.share.options.read_only { 0 } else { count };
        w.u32(host.f_type as u32)?;
        w.u32(host.f_bsize as u32)?;
        for count in
            [host.f_blocks, free(host.f_bfree), free(host.f_bavail), host.f_files, free(host.f_ffree)]
        {
            w.u64(count)?;
        }
        w.u64(fid.node.identity.0)?;
        w.u32(host.f_namelen as u32)
    }

    pub(super) fn lock(&mut self, r: &mut Reader, w: &mut Writer) -> Result<()> {
        let (fid, kind, _flags) = (self.fids.get(r.u32()?)?, r.u8()?, r.u32()?);
        fid.open_fd()?;
        let file = fid.node.identity;
        let range = range(r, kind)?;
        let is_done = if kind == lock::UNLOCK {
            self.locks.unlock(file, &range)?;
            true
        } else {
            self.locks.lock(file, range)?
        };
        // A client that wants to wait asks again.
        w.u8(if is_done { lock::SUCCESS } else { lock::BLOCKED })
    }

    pub(super) fn getlock(&mut self, r: &mut Reader, w: &mut Writer) -> Result<()> {
        let (fid, kind) = (self.fids.get(r.u32()?)?, r.u8()?);
        fid.open_fd()?;
        let wanted = range(r, kind)?;
        let (kind, shown) = match self.locks.conflict(fid.node.identity, &wanted) {
            Some(held) => (if held.is_exclusive { lock::WRITE } else { lock::READ }, held),
            None => (lock::UNLOCK, &wanted),
        };
        w.u8(kind)?;
        w.u64(shown.start)?;
        w.u64(shown.length())?;
        w.u32(shown.process)?;
        w.string(&shown.client)
    }
}

fn range(r: &mut Reader, kind: u8) -> Result<Lock> {
    if kind > lock::UNLOCK {
        return Err(Errno::INVAL);
    }
    let (start, length, process, client) = (r.u64()?, r.u64()?, r.u32()?, r.string()?);
    Lock::new(kind == lock::WRITE, start, length, process, client)
}

/// The host's offsets are signed.
fn host_offset(offset: u64) -> Result<u64> {
    if i64::try_from(offset).is_ok() { Ok(offset) } else { Err(Errno::INVAL) }
}
