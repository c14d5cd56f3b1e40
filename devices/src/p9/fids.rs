//! The numbers by which a client names files.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::node::Node;
use super::wire::Result;

/// Fids of one client at most.
pub(super) const MOST_FIDS: usize = 1 << 16;

/// What a fid stands for.
pub(super) struct Fid {
    pub(super) node: Arc<Node>,
    /// On whose behalf new files are made.
    pub(super) uid: u32,
    pub(super) state: State,
}

/// What it is open for.
pub(super) enum State {
    Closed,
    File {
        fd: OwnedFd,
        is_writable: bool,
    },
    Directory(OwnedFd),
    /// An attribute's value, or the list of their names.
    Attribute(Vec<u8>),
    /// An attribute that is set when the fid is given back.
    NewAttribute {
        name: Vec<u8>,
        value: Vec<u8>,
        size: usize,
        flags: u32,
    },
}

impl Fid {
    pub(super) fn new(node: Arc<Node>, uid: u32) -> Self {
        Self { node, uid, state: State::Closed }
    }

    /// It is not open.
    pub(super) fn closed(&self) -> Result<&Self> {
        if matches!(self.state, State::Closed) { Ok(self) } else { Err(Errno::INVAL) }
    }

    /// The descriptor that it is open by.
    pub(super) fn open_fd(&self) -> Result<&OwnedFd> {
        match &self.state {
            State::File { fd, .. } | State::Directory(fd) => Ok(fd),
            _ => Err(Errno::BADF),
        }
    }
}

/// A client's fids.
#[derive(Default)]
pub(super) struct Fids(HashMap<u32, Fid>);

impl Fids {
    pub(super) fn get(&self, fid: u32) -> Result<&Fid> {
        self.0.get(&fid).ok_or(Errno::BADF)
    }

    pub(super) fn get_mut(&mut self, fid: u32) -> Result<&mut Fid> {
        self.0.get_mut(&fid).ok_or(Errno::BADF)
    }

    /// Whether `fid` can be made.
    pub(super) fn check_new(&self, fid: u32) -> Result<()> {
        match self.0.contains_key(&fid) {
            true => Err(Errno::BADF),
            false if self.0.len() >= MOST_FIDS => Err(Errno::NFILE),
            false => Ok(()),
        }
    }

    pub(super) fn insert(&mut self, number: u32, fid: Fid) -> Result<()> {
        self.check_new(number)?;
        self.0.insert(number, fid);
        Ok(())
    }

    pub(super) fn remove(&mut self, fid: u32) -> Result<Fid> {
        self.0.remove(&fid).ok_or(Errno::BADF)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Fid> {
        self.0.values()
    }
}
