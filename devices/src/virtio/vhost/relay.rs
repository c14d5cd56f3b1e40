//! Moves chains between a queue of the guest's and the ring that somebody else works on.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::shadow::{Broken, SIZE, ShadowRing, descriptors};
use crate::virtio::queue::{ActiveQueue, Chain, RingError};
use crate::virtio::worker::QueueWork;

/// Who works on a shadow ring.
pub(in crate::virtio) trait RingUser: Send + Sync {
    /// It has written what makes no sense, and is to touch nothing any more.
    fn give_up(&self, why: &str);
}

/// Who did wrong.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Driver(#[from] RingError),
    #[error(transparent)]
    RingUser(#[from] Broken),
}

/// Works on one queue.
pub(in crate::virtio) struct Relay {
    queue: ActiveQueue,
    ring: ShadowRing,
    /// A chain for which the ring has no room yet.
    held: Option<Chain>,
    user: Arc<dyn RingUser>,
    wires: Wires,
    broken: bool,
}

/// How the two sides of a ring wake each other: the one that works on it is kicked, and calls. Both are non-blocking.
#[derive(Clone)]
pub(in crate::virtio) struct Wires {
    pub kick: Arc<EventFd>,
    pub call: Arc<EventFd>,
}

impl Wires {
    pub fn new() -> io::Result<Self> {
        let event = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map(Arc::new);
        Ok(Self { kick: event()?, call: event()? })
    }
}

impl QueueWork for Relay {
    fn notified(&mut self) {
        // First: what is used from now on is told anew.
        let _ = self.wires.call.read();
        if self.broken {
            return;
        }
        if let Err(trouble) = self.work() {
            self.broken = true;
            match trouble {
                Trouble::Driver(error) => self.queue.fail(&error),
                Trouble::RingUser(what) => self.user.give_up(&what.to_string()),
            }
        }
    }
}

impl Relay {
    /// Between `queue` and `ring`, on which `user` works.
    pub fn new(queue: ActiveQueue, ring: ShadowRing, user: Arc<dyn RingUser>, wires: Wires) -> Self {
        Self { queue, ring, held: None, user, wires, broken: false }
    }

    fn work(&mut self) -> Result<(), Trouble> {
        loop {
            self.give_back()?;
            self.take()?;
            // What is given back makes room, and is told.
            if self.held.is_some() || !self.queue.has_more()? {
                return Ok(());
            }
        }
    }

    /// Gives the guest what has been used. What was used at once may hold one thing together, such as a frame that takes several
    /// buffers, and the guest sees all of it at once, too.
    fn give_back(&mut self) -> Result<(), Trouble> {
        // Within the session: a new one's ring may be at the same place.
        while let Some(used) = self.queue.access(|_| self.ring.pop()) {
            let (chains, written): (Vec<_>, Vec<_>) = used?.into_iter().unzip();
            if chains.is_empty() {
                break;
            }
            self.queue.finish_together(&chains, &written)?;
        }
        Ok(())
    }

    /// Passes on what the guest has made available.
    fn take(&mut self) -> Result<(), Trouble> {
        let mut pushed = false;
        while let Some(chain) = self.next()? {
            let count = descriptors(&chain);
            if count > usize::from(SIZE) {
                return Err(self.queue.bad_buffers(&chain, "are too many").into());
            }
            if count == 0 {
                self.queue.finish(&chain, 0)?;
                continue;
            }
            if !self.ring.has_room(count) {
                self.held = Some(chain);
                break;
            }
            let is_there = self.queue.access(|memory| {
                let mut segments = chain.readable.iter().chain(&chain.writable);
                segments.all(|segment| segment.len == 0 || segment.slice(memory).is_some())
            });
            match is_there {
                None => return Ok(()),
                Some(false) => return Err(self.queue.bad_buffers(&chain, "are not in memory").into()),
                Some(true) => {}
            }
            self.queue.access(|_| self.ring.push(chain));
            pushed = true;
        }
        if pushed {
            self.queue.access(|_| {
                if self.ring.wants_kick() {
                    // Full only after 2^64 - 2 kicks that nobody took.
                    let _ = self.wires.kick.write(1);
                }
            });
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Chain>, RingError> {
        match self.held.take() {
            Some(chain) => Ok(Some(chain)),
            None => self.queue.pop(),
        }
    }
}
