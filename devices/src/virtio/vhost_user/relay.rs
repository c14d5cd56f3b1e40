//! Moves chains between a queue of the guest's and the back end's ring.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::BackEnd;
use super::shadow::{Broken, SIZE, ShadowRing, descriptors};
use crate::virtio::queue::{ActiveQueue, Chain, RingError};
use crate::virtio::worker::QueueWork;

/// Who did wrong.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Driver(#[from] RingError),
    #[error(transparent)]
    BackEnd(#[from] Broken),
}

/// Works on one queue.
pub(super) struct Relay {
    pub queue: ActiveQueue,
    pub ring: ShadowRing,
    /// A chain for which the ring has no room yet.
    pub held: Option<Chain>,
    pub back_end: Arc<BackEnd>,
    /// Wakes the back end, and is how it wakes us.
    pub kick: Arc<EventFd>,
    pub call: Arc<EventFd>,
    pub broken: bool,
}

impl QueueWork for Relay {
    fn notified(&mut self) {
        // First: what is used from now on is told anew.
        let _ = self.call.read();
        if self.broken {
            return;
        }
        if let Err(trouble) = self.work() {
            self.broken = true;
            match trouble {
                Trouble::Driver(error) => self.queue.fail(&error),
                Trouble::BackEnd(what) => self.back_end.give_up(&what.to_string()),
            }
        }
    }
}

impl Relay {
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

    /// Gives the guest what the back end has used.
    fn give_back(&mut self) -> Result<(), Trouble> {
        // Within the session: a new one's ring may be at the same place.
        while let Some(used) = self.queue.access(|_| self.ring.pop()) {
            let Some((chain, written)) = used? else { break };
            self.queue.finish(&chain, written)?;
        }
        Ok(())
    }

    /// Gives the back end what the guest has made available.
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
                    let _ = self.kick.write(1);
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
