//! Files of a shared folder, held by descriptors that give a name and no access (`O_PATH`).
//!
//! A way through the folder is one name after the other, each looked up in a directory that is held, never followed where it is
//! a symbolic link, and never `..`: so there is no way out, whoever moves or replaces what lies below meanwhile. Everything
//! that is done to a file is done through its descriptor, by way of /proc/self/fd where the system call wants a path.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timestamps, Uid, fstat, openat};
use rustix::io::Errno;

use super::wire::Result;

const LOCK: &str = "nothing panics with a file's place";

/// Where a file was found.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) parent: Arc<Node>,
    pub(super) name: Vec<u8>,
}

/// How many files may be held at once, and how many are.
#[derive(Debug)]
pub(super) struct Budget {
    held: AtomicUsize,
    most: usize,
}

impl Budget {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), most })
    }

    /// Takes one, given back when it is dropped.
    pub(super) fn take(self: &Arc<Self>) -> Result<Held> {
        let held = Held(Arc::clone(self));
        if self.held.fetch_add(1, Ordering::Relaxed) >= self.most { Err(Errno::NFILE) } else { Ok(held) }
    }
}

/// One of a budget.
pub(super) struct Held(Arc<Budget>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One file, directory, symbolic link ... of the host's.
pub(super) struct Node {
    fd: OwnedFd,
    /// What it is on the host, which does not change.
    pub(super) kind: FileType,
    /// Its device and inode number, which are its own while it is held.
    pub(super) identity: (u64, u64),
    /// `None` for the folder itself. Renaming through this server changes it.
    place: Mutex<Option<Place>>,
    held: Held,
}

impl Node {
    /// The file behind `fd`.
    pub(super) fn new(fd: OwnedFd, place: Option<Place>, held: Held) -> Result<Arc<Self>> {
        let stat = fstat(&fd)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let identity = (stat.st_dev, stat.st_ino);
        Ok(Arc::new(Self { fd, kind, identity, place: Mutex::new(place), held }))
    }

    /// The file `name` of this directory; `name` is one component.
    pub(super) fn child(self: &Arc<Self>, name: &[u8]) -> Result<Arc<Self>> {
        if self.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        if name == b"." {
            return Ok(Arc::clone(self));
        }
        if name == b".." {
            return Ok(self.place().map_or_else(|| Arc::clone(self), |place| place.parent));
        }
        let held = self.held.0.take()?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::empty())?;
        Self::new(fd, Some(Place { parent: Arc::clone(self), name: name.to_vec() }), held)
    }

    /// The file that `open`, a descriptor of it, was made as under `name` in this directory.
    pub(super) fn child_of_open(self: &Arc<Self>, name: &[u8], open: &OwnedFd) -> Result<Arc<Self>> {
        let held = self.held.0.take()?;
        let path = proc_path(open.as_fd());
        let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        Self::new(fd, Some(Place { parent: Arc::clone(self), name: name.to_vec() }), held)
    }

    pub(super) fn place(&self) -> Option<Place> {
        self.place.lock().expect(LOCK).clone()
    }

    /// It has been renamed.
    pub(super) fn set_place(&self, place: Place) {
        *self.place.lock().expect(LOCK) = Some(place);
    }

    /// Where it is, if it is still there.
    pub(super) fn present_place(&self) -> Result<Place> {
        let place = self.place().ok_or(Errno::BUSY)?;
        let there = rustix::fs::statat(&place.parent.fd, &place.name, AtFlags::SYMLINK_NOFOLLOW)?;
        if (there.st_dev, there.st_ino) == self.identity { Ok(place) } else { Err(Errno::STALE) }
    }

    /// Opens it for reading or writing. Only plain files and directories: the host's devices and pipes are not the guest's.
    pub(super) fn open(&self, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        match self.kind {
            FileType::Directory => openat(&self.fd, c".", flags | OFlags::DIRECTORY, Mode::empty()),
            FileType::RegularFile => rustix::fs::open(self.path(), flags | OFlags::NOCTTY, Mode::empty()),
            FileType::Symlink => Err(Errno::LOOP),
            _ => Err(Errno::NXIO),
        }
    }

    /// A path that leads to this very file.
    pub(super) fn path(&self) -> String {
        proc_path(self.fd.as_fd())
    }

    pub(super) fn stat(&self) -> Result<Stat> {
        fstat(&self.fd)
    }

    /// `u32::MAX`: it stays.
    pub(super) fn chown(&self, uid: u32, gid: u32) -> Result<()> {
        let uid = (uid != u32::MAX).then(|| Uid::from_raw(uid));
        let gid = (gid != u32::MAX).then(|| Gid::from_raw(gid));
        rustix::fs::chownat(&self.fd, c"", uid, gid, AtFlags::EMPTY_PATH)
    }

    pub(super) fn chmod(&self, mode: u32) -> Result<()> {
        // A link's own mode means nothing, and no system call sets it.
        if self.kind == FileType::Symlink {
            return Err(Errno::OPNOTSUPP);
        }
        rustix::fs::chmod(self.path(), Mode::from_raw_mode(mode & 0o7777))
    }

    pub(super) fn set_times(&self, times: &Timestamps) -> Result<()> {
        rustix::fs::utimensat(rustix::fs::CWD, self.path(), times, AtFlags::empty())
    }
}

/// A guest makes folders as deep as it likes: each holds the one above, and not one call within the other lets them go.
impl Drop for Node {
    fn drop(&mut self) {
        let mut above = self.place.get_mut().expect(LOCK).take();
        while let Some(place) = above {
            let Some(mut parent) = Arc::into_inner(place.parent) else { return };
            above = parent.place.get_mut().expect(LOCK).take();
        }
    }
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn proc_path(fd: BorrowedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
